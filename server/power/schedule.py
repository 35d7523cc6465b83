r"""The planning problem of a whole run, and the schedules that are its solutions.

T rounds, K devices with power gains H = abs(h)^2, all who speak in round t arriving at one level
c_t, with artificial noise of variance S_kt = sigma_kt^2 each. In units of the number that is sent,

    a_t = 1 / c_t^2                              what a unit of receiver noise becomes
    x_t = sum_k S_kt + N0 a_t                    noise variance of the received sum
    v_t = sum_k S_kt + rho N0 a_t                what of it a promise may count
    y_t = Delta_t^2 / (2 v_t)                    the round's price (server.privacy.gaussian)

    minimise  sum_t omega_t x_t / n_t^2          noise of the means, n_t devices speaking
    subject to  sum_t y_t <= R                                                     budget
                (G_k + phi sigma_kt)^2 <= P H_kt a_t  for all who speak            peak

The peak limit keeps a sample of G_k and phi standard deviations below full power, because cutting a
noisy sum would break the promise of superposed access. It is replaced by the convex and stricter
2 G^2 + 2 phi^2 S <= P H a, that is

    g_k + S_kt <= r_kt a_t,     g = G^2 / phi^2,     r = P H / (2 phi^2)

With phi = 0 it is the mean-square limit of the literature, g = G^2 and r = P H. Everything else is
linear in (a, S) but the budget, which is convex.

In a round of Q numbers G bounds each of them, Delta is the sensitivity of the vector in the
Euclidean norm, x the noise variance of each received sum; level and noise are the same for all.

Source: theory.md, sections 5.1 and 12.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.errors import ConfigurationError
from server.numeric import check_not_negative, check_positive
from server.power.channel_inversion import DEFAULT_PEAK_FACTOR

FEASIBILITY_SLACK = 1e-9
"""Relative; what float64 may do to an inequality that holds in exact arithmetic."""


_ROUNDING = 1e-12


class InfeasiblePlanError(ConfigurationError):
    """A schedule that breaks a limit it was made for: never carried out.

    Examples: a solver that stopped early; a sum of prices above the budget; a sample above full
    power.
    """


@dataclass(frozen=True, slots=True)
class PlanningProblem:
    """What a policy is given; symbols in the module.

    Attributes:
        power_gains: H, real [K, T], > 0.
        bounds: G of each device [K], > 0.
        sensitivities: Delta of each round [T], > 0.
        weights: omega of each round [T], > 0.
        noise_power: N0, of the in-phase branch, >= 0.
        budget: R > 0.
        max_power: P, squared peak amplitude.
        trusted_noise_fraction: rho, 0 to 1.
        peak_factor: phi >= 0.

    Raises:
        ConfigurationError: shapes that do not fit, or a value out of range.
    """

    power_gains: Float64Array
    bounds: Float64Array
    sensitivities: Float64Array
    weights: Float64Array
    noise_power: float
    budget: float
    max_power: float = 1.0
    trusted_noise_fraction: float = 0.0
    peak_factor: float = DEFAULT_PEAK_FACTOR

    def __post_init__(self) -> None:
        num_devices, num_rounds = self._check_shape("power_gains", self.power_gains, 2)
        for name, length in (
            ("bounds", num_devices),
            ("sensitivities", num_rounds),
            ("weights", num_rounds),
        ):
            (found,) = self._check_shape(name, getattr(self, name), 1)
            if found != length:
                raise ConfigurationError(f"{name}: got {found} values, wanted {length}.")
        for name in ("power_gains", "bounds", "sensitivities", "weights"):
            values = getattr(self, name)
            if not np.all(np.isfinite(values) & (values > 0)):
                raise ConfigurationError(f"{name}: wanted finite numbers > 0 only.")
        check_positive("budget", self.budget)
        check_positive("max_power", self.max_power)
        check_not_negative("noise_power", self.noise_power)
        check_not_negative("peak_factor", self.peak_factor)
        if not 0.0 <= self.trusted_noise_fraction <= 1.0:
            raise ConfigurationError(
                f"trusted_noise_fraction: got {self.trusted_noise_fraction}, wanted 0 to 1."
            )

    def _check_shape(self, name: str, values: Float64Array, ndim: int) -> tuple[int, ...]:
        shape: tuple[int, ...] = np.shape(values)
        if len(shape) != ndim or 0 in shape:
            raise ConfigurationError(f"{name}: got shape {shape}, wanted {ndim} axes, none empty.")
        return shape

    @property
    def num_devices(self) -> int:
        """K."""
        return int(self.power_gains.shape[0])

    @property
    def num_rounds(self) -> int:
        """T."""
        return int(self.power_gains.shape[1])

    @property
    def trusted_noise(self) -> float:
        """rho N0."""
        return self.trusted_noise_fraction * self.noise_power

    @property
    def needs(self) -> Float64Array:
        """g [K]: what a device's bound takes of its reach."""
        if self.peak_factor == 0.0:
            return np.square(self.bounds)
        return np.square(self.bounds / self.peak_factor)

    @property
    def reaches(self) -> Float64Array:
        """r [K, T]: how far a device's power goes at a = 1."""
        if self.peak_factor == 0.0:
            return self.max_power * self.power_gains
        return self.max_power * self.power_gains / (2.0 * self.peak_factor**2)

    @property
    def least_inverse_levels(self) -> Float64Array:
        """g / r [K, T]: the smallest a at which a device can speak, without noise of its own."""
        least: Float64Array = self.needs[:, None] / self.reaches
        return least

    def with_weights(self, weights: Float64Array) -> PlanningProblem:
        """This problem, with other rounds being worth more."""
        return dataclasses.replace(self, weights=weights)

    def noise_of_costs(self, costs: Float64Array) -> Float64Array:
        """v [T] that has these prices; infinite where nothing is paid."""
        with np.errstate(divide="ignore"):
            return np.square(self.sensitivities) / (2.0 * costs)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Levels and noises of all rounds.

    Attributes:
        problem: that it solves.
        policy: its name.
        speakers: who speaks [K, T].
        inverse_levels: a [T]; infinite in rounds in which nobody speaks.
        noise_variances: S [K, T], 0 for who is silent.
        costs: y [T], 0 in silent rounds.
    """

    problem: PlanningProblem
    policy: str
    speakers: BoolArray
    inverse_levels: Float64Array
    noise_variances: Float64Array
    costs: Float64Array

    @property
    def num_speakers(self) -> Float64Array:
        """n [T]."""
        count: Float64Array = self.speakers.sum(axis=0).astype(np.float64)
        return count

    @property
    def is_silent(self) -> BoolArray:
        """Rounds in which nobody speaks [T]."""
        silent: BoolArray = np.logical_not(self.speakers.any(axis=0))
        return silent

    @property
    def artificial_noise(self) -> Float64Array:
        """s [T]: variance of all devices' artificial noise together."""
        total: Float64Array = self.noise_variances.sum(axis=0)
        return total

    @property
    def sum_noise(self) -> Float64Array:
        """x [T]; infinite in silent rounds."""
        receiver = self.problem.noise_power * self.inverse_levels
        silent = np.where(self.is_silent, math.inf, 0.0)
        noise: Float64Array = self.artificial_noise + np.nan_to_num(receiver, posinf=0.0) + silent
        return noise

    @property
    def mean_noise(self) -> Float64Array:
        """x / n^2 [T]: noise variance of the mean of those who speak."""
        return self.sum_noise / np.square(np.maximum(self.num_speakers, 1.0))

    @property
    def objective(self) -> float:
        """sum omega x / n^2 over the rounds in which somebody speaks."""
        spoken = ~self.is_silent
        return math.fsum(self.problem.weights[spoken] * self.mean_noise[spoken])

    @property
    def spent(self) -> float:
        """sum y."""
        return math.fsum(self.costs)

    def check(self, *, within_budget: bool = True) -> Schedule:
        """Itself, if it keeps every limit of its problem.

        Args:
            within_budget: whether the budget is one of them; not for what promises nothing.

        Raises:
            InfeasiblePlanError: it does not; the message says which, and by how much.
        """
        problem, slack = self.problem, 1.0 + FEASIBILITY_SLACK
        arrays = (self.noise_variances, self.costs)
        if not all(np.all(np.isfinite(values) & (values >= 0.0)) for values in arrays):
            raise self._broken("a noise or a price is negative or not a number")
        if np.isnan(self.inverse_levels).any() or not np.all(self.inverse_levels > 0.0):
            raise self._broken("a level is not a number")
        if not np.array_equal(np.isinf(self.inverse_levels), self.is_silent):
            raise self._broken("a round has a level and no speakers, or speakers and no level")
        with np.errstate(invalid="ignore"):
            wanted = problem.needs[:, None] + self.noise_variances
            there = problem.reaches * self.inverse_levels
            excess = np.where(self.speakers, wanted / there, 0.0)
        if excess.max() > slack:
            raise self._broken(f"a device needs {excess.max():.9f} times the power that it has")
        if np.any(self.noise_variances[~self.speakers]):
            raise self._broken("a silent device has noise")
        counted = self.artificial_noise + problem.trusted_noise * np.nan_to_num(
            self.inverse_levels, posinf=0.0
        )
        paid = np.where(self.is_silent, 0.0, self.costs)
        owed = np.where(
            self.is_silent,
            0.0,
            np.square(problem.sensitivities) / np.maximum(2.0 * counted, 1e-300),
        )
        if within_budget and np.any(owed > paid * slack):
            raise self._broken("a round costs more than was planned for it")
        if within_budget and self.spent > problem.budget * slack:
            raise self._broken(
                f"its prices add up to {self.spent / problem.budget:.9f} of the budget"
            )
        return self

    def _broken(self, what: str) -> InfeasiblePlanError:
        return InfeasiblePlanError(
            f"power policy {self.policy!r}: {what}. Nothing was transmitted; please report it."
        )


def with_most_artificial_noise(
    problem: PlanningProblem, policy: str, costs: Float64Array, speakers: BoolArray
) -> Schedule:
    """The schedule of given prices that counts as little receiver noise as it can.

    For v_t of the price, all a with v = s + rho N0 a and a sum of noises that fits are equally
    good where rho = 1; this one takes the largest noise s, so that less rests on the receiver.
    Where rho < 1 it is the best one. ::

        s_fit  = a_min sum r - sum g               what fits at the loudest level
        v <= s_fit + rho N0 a_min:   a = a_min,                       s = v - rho N0 a_min
        else:                        a = (v + sum g)/(sum r + rho N0),  s = a sum r - sum g

    with sums over those who speak, and s dealt out in proportion to what fits each of them,
    S_k = s (r_k a - g_k) / sum (r a - g).

    Args:
        problem: whose limits it keeps.
        policy: its name.
        costs: y [T]; where it is 0, or nobody may speak, the round is silent.
        speakers: who may speak [K, T].
    """
    speaking = speakers & (costs > 0.0)[None, :]
    spoken = speaking.any(axis=0)
    reaches = np.where(speaking, problem.reaches, 0.0)
    needs = np.where(speaking, problem.needs[:, None], 0.0)
    least = np.where(speaking, problem.least_inverse_levels, 0.0).max(axis=0)
    total_reach, total_need = reaches.sum(axis=0), needs.sum(axis=0)
    trusted = problem.trusted_noise
    wanted = np.where(spoken, problem.noise_of_costs(np.where(spoken, costs, 1.0)), 0.0)
    fits = np.maximum(least * total_reach - total_need, 0.0)
    is_loudest = wanted <= fits + trusted * least
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = (wanted + total_need) / (total_reach + trusted)
    inverse = np.where(is_loudest, least, np.maximum(lower, least))
    artificial = np.maximum(wanted - trusted * inverse, 0.0)
    artificial[artificial <= _ROUNDING * wanted] = 0.0  # what is left of a difference of equals
    room = np.maximum(reaches * inverse - needs, 0.0)
    total_room = room.sum(axis=0)
    shares = np.divide(room, total_room, out=np.zeros_like(room), where=total_room > 0.0)
    return Schedule(
        problem=problem,
        policy=policy,
        speakers=speaking,
        inverse_levels=np.where(spoken, inverse, math.inf),
        noise_variances=np.where(speaking, shares * artificial, 0.0),
        costs=np.where(spoken, costs, 0.0),
    )
