"""Exact composition of Gaussian rounds, rounded toward safety.

Rounds without subsampling add up in squares, in closed form (`server.privacy.gaussian`). What they
cost is counted in whole units of 2^-80, rounded up, so that a sum depends on no order and is never
below that of the reals.

Subsampled rounds are composed by privacy loss distributions, discretised pessimistically (connect
the dots), by dp_accounting's algorithms (`server.privacy.loss_distribution`). Here lie the choices
that make them fast and keep them safe:

* Noise multipliers are rounded DOWN to a grid of 1024 points per octave (0.07 %), so that rounds
  which differ in the last digits are priced alike and composed together.
* The grid of losses is epsilon / 4096, at most 2e-3. Connect-the-dots overstates epsilon, by about
  num_rounds * interval^2: below 2e-3 of epsilon in the runs this project plans.
* What truncation leaves out is bounded, but not the rounding of the FFTs. We set
  aside 1e-13 of delta per composed round. Estimated: an FFT of N points disturbs every frequency
  by about u log2(N) |p|_2 with u = 2^-53, num_rounds powers multiply that, and only some tens of
  frequencies survive the powers; this gives 3e-15 a round. The reserve is thirty times that.

Noise is a discrete Gaussian on a fine grid. Its probabilities are those of a continuous one rounded
to the grid but for a factor so near to one that a round adds less than 1e-13 to epsilon and a part
in 1e13 to delta (`edge_runtime.number_grid`). Where rounds are subsampled both are set aside; the
closed form's own room for rounding, a part in 1e9, holds them for 10,000 rounds of 256 numbers.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from server.errors import PrivacyError, TooLittleNoiseError
from server.privacy.gaussian import delta_of, epsilon_of
from server.privacy.loss_distribution import LossDistribution
from server.privacy.mechanism import MechanismRecord
from server.privacy.subsampled_gaussian import one_round

GRID_POINTS_PER_OCTAVE = 1024
FFT_DELTA_PER_ROUND = 1e-13
GRID_EPSILON_PER_ROUND = 1e-13
MAX_LOSS_INTERVAL = 2e-3
MIN_LOSS_INTERVAL = 1e-5

MIN_EPSILON = 100 * MIN_LOSS_INTERVAL
"""Below this the budget is a few steps of the finest grid: refused instead of searched for."""

_LOSS_INTERVALS_PER_EPSILON = 4096
_MAX_CACHED_DISTRIBUTIONS = 64
_MAX_CACHED_ROUNDS = 128
_MAX_CACHED_EPSILONS = 100_000

MIN_NOISE_MULTIPLIER = 0.1
"""Below this one round alone costs an epsilon of about 80: refused instead of computed."""

MAX_NOISE_MULTIPLIER = 2.0**20

_SQUARES_LOG2 = 80
"""Squares are counted in units of 2^-80; that of the largest multiplier is 2^40 of them."""

_BISECTION_SLACK = 1e-12
"""Relative: the formula in float64 is not monotone in its last bits."""


@dataclass(frozen=True, slots=True, order=True)
class PriceClass:
    """Rounds of equal price: a Poisson rate and a point of the multiplier grid."""

    sampling_probability: float
    grid_index: int

    @property
    def noise_multiplier(self) -> float:
        """2 ** (grid_index / 1024)."""
        return grid_multiplier(self.grid_index)

    @property
    def is_gaussian(self) -> bool:
        """Whether nothing is subsampled, so that it composes in closed form."""
        return self.sampling_probability == 1.0

    def is_dearer_than(self, other: PriceClass) -> bool:
        """Whether it is the same but for less noise."""
        is_alike = self.sampling_probability == other.sampling_probability
        return is_alike and self.grid_index < other.grid_index

    @property
    def square(self) -> int:
        """mu^2 = 1 / multiplier^2 of a Gaussian round in units of 2^-80, rounded up."""
        return _square(self.grid_index)


History = tuple[tuple[PriceClass, int], ...]
"""How many rounds of which price, sorted: what one account holds. Order in time is irrelevant."""


def grid_multiplier(grid_index: int) -> float:
    """The noise multiplier at one point of the grid."""
    return float(2.0 ** (grid_index / GRID_POINTS_PER_OCTAVE))


def grid_index_below(noise_multiplier: float) -> int:
    """The largest grid point that is not above ``noise_multiplier`` (less noise, higher price).

    Raises:
        TooLittleNoiseError: below MIN_NOISE_MULTIPLIER, or not a number.
    """
    if not noise_multiplier >= MIN_NOISE_MULTIPLIER:
        raise TooLittleNoiseError(
            f"noise multiplier: got {noise_multiplier}, wanted at least {MIN_NOISE_MULTIPLIER}. "
            "One such round would spend any sensible budget; add noise or lower the clip."
        )
    clamped = min(noise_multiplier, MAX_NOISE_MULTIPLIER)
    index = math.floor(GRID_POINTS_PER_OCTAVE * math.log2(clamped))
    while grid_multiplier(index) > clamped:
        index -= 1
    return index


def price_class_of(record: MechanismRecord) -> PriceClass:
    """The price class of a release: a record of an unknown mechanism cannot be made.

    Raises:
        TooLittleNoiseError: see `grid_index_below`.
    """
    return PriceClass(record.sampling_probability, grid_index_below(record.noise_multiplier))


@functools.lru_cache(maxsize=65_536)
def _square(grid_index: int) -> int:
    square = Fraction(grid_multiplier(grid_index)) ** 2
    return math.ceil(Fraction(2**_SQUARES_LOG2) / square)


def gdp_mu_of_squares(total: int) -> float:
    """mu of Gaussian rounds whose squares add up to so many units, rounded up."""
    root = math.isqrt(total)
    if root * root < total:
        root += 1
    exact = Fraction(root, 2 ** (_SQUARES_LOG2 // 2))
    rounded = float(exact)
    return rounded if Fraction(rounded) >= exact else math.nextafter(rounded, math.inf)


def sum_of_squares(history: History) -> int | None:
    """sum mu^2 of Gaussian rounds, in units of 2^-80; None where some are subsampled."""
    if not all(price.is_gaussian for price, _ in history):
        return None
    return sum(price.square * count for price, count in history)


def make_history(counts: Mapping[PriceClass, int]) -> History:
    """Counts per class as a sorted, hashable tuple without zeros."""
    return tuple(sorted((price, count) for price, count in counts.items() if count > 0))


def loss_interval_for(epsilon: float) -> float:
    """The discretisation of losses for a budget; finer for small budgets."""
    interval = epsilon / _LOSS_INTERVALS_PER_EPSILON
    return min(MAX_LOSS_INTERVAL, max(MIN_LOSS_INTERVAL, interval))


class Composer:
    """Computes epsilon of a history at a fixed delta, with everything worth keeping cached.

    Args:
        loss_interval: width of the loss grid; see `loss_interval_for`.
        delta: what may be spent on the mechanism itself, CSI failures already taken off.

    Guarantees: `epsilon` is never below the exact value, up to the FFT reserve of this module where
    rounds are subsampled, and delta at the returned epsilon is at most ``delta`` by the same
    distribution.
    """

    def __init__(self, *, loss_interval: float, delta: float) -> None:
        self._loss_interval = loss_interval
        self._delta = delta
        self._composed: OrderedDict[History, LossDistribution] = OrderedDict()
        self._epsilons: OrderedDict[History, float] = OrderedDict()

    def epsilon(self, history: History) -> float:
        """The smallest epsilon this module can prove for a history; infinite if it can prove none.

        Infinite also where the FFT reserve uses up delta (below 1e-13 per subsampled round).
        """
        if not history:
            return 0.0
        known = self._epsilons.get(history)
        if known is None:
            known = self._compute_epsilon(history)
            self._epsilons[history] = known
            if len(self._epsilons) > _MAX_CACHED_EPSILONS:
                self._epsilons.popitem(last=False)
        return known

    def gaussian_epsilon(self, squares: int) -> float:
        """Epsilon of Gaussian rounds alone, exactly; see `sum_of_squares`.

        Infinite where it is beyond 1e6.
        """
        if squares == 0:
            return 0.0
        try:
            return epsilon_of(gdp_mu_of_squares(squares), self._delta)
        except PrivacyError:
            return math.inf

    def gaussian_fits(self, squares: int, epsilon: float) -> bool:
        """Whether their `gaussian_epsilon` is at most ``epsilon``, without solving for it."""
        least = epsilon * (1.0 - _BISECTION_SLACK)
        return squares == 0 or delta_of(least, gdp_mu_of_squares(squares)) <= self._delta

    def _compute_epsilon(self, history: History) -> float:
        squares = sum_of_squares(history)
        if squares is not None:
            return self.gaussian_epsilon(squares)
        num_rounds = sum(count for _, count in history)
        delta = self._delta - num_rounds * FFT_DELTA_PER_ROUND
        if delta <= 0:
            return math.inf
        distribution = self._distribution(history)
        epsilon = distribution.epsilon_at(delta)
        # It is solved for in floating point; assert the inequality, not the root.
        nudge = 2.0**-50
        while math.isfinite(epsilon) and distribution.delta_at(epsilon) > delta:
            epsilon = max(epsilon, 1e-12) * (1.0 + nudge)
            nudge *= 2.0
        return epsilon + num_rounds * GRID_EPSILON_PER_ROUND

    def _distribution(self, history: History) -> LossDistribution:
        """The composed distribution, from the nearest thing that is known."""
        if history in self._composed:
            self._composed.move_to_end(history)
            return self._composed[history]
        result: LossDistribution | None
        if len(history) == 1:
            price, count = history[0]
            result = _one_round(price, self._loss_interval).times(count)
        else:
            result = self._extend_parent(history)
            if result is None:
                result = _fold(self._distribution((group,)) for group in history)
        self._composed[history] = result
        if len(self._composed) > _MAX_CACHED_DISTRIBUTIONS:
            self._composed.popitem(last=False)
        return result

    def _extend_parent(self, history: History) -> LossDistribution | None:
        """Compose one round onto a cached history that lacks only that round, if there is one."""
        for price, count in history:
            counts = dict(history)
            counts[price] = count - 1
            parent = self._composed.get(make_history(counts))
            if parent is not None:
                return parent.plus(_one_round(price, self._loss_interval))
        return None


@functools.lru_cache(maxsize=_MAX_CACHED_ROUNDS)
def _one_round(price: PriceClass, loss_interval: float) -> LossDistribution:
    """The privacy loss of one subsampled round.

    Kept for everybody: the account of the run that was calibrated, its resume and the next run of
    the same kind ask for the same ones. Nothing that is done with a distribution changes it.
    """
    return one_round(price.noise_multiplier, price.sampling_probability, loss_interval)


def _fold(parts: Iterable[LossDistribution]) -> LossDistribution:
    return functools.reduce(LossDistribution.plus, parts)
