r"""What the rounds of a problem may cost, given who speaks in them: the closed form's ingredients.

With sums over those who speak in a round, n of them,

    a_min = max g / r,      v_min = rho N0 a_min,      v_fit = a_min sum r - sum g + v_min
    Y_max = Delta^2 / (2 v_min),      Y_fit = Delta^2 / (2 v_fit)
    kappa = (sum r + N0) / (sum r + rho N0),      b = Delta sqrt(omega / 2) / n

Below v_fit a round is as loud as can be, and more noise costs no level; beyond, the level falls
with the noise, and a unit of it costs kappa units of receiver noise and its own together. So the
price of a round at the multiplier zeta = 1/tau^2 of the budget is

    y(tau) = min{ Y_max, max{ b tau, min{ Y_fit, sqrt(kappa) b tau } } }

and its noise at any price y, with v = Delta^2 / (2 y), is

    x(y) = v + (1 - rho) N0 a(v),      a(v) = max{ a_min, (v + sum g) / (sum r + rho N0) }

Source: theory.md, section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.power.schedule import PlanningProblem


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Symbols of the module, each [T]; silent rounds cost 0 at any multiplier.

    Attributes:
        problem: whose rounds they are.
        num_speakers: n.
        least: a_min.
        total_reach: sum r.
        total_need: sum g.
        largest: Y_max, infinite where no noise is trusted.
        fitting: Y_fit.
        slopes: b.
        steepness: kappa.
    """

    problem: PlanningProblem
    num_speakers: Float64Array
    least: Float64Array
    total_reach: Float64Array
    total_need: Float64Array
    largest: Float64Array
    fitting: Float64Array
    slopes: Float64Array
    steepness: Float64Array

    @classmethod
    def of(cls, problem: PlanningProblem, speakers: BoolArray) -> RoundCosts:
        """For these speakers [K, T]."""
        count = speakers.sum(axis=0).astype(np.float64)
        least = np.where(speakers, problem.least_inverse_levels, 0.0).max(axis=0)
        total_reach = np.where(speakers, problem.reaches, 0.0).sum(axis=0)
        total_need = np.where(speakers, problem.needs[:, None], 0.0).sum(axis=0)
        trusted = problem.trusted_noise
        fits = np.maximum(least * total_reach - total_need, 0.0) + trusted * least
        squared, spoken = np.square(problem.sensitivities), count > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = np.where(spoken, squared / (2.0 * trusted * least), 0.0)
            fitting = np.where(spoken, squared / (2.0 * fits), 0.0)
            slopes = np.where(spoken, problem.sensitivities * np.sqrt(problem.weights / 2), 0.0)
            steepness = (total_reach + problem.noise_power) / (total_reach + trusted)
        return cls(
            problem=problem,
            num_speakers=count,
            least=least,
            total_reach=total_reach,
            total_need=total_need,
            largest=largest,
            fitting=fitting,
            slopes=slopes / np.maximum(count, 1.0),
            steepness=np.where(spoken, steepness, 1.0),
        )

    def at(self, tau: float) -> Float64Array:
        """y(tau)."""
        inner = np.minimum(self.fitting, np.sqrt(self.steepness) * self.slopes * tau)
        costs: Float64Array = np.minimum(self.largest, np.maximum(self.slopes * tau, inner))
        return costs

    def mean_noise(self, costs: Float64Array) -> Float64Array:
        """x(y) / n^2; infinite in silent rounds."""
        problem = self.problem
        counted = problem.noise_of_costs(costs)
        with np.errstate(divide="ignore", invalid="ignore"):
            lower = (counted + self.total_need) / (self.total_reach + problem.trusted_noise)
            level = np.maximum(self.least, lower)
            untrusted = problem.noise_power - problem.trusted_noise
            noise = (counted + untrusted * level) / np.square(self.num_speakers)
        return np.where(self.num_speakers > 0, noise, np.inf)
