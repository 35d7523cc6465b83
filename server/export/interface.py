"""The inputs and outputs of a bundle's graphs, and the loss head, for both export roads.

::

    embedding.onnx    input_ids                                                -> hidden_out
    layer.onnx        input_ids, hidden                                        -> hidden_out
    last_layer.onnx   input_ids, hidden, answer_position, target, label_token_ids -> loss, scores

    input_ids          int64 [batch, sequence]           right padded; a layer reads its shape only
    hidden             float32 [tokens, hidden_size]     tokens = batch * sequence, row by row
    answer_position    int64 [num_answers]               row * sequence + column
    target             int64 [num_answers]               class index
    label_token_ids    int64 [num_classes]               the token of each label's word
    loss               float32 [num_answers]
    scores             float32 [num_answers, num_classes]

and in each graph the weights that it reads, float32 in torch's layout: a layer's by their names
within the layer, the others by torch's. Of the tables that are looked up by number, tokens and
positions, a caller may bind some rows and number them anew: their lengths are open.

Loss of one answer, with s the scores of the label words:
loss = log sum_c exp(s_c) - s_target.

Weights are inputs because only then does a change in the caller's buffer reach the next run,
every time and at every optimisation level, and because one graph can then serve every layer. Right
padding needs no mask: attention is causal, so nothing an answer depends on lies to its right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import (
    EMBEDDING_FILE,
    HIDDEN_INPUT,
    HIDDEN_OUTPUT,
    LAST_LAYER_FILE,
    LAYER_FILE,
    OPEN_POSITIONS,
    OPEN_VOCABULARY,
)
from server.errors import ExportError
from server.export.dependencies import load
from server.export.families import Architecture

OPSET = 18
IR_VERSION = 8
INTEGERS: dict[str, tuple[str, ...]] = {
    "input_ids": ("batch", "sequence"),
    "answer_position": ("num_answers",),
    "target": ("num_answers",),
    "label_token_ids": ("num_classes",),
}
"""Name -> symbolic shape of the int64 inputs."""

Shapes = dict[str, tuple[str | int, ...]]


@dataclass(frozen=True, slots=True)
class GraphInterface:
    """What one graph asks for and gives: names with shapes, dimensions that vary by name."""

    integers: Shapes
    floats: Shapes
    weights: Shapes
    outputs: Shapes


def interfaces(architecture: Architecture) -> dict[str, GraphInterface]:
    """The interface of each graph of a bundle, by file name."""
    ids: Shapes = {"input_ids": INTEGERS["input_ids"]}
    rows = ("tokens", architecture.hidden_size)
    hidden: Shapes = {HIDDEN_INPUT: rows}
    hidden_out: Shapes = {HIDDEN_OUTPUT: rows}
    outputs: Shapes = {"loss": ("num_answers",), "scores": ("num_answers", "num_classes")}
    layer: Shapes = {**architecture.layer_shapes()}
    embedding: Shapes = {**architecture.embedding_shapes()}
    head: Shapes = {**architecture.head_shapes()}
    tables = (
        (embedding, architecture.token_table, OPEN_VOCABULARY),
        (embedding, architecture.position_table, OPEN_POSITIONS),
        (head, architecture.head_weight, OPEN_VOCABULARY),
    )
    for shapes, table, length in tables:
        if table is not None:
            shapes[table] = (length, *shapes[table][1:])
    return {
        EMBEDDING_FILE: GraphInterface(ids, {}, embedding, hidden_out),
        LAYER_FILE: GraphInterface(ids, hidden, layer, hidden_out),
        LAST_LAYER_FILE: GraphInterface({**INTEGERS}, hidden, layer | head, outputs),
    }


def loss_head(hidden: str, head_weight: str) -> tuple[list[Any], list[Any]]:
    """Nodes and constants from the answers' hidden states to the outputs.

    ``hidden`` [num_answers, embedding_width] has passed the final layer norm and projection. It is
    multiplied with the label words' rows only, so the vocabulary is never scored.
    """
    onnx = load("onnx")
    node = onnx.helper.make_node
    nodes = [
        node("Gather", [head_weight, "label_token_ids"], ["head/rows"], axis=0),
        node("Gemm", [hidden, "head/rows"], ["scores"], name="head", transB=1),
        node("ReduceLogSumExp", ["scores", "head/axis"], ["head/normaliser"], keepdims=0),
        node("Unsqueeze", ["target", "head/axis"], ["head/target_column"]),
        node("GatherElements", ["scores", "head/target_column"], ["head/target_score"], axis=1),
        node("Squeeze", ["head/target_score", "head/axis"], ["head/target_score_flat"]),
        node("Sub", ["head/normaliser", "head/target_score_flat"], ["loss"]),
    ]
    axis = onnx.helper.make_tensor("head/axis", onnx.TensorProto.INT64, [1], [1])
    return nodes, [axis]


def assemble(
    nodes: Iterable[Any], constants: Iterable[Any], interface: GraphInterface, name: str
) -> Any:
    """An ``onnx.ModelProto`` of the nodes that the outputs depend on, checked by onnx.

    Raises:
        ExportError: onnx finds the graph malformed.
    """
    onnx = load("onnx")
    info, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    kept = _only_needed(list(nodes), interface.outputs)
    used = {name for node in kept for name in node.input}
    graph = onnx.helper.make_graph(
        kept,
        Path(name).stem,
        [info(n, types.INT64, shape) for n, shape in interface.integers.items()]
        + [info(n, types.FLOAT, shape) for n, shape in interface.floats.items()]
        + [info(n, types.FLOAT, shape) for n, shape in interface.weights.items()],
        [info(n, types.FLOAT, shape) for n, shape in interface.outputs.items()],
        initializer=[constant for constant in constants if constant.name in used],
    )
    model = onnx.helper.make_model(
        graph,
        producer_name="pairzero",
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{name}: the graph made from this model is malformed ({error}). This is a fault of "
            "the export, not of the model: try the other road (via='native' or via='optimum')."
        ) from error
    return model


def _only_needed(nodes: list[Any], outputs: Iterable[str]) -> list[Any]:
    """The nodes that the outputs depend on, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def check_interfaces(graphs: Mapping[str, Any], architecture: Architecture) -> None:
    """Check names and shapes of inputs and outputs, and that no weight is frozen in a graph.

    Raises:
        ExportError: a graph, an input or an output is missing, superfluous or of another shape, a
            weight feeds no node, or a constant is large enough to be a weight.
    """
    wanted = interfaces(architecture)
    if graphs.keys() != wanted.keys():
        raise ExportError(f"graphs: got {sorted(graphs)}, wanted {sorted(wanted)}.")
    for name, interface in wanted.items():
        _check_interface(name, graphs[name].graph, interface)


def _check_interface(where: str, graph: Any, interface: GraphInterface) -> None:
    onnx = load("onnx")
    wanted: Shapes = {**interface.integers, **interface.floats, **interface.weights}
    for kind, found, expected in (
        ("input", graph.input, wanted),
        ("output", graph.output, interface.outputs),
    ):
        shapes = {
            value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in found
        }
        for name in sorted(shapes.keys() | expected.keys()):
            if shapes.get(name) != expected.get(name):
                raise ExportError(
                    f"{where}: {kind} {name}: got shape {shapes.get(name)}, wanted "
                    f"{expected.get(name)} (None: there is no such {kind}). "
                    "The graph does not fit the bundle format: export with via='native'."
                )
    used = {name for node in graph.node for name in node.input}
    idle = [name for name in interface.weights if name not in used]
    if idle:
        raise ExportError(
            f"{where}: no node reads {idle[0]} ({len(idle)} such tensors), so training it would "
            "change nothing. Export with via='native'."
        )
    constants = list(graph.initializer)
    constants += [
        attribute.t
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    for constant in constants:
        if constant.data_type in floats and math.prod(constant.dims) > 1:
            raise ExportError(
                f"{where}: constant {constant.name or '(unnamed)'} of shape "
                f"{tuple(constant.dims)}: wanted no weights inside the graph, because training "
                "could not reach them. Export with via='native'."
            )
