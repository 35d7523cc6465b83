r"""A reserve for dropouts: what missing noise will cost is kept back from the plan.

In superposed access a device that was to speak and does not takes its noise away. With equal
noises, m of K devices missing and a plan that holds without q of them anyway, the round costs the
others

    f y,     f = max(1, (K - q) / (K - m))

instead of y, and the ledger charges it (`server.run.pricing`). If every device drops out of every
round with probability p, independently, f has a mean and a variance, and a run planned for the
budget R' spends in all, by a normal approximation of the sum of many rounds,

    R' (E f + z sd(f) sqrt(sum y^2) / sum y)

with a probability that z states. R' is chosen so that this is R. Where rounds are subsampled,
prices are those of their central limit, exp(1 / multiplier^2) - 1, and the multiplier is chosen in
the same way; there a round that lost most of its noise may cost more than all others, and the
approximation leaves such runs out. Rounds in which everybody is missing release nothing and cost
nothing more. The budget itself never depends on any of this: a run that meets more dropouts than it
was told of stops where it is spent.

Source: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from radio.arrays import Float64Array
from radio.bisection import bisect
from server.errors import ConfigurationError

STANDARD_DEVIATIONS = 5.0
"""z: a full-price run with the dropouts it was told of ends early once in some millions."""

_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Dropouts:
    """What is expected of the devices of a run.

    Attributes:
        num_devices: K.
        probability: p of each device in each round, 0 to below 1.
        num_missing: q, whose noise the plan does not count anyway.

    Raises:
        ConfigurationError: a value out of range.
    """

    num_devices: int
    probability: float
    num_missing: int = 0

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ConfigurationError(f"num_devices: got {self.num_devices}, wanted at least 1.")
        if not 0.0 <= self.probability < 1.0:
            raise ConfigurationError(
                f"dropout_probability: got {self.probability}, wanted 0 to below 1."
            )
        if not 0 <= self.num_missing < self.num_devices:
            raise ConfigurationError(
                f"num_missing: got {self.num_missing}, wanted 0 to {self.num_devices - 1}."
            )

    @property
    def factors(self) -> tuple[Float64Array, Float64Array]:
        """f for 0 to K - 1 devices missing, and how likely each is if somebody speaks."""
        missing = np.arange(self.num_devices)
        there = self.num_devices - missing
        ways = gammaln(self.num_devices + 1) - gammaln(missing + 1) - gammaln(there + 1)
        chances = np.exp(
            ways + xlogy(missing, self.probability) + xlog1py(there, -self.probability)
        )
        counted = self.num_devices - self.num_missing
        return np.maximum(1.0, counted / there), chances / chances.sum()

    @property
    def factor(self) -> tuple[float, float]:
        """Mean and standard deviation of f."""
        return _moments(*self.factors)


def budget_to_plan_with(budget: float, costs: Float64Array, dropouts: Dropouts) -> float:
    """R', of a plan whose prices are in the proportions of ``costs``.

    Args:
        budget: R > 0, what the run may spend.
        costs: y [T], up to a factor; of a plan without a reserve, for example.
        dropouts: that are expected.

    Raises:
        ConfigurationError: a value out of range.
    """
    total = math.fsum(costs)
    if not (budget > 0.0 and total > 0.0 and np.all(costs >= 0.0)):
        raise ConfigurationError("budget and costs: wanted numbers >= 0 with a sum > 0.")
    mean, deviation = dropouts.factor
    unevenness = math.sqrt(math.fsum(np.square(costs))) / total
    return budget / (mean + STANDARD_DEVIATIONS * deviation * unevenness)


def multiplier_to_plan_with(multiplier: float, num_rounds: int, dropouts: Dropouts) -> float:
    """The multiplier of subsampled rounds that are all alike, in place of one that spends all.

    Args:
        multiplier: that does if nobody drops out.
        num_rounds: T.
        dropouts: that are expected.
    """
    if dropouts.probability == 0.0:
        return multiplier
    factors, chances = dropouts.factors
    spread = STANDARD_DEVIATIONS / math.sqrt(num_rounds)

    def is_enough(square: float) -> bool:
        # Relative to the price that was to be: exponents may be large.
        prices = np.exp(factors * square - 1.0 / multiplier**2) - math.exp(-1.0 / multiplier**2)
        mean, deviation = _moments(prices, chances)
        return mean + spread * deviation <= -math.expm1(-1.0 / multiplier**2)

    square, _ = bisect(is_enough, 0.0, 1.0 / multiplier**2, _BISECTIONS)
    return 1.0 / math.sqrt(square)


def _moments(values: Float64Array, chances: Float64Array) -> tuple[float, float]:
    mean = float(np.sum(chances * values))
    return mean, math.sqrt(max(0.0, float(np.sum(chances * np.square(values - mean)))))
