"""The dimensions of a Llama, and from them the name and shape of every weight tensor.

Names and order are torch's (``LlamaForCausalLM.named_parameters()``), so a tensor's position here
is its index in the direction. SmolLM2 and TinyLlama are of this family, with other numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edge_runtime.families import LLAMA, Family
from server.errors import ExportError
from server.export.families.counts import check_count

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
UNTIED_HEAD = "lm_head.weight"
INPUT_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"


@dataclass(frozen=True, slots=True)
class LlamaArchitecture:
    """What a Hugging Face ``LlamaConfig`` says about the forward pass.

    Attributes:
        num_key_value_heads: heads of keys and values, each shared by as many query heads as it
            takes.
        head_dim: width of a head; heads need not fill hidden_size.
        ffn_dim: transformers' ``intermediate_size``.
        rms_norm_eps: added to the mean square of a norm.
        rope_theta: base of the rotary angles.
    """

    family: ClassVar[Family] = LLAMA
    network: ClassVar[str] = "LlamaForCausalLM"

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        """Refuse dimensions no Llama can have."""
        for name in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "ffn_dim", "vocab_size", "max_position_embeddings",
        ):  # fmt: skip
            check_count(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ExportError(
                f"num_attention_heads: got {self.num_attention_heads}, wanted a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}. The model's config.json is "
                "damaged."
            )
        if self.head_dim % 2:
            raise ExportError(
                f"head_dim: got {self.head_dim}, wanted an even number: rotary angles turn pairs."
            )
        for name in ("rms_norm_eps", "rope_theta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                raise ExportError(f"{name}: got {getattr(self, name)!r}, wanted a number above 0.")

    @classmethod
    def from_config(cls, config: Any) -> LlamaArchitecture:
        """Read a ``transformers.LlamaConfig``.

        Raises:
            ExportError: it says something that this family's graphs do not do; named.
        """
        for name, wanted in (
            ("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False),
            ("sliding_window", None),
        ):  # fmt: skip
            if (got := getattr(config, name, wanted)) != wanted:
                raise ExportError(
                    f"{name}: got {got!r}, wanted {wanted!r}: graphs of this family know no other."
                )
        scaling = getattr(config, "rope_scaling", None) or {}
        if (kind := scaling.get("rope_type", scaling.get("type", "default"))) != "default":
            raise ExportError(
                f"rope_scaling: got {kind!r}, wanted none: angles are those of rope_theta alone."
            )
        heads = config.num_attention_heads
        return cls(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            ffn_dim=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=float(config.rms_norm_eps),
            rope_theta=float(scaling.get("rope_theta", getattr(config, "rope_theta", 10_000.0))),
            tie_word_embeddings=bool(config.tie_word_embeddings),
        )

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> LlamaArchitecture:
        """Read a bundle's manifest."""
        return cls(**{field.name: described[field.name] for field in dataclasses.fields(cls)})

    @property
    def token_table(self) -> str:
        """Name of the tensor that tokens are looked up in."""
        return EMBEDDING

    @property
    def head_weight(self) -> str:
        """Name of the tensor the language-model head reads."""
        return EMBEDDING if self.tie_word_embeddings else UNTIED_HEAD

    @property
    def position_table(self) -> None:
        """There is none: positions are angles."""
        return None

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return 0

    def is_without_effect(self, name: str) -> bool:
        """Every tensor has an effect: nothing is added to all keys alike."""
        return False

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, in torch's order and layout ([out, in] for matrices)."""
        layers = {
            LLAMA.layer_tensor(layer, name): shape
            for layer in range(self.num_hidden_layers)
            for name, shape in self.layer_shapes().items()
        }
        return self.embedding_shapes() | layers | self.head_shapes()

    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tokens' table."""
        return {EMBEDDING: (self.vocab_size, self.hidden_size)}

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of one layer, by their names within it."""
        width, ffn = self.hidden_size, self.ffn_dim
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj.weight": (queries, width),
            "self_attn.k_proj.weight": (keys, width),
            "self_attn.v_proj.weight": (keys, width),
            "self_attn.o_proj.weight": (width, queries),
            "mlp.gate_proj.weight": (ffn, width),
            "mlp.up_proj.weight": (ffn, width),
            "mlp.down_proj.weight": (width, ffn),
            INPUT_NORM: (width,),
            MLP_NORM: (width,),
        }

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights behind the last layer; with tied embeddings one of them is the first."""
        table = (self.vocab_size, self.hidden_size)
        return {FINAL_NORM: (self.hidden_size,), self.head_weight: table}

    def to_config(self) -> dict[str, Any]:
        """The entries of a ``config.json`` of transformers."""
        own = dataclasses.asdict(self)
        return {"intermediate_size": own.pop("ffn_dim"), **own}

    def build_graphs(self) -> dict[str, Any]:
        """File name -> ``onnx.ModelProto``."""
        from server.export.families.llama_graph import build_graphs

        return build_graphs(self)

    def describe(self) -> dict[str, int | float | bool | str]:
        """The entries of the manifest's ``architecture``."""
        described = dataclasses.asdict(self)
        described["num_parameters"] = sum(map(math.prod, self.tensor_shapes().values()))
        return described
