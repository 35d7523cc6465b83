"""Families of models: what a device knows of one beside its graphs, its layers' names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Models that have their tensors' names in common.

    Attributes:
        name: transformers' ``model_type``.
        layers: what the names of all layers' tensors begin with.
        flags: what a manifest's ``architecture`` says true or false to, and a device asks for.
    """

    name: str
    layers: str
    flags: tuple[str, ...] = ()

    def layer_tensor(self, layer: int, name: str) -> str:
        """Torch's name of the tensor that is called ``name`` within a layer."""
        return f"{self.layers}.{layer}.{name}"


OPT = Family(
    "opt",
    "model.decoder.layers",
    ("has_final_layer_norm", "enable_bias", "layer_norm_elementwise_affine"),
)
LLAMA = Family("llama", "model.layers", ("tie_word_embeddings",))
FAMILIES = {family.name: family for family in (OPT, LLAMA)}
