"""The privacy loss of one round of a subsampled Gaussian, rounded to a grid on the dear side.

Noise of standard deviation m on a number that one record moves by 1, if a fraction q of the rounds
draws it: N_a the normal law around a, and u(x) = (-1/2 - x) / m^2, v(x) = (1/2 - x) / m^2::

    removed:  P = (1 - q) N_0 + q N_-1,  Q = N_0,                   loss log(1 - q + q e^u)
    added:    P = N_0,                   Q = (1 - q) N_0 + q N_1,   loss -log(1 - q + q e^-v)

Losses fall as x rises, so delta(eps) = P(x) - e^eps Q(x) of the distribution functions at the
largest x whose loss is at least eps. A removed record never has a loss of log(1 - q) or less, an
added one none of -log(1 - q) or more. The grid reaches as far as N_0 has e^-50 beyond it.

Tests hold it against dp_accounting, value by value.

Source: Doroshenko et al., Connect the Dots (PoPETs 2022), algorithm 1; dp_accounting.pld.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from radio.arrays import Float64Array
from server.errors import PrivacyError
from server.privacy.loss_distribution import LossDistribution, Losses

_BEYOND = math.exp(-50.0)
_DELTA_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class _Way:
    """A record is removed, or added.

    Attributes:
        multiplier: m.
        rate: q.
        is_added: which of the two.
    """

    multiplier: float
    rate: float
    is_added: bool

    @property
    def _sign(self) -> float:
        """The loss is this times a logarithm."""
        return -1.0 if self.is_added else 1.0

    @property
    def _log_rest(self) -> float:
        """log(1 - q)."""
        return math.log1p(-self.rate) if self.rate < 1.0 else -math.inf

    def loss(self, x: float) -> float:
        """At a point."""
        sign = self._sign
        unsampled = (-0.5 * sign - x) / self.multiplier**2
        return sign * float(np.logaddexp(self._log_rest, math.log(self.rate) + sign * unsampled))

    def range_of_losses(self) -> tuple[float, float]:
        """The least and the largest that are told apart."""
        end = -self.multiplier * float(ndtri(0.5 * _BEYOND))
        lowest, highest = (-end, end + 1.0) if self.is_added else (-end - 1.0, end)
        return self.loss(highest), self.loss(lowest)

    def deltas(self, epsilons: Float64Array) -> Float64Array:
        """P(x) - e^eps Q(x) at the largest x whose loss is at least eps, for each."""
        border = self._sign * self._log_rest
        is_inside = epsilons < border if self.is_added else epsilons > border
        # Beyond the border one law lies above the other everywhere.
        deltas = np.zeros_like(epsilons) if self.is_added else -np.expm1(epsilons)
        inside = epsilons[is_inside]
        at = self._points(inside, border) / self.multiplier
        by_one, rate = 1.0 / self.multiplier, self.rate
        if self.is_added:
            upper = ndtr(at)
            log_lower = np.logaddexp(
                self._log_rest + log_ndtr(at), math.log(rate) + log_ndtr(at - by_one)
            )
        else:
            upper = (1.0 - rate) * ndtr(at) + rate * ndtr(at + by_one)
            log_lower = log_ndtr(at)
        deltas[is_inside] = upper - np.exp(inside + log_lower)
        return np.clip(deltas, 0.0, 1.0)

    def _points(self, losses: Float64Array, border: float) -> Float64Array:
        """The largest x at which the loss is at least each of these.

        Without subsampling it would be that of log(1 + (e^l - 1) / q) for a removed record, of
        -log(1 + (e^-l - 1) / q) for an added one.
        """
        sign = self._sign
        grown = sign * losses - math.log(self.rate)
        # The border itself is where a logarithm of nothing is taken.
        is_border = np.isclose(losses, border, rtol=1e-9, atol=0.0)
        rest = np.where(is_border, -math.inf, self._log_rest - math.log(self.rate))
        unsampled = sign * (grown + np.log1p(-np.exp(rest - grown)))
        unsampled = np.where(is_border, -sign * math.inf, unsampled)
        unsampled = np.where(losses == 0.0, 0.0, unsampled)
        points: Float64Array = -0.5 * sign - unsampled * self.multiplier**2
        return points


def one_round(
    noise_multiplier: float, sampling_probability: float, loss_interval: float
) -> LossDistribution:
    """The privacy loss distribution of a round, never below the exact one.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        sampling_probability: Poisson rate, above 0, at most 1.
        loss_interval: of the grid that losses are rounded to.

    Raises:
        PrivacyError: the price of such a round is not known.
    """
    removed = _rounded(_Way(noise_multiplier, sampling_probability, False), loss_interval)
    if sampling_probability == 1.0:
        return LossDistribution(removed)
    added = _rounded(_Way(noise_multiplier, sampling_probability, True), loss_interval)
    return LossDistribution(removed, added)


def _rounded(way: _Way, loss_interval: float) -> Losses:
    least, largest = way.range_of_losses()
    lowest, highest = math.floor(least / loss_interval), math.ceil(largest / loss_interval)
    deltas = way.deltas(np.arange(lowest, highest + 1, dtype=np.float64) * loss_interval)
    if np.any(np.diff(deltas) > _DELTA_TOLERANCE):
        raise PrivacyError(
            f"a round of noise multiplier {way.multiplier} and rate {way.rate}: its deltas do not "
            f"fall as epsilon rises by {loss_interval}, so its price is not known."
        )
    return connect_the_dots(np.minimum.accumulate(deltas), lowest, loss_interval)


def connect_the_dots(deltas: Float64Array, lowest: int, width: float) -> Losses:
    """Losses on a grid that have these deltas at each of its points (Algorithm 1 there).

    Between the points their delta lies above any curve through them that can be one.

    Args:
        deltas: at ``lowest`` widths, and one width more each: at least two that do not rise.
        lowest: the first loss, in widths.
        width: of the grid.
    """
    falls, growth = np.diff(deltas), math.expm1(width)
    masses = np.empty_like(deltas)
    masses[0] = 1.0 - deltas[0] + falls[0] / growth
    masses[1:-1] = (falls[1:] - falls[:-1] * math.exp(width)) / growth
    masses[-1] = falls[-1] / math.expm1(-width)
    return Losses(width, lowest, np.maximum(masses, 0.0), float(deltas[-1]))
