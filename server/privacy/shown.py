"""Epsilon for a person: a promise is rounded up, never to nearest."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal


def shown_epsilon(epsilon: float | None, digits: int = 3) -> str:
    """``epsilon`` with so many decimals, rounded up: what stands there is kept; "none" for None.

    Guarantees: read as a number, it is at least ``epsilon`` and less than one unit of its last
    decimal above.
    """
    if epsilon is None:
        return "none"
    if not math.isfinite(epsilon):
        return str(epsilon)
    return str(Decimal(epsilon).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))
