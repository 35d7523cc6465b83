"""The dimensions of an OPT, and from them the name and shape of every weight tensor.

Names and order are torch's (``OPTForCausalLM.named_parameters()``), so a tensor's position here is
its index in the direction. A tied language-model head has no tensor of its own: the head reads the
embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edge_runtime.families import OPT, Family
from server.errors import ExportError
from server.export.families.counts import check_count

EMBEDDING = "model.decoder.embed_tokens.weight"
POSITIONS = "model.decoder.embed_positions.weight"
PROJECT_IN = "model.decoder.project_in.weight"
PROJECT_OUT = "model.decoder.project_out.weight"
FINAL_NORM = "model.decoder.final_layer_norm"
UNTIED_HEAD = "lm_head.weight"

POSITION_OFFSET = 2
"""OPT leaves the first two rows of its position table unused."""


@dataclass(frozen=True, slots=True)
class OptArchitecture:
    """What a Hugging Face ``OPTConfig`` says about the forward pass.

    ``has_final_layer_norm`` is false for OPT-350M, the one post-norm member of the family.
    """

    family: ClassVar[Family] = OPT
    network: ClassVar[str] = "OPTForCausalLM"

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    vocab_size: int
    word_embed_proj_dim: int
    max_position_embeddings: int
    do_layer_norm_before: bool
    has_final_layer_norm: bool
    activation_function: str
    enable_bias: bool
    layer_norm_elementwise_affine: bool
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        """Refuse dimensions no OPT can have."""
        for name in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
            "word_embed_proj_dim", "max_position_embeddings",
        ):  # fmt: skip
            check_count(name, getattr(self, name))
        if self.hidden_size % self.num_attention_heads:
            raise ExportError(
                f"hidden_size: got {self.hidden_size}, wanted a multiple of num_attention_heads = "
                f"{self.num_attention_heads}. The model's config.json is damaged."
            )

    @classmethod
    def from_config(cls, config: Any) -> OptArchitecture:
        """Read a ``transformers.OPTConfig``."""
        before = bool(config.do_layer_norm_before)
        return cls(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            ffn_dim=config.ffn_dim,
            vocab_size=config.vocab_size,
            word_embed_proj_dim=config.word_embed_proj_dim,
            max_position_embeddings=config.max_position_embeddings,
            do_layer_norm_before=before,
            has_final_layer_norm=before and not getattr(config, "_remove_final_layer_norm", False),
            activation_function=config.activation_function,
            enable_bias=bool(config.enable_bias),
            layer_norm_elementwise_affine=bool(config.layer_norm_elementwise_affine),
            tie_word_embeddings=bool(config.tie_word_embeddings),
        )

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> OptArchitecture:
        """Read a bundle's manifest."""
        return cls(**{field.name: described[field.name] for field in dataclasses.fields(cls)})

    @property
    def token_table(self) -> str:
        """Name of the tensor that tokens are looked up in."""
        return EMBEDDING

    @property
    def position_table(self) -> str:
        """Name of the tensor that positions are looked up in."""
        return POSITIONS

    @property
    def first_position(self) -> int:
        """The row of it that the first token reads."""
        return POSITION_OFFSET

    def is_without_effect(self, name: str) -> bool:
        """A bias of all keys adds the same number to every score of a row, where it cancels."""
        return name.endswith("k_proj.bias")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_projections(self) -> bool:
        """Whether the embedding is narrower than the layers (OPT-350M)."""
        return self.word_embed_proj_dim != self.hidden_size

    @property
    def head_weight(self) -> str:
        """Name of the tensor the language-model head reads."""
        return EMBEDDING if self.tie_word_embeddings else UNTIED_HEAD

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, in torch's order and layout ([out, in] for matrices)."""
        around = self.embedding_shapes() | self.head_shapes()
        layers = {
            OPT.layer_tensor(layer, name): shape
            for layer in range(self.num_hidden_layers)
            for name, shape in self.layer_shapes().items()
        }
        before = (EMBEDDING, POSITIONS, PROJECT_OUT, PROJECT_IN, *self._norm_shapes(FINAL_NORM))
        shapes = {name: around.pop(name) for name in before if name in around}
        return shapes | layers | around  # what is left is an untied head

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights that turn tokens into the first layer's input."""
        shapes: dict[str, tuple[int, ...]] = {
            EMBEDDING: (self.vocab_size, self.word_embed_proj_dim),
            POSITIONS: (self.max_position_embeddings + POSITION_OFFSET, self.hidden_size),
        }
        if self.has_projections:
            shapes[PROJECT_IN] = (self.hidden_size, self.word_embed_proj_dim)
        return shapes

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of one layer, by their names within it."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = self.hidden_size

        def add_linear(name: str, num_out: int, num_in: int) -> None:
            shapes[f"{name}.weight"] = (num_out, num_in)
            if self.enable_bias:
                shapes[f"{name}.bias"] = (num_out,)

        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            add_linear(f"self_attn.{projection}", width, width)
        shapes |= self._norm_shapes("self_attn_layer_norm")
        add_linear("fc1", self.ffn_dim, width)
        add_linear("fc2", width, self.ffn_dim)
        return shapes | self._norm_shapes("final_layer_norm")

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights behind the last layer; with tied embeddings one of them is the first."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.has_final_layer_norm:
            shapes |= self._norm_shapes(FINAL_NORM)
        if self.has_projections:
            shapes[PROJECT_OUT] = (self.word_embed_proj_dim, self.hidden_size)
        shapes[self.head_weight] = (self.vocab_size, self.word_embed_proj_dim)
        return shapes

    def _norm_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        if not self.layer_norm_elementwise_affine:
            return {}
        return {f"{name}.weight": (self.hidden_size,), f"{name}.bias": (self.hidden_size,)}

    def to_config(self) -> dict[str, Any]:
        """The entries of a ``config.json`` of transformers."""
        own = dataclasses.asdict(self)
        return {"_remove_final_layer_norm": not own.pop("has_final_layer_norm"), **own}

    def build_graphs(self) -> dict[str, Any]:
        """File name -> ``onnx.ModelProto``.

        Raises:
            ExportError: an activation that the generator does not know.
        """
        from server.export.families.opt_graph import build_graphs

        return build_graphs(self)

    def describe(self) -> dict[str, int | float | bool | str]:
        """The entries of the manifest's ``architecture``."""
        names = (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
            "word_embed_proj_dim", "max_position_embeddings", "do_layer_norm_before",
            "has_final_layer_norm", "activation_function", "enable_bias",
            "layer_norm_elementwise_affine", "tie_word_embeddings",
        )  # fmt: skip
        described: dict[str, int | float | bool | str] = {
            name: getattr(self, name) for name in names
        }
        described["num_parameters"] = sum(map(math.prod, self.tensor_shapes().values()))
        return described
