"""The graphs of a Llama, generated from its dimensions alone.

::

    embedding    x = E[input_ids]
    layer        x += o_proj(attention(norm(x)));  x += down(silu(gate(y)) up(y)),  y = norm(x)
    last layer   the same, then norm -> loss head
    norm(x)      x / sqrt(mean(x^2) + eps) w
    attention    softmax(q k^T / sqrt(d) + causal) v, q and k turned by their positions

A head's query and key are turned in pairs (i, i + d/2) by the angle p theta^(-2i/d) at position p:
with the halves of x exchanged and the first one's sign folded into the sine,

    turned(x) = x cos + exchanged(x) sine,   sine = (-sin, sin)

Each head of keys serves g heads of queries: the product is one of five dimensions, where keys have
length 1 in the place of g, so none of them is copied. In the last layer everything after the
attention runs at the answer positions only.

Left out: scaled angles, sliding windows, biases, cached keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_runtime.bundle import HIDDEN_INPUT, HIDDEN_OUTPUT
from server.export.families.graph_builder import GraphBuilder, build_all
from server.export.families.llama import (
    EMBEDDING,
    FINAL_NORM,
    INPUT_NORM,
    MLP_NORM,
    LlamaArchitecture,
)
from server.export.interface import loss_head


def build_graphs(architecture: LlamaArchitecture) -> dict[str, Any]:
    """File name -> ``onnx.ModelProto``; see `server.export.interface` for inputs and outputs."""
    return build_all(architecture, lambda: _Builder(architecture))


class _Builder(GraphBuilder):
    def __init__(self, architecture: LlamaArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.lengths()
        self.causal_mask()
        self.shapes()
        self.angles()

    def embed(self) -> str:
        x = self.add("Gather", [EMBEDDING, "input_ids"], "embed/token", axis=0)
        return self.add("Flatten", [x], HIDDEN_OUTPUT, axis=2)

    def last_layer(self) -> None:
        """The last layer at the answers, and from there to the loss."""
        x = self.norm(self.layer("layer_out", is_last=True), FINAL_NORM, "final_norm")
        nodes, constants = loss_head(x, self.architecture.head_weight)
        self.nodes += nodes
        self.constants += constants

    def layer(self, output: str, *, is_last: bool) -> str:
        """One layer, at the answers only from its attention on if it is the last."""
        x = HIDDEN_INPUT
        context = self.attend(self.norm(x, INPUT_NORM, "norm1"))
        if is_last:
            context = self.add("Gather", [context, "answer_position"], "context_at_answer")
            x = self.add("Gather", [x, "answer_position"], "x_at_answer")
        mixed = self.project(context, "self_attn.o_proj.weight", "o_proj")
        x = self.add("Add", [x, mixed], "sum1")

        y = self.norm(x, MLP_NORM, "norm2")
        gate = self.project(y, "mlp.gate_proj.weight", "gate")
        sigmoid = self.add("Sigmoid", [gate], "sigmoid")
        gate = self.add("Mul", [gate, sigmoid], "silu")
        y = self.add("Mul", [gate, self.project(y, "mlp.up_proj.weight", "up")], "gated")
        y = self.project(y, "mlp.down_proj.weight", "down")
        return self.add("Add", [x, y], output)

    def norm(self, x: str, weight: str, output: str) -> str:
        square = self.add("Mul", [x, x], f"{output}/square")
        mean = self.add("ReduceMean", [square, "norm/axis"], f"{output}/mean", keepdims=1)
        shifted = self.add("Add", [mean, "norm/eps"], f"{output}/shifted")
        root = self.add("Sqrt", [shifted], f"{output}/root")
        scaled = self.add("Div", [x, root], f"{output}/scaled")
        return self.add("Mul", [scaled, weight], output)

    def attend(self, x: str) -> str:
        """Causal attention without o_proj, [tokens, heads * head_dim]."""
        query = self.heads(x, "q", [0, 2, 1, 3])
        query = self.add("Mul", [self.turned(query, "q"), "attention/scale"], "q_scaled")
        query = self.add("Reshape", [query, "shape/queries5"], "q_groups")
        key = self.turned(self.heads(x, "k", [0, 2, 1, 3]), "k")
        key = self.add("Transpose", [key], "k_columns", perm=[0, 1, 3, 2])
        key = self.add("Reshape", [key, "shape/keys5"], "k_groups")
        value = self.heads(x, "v", [0, 2, 1, 3])
        value = self.add("Reshape", [value, "shape/values5"], "v_groups")
        scores = self.add("MatMul", [query, key], "attention/scores")
        scores = self.add("Add", [scores, "mask/causal"], "attention/masked")
        shares = self.add("Softmax", [scores], "attention/softmax", axis=-1)
        y = self.add("MatMul", [shares, value], "attention/context_groups")
        y = self.add("Reshape", [y, "shape/queries4"], "attention/context_heads")
        y = self.add("Transpose", [y], "attention/context_split", perm=[0, 2, 1, 3])
        return self.add("Reshape", [y, "shape/flat"], "attention/context")

    def heads(self, x: str, kind: str, perm: list[int]) -> str:
        """A projection as [batch, heads, sequence, head_dim]."""
        y = self.project(x, f"self_attn.{kind}_proj.weight", f"{kind}_proj")
        shape = "shape/split_queries" if kind == "q" else "shape/split_keys"
        y = self.add("Reshape", [y, shape], f"{kind}_split")
        return self.add("Transpose", [y], f"{kind}_heads", perm=perm)

    def turned(self, x: str, kind: str) -> str:
        """Every head by the angles of its position."""
        first, second = f"{kind}_first", f"{kind}_second"
        halves = self._onnx.helper.make_node(
            "Split", [x], [first, second], f"{kind}_halves", axis=-1, num_outputs=2
        )
        self.nodes.append(halves)
        exchanged = self.add("Concat", [second, first], f"{kind}_exchanged", axis=-1)
        straight = self.add("Mul", [x, "angle/cos"], f"{kind}_straight")
        across = self.add("Mul", [exchanged, "angle/sine"], f"{kind}_across")
        return self.add("Add", [straight, across], f"{kind}_turned")

    def shapes(self) -> None:
        """Batch and sequence in front of what heads are made of."""
        a = self.architecture
        heads, keys, dim = a.num_attention_heads, a.num_key_value_heads, a.head_dim
        self.integers("shape/zero", [0])
        self.integers("shape/one", [1])
        self.add("Slice", ["shape/ids", "shape/zero", "shape/one"], "shape/batch")
        pieces: dict[str, list[str | list[int]]] = {
            "split_queries": ["shape/ids", [heads, dim]],
            "split_keys": ["shape/ids", [keys, dim]],
            "queries5": ["shape/batch", [keys, heads // keys], "shape/sequence", [dim]],
            "keys5": ["shape/batch", [keys, 1, dim], "shape/sequence"],
            "values5": ["shape/batch", [keys, 1], "shape/sequence", [dim]],
            "queries4": ["shape/batch", [heads], "shape/sequence", [dim]],
        }
        for name, parts in pieces.items():
            named = [
                part if isinstance(part, str) else self.integers(f"shape/{name}/{place}", part)
                for place, part in enumerate(parts)
            ]
            self.add("Concat", named, f"shape/{name}", axis=0)
        self.integers("shape/flat", [-1, heads * dim])
        self.integers("norm/axis", [-1])
        self.scalar("norm/eps", a.rms_norm_eps)
        self.scalar("attention/scale", dim**-0.5)

    def angles(self) -> None:
        """Cosine and signed sine of every position's angles [sequence, head_dim].

        Computed on the spot, in float64 up to the frequencies: a constant of this size could be a
        weight that training misses.
        """
        dim = self.architecture.head_dim
        self._constant("angle/start", np.array(0.0, np.float64))
        self._constant("angle/end", np.array(float(dim), np.float64))
        self._constant("angle/step", np.array(2.0, np.float64))
        self._constant("angle/width", np.array(-float(dim), np.float64))
        self._constant("angle/theta", np.array(self.architecture.rope_theta, np.float64))
        even = self.add("Range", ["angle/start", "angle/end", "angle/step"], "angle/even")
        power = self.add("Div", [even, "angle/width"], "angle/power")
        frequency = self.add("Pow", ["angle/theta", power], "angle/frequency64")
        frequency = self.add(
            "Cast", [frequency], "angle/frequency", to=self._onnx.TensorProto.FLOAT
        )
        self.integers("angle/axis", [0])
        length = self.add("Squeeze", ["shape/sequence", "angle/axis"], "angle/length")
        self._constant("angle/first", np.array(0, np.int64))
        self._constant("angle/next", np.array(1, np.int64))
        position = self.add("Range", ["angle/first", length, "angle/next"], "angle/count")
        position = self.add("Cast", [position], "angle/position", to=self._onnx.TensorProto.FLOAT)
        self.integers("angle/column", [1])
        position = self.add("Unsqueeze", [position, "angle/column"], "angle/positions")
        angle = self.add("Mul", [position, frequency], "angle/half")
        cos, sin = (self.add(op, [angle], f"angle/{op}") for op in ("Cos", "Sin"))
        minus = self.add("Neg", [sin], "angle/minus")
        self.add("Concat", [cos, cos], "angle/cos", axis=1)
        self.add("Concat", [minus, sin], "angle/sine", axis=1)
