"""A bundle once more, with its weights in 16 or 8 bits: without torch and the model it came from.

The graphs stay. They are the model, as its own export has shown; that a device which reads the new
file computes the same is checked against these graphs, bound to whole float32 weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import FLOAT32, GRAPH_FILES, open_bundle
from edge_runtime.parameters import ParameterStore
from radio.arrays import Float32Array
from server.errors import ExportError
from server.export import SELF_CHECK_SEED
from server.export.bundle_writer import BundleContents, write_bundle
from server.export.dependencies import load
from server.export.families import Architecture, architecture_from
from server.export.self_check import CheckBatch, Reference
from server.export.stored_check import check_stored
from server.export.storing import check_form
from server.files import check_is_free


def store_again(source: Path, out: Path, *, store: str, trainable: Sequence[str] = ()) -> Path:
    """Write a bundle's weights in another form into the new folder ``out``.

    Args:
        source: a bundle of floats.
        out: the new one; must not exist yet, or be empty.
        store: "int16" or "int8".
        trainable: see `server.export.storing.store_weights`.

    Guarantees: as `server.export.export_bundle`.

    Raises:
        ExportError: the weights are small already, no such form, or the check fails.
        BundleError: no sound bundle.
    """
    check_form(store, trainable)
    check_is_free(out, ExportError)
    bundle = open_bundle(source)
    manifest = bundle.manifest
    if store == FLOAT32 or any(entry.kept_as != FLOAT32 for entry in manifest.tensors):
        raise ExportError(
            f"{source}: a bundle can be stored again in 16 or 8 bits (--store), and only from "
            "float32. Export the model itself."
        )
    weights = ParameterStore.from_bundle(bundle, None)
    architecture = architecture_from(manifest.family, manifest.architecture)
    graphs = {name: (source / name).read_bytes() for name in GRAPH_FILES}
    contents = BundleContents(
        source_model=manifest.source_model,
        architecture=architecture,
        task=manifest.task,
        label_token_ids=manifest.label_token_ids,
        graphs=graphs,
        weights=weights.tensors,
        tokenizer_json=bundle.tokenizer_path.read_text(encoding="utf-8"),
        store=store,
        trainable=trainable,
    )

    def check(folder: Path) -> None:
        working = {name: array.copy() for name, array in weights.tensors.items()}
        reference = _whole_pass(graphs, architecture, working)
        rng = np.random.default_rng(SELF_CHECK_SEED)
        check_stored(folder, architecture, working, reference, rng)

    return write_bundle(out, contents, check)


def _whole_pass(
    graphs: dict[str, bytes], architecture: Architecture, working: dict[str, Float32Array]
) -> Reference:
    """The graphs on whole weights, as they are when it is called."""
    opened: Any = load("edge_runtime.layer_graphs").LayerGraphs(
        graphs,
        num_layers=architecture.num_hidden_layers,
        hidden_size=architecture.hidden_size,
        family=architecture.family,
    )

    def run(batch: CheckBatch) -> dict[str, Float32Array]:
        output = opened.bind_whole(working, batch.label_token_ids).run(batch)
        return {"loss": output.losses, "scores": output.scores}

    return run
