"""A bundle's weights in another form, without torch: what `pairzero export --store` writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_runtime.bundle import (
    FORMAT_VERSION,
    PAYLOAD_FILES,
    WEIGHTS_FILE,
    Bundle,
    file_digest,
    open_bundle,
    write_manifest,
)
from edge_runtime.parameters import ParameterStore
from server.export.storing import store_weights
from server.files import write_tensors


def store_again(bundle: Bundle, folder: Path, form: str, trainable: Sequence[str] = ()) -> Bundle:
    """A copy of the bundle in ``folder`` with its weights in the form "int16" or "int8"."""
    shutil.copytree(bundle.folder, folder)
    weights = ParameterStore.from_bundle(bundle, None)
    floats = {entry.name: weights.as_float32(entry.name) for entry in weights.entries}
    stored = store_weights(floats, form, trainable)
    write_tensors(folder / WEIGHTS_FILE, stored.arrays)
    write_manifest(
        folder,
        msgspec.structs.replace(
            bundle.manifest,
            format_version=FORMAT_VERSION,
            tensors=stored.entries,
            digests={name: file_digest(folder / name) for name in PAYLOAD_FILES},
        ),
    )
    return open_bundle(folder)
