"""What a step will take of memory, from a model's dimensions; and what first-order training would.

    peak  = base + weights + scratch + activations + answers
    activations = 8 T (f + h) + 4 b a s^2,  T = b s            one layer's, whatever the depth
    answers     = 8 b v                                        logits at the answers, twice

Batch b, sequence s, width h, feed-forward width f, a heads, v tokens. Weights are 4 bytes each, or
2 of a matrix in 16 bits that is trained; a frozen one in 16 or 8 bits lies in a mapped file, and of
that a matrix is resident while it is expanded. Scratch is one layer's matrices as float32, and T
rows of the tokens' table (`edge_runtime.scratch`). The base is what a process takes that has opened
a model's sessions and used them, without its weights; it is measured, with the model that comes
with pairzero. How close all of it comes is measured, too (`tests/e2e/test_profile.py`,
`benchmarks/results/profile.json`).

First order keeps every layer's activations, 2 L T (34 h + 5 a s) bytes in float32 (Korthikanti et
al. 2022, arXiv 2205.05198, equation 1, for 16 bits, twice), beside 16 bytes a weight (AdamW: the
weight, its gradient, two moments) or 8 (SGD). These are formulas; nothing here measures them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import FLOAT32, INT8, INT16, TensorEntry
from edge_runtime.families import OPT
from edge_runtime.protocol.errors import ProfileError
from edge_runtime.trainable import select_trainable

_POSITIONS_OFFSET = 2  # OPT's table of positions begins with two that nothing uses


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of an OPT, by the names of its configuration.

    Attributes:
        hidden_size: h.
        ffn_dim: f.
        num_hidden_layers: L.
        num_attention_heads: a.
        vocab_size: v.
        max_position_embeddings: the longest prompt.
        word_embed_proj_dim: width of a token's vector, where it is another than h.
    """

    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    word_embed_proj_dim: int | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight of the tied model, as torch has them."""
        h, f, e = self.hidden_size, self.ffn_dim, self.word_embed_proj_dim or self.hidden_size
        projections = ("k_proj", "v_proj", "q_proj", "out_proj")
        linear = {f"self_attn.{name}": (h, h) for name in projections}
        linear |= {"fc1": (f, h), "fc2": (h, f)}
        top = "model.decoder."
        shapes: dict[str, tuple[int, ...]] = {
            f"{top}embed_tokens.weight": (self.vocab_size, e),
            f"{top}embed_positions.weight": (self.max_position_embeddings + _POSITIONS_OFFSET, h),
        }
        if e != h:
            shapes |= {f"{top}project_out.weight": (e, h), f"{top}project_in.weight": (h, e)}
        else:
            shapes |= {f"{top}final_layer_norm.{kind}": (h,) for kind in ("weight", "bias")}
        for layer in range(self.num_hidden_layers):
            for name, shape in linear.items():
                shapes[OPT.layer_tensor(layer, f"{name}.weight")] = shape
                shapes[OPT.layer_tensor(layer, f"{name}.bias")] = shape[:1]
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                shapes |= {OPT.layer_tensor(layer, f"{name}.{k}"): (h,) for k in ("weight", "bias")}
        return shapes

    @property
    def num_weights(self) -> int:
        """n."""
        return sum(map(math.prod, self.shapes().values()))

    def entries(self, form: str, trainable: Sequence[str] | None) -> tuple[TensorEntry, ...]:
        """How a bundle in this form holds the weights: `pairzero export --store`.

        Args:
            form: FLOAT32, INT16 or INT8.
            trainable: patterns of the tensors that get 16 bits for 8; None for none.

        Raises:
            LatticeError: a pattern matches nothing.
        """
        shapes = self.shapes()
        moves = select_trainable(list(shapes), trainable)
        return tuple(
            TensorEntry(name, shape, _form_of(form, shape, moved), 0)
            for (name, shape), moved in zip(shapes.items(), moves, strict=True)
        )


KNOWN = {
    "125m": Dimensions(768, 3072, 12, 12, 50272, 2048),
    "350m": Dimensions(1024, 4096, 24, 16, 50272, 2048, word_embed_proj_dim=512),
    "1.3b": Dimensions(2048, 8192, 24, 32, 50272, 2048),
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes; see the module for the equations.

    Attributes:
        base: of the process.
        weights: in memory.
        scratch: what is expanded of others, and the mapped pages that it is read from.
        activations: of a pass, with its answers.
        adamw: the whole of first-order training with AdamW, a formula.
        sgd: likewise with SGD.
        num_weights: n, of the model.
    """

    base: int
    weights: int
    scratch: int
    activations: int
    adamw: int
    sgd: int
    num_weights: int

    @property
    def peak(self) -> int:
        """What a zeroth-order step takes at most."""
        return self.base + self.weights + self.scratch + self.activations


def predict(
    model: Dimensions,
    entries: Sequence[TensorEntry],
    trainable: str | Sequence[str] | None,
    *,
    batch: int,
    seq: int,
    base: int,
) -> Prediction:
    """What a step of these dimensions takes.

    Args:
        model: its dimensions.
        entries: how its weights are held.
        trainable: which of them move.
        batch: b, examples of a pass.
        seq: s, tokens of each.
        base: of the process, measured, in bytes.
    """
    tokens, heads = batch * seq, model.num_attention_heads
    one_layer = 8 * tokens * (model.ffn_dim + model.hidden_size) + 4 * batch * heads * seq**2
    answers = 8 * batch * model.vocab_size
    kept = 2 * model.num_hidden_layers * tokens * (34 * model.hidden_size + 5 * heads * seq)
    moves = select_trainable([entry.name for entry in entries], trainable)
    num_weights = sum(math.prod(entry.shape) for entry in entries)
    return Prediction(
        base=base,
        weights=sum(_in_memory(e, moved) for e, moved in zip(entries, moves, strict=True)),
        scratch=_scratch(entries, moves, tokens),
        activations=one_layer + answers,
        adamw=base + 16 * num_weights + kept,
        sgd=base + 8 * num_weights + kept,
        num_weights=num_weights,
    )


def _form_of(form: str, shape: tuple[int, ...], moved: bool) -> str:
    if len(shape) != 2:
        return FLOAT32
    return INT16 if form == INT8 and moved else form


def _in_memory(entry: TensorEntry, moved: bool) -> int:
    """Bytes of a tensor that stay in memory: of one that is mapped, the scales of its rows."""
    size = math.prod(entry.shape)
    if entry.kept_as == FLOAT32:
        return 4 * size
    return 4 * entry.shape[0] + (2 * size if moved else 0)


def _scratch(entries: Sequence[TensorEntry], moves: Sequence[bool], tokens: int) -> int:
    """Bytes of the copies that `edge_runtime.scratch` makes, and of the pages under the largest."""
    copies: dict[str, int] = {}
    mapped = 0
    for entry, moved in zip(entries, moves, strict=True):
        if entry.kept_as == FLOAT32:
            continue
        num_rows, width = entry.shape
        if is_table := "embed" in entry.name or "lm_head" in entry.name:
            num_rows = min(num_rows, tokens)
        # A layer's matrix is called the same in every layer.
        copies[entry.name.split(".layers.")[-1].lstrip("0123456789")] = 4 * num_rows * width
        if not (moved or is_table):
            mapped = max(mapped, math.prod(entry.shape) * (2 if entry.kept_as == INT16 else 1))
    return sum(copies.values()) + mapped


def dimensions_of(architecture: Mapping[str, Any], where: str) -> Dimensions:
    """Those of a configuration of transformers, or of a bundle's manifest.

    Raises:
        ProfileError: one is missing, or none that can be.
    """
    names = (
        "hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings",
    )  # fmt: skip
    values = {name: architecture.get(name) for name in (*names, "word_embed_proj_dim")}
    for name in names:
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ProfileError(f"{where}: {name}: got {value!r}, wanted a whole number, 1 or more.")
    return Dimensions(**{name: value for name, value in values.items() if value is not None})


def dimensions_named(name: str) -> Dimensions:
    """A size of OPT by its name, or those in a configuration file.

    Raises:
        ProfileError: neither.
    """
    if name in KNOWN:
        return KNOWN[name]
    try:
        found = json.loads(Path(name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(
            f"--dimensions: got {name!r}, wanted one of {', '.join(KNOWN)} or a configuration "
            f"file ({error})."
        ) from error
    if not isinstance(found, dict):
        raise ProfileError(f"{name}: wanted a JSON object with the dimensions of an OPT.")
    return dimensions_of(found, name)
