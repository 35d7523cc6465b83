"""From the estimated means to the integer steps: the learning rate, the bound, the rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge_runtime.protocol.rounds import STEP_QUANTUM
from edge_runtime.spsa import clip_to_ball
from edge_runtime.vote import sign
from server.config.learning import OptimizerSection


def learning_rate(optimizer: OptimizerSection, round_index: int) -> float:
    """Half a cosine from the first rate to its final fraction over the planned rounds.

    eta(t) = eta_0 (f + (1 - f) (1 + cos(pi t / T)) / 2), t = 0 .. T-1.
    """
    fraction = optimizer.final_learning_rate_fraction
    cosine = 0.5 * (1.0 + math.cos(math.pi * round_index / optimizer.rounds))
    return optimizer.learning_rate * (fraction + (1.0 - fraction) * cosine)


def hold_within(means: Sequence[float], clip: float) -> tuple[float, ...]:
    """The means over those who spoke, held within the ball that every device's scalars obey.

    Dividing and clipping come after the noise: post-processing, free of privacy cost. The divisor
    is the public number of speakers.
    """
    return tuple(clip_to_ball(np.array([means], dtype=np.float64), clip)[0].tolist())


def votes_decided(means: Sequence[float], decision: str, value: float) -> tuple[float, ...]:
    """What votes count as: the value in the direction of the majority, or times their mean.

    Args:
        means: of the votes, as received.
        decision: "majority" or "soft".
        value: of a unanimous vote.
    """
    if decision == "majority":
        return tuple(value * sign(mean) for mean in means)
    return tuple(value * max(-1.0, min(1.0, mean)) for mean in means)


def step_integers(rate: float, mean_estimates: Sequence[float]) -> tuple[int, ...]:
    """The steps rate * mean_estimates[q] / Q in units of STEP_QUANTUM = 2^-40, rounded to nearest.

    w <- w - rate (1/Q) sum_q estimate_q z_q: the average over the directions of what each alone
    would have been.
    """
    num_directions = len(mean_estimates)
    return tuple(round(rate * p / num_directions / STEP_QUANTUM) for p in mean_estimates)
