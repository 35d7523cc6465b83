r"""A reserve for dropouts: what missing noise will cost is kept back from the plan.

In superposed access a device that was to speak and does not takes its noise away. With equal noises
and m of K devices missing, the round costs the others

    y K / (K - m)

instead of y, and the ledger charges it (`server.pricing`). If every device drops out of every round
with probability p, independently, the factor f = K / (K - m) has a mean and a variance, and a run
planned for the budget R' spends in all, by a normal approximation of the sum of many rounds,

    R' (E f + z sd(f) sqrt(sum y^2) / sum y)

with a probability that z states. R' is chosen so that this is R. Rounds in which everybody is
missing release nothing and cost nothing more. The budget itself never depends on any of this: a run
that meets more dropouts than it was told of stops where it is spent.

Source: ours.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from server.errors import ConfigurationError
from server.power.schedule import FloatArray

STANDARD_DEVIATIONS = 5.0
"""z: a run that meets the dropouts it was told of ends early once in some millions."""


def dropout_factor(num_devices: int, dropout_probability: float) -> tuple[float, float]:
    """Mean and standard deviation of f, over rounds in which somebody speaks.

    Args:
        num_devices: K.
        dropout_probability: p of each device in each round, 0 to below 1.

    Raises:
        ConfigurationError: a value out of range.
    """
    if num_devices < 1:
        raise ConfigurationError(f"num_devices: got {num_devices}, wanted at least 1.")
    if not 0.0 <= dropout_probability < 1.0:
        raise ConfigurationError(
            f"dropout_probability: got {dropout_probability}, wanted 0 to below 1."
        )
    missing = np.arange(num_devices)
    chances = binom.pmf(missing, num_devices, dropout_probability)
    chances = chances / chances.sum()
    factors = num_devices / (num_devices - missing)
    mean = float(np.sum(chances * factors))
    return mean, math.sqrt(max(0.0, float(np.sum(chances * np.square(factors - mean)))))


def budget_to_plan_with(
    budget: float, costs: FloatArray, *, num_devices: int, dropout_probability: float
) -> float:
    """R', of a plan whose prices are in the proportions of ``costs``.

    Args:
        budget: R > 0, what the run may spend.
        costs: y [T], up to a factor; of a plan without a reserve, for example.
        num_devices: K.
        dropout_probability: p.

    Raises:
        ConfigurationError: a value out of range.
    """
    total = math.fsum(costs)
    if not (budget > 0.0 and total > 0.0 and np.all(costs >= 0.0)):
        raise ConfigurationError("budget and costs: wanted numbers >= 0 with a sum > 0.")
    mean, deviation = dropout_factor(num_devices, dropout_probability)
    unevenness = math.sqrt(math.fsum(np.square(costs))) / total
    return budget / (mean + STANDARD_DEVIATIONS * deviation * unevenness)
