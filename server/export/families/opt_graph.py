"""The native road: the graphs of an OPT, generated from its dimensions alone.

::

    embedding    x = E[input_ids] (project_in) + P[2 .. 2 + sequence]
    layer        pre-norm:   x += attention(norm(x));   x += ffn(norm(x))
                 post-norm:  x = norm(x + attention(x)); x = norm(x + ffn(x))
    last layer   the same, then (final norm) (project_out) -> loss head
    attention = out_proj(softmax(q k^T + causal) v),  q = (W_q x + b_q) / sqrt(head_dim)

Activations are kept as [batch * sequence, width], so every linear map is one Gemm that reads the
weight in torch's layout. In the last layer everything after the attention runs at the answer
positions only: nothing else of it is ever read, which saves three quarters of that layer and the
head of every other position.

Left out: dropout (a forward-only device never trains with it), attention masks for left padding,
and cached keys. Equal to torch within float32 rounding, see `server.export.self_check`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge_runtime.bundle import HIDDEN_INPUT, HIDDEN_OUTPUT
from server.errors import ExportError
from server.export.families.graph_builder import GraphBuilder, build_all
from server.export.families.opt import (
    EMBEDDING,
    FINAL_NORM,
    POSITION_OFFSET,
    POSITIONS,
    PROJECT_IN,
    PROJECT_OUT,
    OptArchitecture,
)
from server.export.interface import loss_head

ACTIVATIONS = ("relu", "gelu")

LAYER_NORM_EPSILON = 1e-5
"""torch's default, which OPT uses throughout."""


def build_graphs(architecture: OptArchitecture) -> dict[str, Any]:
    """File name -> ``onnx.ModelProto``; see `server.export.interface` for inputs and outputs.

    Raises:
        ExportError: the architecture has a variant this generator does not know.
    """
    check_supported(architecture)
    return build_all(architecture, lambda: _Builder(architecture))


def check_supported(architecture: OptArchitecture) -> None:
    """Refuse what this generator does not know, by name."""
    if architecture.activation_function not in ACTIVATIONS:
        raise ExportError(
            f"activation_function: got {architecture.activation_function!r}, the native road "
            f"knows {' and '.join(map(repr, ACTIVATIONS))}. Export with via='optimum'."
        )


class _Builder(GraphBuilder):
    def __init__(self, architecture: OptArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.shared_shapes()

    def linear(self, x: str, name: str, output: str, *, scale: float = 1.0) -> str:
        """Scale * (x W^T + b): Gemm takes the scale into its own alpha and beta."""
        inputs = [x, f"{name}.weight"]
        if self.architecture.enable_bias:
            inputs.append(f"{name}.bias")
        return self.add("Gemm", inputs, output, alpha=scale, beta=scale, transB=1)

    def norm(self, x: str, name: str, output: str) -> str:
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        if not self.architecture.layer_norm_elementwise_affine:
            inputs = [x, "norm/ones"]
        return self.add("LayerNormalization", inputs, output, epsilon=LAYER_NORM_EPSILON, axis=-1)

    def activate(self, x: str, output: str) -> str:
        """Relu, or gelu(x) = x/2 (1 + erf(x / sqrt 2)), in the form that onnxruntime fuses."""
        if self.architecture.activation_function == "relu":
            return self.add("Relu", [x], output)
        y = self.add("Div", [x, "gelu/sqrt2"], f"{output}_scaled")
        y = self.add("Erf", [y], f"{output}_erf")
        y = self.add("Add", [y, "gelu/one"], f"{output}_shifted")
        y = self.add("Mul", [x, y], f"{output}_product")
        return self.add("Mul", [y, "gelu/half"], output)

    def last_layer(self) -> None:
        """The last layer at the answers, and from there to the loss."""
        a = self.architecture
        x = self.layer("layer_out", is_last=True)
        if a.has_final_layer_norm:
            x = self.norm(x, FINAL_NORM, "final_norm")
        if a.has_projections:
            x = self.project(x, PROJECT_OUT, "project_out")
        nodes, constants = loss_head(x, a.head_weight)
        self.nodes += nodes
        self.constants += constants

    def shared_shapes(self) -> None:
        """What depends on batch and sequence only: shapes, end of positions, causal mask."""
        a = self.architecture
        self.lengths()
        self.integers("shape/head", [a.num_attention_heads, a.head_dim])
        self.integers("shape/width", [a.hidden_size])
        self.integers("shape/flat", [-1, a.hidden_size])
        self.add("Concat", ["shape/ids", "shape/head"], "shape/split", axis=0)
        self.add("Concat", ["shape/ids", "shape/width"], "shape/embedded", axis=0)

        if a.activation_function == "gelu":
            self.scalar("gelu/sqrt2", math.sqrt(2.0))
            self.scalar("gelu/one", 1.0)
            self.scalar("gelu/half", 0.5)
        if not a.layer_norm_elementwise_affine:
            # Made on the spot: a constant of this size could be a weight that training misses.
            one = self._onnx.numpy_helper.from_array(np.ones(1, dtype=np.float32))
            self.add("ConstantOfShape", ["shape/width"], "norm/ones", value=one)

        self.integers("position/start", [POSITION_OFFSET])
        self.integers("position/axis", [0])
        self.add("Add", ["shape/sequence", "position/start"], "position/end")

        self.causal_mask()

    def embed(self) -> str:
        """Token plus position embedding."""
        x = self.add("Gather", [EMBEDDING, "input_ids"], "embed/token", axis=0)
        if self.architecture.has_projections:
            x = self.add("Flatten", [x], "embed/token_flat", axis=2)
            x = self.project(x, PROJECT_IN, "embed/projected")
            x = self.add("Reshape", [x, "shape/embedded"], "embed/token_wide")
        rows = [POSITIONS, "position/start", "position/end", "position/axis"]
        positions = self.add("Slice", rows, "embed/position")
        x = self.add("Add", [x, positions], "embed/sum")
        return self.add("Flatten", [x], HIDDEN_OUTPUT, axis=2)

    def layer(self, output: str, *, is_last: bool) -> str:
        """One layer, at the answers only from its attention on if it is the last."""
        x, pre_norm = HIDDEN_INPUT, self.architecture.do_layer_norm_before
        sum2 = output if pre_norm else "sum2"

        inner = self.norm(x, "self_attn_layer_norm", "norm1") if pre_norm else x
        context = self.attend(inner)
        if is_last:
            context = self.add("Gather", [context, "answer_position"], "context_at_answer")
            x = self.add("Gather", [x, "answer_position"], "x_at_answer")
        mixed = self.linear(context, "self_attn.out_proj", "out_proj")
        x = self.add("Add", [x, mixed], "sum1")
        if not pre_norm:
            x = self.norm(x, "self_attn_layer_norm", "norm1")

        inner = self.norm(x, "final_layer_norm", "norm2") if pre_norm else x
        inner = self.linear(inner, "fc1", "fc1")
        inner = self.activate(inner, "activation")
        inner = self.linear(inner, "fc2", "fc2")
        x = self.add("Add", [x, inner], sum2)
        return x if pre_norm else self.norm(x, "final_layer_norm", output)

    def attend(self, x: str) -> str:
        """Causal attention without out_proj, [tokens, hidden_size]."""

        def split(projection: str, perm: list[int], scale: float = 1.0) -> str:
            y = self.linear(x, f"self_attn.{projection}", projection, scale=scale)
            y = self.add("Reshape", [y, "shape/split"], f"{projection}_split")
            return self.add("Transpose", [y], f"{projection}_heads", perm=perm)

        query = split("q_proj", [0, 2, 1, 3], self.architecture.head_dim**-0.5)
        key = split("k_proj", [0, 2, 3, 1])
        value = split("v_proj", [0, 2, 1, 3])
        scores = self.add("MatMul", [query, key], "attention/scores")
        scores = self.add("Add", [scores, "mask/causal"], "attention/masked")
        shares = self.add("Softmax", [scores], "attention/softmax", axis=-1)
        y = self.add("MatMul", [shares, value], "attention/context_heads")
        y = self.add("Transpose", [y], "attention/context_split", perm=[0, 2, 1, 3])
        return self.add("Reshape", [y, "shape/flat"], "attention/context")
