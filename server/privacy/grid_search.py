"""The smallest point of a grid at which a falling figure is small enough, where asking is dear."""

from __future__ import annotations

import math
from collections.abc import Callable

Figure = Callable[[int], float]
"""Falls, or stays, as the index grows; may be infinite."""

_USUAL_SLOPE = -1.2
"""Of the logarithm of epsilon over that of a noise multiplier, for the first step of a search."""


def smallest_index(
    figure: Figure,
    roughly: Figure,
    most: float,
    *,
    lowest: int,
    highest: int,
    guess: int,
    points_per_octave: float,
) -> int | None:
    """The smallest index in lowest..highest whose figure is at most so large; None if none is.

    Args:
        figure: that is meant.
        roughly: a cheaper one that is never below it; its answer is where the search for the real
            one begins.
        most: what the figure may be, > 0.
        lowest: first index.
        highest: last index.
        guess: where the search for the cheaper one begins.
        points_per_octave: of the grid, in which the figure is about a power of the grid's value.

    Guarantees: the figure was asked for at the answer, and at the index before it (unless that is
    below ``lowest``); a bad guess costs questions and never changes the answer.
    """
    slope = _USUAL_SLOPE * math.log(2.0) / points_per_octave
    start = _search(roughly, most, lowest, highest, guess, slope)
    return _search(figure, most, lowest, highest, guess if start is None else start, slope)


def _search(
    figure: Figure, most: float, lowest: int, highest: int, guess: int, slope: float
) -> int | None:
    """By secants of the figure's logarithm, and by halves where they get nowhere."""
    too_low, enough = lowest - 1, highest + 1
    last: tuple[int, float] | None = None
    index, num_slow = guess, 0
    while enough - too_low > 1:
        index = min(max(index, too_low + 1), enough - 1)
        width = enough - too_low
        value = figure(index)
        if value <= most:
            enough = index
        else:
            too_low = index
        excess = math.log(value / most) if 0.0 < value < math.inf else math.nan
        if last is not None and excess != last[1] and index != last[0]:
            found = (excess - last[1]) / (index - last[0])
            slope = found if found < 0.0 else slope
        last = (index, excess)
        # Several times without halving what is left: the figure is no power here.
        num_slow = num_slow + 1 if enough - too_low > width / 2 else 0
        if math.isnan(excess) or num_slow > 3:
            index, num_slow = (too_low + enough) // 2, 0
        else:
            index = index + math.ceil(-excess / slope)
            # Where it is enough already, the answer may be the one before.
            index = index if index != last[0] else last[0] + (-1 if value <= most else 1)
    return enough if enough <= highest else None
