"""Many rounds of one price: dp_accounting's composition with itself, several times as fast.

The library keeps of the sum of n losses what a Chernoff bound at 40 orders says holds all but 1e-15
of the mass, and finds it by a Fourier transform, its n-th power, and the way back. So does this,
with the same orders and the same bound, and two things less to compute:

* The moment generating function of N losses is wanted at the orders k / N, k = +-1 ... +-20. Each
  is a sum over powers of e^(i / N), which lie in [1, e]: a product more for every k, instead of a
  logarithm of sums. It does not depend on n, and is kept with the round.
* What is transformed is real: half of its spectrum says it all.

Tests hold one against the other.

Source: dp_accounting.pld.common, equation 5 of its supplementary material; Koskela et al.,
Computing Tight Differential Privacy Guarantees Using FFT (AISTATS 2020).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from scipy import fft

from radio.arrays import Float64Array

TRUNCATED_MASS = 1e-15
"""Of each composed distribution; it counts as an infinite loss."""

_MAX_ORDER = 20


class RoundLoss:
    """The privacy loss of one round, and of any number of its like.

    Args:
        distribution: of the round, dp_accounting's.
    """

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self._sides = [_Side(pmf.to_dense_pmf()) for pmf in _pmfs(distribution)]

    def composed(self, num_rounds: int) -> Any:
        """The distribution of so many rounds, never below the exact one but for FFTs' rounding."""
        if num_rounds == 1:
            return self.distribution
        return privacy_loss_distribution.PrivacyLossDistribution(
            *(side.composed(num_rounds) for side in self._sides)
        )


def _pmfs(distribution: Any) -> list[Any]:
    """Where a record is removed, and added, unless that is the same."""
    removed, added = distribution._pmf_remove, distribution._pmf_add  # noqa: SLF001
    return [removed] if added is removed else [removed, added]


class _Side:
    """The library's probabilities of losses, multiples of a width from a lowest one on."""

    def __init__(self, pmf: Any) -> None:
        self._width: float = pmf._discretization  # noqa: SLF001
        self._lowest: int = pmf._lower_loss  # noqa: SLF001
        self._losses: Float64Array = pmf._probs  # noqa: SLF001
        self._infinite: float = pmf._infinity_mass  # noqa: SLF001

    def composed(self, num_rounds: int) -> Any:
        lowest, highest = self._bounds(num_rounds)
        length = highest - lowest + 1
        padded = fft.next_fast_len(max(length, len(self._losses)), real=True)
        sums = fft.irfft(fft.rfft(self._losses, padded) ** num_rounds, padded)
        never = math.expm1(num_rounds * math.log1p(-self._infinite))
        return pld_pmf.DensePLDPmf(
            self._width,
            self._lowest * num_rounds + lowest,
            np.roll(sums, -lowest)[:length],  # a cyclic transform has wrapped them
            TRUNCATED_MASS - never,
            pessimistic_estimate=True,
        )

    def _bounds(self, num_rounds: int) -> tuple[int, int]:
        """Between which the sum of so many indices lies, but for `TRUNCATED_MASS`."""
        size = len(self._losses)
        lowest, highest = 0, (size - 1) * num_rounds
        rest = math.log(2.0 / TRUNCATED_MASS)
        for k, (falling, rising) in enumerate(self._log_moments, start=1):
            highest = min(highest, math.ceil((num_rounds * rising + rest) * size / k))
            lowest = max(lowest, math.floor(-(num_rounds * falling + rest) * size / k))
        return lowest, highest

    @functools.cached_property
    def _log_moments(self) -> list[tuple[float, float]]:
        """log E e^(-k i / N) and log E e^(k i / N) of the index i of a loss, for k from 1."""
        step = np.exp(np.arange(len(self._losses)) / len(self._losses))
        falling, rising, moments = self._losses, self._losses, []
        for _ in range(_MAX_ORDER):
            falling, rising = falling / step, rising * step
            moments.append((math.log(falling.sum()), math.log(rising.sum())))
        return moments
