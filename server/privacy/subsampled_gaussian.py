"""The privacy loss of one subsampled Gaussian round, as dp_accounting computes it, all at once.

dp_accounting inverts the privacy loss for one value after the other in Python, which is most of the
time of a calibration. Here the same inverse is taken of all values together; everything else, the
distribution functions and their range, is the library's, and so is the way in which they are
rounded to the dear side. Tests hold one against the other.

Source: Doroshenko et al., Connect the Dots (PoPETs 2022); dp_accounting.pld.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import privacy_loss_distribution, privacy_loss_mechanism

from radio.arrays import Float64Array
from server.errors import PrivacyError
from server.privacy.loss_distribution import LossDistribution, Losses

_Adjacency = privacy_loss_mechanism.AdjacencyType
_DELTA_TOLERANCE = 1e-12


class _GaussianLoss(privacy_loss_mechanism.GaussianPrivacyLoss):
    """The library's, of sampling rates below 1, with its divergence for many epsilons at once."""

    def get_delta_for_epsilon(self, epsilon: npt.ArrayLike) -> Float64Array:
        """Hockey-stick divergence P(x) - e^eps Q(x), x the largest whose loss is at least eps."""
        epsilons = np.asarray(epsilon, dtype=np.float64)
        rate, is_added = self.sampling_prob, self.adjacency_type is _Adjacency.ADD
        # Beyond the border one distribution lies above the other everywhere.
        border = -math.log1p(-rate) if is_added else math.log1p(-rate)
        is_inside = epsilons < border if is_added else epsilons > border
        deltas = np.zeros_like(epsilons) if is_added else -np.expm1(epsilons)
        inside = epsilons[is_inside]
        at = self._inverses(inside, border)
        deltas[is_inside] = self.mu_upper_cdf(at) - np.exp(inside + self.mu_lower_log_cdf(at))
        return np.clip(deltas, 0.0, 1.0)

    def _inverses(self, losses: Float64Array, border: float) -> Float64Array:
        """The largest x at which the loss is at least each of these.

        Without subsampling it would be that of -log(1 + (e^-l - 1) / q) for an added record, of
        log(1 + (e^l - 1) / q) for a removed one.
        """
        sign = -1.0 if self.adjacency_type is _Adjacency.ADD else 1.0
        rate = self.sampling_prob
        grown = sign * losses + math.log(1.0 / rate)
        # The border itself is where a logarithm of nothing is taken.
        is_border = np.isclose(losses, border, rtol=1e-9, atol=0.0)
        rest = np.where(is_border, -math.inf, math.log(1.0 / rate - 1.0))
        unsampled = sign * (grown + np.log1p(-np.exp(rest - grown)))
        unsampled = np.where(is_border, -sign * math.inf, unsampled)
        unsampled = np.where(losses == 0.0, 0.0, unsampled)
        shift = self.sensitivity if sign < 0.0 else 0.0
        at: Float64Array = (
            shift - 0.5 * self.sensitivity
            - unsampled * self._standard_deviation**2 / self.sensitivity
        )  # fmt: skip
        return at


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
    if sampling_probability == 1.0:
        plain = privacy_loss_distribution.from_gaussian_mechanism(
            standard_deviation=noise_multiplier,
            value_discretization_interval=loss_interval,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
        return LossDistribution(Losses.of_library(plain._pmf_remove))  # noqa: SLF001
    return LossDistribution(
        *(
            _rounded(noise_multiplier, sampling_probability, loss_interval, adjacency)
            for adjacency in (_Adjacency.REMOVE, _Adjacency.ADD)
        )
    )


def _rounded(multiplier: float, rate: float, loss_interval: float, adjacency: Any) -> Losses:
    loss = _GaussianLoss(multiplier, sampling_prob=rate, adjacency_type=adjacency)
    bounds = loss.connect_dots_bounds()
    highest = math.ceil(bounds.epsilon_upper / loss_interval)
    lowest = math.floor(bounds.epsilon_lower / loss_interval)
    deltas = loss.get_delta_for_epsilon(np.arange(lowest, highest + 1) * loss_interval)
    if np.any(np.diff(deltas) > _DELTA_TOLERANCE):
        raise PrivacyError(
            f"a round of noise multiplier {multiplier} and rate {rate}: its deltas do not fall as "
            f"epsilon rises by {loss_interval}, so its price is not known."
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
