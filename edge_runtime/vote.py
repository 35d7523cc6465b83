"""From a device's numbers and its private noise to what it says: the sum of both, or a sign.

    no vote                p_q + n_q
    noise before the sign  sign(p_q + n_q)       the sign is post-processing of a private number
    noise after the sign   sign(p_q) + n_q       one record can turn every sign (the paper's way)

sign(0) is 0: who has drawn no example and adds no noise abstains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_runtime.protocol.rounds import Vote


def spoken(scalars: Sequence[float], noise: Sequence[complex], vote: Vote) -> tuple[complex, ...]:
    """What a device says [Q]; see the module. Votes before the sign are real.

    Args:
        scalars: p, clipped [Q].
        noise: n, circular [Q].
        vote: which of the three.
    """
    pairs = zip(scalars, noise, strict=True)
    if vote is Vote.NOISE_BEFORE:
        return tuple(complex(sign(p + n.real)) for p, n in pairs)
    if vote is Vote.NOISE_AFTER:
        return tuple(sign(p) + n for p, n in pairs)
    return tuple(p + n for p, n in pairs)


def sign(value: float) -> float:
    """-1, 0 or 1; NaN is refused by whoever made the value."""
    return math.copysign(1.0, value) if value else 0.0
