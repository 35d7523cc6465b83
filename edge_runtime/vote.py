"""From a device's numbers and its private noise to what it says: the sum of both, or a sign.

    no vote                p_q + n_q
    noise before the sign  sign(p_q + n_q)       the sign is post-processing of a private number
    noise after the sign   sign(p_q) + n_q       one record can turn every sign (the paper's way)

Where something is promised, p and n are whole steps of a grid and so is their sum, exactly
(`edge_runtime.number_grid`). sign(0) is 0: who has drawn no example and adds no noise abstains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_runtime.number_grid import NumberGrid
from edge_runtime.protocol.rounds import Vote

Draws = Sequence[tuple[int, int]]
"""Noise of both quadratures of each number, in steps of a grid [Q]."""


def said_plainly(scalars: Sequence[float], vote: Vote) -> tuple[complex, ...]:
    """What a device says where nothing is promised [Q].

    Args:
        scalars: p, clipped [Q].
        vote: which of the three.
    """
    if vote is Vote.NONE:
        return tuple(complex(p) for p in scalars)
    return tuple(complex(sign(p)) for p in scalars)


def said_on_grid(
    scalars: Sequence[float], draws: Draws, vote: Vote, grid: NumberGrid
) -> tuple[complex, ...]:
    """What a device says under a promise [Q]; see the module. Votes before the sign are real.

    Args:
        scalars: p, clipped [Q].
        draws: n, in steps of the grid [Q].
        vote: which of the three.
        grid: for the numbers, or for votes if the noise comes after the sign.
    """
    pairs = list(zip(scalars, draws, strict=True))
    if vote is Vote.NOISE_BEFORE:
        return tuple(complex(sign(grid.nearest(p) + n)) for p, (n, _) in pairs)
    if vote is Vote.NOISE_AFTER:
        pairs = [(sign(p), both) for p, both in pairs]
    return tuple(complex(grid.number(grid.nearest(p) + n), grid.number(m)) for p, (n, m) in pairs)


def sign(value: float) -> float:
    """-1, 0 or 1; NaN is refused by whoever made the value."""
    return math.copysign(1.0, value) if value else 0.0
