"""Which tensors of a model a round moves."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from edge_runtime.protocol.errors import LatticeError

TRAINABLE_ALL = "all"
TRAINABLE_NORMS_AND_BIASES = "norms_and_biases"


def select_trainable(
    names: Sequence[str], trainable: str | Sequence[str] | None
) -> tuple[bool, ...]:
    """Which tensors a round moves.

    Args:
        names: tensor names, torch's.
        trainable: "all", "norms_and_biases" (every layer norm and every bias), alone or as the only
            one of a list; or shell-style patterns such as ``["*.fc2.*", "*.final_layer_norm.*"]``.
            None: nothing, of a model that is used and not trained.

    Raises:
        LatticeError: if a pattern matches no tensor; a typing mistake must not train nothing.
    """
    if trainable is None:
        return (False,) * len(names)
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    if patterns == [TRAINABLE_ALL]:
        return tuple(True for _ in names)
    if patterns == [TRAINABLE_NORMS_AND_BIASES]:
        return tuple("layer_norm" in name or name.endswith(".bias") for name in names)
    if not patterns:
        raise LatticeError(
            "trainable: no pattern given, nothing would be trained. Use 'all', 'norms_and_biases' "
            "or patterns."
        )
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise LatticeError(
                f"trainable: the pattern {pattern!r} matches none of the {len(names)} tensors. "
                f"Names look like {names[0]!r}; or use 'all' or 'norms_and_biases'."
            )
    return tuple(any(fnmatch.fnmatchcase(name, p) for p in patterns) for name in names)
