"""Privacy losses of rounds on a grid: composed, and what epsilon and delta they come to.

The algorithms are dp_accounting's. It goes from value to value in Python, and takes longer to load
than a short run takes; here whole arrays are taken:

* n rounds of one price: of the sum of n losses is kept what a Chernoff bound at 40 orders says
  holds all but 1e-15 of the mass; a Fourier transform, its n-th power, and the way back. The moment
  generating function of N losses is wanted at the orders k / N, k = +-1 ... +-20: sums over powers
  of e^(i / N), which lie in [1, e], so a product more for every k. It does not depend on n.
* Two distributions: a convolution, less tails of 1e-15.
* delta at epsilon: infinite + sum over losses l > epsilon of p(l) (1 - e^(epsilon - l)); epsilon at
  delta is where that crosses, solved between the two losses around it.

Everything that is left out counts as an infinite loss, or as the least that is kept. Tests hold
each step against the library's.

Source: dp_accounting.pld; Doroshenko et al., Connect the Dots (PoPETs 2022); Koskela et al.,
Computing Tight Differential Privacy Guarantees Using FFT (AISTATS 2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from radio.arrays import Float64Array

TRUNCATED_MASS = 1e-15
"""At most so much of each composed distribution is left out."""

_MAX_ORDER = 20


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of one of two ways: a record is removed, or added.

    Attributes:
        width: of the grid.
        lowest: the least loss, in widths.
        masses: probability of that loss and of each multiple of the width above it.
        infinite: probability of an infinite loss.
    """

    width: float
    lowest: int
    masses: Float64Array
    infinite: float

    def times(self, num_rounds: int) -> Losses:
        """The sum of so many such losses, each drawn anew."""
        lowest, highest = self._bounds(num_rounds)
        length = highest - lowest + 1
        padded = fft.next_fast_len(max(length, len(self.masses)), real=True)
        sums = fft.irfft(fft.rfft(self.masses, padded) ** num_rounds, padded)
        never = math.expm1(num_rounds * math.log1p(-self.infinite))
        return Losses(
            self.width,
            self.lowest * num_rounds + lowest,
            np.roll(sums, -lowest)[:length],  # a cyclic transform has wrapped them
            TRUNCATED_MASS - never,
        )

    def plus(self, other: Losses) -> Losses:
        """The sum of one of these and one of those."""
        length = len(self.masses) + len(other.masses) - 1
        padded = fft.next_fast_len(length, real=True)
        product = fft.rfft(self.masses, padded) * fft.rfft(other.masses, padded)
        sums: Float64Array = fft.irfft(product, padded)[:length]
        start = _num_within(sums, TRUNCATED_MASS / 2)
        end = max(len(sums) - _num_within(sums[::-1], TRUNCATED_MASS / 2), start + 1)
        kept = sums[start:end].copy()
        kept[0] += np.sum(sums[:start])
        infinite = self.infinite + other.infinite - self.infinite * other.infinite
        return Losses(
            self.width,
            self.lowest + other.lowest + start,
            kept,
            infinite + float(np.sum(sums[end:])),
        )

    def delta_at(self, epsilon: float) -> float:
        """How much more likely something may be, beyond a factor e^epsilon."""
        first = max(0, math.floor(epsilon / self.width) - self.lowest)
        losses = np.arange(self.lowest + first, self.lowest + len(self.masses)) * self.width
        beyond = np.maximum(0.0, -np.expm1(epsilon - losses))
        return self.infinite + float(np.dot(beyond, self.masses[first:]))

    def epsilon_at(self, delta: float) -> float:
        """The smallest epsilon that is not negative and has at most this delta."""
        if self.infinite > delta:
            return math.inf
        first = max(0, 1 - self.lowest)  # the first positive loss
        masses = self.masses[first:]
        if not len(masses):
            return 0.0
        # Of the losses from each on: their mass, and that times e^(the loss below it - the loss).
        at_least = self.infinite + np.cumsum(masses[::-1])[::-1]
        steps = np.arange(len(masses)) * self.width
        with np.errstate(divide="ignore"):
            logs = np.log(np.maximum(masses, 0.0)) - steps
        discounted = np.exp(np.logaddexp.accumulate(logs[::-1])[::-1] + steps - self.width)
        over = np.flatnonzero(at_least - discounted > delta)
        last = int(over[-1]) if len(over) else 0
        if at_least[last] <= delta:
            return 0.0
        if discounted[last] <= 0.0:
            return math.inf
        below = (self.lowest + first + last - 1) * self.width
        return max(0.0, below + math.log((at_least[last] - delta) / discounted[last]))

    def _bounds(self, num_rounds: int) -> tuple[int, int]:
        """Between which the sum of so many indices lies, but for `TRUNCATED_MASS`."""
        size = len(self.masses)
        lowest, highest = 0, (size - 1) * num_rounds
        rest = math.log(2.0 / TRUNCATED_MASS)
        for k, (falling, rising) in enumerate(self._log_moments, start=1):
            highest = min(highest, math.ceil((num_rounds * rising + rest) * size / k))
            lowest = max(lowest, math.floor(-(num_rounds * falling + rest) * size / k))
        return lowest, highest

    @functools.cached_property
    def _log_moments(self) -> list[tuple[float, float]]:
        """log E e^(-k i / N) and log E e^(k i / N) of the index i of a loss, for k from 1."""
        step = np.exp(np.arange(len(self.masses)) / len(self.masses))
        falling, rising, moments = self.masses, self.masses, []
        for _ in range(_MAX_ORDER):
            falling, rising = falling / step, rising * step
            moments.append((math.log(falling.sum()), math.log(rising.sum())))
        return moments


class LossDistribution:
    """Losses both ways.

    Args:
        removed: where a record is removed.
        added: where one is added; not given, the same.
    """

    def __init__(self, removed: Losses, added: Losses | None = None) -> None:
        self.removed, self.added = removed, removed if added is None else added

    @property
    def _ways(self) -> Sequence[Losses]:
        return (self.removed,) if self.added is self.removed else (self.removed, self.added)

    def times(self, num_rounds: int) -> LossDistribution:
        """So many rounds like this one."""
        if num_rounds == 1:
            return self
        return LossDistribution(*(losses.times(num_rounds) for losses in self._ways))

    def plus(self, other: LossDistribution) -> LossDistribution:
        """Both, one after the other."""
        removed = self.removed.plus(other.removed)
        if len(self._ways) == len(other._ways) == 1:
            return LossDistribution(removed)
        return LossDistribution(removed, self.added.plus(other.added))

    def delta_at(self, epsilon: float) -> float:
        """The delta that holds with an epsilon."""
        return max(losses.delta_at(epsilon) for losses in self._ways)

    def epsilon_at(self, delta: float) -> float:
        """The smallest epsilon that holds with a delta; infinite if none does."""
        return max(losses.epsilon_at(delta) for losses in self._ways)


def _num_within(masses: Float64Array, most: float) -> int:
    """How many from the first on come to no more than that together."""
    is_over = np.cumsum(masses) > most
    return int(np.argmax(is_over)) if is_over.any() else len(masses)
