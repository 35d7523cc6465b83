"""The smallest point of a grid that meets a monotone condition, where asking is dear."""

from __future__ import annotations

from collections.abc import Callable

Condition = Callable[[int], bool]
"""False up to some index, true from there on."""


def smallest_index(
    meets: Condition, meets_roughly: Condition, *, lowest: int, highest: int
) -> int | None:
    """The smallest index in lowest..highest that meets a condition, None if there is none.

    Args:
        meets: the condition.
        meets_roughly: a cheaper one that is true of nothing that ``meets`` is false of; its answer
            is where the search for the real one begins.
        lowest: first index.
        highest: last index.
    """
    start = _bisect(meets_roughly, lowest, highest)
    index = None if start is None else _gallop_down(meets, lowest, start)
    return _bisect(meets, lowest, highest) if index is None else index


def _bisect(meets: Condition, lowest: int, highest: int) -> int | None:
    if not meets(highest):
        return None
    while lowest < highest:
        middle = (lowest + highest) // 2
        if meets(middle):
            highest = middle
        else:
            lowest = middle + 1
    return highest


def _gallop_down(meets: Condition, lowest: int, start: int) -> int | None:
    """Like `_bisect`, from an index that should meet the condition and be close to the answer."""
    step = 1
    below = max(lowest, start - step)
    while below > lowest and meets(below):
        step *= 2
        below = max(lowest, start - step)
    return _bisect(meets, below, start)
