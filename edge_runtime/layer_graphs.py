"""LayerGraphs: a forward pass, one layer at a time, on weights that live elsewhere.

::

    stage 0          hidden = embedding(input_ids)       [batch * sequence, hidden_size]
    stage 1 .. L-1   hidden = layer(hidden)              one graph, bound to each layer's weights
    stage L          loss, scores = last_layer(hidden)   at the answers

Because weights are inputs, one graph serves every layer, and a pass holds the activations of one
layer whatever the depth. Stages whose weights do not move need not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
)
from edge_runtime.families import OPT, Family
from edge_runtime.onnx_runtime import SHARED_ARENA, onnxruntime
from edge_runtime.protocol.errors import BundleError
from edge_runtime.tasks import Batch
from radio.arrays import Float32Array, Int64Array

INPUT_IDS, LABEL_TOKEN_IDS = "input_ids", "label_token_ids"
DATA_INPUTS = {INPUT_IDS, "answer_position", "target", LABEL_TOKEN_IDS, HIDDEN_INPUT}
Arrays = Mapping[str, npt.NDArray[Any]]
NOTHING: Arrays = MappingProxyType({})
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
class Stage:
    """A session at its place in the model.

    Attributes:
        session: of the stage's graph; it may serve others.
        tensor_of_input: the tensor behind each weight that the graph asks for.
        open_rows: of these weights, those of which some rows will do, and what the graph calls
            their number.
        data_inputs: the other inputs.
    """

    session: onnxruntime.InferenceSession
    tensor_of_input: dict[str, str]
    open_rows: dict[str, str]
    data_inputs: frozenset[str]


class LayerGraphs:
    """The sessions of a model; `bind` gives each worker its own way through the stages."""

    def __init__(
        self,
        graphs: Mapping[str, Path | bytes],
        *,
        num_layers: int,
        hidden_size: int,
        family: Family = OPT,
        intra_op_threads: int = 1,
    ) -> None:
        """Open the sessions.

        Args:
            graphs: a bundle's graphs by file name, each a file or its content.
            num_layers: layers of the model, the last one included.
            hidden_size: width of what one layer hands to the next.
            family: of the model: what its layers' tensors are called.
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
        self.stages = [
            _stage(sessions[name], layer, family) for layer, name in enumerate(files, start=-1)
        ]

    def bind(self, inputs: Sequence[Arrays]) -> BoundLayers:
        """One worker's way through the stages.

        Args:
            inputs: of each stage by name: its weights, and the last one's label_token_ids. Bound
                without a copy: a weight changed in place is what the next run sees. What is left
                out is given with each batch.
        """
        return BoundLayers(self.stages, self._hidden_size, inputs)

    def bind_whole(
        self, weights: Mapping[str, Float32Array], label_token_ids: Int64Array
    ) -> BoundLayers:
        """`bind` to every tensor by torch's name, and to the token of each label's word."""
        inputs = [
            {name: weights[tensor] for name, tensor in stage.tensor_of_input.items()}
            for stage in self.stages
        ]
        return self.bind([*inputs[:-1], {**inputs[-1], LABEL_TOKEN_IDS: label_token_ids}])


class BoundLayers:
    """The stages on one set of weights, for one thread at a time."""

    def __init__(self, stages: list[Stage], hidden_size: int, inputs: Sequence[Arrays]) -> None:
        self._stages = stages
        self._hidden_size = hidden_size
        self._kept = inputs  # the bindings hold bare addresses
        self._bindings = [stage.session.io_binding() for stage in stages]
        self._hidden = [np.empty((0, hidden_size), np.float32) for _ in range(2)]
        for arrays, binding in zip(inputs, self._bindings, strict=True):
            for name, array in arrays.items():
                _bind_input(binding, name, array)

    def run(
        self,
        batch: Batch,
        *,
        first_stage: int = 0,
        hidden: Float32Array | None = None,
        asked: Arrays = NOTHING,
    ) -> ForwardOutput:
        """The stages from ``first_stage`` on, to the end.

        Args:
            batch: the examples.
            first_stage: where to begin.
            hidden: what the stages before it gave; None where there are none.
            asked: what ``first_stage`` is given for this batch, by input name.
        """
        last = len(self._stages) - 1
        if first_stage < last:
            out = self._hidden_buffer(last - 1, batch)
            hidden = self._run_stages(batch, first_stage, last, hidden, asked, out)
            asked = NOTHING
        binding = self._bindings[last]
        self._bind_batch(last, batch, hidden, asked)
        binding.bind_output("loss", "cpu")
        binding.bind_output("scores", "cpu")
        self._stages[last].session.run_with_iobinding(binding)
        losses, scores = binding.copy_outputs_to_cpu()
        return ForwardOutput(losses=losses, scores=scores)

    def hidden_after(
        self,
        batch: Batch,
        end: int,
        *,
        first_stage: int = 0,
        hidden: Float32Array | None = None,
        asked: Arrays = NOTHING,
    ) -> Float32Array:
        """What the stages before ``end`` give [batch * sequence, hidden_size]; the caller's.

        There must be at least one, and the last stage gives no hidden state. Arguments as `run`.
        """
        out = np.empty((batch.input_ids.size, self._hidden_size), np.float32)
        return self._run_stages(batch, first_stage, end, hidden, asked, out)

    def _run_stages(
        self,
        batch: Batch,
        first: int,
        end: int,
        hidden: Float32Array | None,
        asked: Arrays,
        result: Float32Array,
    ) -> Float32Array:
        """At least one stage, and not the last; the end is written to ``result``."""
        for index in range(first, end):
            binding = self._bindings[index]
            out = result if index == end - 1 else self._hidden_buffer(index, batch)
            self._bind_batch(index, batch, hidden, asked if index == first else NOTHING)
            where = out.ctypes.data
            binding.bind_output(HIDDEN_OUTPUT, "cpu", 0, np.float32, out.shape, where)
            self._stages[index].session.run_with_iobinding(binding)
            hidden = out
        return result

    def _bind_batch(
        self, index: int, batch: Batch, hidden: Float32Array | None, asked: Arrays
    ) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: batch.input_ids,
            "answer_position": batch.answer_position,
            "target": batch.target,
        }
        if hidden is not None:
            arrays[HIDDEN_INPUT] = hidden
        wanted = self._stages[index].data_inputs
        arrays = {name: array for name, array in arrays.items() if name in wanted} | {**asked}
        for name, array in arrays.items():
            _bind_input(self._bindings[index], name, array)

    def _hidden_buffer(self, stage: int, batch: Batch) -> Float32Array:
        """One of two buffers that stages write to in turn, as many rows as the batch has tokens."""
        index = stage % 2
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


def _stage(session: onnxruntime.InferenceSession, layer: int, family: Family) -> Stage:
    """A session at its place; ``layer`` counts from 0, and what comes before it is -1."""
    shapes = {item.name: item.shape for item in session.get_inputs()}
    weights = sorted(shapes.keys() - DATA_INPUTS)
    return Stage(
        session=session,
        tensor_of_input={
            name: name if name.startswith(_WHOLE_MODEL) else family.layer_tensor(layer, name)
            for name in weights
        },
        open_rows={name: shapes[name][0] for name in weights if isinstance(shapes[name][0], str)},
        data_inputs=frozenset(shapes.keys() & DATA_INPUTS),
    )


def _bind_input(binding: onnxruntime.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
