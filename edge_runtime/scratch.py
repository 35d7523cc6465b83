"""Scratch: float32 copies of the matrices that the next stage reads, made just before it runs.

::

    for each stage:   scratch = expand(stored) + scale z     (`edge_runtime.stored_matrix`)
                      every batch through the stage

One layer's scratch serves all layers. Of a table that is looked up by number (tokens, positions,
the words of the labels) only the rows that are asked for are copied, and whoever asks is told the
new numbers; the graph says which tables these are, by the names of the sizes that it leaves open.

Where everything is kept as float32 there is nothing to copy: the stages are bound to the weights
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import OPEN_VOCABULARY
from edge_runtime.layer_graphs import INPUT_IDS, LABEL_TOKEN_IDS, Arrays, Stage
from edge_runtime.parameters import ParameterStore
from edge_runtime.tasks import Batch
from radio.arrays import Float32Array, Int64Array


class Scratch:
    """What the stages of a model read.

    Args:
        store: the weights.
        stages: of the model.
        label_token_ids: the token of each label's word [num_classes].
        num_positions: tokens of the longest prompt; a table of positions may begin with more rows.
    """

    def __init__(
        self,
        store: ParameterStore,
        stages: Sequence[Stage],
        label_token_ids: Int64Array,
        num_positions: int,
    ) -> None:
        self._store, self._stages = store, stages
        names = store.expanded
        self._expanded = [
            {name: tensor for name, tensor in stage.tensor_of_input.items() if tensor in names}
            for stage in stages
        ]
        self._label_token_ids, self._num_positions = label_token_ids, num_positions
        self._shapes = {entry.name: entry.shape for entry in store.entries}
        # By input name: a layer's matrices are called the same in every layer.
        self._copies: dict[str, Float32Array] = {}
        for stage, expanded in zip(stages, self._expanded, strict=True):
            for name, tensor in expanded.items():
                if name not in stage.open_rows:
                    self._copies.setdefault(name, np.empty(self._shapes[tensor], np.float32))
        # Rows that the batches of the first stage ask for; of the vocabulary, these tokens.
        self._rows: dict[str, Float32Array] = {}
        self._tokens: Int64Array | None = None
        # Rows of the labels' words, where the last stage looks them up.
        self._words: dict[str, Float32Array] = {
            name: np.empty((len(label_token_ids), self._shapes[tensor][1]), np.float32)
            for name, tensor in self._expanded[-1].items()
            if name in stages[-1].open_rows
        }
        tensors = store.tensors
        self._bound = [self._arrays(index, tensors) for index in range(len(stages))]

    @property
    def bound(self) -> Sequence[Arrays]:
        """What each stage is bound to for good, by input name."""
        return self._bound

    def ranges(self, first: int, end: int) -> list[tuple[int, int]]:
        """The stages ``first .. end`` in pieces; before each `prepare` is due."""
        starts = [first] + [index for index in range(first + 1, end) if self._expanded[index]]
        return list(zip(starts, [*starts[1:], end], strict=True)) if first < end else []

    def prepare(self, index: int, batches: Sequence[Batch]) -> None:
        """Copy what a stage reads, as the weights are now. Not while a pass runs."""
        stage = self._stages[index]
        self._rows, self._tokens = {}, None
        for name, tensor in self._expanded[index].items():
            size = stage.open_rows.get(name)
            if size is None:
                self._store.expand(tensor, self._copies[name])
            elif name in self._words and index == len(self._stages) - 1:
                self._store.expand(tensor, self._words[name], self._label_token_ids)
            elif size == OPEN_VOCABULARY:
                self._tokens = np.unique(np.concatenate([b.input_ids.reshape(-1) for b in batches]))
                self._rows[name] = self._expand_rows(tensor, self._tokens)
            else:
                longest = max(batch.input_ids.shape[1] for batch in batches)
                num_rows = self._shapes[tensor][0] - self._num_positions + longest
                self._rows[name] = self._expand_rows(tensor, np.arange(num_rows))

    def asked(self, index: int, batch: Batch) -> Arrays:
        """What a stage is bound to for one of the batches that it was prepared for."""
        if index != 0:
            return {}
        if self._tokens is None:
            return self._rows
        return {**self._rows, INPUT_IDS: np.searchsorted(self._tokens, batch.input_ids)}

    def _expand_rows(self, tensor: str, rows: Int64Array) -> Float32Array:
        out = np.empty((len(rows), self._shapes[tensor][1]), np.float32)
        self._store.expand(tensor, out, rows)
        return out

    def _arrays(self, index: int, tensors: dict[str, Float32Array]) -> dict[str, npt.NDArray[Any]]:
        stage = self._stages[index]
        is_last = index == len(self._stages) - 1
        arrays: dict[str, npt.NDArray[Any]] = {
            name: tensors[tensor] if tensor in tensors else self._copies[name]
            for name, tensor in stage.tensor_of_input.items()
            if tensor in tensors or name not in stage.open_rows
        }
        if is_last:
            arrays |= self._words
            count = len(self._label_token_ids)
            arrays[LABEL_TOKEN_IDS] = np.arange(count) if self._words else self._label_token_ids
        return arrays
