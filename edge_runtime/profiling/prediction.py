"""What a step will take of memory, from a model's dimensions; and what first-order training would.

    peak  = base + 4 n + activations + answers
    activations = 8 T (f + h) + 4 b a s^2,  T = b s            one layer's, whatever the depth
    answers     = 8 b v                                        logits at the answers, twice

n weights of float32, batch b, sequence s, width h, feed-forward width f, a heads, v tokens. The
base is what a process takes that has opened a model's sessions and used them, without its weights;
it is measured, with the model that comes with pairzero. How close all of it comes is measured, too
(`tests/e2e/test_profile.py`, `benchmarks/results/profile.json`).

First order keeps every layer's activations, 2 L T (34 h + 5 a s) bytes in float32 (Korthikanti et
al. 2022, arXiv 2205.05198, equation 1, for 16 bits, twice), beside 16 bytes a weight (AdamW: the
weight, its gradient, two moments) or 8 (SGD). These are formulas; nothing here measures them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.protocol.errors import ProfileError

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

    @property
    def num_weights(self) -> int:
        """n, of the tied model."""
        h, f, e = self.hidden_size, self.ffn_dim, self.word_embed_proj_dim or self.hidden_size
        layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
        tables = self.vocab_size * e + (self.max_position_embeddings + _POSITIONS_OFFSET) * h
        return self.num_hidden_layers * layer + tables + (2 * e * h if e != h else 2 * h)

    @property
    def weight_bytes(self) -> int:
        """4 n."""
        return 4 * self.num_weights


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
        weights: stored.
        activations: of a pass, with its answers.
        adamw: the whole of first-order training with AdamW, a formula.
        sgd: likewise with SGD.
    """

    base: int
    weights: int
    activations: int
    adamw: int
    sgd: int

    @property
    def peak(self) -> int:
        """What a zeroth-order step takes at most."""
        return self.base + self.weights + self.activations


def predict(model: Dimensions, *, batch: int, seq: int, base: int) -> Prediction:
    """What a step of these dimensions takes.

    Args:
        model: its dimensions.
        batch: b, examples of a pass.
        seq: s, tokens of each.
        base: of the process, measured, in bytes.
    """
    tokens, heads = batch * seq, model.num_attention_heads
    one_layer = 8 * tokens * (model.ffn_dim + model.hidden_size) + 4 * batch * heads * seq**2
    answers = 8 * batch * model.vocab_size
    kept = 2 * model.num_hidden_layers * tokens * (34 * model.hidden_size + 5 * heads * seq)
    return Prediction(
        base=base,
        weights=model.weight_bytes,
        activations=one_layer + answers,
        adamw=base + 16 * model.num_weights + kept,
        sgd=base + 8 * model.num_weights + kept,
    )


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
