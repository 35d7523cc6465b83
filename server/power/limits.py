r"""What a battery, a regulator or fairness allow beyond the peak of a converter.

A device that speaks in round t sends samples of mean square (number and noise, full scale 1)

    e_kt = (G_k^2 + sigma_kt^2) / (H_kt a_t)

at most, its number being at most G_k: its energy, in units of a number's duration at full scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.errors import ConfigurationError
from server.power.schedule import (
    FEASIBILITY_SLACK,
    InfeasiblePlanError,
    PlanningProblem,
    Schedule,
)


@dataclass(frozen=True, slots=True)
class PowerLimits:
    """Per device [K], or one number for all; the defaults limit nothing.

    Attributes:
        max_energy: sum of e_kt over the run: a battery. Over the number of rounds it is a mean
            power.
        max_duty: largest share of the rounds in which a device speaks, above 0: a duty cycle.
        min_duty: smallest share: fairness.
        peak_caps: squared peak amplitude, at most that of the problem: an EIRP cap.

    Raises:
        ConfigurationError: a value out of range, or more wanted of a device than it is allowed.
    """

    max_energy: Float64Array | float = math.inf
    max_duty: Float64Array | float = 1.0
    min_duty: Float64Array | float = 0.0
    peak_caps: Float64Array | float = math.inf

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_energy", 0.0, math.inf),
            ("max_duty", 0.0, 1.0),
            ("peak_caps", 0.0, math.inf),
        ):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.all((values > low) & (values <= high)):
                raise ConfigurationError(f"{name}: got {values}, wanted above {low}, to {high}.")
        least = np.asarray(self.min_duty, dtype=np.float64)
        if not np.all((least >= 0.0) & (least <= np.asarray(self.max_duty))):
            raise ConfigurationError(
                f"min_duty: got {least}, wanted 0 to max_duty = {self.max_duty}."
            )

    def energies_allowed(self, num_devices: int) -> Float64Array:
        """The energy that every device may use [K]."""
        return _each("max_energy", self.max_energy, num_devices)

    def duties(self, num_devices: int) -> tuple[Float64Array, Float64Array]:
        """Smallest and largest share of the rounds of every device [K]."""
        least = _each("min_duty", self.min_duty, num_devices)
        return least, _each("max_duty", self.max_duty, num_devices)

    def powers_allowed(self, problem: PlanningProblem) -> Float64Array:
        """Squared peak amplitude of every device [K]."""
        caps = _each("peak_caps", self.peak_caps, problem.num_devices)
        return np.minimum(caps, problem.max_power)

    def choose_speakers(self, problem: PlanningProblem, preferred: BoolArray) -> BoolArray:
        """Who speaks [K, T]: as preferred, but within the duties, each device in its best rounds.

        Args:
            problem: whose gains say which rounds are best.
            preferred: who would speak without duties.
        """
        rounds = problem.num_rounds
        most = np.floor(_each("max_duty", self.max_duty, problem.num_devices) * rounds + 1e-9)
        least = np.ceil(_each("min_duty", self.min_duty, problem.num_devices) * rounds - 1e-9)
        chosen = np.zeros_like(preferred)
        for device in range(problem.num_devices):
            # Preferred rounds first, the best of either kind before the others.
            gains = problem.power_gains[device]
            order = np.lexsort((-gains, ~preferred[device]))
            count = int(preferred[device].sum())
            count = min(max(count, int(least[device])), int(most[device]))
            chosen[device, order[:count]] = True
        return chosen

    def check(self, schedule: Schedule, repeats: Float64Array | None = None) -> Schedule:
        """A schedule itself, if it keeps these limits.

        Args:
            schedule: to be looked at.
            repeats: how many rounds each of its rounds stands for [T]; one if left out.

        Raises:
            InfeasiblePlanError: it does not.
        """
        problem, slack = schedule.problem, 1.0 + FEASIBILITY_SLACK
        spent = energies(schedule, repeats)
        allowed = self.energies_allowed(problem.num_devices)
        if np.any(spent > allowed * slack):
            worst = int(np.argmax(spent / allowed))
            raise InfeasiblePlanError(
                f"power policy {schedule.policy!r}: device {worst} needs an energy of "
                f"{spent[worst]:.6g}, {allowed[worst]:.6g} is allowed. Nothing was transmitted."
            )
        duty = np.average(schedule.speakers, axis=1, weights=repeats)
        most = _each("max_duty", self.max_duty, problem.num_devices)
        if np.any(duty > most + FEASIBILITY_SLACK):
            raise InfeasiblePlanError(
                f"power policy {schedule.policy!r}: a device speaks more often than its duty "
                "cycle allows. Nothing was transmitted."
            )
        powers = self.powers_allowed(problem)[:, None]
        with np.errstate(invalid="ignore"):
            peaks = problem.bounds[:, None] + problem.peak_factor * np.sqrt(
                schedule.noise_variances
            )
            share = np.square(peaks) / (powers * problem.power_gains * schedule.inverse_levels)
        if np.any(share[schedule.speakers] > slack):
            raise InfeasiblePlanError(
                f"power policy {schedule.policy!r}: a device is beyond its peak. Nothing was "
                "transmitted."
            )
        return schedule


def energies(schedule: Schedule, repeats: Float64Array | None = None) -> Float64Array:
    """Sum of e_kt of every device [K], each round as often as it repeats."""
    each = mean_squares(schedule)
    if repeats is not None:
        each = each * repeats
    return np.array([math.fsum(row) for row in each])


def mean_squares(schedule: Schedule) -> Float64Array:
    """e_kt [K, T], 0 for who is silent."""
    problem = schedule.problem
    with np.errstate(invalid="ignore"):
        each = (np.square(problem.bounds)[:, None] + schedule.noise_variances) / (
            problem.power_gains * schedule.inverse_levels
        )
    return np.where(schedule.speakers, each, 0.0)


def _each(name: str, value: Float64Array | float, num_devices: int) -> Float64Array:
    values = np.asarray(value, dtype=np.float64)
    if values.shape not in ((), (num_devices,)):
        raise ConfigurationError(
            f"{name}: got {values.size} values, wanted one, or one for each of {num_devices}."
        )
    return np.broadcast_to(values, (num_devices,)).copy()
