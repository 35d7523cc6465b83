"""From the estimated mean to the integer step: the learning rate, the bound, the rounding."""

from __future__ import annotations

import math

from edge_runtime.protocol.rounds import STEP_QUANTUM
from server.config import OptimizerSection


def learning_rate(optimizer: OptimizerSection, round_index: int) -> float:
    """Half a cosine from the first rate to its final fraction over the planned rounds.

    eta(t) = eta_0 (f + (1 - f) (1 + cos(pi t / T)) / 2), t = 0 .. T-1.
    """
    fraction = optimizer.final_learning_rate_fraction
    cosine = 0.5 * (1.0 + math.cos(math.pi * round_index / optimizer.rounds))
    return optimizer.learning_rate * (fraction + (1.0 - fraction) * cosine)


def mean_of_sum(sum_estimate: float, num_speakers: int, clip: float) -> float:
    """The mean over those who spoke, held within the bound that every scalar obeys.

    Dividing and clipping come after the noise: post-processing, free of privacy cost. The divisor
    is the public number of speakers.
    """
    return max(-clip, min(clip, sum_estimate / num_speakers))


def step_integer(rate: float, mean_estimate: float) -> int:
    """The step rate * mean_estimate in units of STEP_QUANTUM = 2^-40, rounded to nearest."""
    return round(rate * mean_estimate / STEP_QUANTUM)
