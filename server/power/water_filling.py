"""One multiplier for all rounds: the largest at which what they cost stays within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from radio.arrays import Float64Array
from server.errors import ConfigurationError

_LOG_LOW, _LOG_HIGH = math.log(1e-150), math.log(1e150)
_BISECTIONS = 120


def fill(
    costs_at: Callable[[float], Float64Array], budget: float, largest: Float64Array
) -> Float64Array:
    """The prices at the largest multiplier that keeps the budget; ``largest`` if they all fit.

    Args:
        costs_at: prices of all rounds at a multiplier, none of them falling as it grows.
        budget: R > 0.
        largest: what the prices become for an infinite multiplier; may be infinite.

    Raises:
        ConfigurationError: even the smallest multiplier is too dear.
    """
    if np.all(np.isfinite(largest)) and math.fsum(largest) <= budget:
        return largest.copy()
    low, high = _LOG_LOW, _LOG_HIGH
    if math.fsum(costs_at(math.exp(low))) > budget:
        raise ConfigurationError(
            f"budget: {budget:g} is too small for any noise that float64 can hold."
        )
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        fits = math.fsum(costs_at(math.exp(middle))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return costs_at(math.exp(low))
