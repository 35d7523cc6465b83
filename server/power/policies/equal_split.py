r"""Power policy ``equal_split``: everybody has the same noise, and q of them may be missing.

With sigma_k^2 = s / n for all n who speak, the level and what the promise may count are

    a = (g + s / n) / r_min,      v = s (n - q) / n + rho N0 a,      g = max_k g_k

with r_min the weakest speaker's reach of the round: q devices that fall silent, or tell the server
their noise, take theirs away, and the others are covered all the same. The optimum has one slope::

    kappa' = [1 + N0 / (n r_min)] / [(n - q) / n + rho N0 / (n r_min)]
    y(tau) = min{ Y_max, sqrt(min{ kappa', 1 / rho }) b tau }
    Y_max  = Delta^2 r_min / (2 rho N0 g)

Where 1/rho < kappa' receiver noise that is trusted costs less than artificial noise of which q
shares do not count: the level is lowered instead, and there is none. Rounds with q speakers or
fewer are silent.

Source: theory.md, section 5.3, the bounds replaced by their largest; the case of 1/rho is ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.errors import ConfigurationError
from server.power.causal_policy import CausalPolicy, Response
from server.power.policies.optimal import everybody
from server.power.schedule import PlanningProblem, Schedule
from server.power.water_filling import fill

NAME = "equal_split"


def plan_equal_split(problem: PlanningProblem, num_missing: int = 0) -> Schedule:
    """The best schedule with equal noises that holds without q of them.

    Args:
        problem: to be solved.
        num_missing: q, 0 to K - 1.

    Raises:
        ConfigurationError: nobody would be left.
    """
    _check(problem, num_missing)
    split = _Split.of(problem, everybody(problem), num_missing)
    return split.schedule(fill(split.at, problem.budget, split.largest)).check()


def as_it_goes(problem: PlanningProblem, num_missing: int = 0) -> CausalPolicy:
    """The policy ``equal_split``, one round at a time."""
    _check(problem, num_missing)

    def respond(problem: PlanningProblem, may_speak: BoolArray) -> Response:
        split = _Split.of(problem, may_speak, num_missing)
        return lambda x: (split.at(x), split.speakers)

    return CausalPolicy(
        NAME,
        respond,
        lambda problem, costs, speakers: _Split.of(
            problem, speakers & (costs > 0.0), num_missing
        ).schedule(costs),
    )


def with_equal_noises(
    problem: PlanningProblem, costs: Float64Array, may_speak: BoolArray, num_missing: int = 0
) -> Schedule:
    """The schedule of given prices [T] in which all who may speak [K, T] do, with equal noises.

    As loud as that leaves them, also where more receiver noise would be cheaper.
    """
    split = _Split.of(problem, may_speak, num_missing)
    loud = dataclasses.replace(split, by_level=np.zeros_like(split.by_level))
    return loud.schedule(costs)


def _check(problem: PlanningProblem, num_missing: int) -> None:
    devices = problem.num_devices
    if not 0 <= num_missing < devices:
        raise ConfigurationError(f"num_missing: got {num_missing}, wanted 0 to {devices - 1}.")


@dataclass(frozen=True, slots=True)
class _Split:
    """Symbols of the module, each [T] but for the speakers [K, T]."""

    problem: PlanningProblem
    speakers: BoolArray
    count: Float64Array
    left: Float64Array
    need: Float64Array
    weakest: Float64Array
    by_level: BoolArray
    steepness: Float64Array
    slopes: Float64Array
    largest: Float64Array

    @classmethod
    def of(cls, problem: PlanningProblem, may_speak: BoolArray, num_missing: int) -> _Split:
        speaking: BoolArray = may_speak & (may_speak.sum(axis=0) > num_missing)[None, :]
        spoken = speaking.any(axis=0)
        count = np.maximum(speaking.sum(axis=0).astype(np.float64), num_missing + 1.0)
        left = (count - num_missing) / count
        need = np.where(speaking, problem.needs[:, None], 0.0).max(axis=0)
        weakest = np.where(speaking, problem.reaches, np.inf).min(axis=0)
        weakest = np.where(spoken, weakest, 1.0)
        rho, trusted = problem.trusted_noise_fraction, problem.trusted_noise
        per_noise = count * weakest
        steepness = (1.0 + problem.noise_power / per_noise) / (left + trusted / per_noise)
        by_level = steepness * rho > 1.0
        squared = np.square(problem.sensitivities)
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = np.where(spoken, squared * weakest / (2.0 * trusted * need), 0.0)
        slopes = problem.sensitivities * np.sqrt(problem.weights / 2.0) / count
        return cls(
            problem=problem,
            speakers=speaking,
            count=count,
            left=left,
            need=need,
            weakest=weakest,
            by_level=by_level,
            steepness=np.where(by_level, 1.0 / max(rho, 1e-300), steepness),
            slopes=np.where(spoken, slopes, 0.0),
            largest=largest,
        )

    def at(self, tau: float) -> Float64Array:
        """y(tau)."""
        costs: Float64Array = np.minimum(self.largest, np.sqrt(self.steepness) * self.slopes * tau)
        return costs

    def schedule(self, costs: Float64Array) -> Schedule:
        """The schedule that has these prices."""
        problem, trusted = self.problem, self.problem.trusted_noise
        spoken = self.speakers.any(axis=0)
        counted = problem.noise_of_costs(np.where(spoken, costs, 1.0))
        # v = s left + rho N0 (g + s / n) / r_min, solved for s.
        artificial = (counted - trusted * self.need / self.weakest) / (
            self.left + trusted / (self.count * self.weakest)
        )
        artificial = np.where(self.by_level, 0.0, np.maximum(artificial, 0.0))
        levels = (self.need + artificial / self.count) / self.weakest
        lowered = counted / max(trusted, 1e-300)
        levels = np.where(self.by_level, np.maximum(lowered, levels), levels)
        return Schedule(
            problem=problem,
            policy=NAME,
            speakers=self.speakers,
            inverse_levels=np.where(spoken, levels, np.inf),
            noise_variances=np.where(self.speakers, artificial / self.count, 0.0),
            costs=np.where(spoken, costs, 0.0),
        )
