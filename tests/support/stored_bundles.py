"""Bundles in small weights, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_runtime import bundle as bundles
from server.export import stored_again


def store_again(
    bundle: bundles.Bundle, folder: Path, form: str, trainable: Sequence[str] = ()
) -> bundles.Bundle:
    """The bundle in ``folder`` in the form "int16" or "int8"."""
    stored_again.store_again(bundle.folder, folder, store=form, trainable=list(trainable))
    return bundles.open_bundle(folder)
