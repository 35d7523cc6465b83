"""Does a device that opens the bundle compute the model, on the weights as they are stored?

Asked of the finished folder, through everything a device runs: the mapped file, the expansion of
one stage after the other, the rows of the tables. On the weights as they are expanded, and away
from them along a direction, the losses are torch's on the same weights
(`server.export.self_check`, which has shown that the graphs are the model).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import INT8, Bundle, open_bundle
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction
from edge_runtime.tasks import Batch
from radio.arrays import Float32Array
from server.export.dependencies import load
from server.export.families import Architecture
from server.export.self_check import (
    BATCH_SHAPES,
    CheckBatch,
    Reference,
    compare,
    draw_batch,
)

_SEED, _SCALE = 20_26, 2.0**-6
"""A direction far enough away for a wrong sign to show."""


def check_stored(
    folder: Path,
    architecture: Architecture,
    working: dict[str, Float32Array],
    reference: Reference,
    rng: np.random.Generator,
) -> float:
    """The largest relative error that was seen.

    Args:
        folder: the bundle.
        architecture: of the model.
        working: float32 arrays by torch's name. **Changed in place and left changed.**
        reference: losses of the true model on their current contents.
        rng: draws batches.

    Raises:
        ExportError: naming the batch that failed.
    """
    bundle = open_bundle(folder)
    moving = [entry.name for entry in bundle.manifest.tensors if entry.kept_as != INT8]
    labels = np.array(bundle.manifest.label_token_ids, np.int64)
    worst = 0.0
    store = ParameterStore.from_bundle(bundle, moving)
    with closing(store), closing(_open_forward(bundle, store)) as forward:

        def run(batch: CheckBatch) -> dict[str, Float32Array]:
            asked = Batch(batch.input_ids, batch.answer_position, batch.target)
            output = forward.run(asked)
            return {"loss": output.losses, "scores": output.scores}

        for scale in (0.0, _SCALE):
            for name, array in _weights_at(store, scale):
                working[name][...] = array
            where = "the weights as stored" if scale == 0.0 else "the stored weights, moved"
            with store.moved(_SEED, scale):
                for shape in BATCH_SHAPES:
                    batch = draw_batch(shape, architecture, labels, rng)
                    worst = max(worst, compare(run, reference, batch, where))
    return worst


def _open_forward(bundle: Bundle, store: ParameterStore) -> Any:
    return load("edge_runtime.forward").OnnxForward(bundle, store)


def _weights_at(store: ParameterStore, scale: float) -> Iterator[tuple[str, Float32Array]]:
    """Every tensor by name, moved by plain numpy."""
    for index, (entry, moves) in enumerate(zip(store.entries, store.trainable, strict=True)):
        array = store.as_float32(entry.name)
        if scale and moves:
            signs = direction(_SEED, index, array.size).reshape(array.shape)
            array = array + np.float32(scale) * signs
        yield entry.name, array
