"""LayerGraphs: a forward pass, one layer at a time, on weights that live elsewhere.

::

    stage 0          hidden = embedding(input_ids)       [batch * sequence, hidden_size]
    stage 1 .. L-1   hidden = layer(hidden)              one graph, bound to each layer's weights
    stage L          loss, scores = last_layer(hidden)   at the answers

Because weights are inputs, one graph serves every layer, and a pass holds the activations of one
layer whatever the depth. Stages whose weights do not move need not run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import (
    EMBEDDING_FILE,
    GRAPH_FILES,
    HIDDEN_INPUT,
    HIDDEN_OUTPUT,
    LAST_LAYER_FILE,
    LAYER_FILE,
    layer_tensor,
)
from edge_runtime.onnx_runtime import SHARED_ARENA, onnxruntime
from edge_runtime.protocol.errors import BundleError
from edge_runtime.tasks import Batch
from radio.arrays import Float32Array, Int64Array

DATA_INPUTS = {"input_ids", "answer_position", "target", "label_token_ids", HIDDEN_INPUT}
_WHOLE_MODEL = ("model.", "lm_head.")


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """What one forward pass gives.

    Attributes:
        losses: loss of each answer [num_answers].
        scores: logit of each label's word [num_answers, num_classes].
    """

    losses: Float32Array
    scores: Float32Array


@dataclass(frozen=True, slots=True)
class _Stage:
    """A session and, for each weight that its graph asks for, the tensor to bind."""

    session: onnxruntime.InferenceSession
    tensor_of_input: dict[str, str]
    data_inputs: frozenset[str]


class LayerGraphs:
    """The sessions of a model; `bind` gives each worker its own way through the stages."""

    def __init__(
        self,
        graphs: Mapping[str, Path | bytes],
        *,
        num_layers: int,
        hidden_size: int,
        intra_op_threads: int = 1,
    ) -> None:
        """Open the sessions.

        Args:
            graphs: a bundle's graphs by file name, each a file or its content.
            num_layers: layers of the model, the last one included.
            hidden_size: width of what one layer hands to the next.
            intra_op_threads: threads within one pass.

        Raises:
            BundleError: onnxruntime refuses a graph.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The sessions take turns in one arena. A memory pattern would give each a block of its own.
        options.enable_mem_pattern = False
        # Each has threads of its own, which must not spin on into the next one's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry(*SHARED_ARENA)
        sessions = {name: _open(name, graphs[name], options) for name in GRAPH_FILES}
        files = [EMBEDDING_FILE, *[LAYER_FILE] * (num_layers - 1), LAST_LAYER_FILE]
        self._hidden_size = hidden_size
        self._stages = [_stage(sessions[name], layer) for layer, name in enumerate(files, start=-1)]

    def tensors_by_stage(self) -> list[set[str]]:
        """The tensors that each stage reads, in the order of the stages."""
        return [set(stage.tensor_of_input.values()) for stage in self._stages]

    def bind(self, weights: Mapping[str, Float32Array], label_token_ids: Int64Array) -> BoundLayers:
        """One worker's way through the stages.

        Args:
            weights: every tensor by torch's name. Bound without a copy: a weight changed in place
                is what the next run sees.
            label_token_ids: the token of each label's word [num_classes]. Not copied either.
        """
        return BoundLayers(self._stages, self._hidden_size, weights, label_token_ids)


class BoundLayers:
    """The stages on one set of weights, for one thread at a time."""

    def __init__(
        self,
        stages: list[_Stage],
        hidden_size: int,
        weights: Mapping[str, Float32Array],
        label_token_ids: Int64Array,
    ) -> None:
        self._stages = stages
        self._hidden_size = hidden_size
        self._kept = (weights, label_token_ids)  # the bindings hold bare addresses
        self._bindings = [stage.session.io_binding() for stage in stages]
        self._hidden = [np.empty((0, hidden_size), np.float32) for _ in range(2)]
        for stage, binding in zip(stages, self._bindings, strict=True):
            for name, tensor in stage.tensor_of_input.items():
                _bind_input(binding, name, weights[tensor])
        _bind_input(self._bindings[-1], "label_token_ids", label_token_ids)

    def run(
        self, batch: Batch, *, first_stage: int = 0, hidden: Float32Array | None = None
    ) -> ForwardOutput:
        """The stages from ``first_stage`` on, to the end.

        Args:
            batch: the examples.
            first_stage: where to begin.
            hidden: what the stages before it gave; None where there are none.
        """
        last = len(self._stages) - 1
        hidden = self._run_stages(batch, first_stage, last, hidden)
        binding = self._bindings[last]
        self._bind_batch(last, batch, hidden)
        binding.bind_output("loss", "cpu")
        binding.bind_output("scores", "cpu")
        self._stages[last].session.run_with_iobinding(binding)
        losses, scores = binding.copy_outputs_to_cpu()
        return ForwardOutput(losses=losses, scores=scores)

    def hidden_after(self, batch: Batch, num_stages: int) -> Float32Array:
        """What the first ``num_stages`` stages give [batch * sequence, hidden_size]; the caller's.

        There must be at least one, and the last stage gives no hidden state.
        """
        hidden = self._run_stages(batch, 0, num_stages, None)
        assert hidden is not None
        return hidden.copy()

    def _run_stages(
        self, batch: Batch, first: int, end: int, hidden: Float32Array | None
    ) -> Float32Array | None:
        for index in range(first, end):
            binding, out = self._bindings[index], self._hidden_buffer(index % 2, batch)
            self._bind_batch(index, batch, hidden)
            where = out.ctypes.data
            binding.bind_output(HIDDEN_OUTPUT, "cpu", 0, np.float32, out.shape, where)
            self._stages[index].session.run_with_iobinding(binding)
            hidden = out
        return hidden

    def _bind_batch(self, index: int, batch: Batch, hidden: Float32Array | None) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "answer_position": batch.answer_position,
            "target": batch.target,
        }
        if hidden is not None:
            arrays[HIDDEN_INPUT] = hidden
        for name in self._stages[index].data_inputs & arrays.keys():
            _bind_input(self._bindings[index], name, arrays[name])

    def _hidden_buffer(self, index: int, batch: Batch) -> Float32Array:
        """One of two buffers that stages write to in turn, as many rows as the batch has tokens."""
        if len(self._hidden[index]) < batch.input_ids.size:
            self._hidden[index] = np.empty((batch.input_ids.size, self._hidden_size), np.float32)
        return self._hidden[index][: batch.input_ids.size]


def _open(
    name: str, graph: Path | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    where = name if isinstance(graph, bytes) else graph
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime raises many types for one cause: a bad graph
        raise BundleError(f"{where}: onnxruntime refuses it: {error}") from error


def _stage(session: onnxruntime.InferenceSession, layer: int) -> _Stage:
    """A session at its place; ``layer`` counts from 0, and what comes before it is -1."""
    inputs = {item.name for item in session.get_inputs()}
    return _Stage(
        session=session,
        tensor_of_input={
            name: name if name.startswith(_WHOLE_MODEL) else layer_tensor(layer, name)
            for name in sorted(inputs - DATA_INPUTS)
        },
        data_inputs=frozenset(inputs & DATA_INPUTS),
    )


def _bind_input(binding: onnxruntime.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
