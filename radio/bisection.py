"""Where a condition ends: one bisection for all who look for a root from its safe side."""

from __future__ import annotations

from collections.abc import Callable


def bisect(
    holds: Callable[[float], bool], low: float, high: float, steps: int
) -> tuple[float, float]:
    """Narrow down where a condition that holds at first ends.

    Args:
        holds: true up to somewhere between the ends, and false from there on.
        low: where it is taken to hold; not asked.
        high: where it is taken not to hold; not asked.
        steps: halvings at most; there are none once no number lies between.

    Returns:
        Below and above that place: the condition was found to hold at the first (unless it is
        ``low``), and not to hold at the second (unless it is ``high``). Who wants the safe side
        takes one of them, and never what lies between.
    """
    for _ in range(steps):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high
