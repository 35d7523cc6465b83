"""The families of models that can be exported, each behind one interface.

A family knows from a configuration which tensors there are and what a pass does with them: names
and shapes by stage, the graphs, what a check can say of a tensor, and the configuration that
transformers wants. Everything else of an export asks an `Architecture`, whichever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import ExportError
from server.export.families.llama import LlamaArchitecture
from server.export.families.opt import OptArchitecture

Architecture = OptArchitecture | LlamaArchitecture

_ARCHITECTURES: dict[str, type[OptArchitecture] | type[LlamaArchitecture]] = {
    OptArchitecture.family.name: OptArchitecture,
    LlamaArchitecture.family.name: LlamaArchitecture,
}


def architecture_of(model: object, config: Any) -> Architecture:
    """What a configuration of transformers says.

    Raises:
        ExportError: another family, or a variant of one that is not known; named.
    """
    kind = _ARCHITECTURES.get(config.model_type)
    if kind is None:
        raise ExportError(
            f"{model}: model_type is {config.model_type!r}, wanted "
            f"{' or '.join(map(repr, _ARCHITECTURES))}. pairzero trains OPT models, and those of "
            "Llama's family; try facebook/opt-125m."
        )
    return kind.from_config(config)


def architecture_from(family: str, described: Mapping[str, Any]) -> Architecture:
    """What a bundle's manifest says."""
    return _ARCHITECTURES[family].from_description(described)
