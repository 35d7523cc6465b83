"""One multiplier for all rounds: the largest at which what they cost stays within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from radio.arrays import Float64Array
from radio.bisection import bisect
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

    def fits(log_multiplier: float) -> bool:
        return math.fsum(costs_at(math.exp(log_multiplier))) <= budget

    if not fits(_LOG_LOW):
        raise ConfigurationError(
            f"budget: {budget:g} is too small for any noise that float64 can hold."
        )
    log_multiplier, _ = bisect(fits, _LOG_LOW, _LOG_HIGH, _BISECTIONS)
    return costs_at(math.exp(log_multiplier))
