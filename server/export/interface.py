"""The inputs and outputs of every bundle graph, and the loss head, for both export roads.

::

    every weight       float32, its own shape            under torch's name, in torch's layout
    input_ids          int64 [batch, sequence]           right padded
    answer_position    int64 [num_answers]               row * sequence + column
    target             int64 [num_answers]               class index
    label_token_ids    int64 [num_classes]               the token of each label's word
    -> loss            float32 [num_answers]
    -> scores          float32 [num_answers, num_classes]

Loss of one answer, with s the scores of the label words:
loss = log sum_c exp(s_c) - s_target.

Weights are inputs because only then does a change in the caller's buffer reach the next run,
every time and at every optimisation level. Right padding needs no mask: attention is causal, so
nothing an answer depends on lies to its right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from server.errors import ExportError
from server.export.dependencies import load

OPSET = 18
IR_VERSION = 8
INTEGER_INPUTS: dict[str, tuple[str, ...]] = {
    "input_ids": ("batch", "sequence"),
    "answer_position": ("num_answers",),
    "target": ("num_answers",),
    "label_token_ids": ("num_classes",),
}
"""Name -> symbolic shape of the int64 inputs."""

OUTPUTS: dict[str, tuple[str, ...]] = {
    "loss": ("num_answers",),
    "scores": ("num_answers", "num_classes"),
}
"""Name -> symbolic shape of the float32 outputs."""


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
    nodes: Iterable[Any],
    constants: Iterable[Any],
    weight_shapes: Mapping[str, tuple[int, ...]],
) -> Any:
    """An ``onnx.ModelProto`` with the inputs and outputs of this module, checked by onnx.

    Raises:
        ExportError: onnx finds the graph malformed.
    """
    onnx = load("onnx")
    info, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        list(nodes),
        "opt_loss",
        [info(n, types.INT64, shape) for n, shape in INTEGER_INPUTS.items()]
        + [info(n, types.FLOAT, shape) for n, shape in weight_shapes.items()],
        [info(n, types.FLOAT, shape) for n, shape in OUTPUTS.items()],
        initializer=list(constants),
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
            f"The graph made from this model is malformed ({error}). This is a fault of the "
            "export, not of the model: try the other road (via='native' or via='optimum')."
        ) from error
    return model


def check_interface(model: Any, weight_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check names and shapes of inputs and outputs, and that no weight is frozen in the graph.

    Raises:
        ExportError: an input or output is missing, superfluous or of another shape, a weight feeds
            no node, or a constant is large enough to be a weight.
    """
    onnx = load("onnx")
    graph = model.graph
    wanted: dict[str, tuple[str | int, ...]] = {**INTEGER_INPUTS, **weight_shapes}
    for kind, found, expected in (
        ("input", graph.input, wanted),
        ("output", graph.output, dict(OUTPUTS)),
    ):
        shapes = {
            value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in found
        }
        for name in sorted(shapes.keys() | expected.keys()):
            if shapes.get(name) != expected.get(name):
                raise ExportError(
                    f"graph {kind} {name}: got shape {shapes.get(name)}, wanted "
                    f"{expected.get(name)} (None: there is no such {kind}). "
                    "The graph does not fit the bundle format: export with via='native'."
                )
    used = {name for node in graph.node for name in node.input}
    idle = [name for name in weight_shapes if name not in used]
    if idle:
        raise ExportError(
            f"{idle[0]}: no node of the graph reads it ({len(idle)} such tensors), so training it "
            "would change nothing. Export with via='native'."
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
                f"constant {constant.name or '(unnamed)'} of shape {tuple(constant.dims)}: wanted "
                "no weights inside the graph, because training could not reach them. "
                "Export with via='native'."
            )
