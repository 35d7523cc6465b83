"""What the graph builders of all families have in common: nodes, small constants, a causal mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_runtime.bundle import (
    EMBEDDING_FILE,
    GRAPH_FILES,
    HIDDEN_OUTPUT,
    LAST_LAYER_FILE,
    LAYER_FILE,
)
from server.export.dependencies import load
from server.export.families import Architecture
from server.export.interface import assemble, interfaces


def build_all(architecture: Architecture, new: Callable[[], GraphBuilder]) -> dict[str, Any]:
    """File name -> ``onnx.ModelProto``, each by a builder of its own."""
    builders = {name: new() for name in GRAPH_FILES}
    builders[EMBEDDING_FILE].embed()
    builders[LAYER_FILE].layer(HIDDEN_OUTPUT, is_last=False)
    builders[LAST_LAYER_FILE].last_layer()
    return {
        name: assemble(builder.nodes, builder.constants, interfaces(architecture)[name], name)
        for name, builder in builders.items()
    }


class GraphBuilder:
    """Collects nodes and constants; every method returns its output's name.

    Activations are [tokens, width], tokens = batch * sequence, so every linear map is one Gemm that
    reads the weight in torch's layout.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._onnx = load("onnx")

    def embed(self) -> str:
        """Tokens to the first layer's input."""
        raise NotImplementedError

    def layer(self, output: str, *, is_last: bool) -> str:
        """One layer, at the answers only from its attention on if it is the last."""
        raise NotImplementedError

    def last_layer(self) -> None:
        """The last layer at the answers, and from there to the loss."""
        raise NotImplementedError

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One node."""
        self.nodes.append(self._onnx.helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant of some integers."""
        return self._constant(name, np.array(values, dtype=np.int64))

    def scalar(self, name: str, value: float) -> str:
        """A constant of one number."""
        return self._constant(name, np.array(value, dtype=np.float32))

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.constants.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def project(self, x: str, weight: str, output: str) -> str:
        """X W^T, without a bias."""
        return self.add("Gemm", [x, weight], output, transB=1)

    def lengths(self) -> None:
        """What the batch says of itself: "shape/ids" [batch, sequence] and "shape/sequence"."""
        self.add("Shape", ["input_ids"], "shape/ids")
        self.add("Shape", ["input_ids"], "shape/sequence", start=1)

    def causal_mask(self) -> str:
        """[sequence, sequence], to be added to scores: 0 up to the diagonal, and lowest above.

        The lowest finite number, not -inf: a diverged score then gives a NaN that is noticed as
        NaN, and the softmax of it is exactly zero all the same.
        """
        lowest = np.array([np.finfo(np.float32).min], dtype=np.float32)
        square = self.add("Concat", ["shape/sequence", "shape/sequence"], "mask/shape", axis=0)
        value = self._onnx.numpy_helper.from_array(lowest)
        full = self.add("ConstantOfShape", [square], "mask/full", value=value)
        self._constant("mask/k", np.array(1, np.int64))
        return self.add("Trilu", [full, "mask/k"], "mask/causal", upper=1)
