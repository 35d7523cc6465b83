r"""Power policy ``equal_split``: everybody has the same noise, and q of them may be missing.

With sigma_k^2 = s / K for all, the level and what the promise may count are

    a = (g + s / K) / r_min,      v = s (K - q) / K + rho N0 a,      g = max_k g_k

with r_min the weakest device's reach of the round: q devices that fall silent, or tell the server
their noise, take theirs away, and the others are covered all the same. The optimum has one slope::

    kappa' = [1 + N0 / (K r_min)] / [(K - q) / K + rho N0 / (K r_min)]
    y(tau) = min{ Y_max, sqrt(min{ kappa', 1 / rho }) b tau }
    Y_max  = Delta^2 r_min / (2 rho N0 g)

Where 1/rho < kappa' receiver noise that is trusted costs less than artificial noise of which q
shares do not count: the level is lowered instead, and there is none.

Source: theory.md, section 5.3, the bounds replaced by their largest; the case of 1/rho is ours.
"""

from __future__ import annotations

import numpy as np

from server.errors import ConfigurationError
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
    devices = problem.num_devices
    if not 0 <= num_missing < devices:
        raise ConfigurationError(f"num_missing: got {num_missing}, wanted 0 to {devices - 1}.")
    left = (devices - num_missing) / devices
    need, weakest = problem.needs.max(), problem.reaches.min(axis=0)
    noise, trusted = problem.noise_power, problem.trusted_noise
    per_noise = devices * weakest
    steepness = (1.0 + noise / per_noise) / (left + trusted / per_noise)
    rho = problem.trusted_noise_fraction
    by_level = steepness * rho > 1.0
    steepness = np.where(by_level, 1.0 / max(rho, 1e-300), steepness)
    slopes = problem.sensitivities * np.sqrt(problem.weights / 2.0) / devices
    squared = np.square(problem.sensitivities)
    with np.errstate(divide="ignore"):
        largest = squared * weakest / (2.0 * trusted * need)

    def at(tau: float) -> np.ndarray:
        return np.minimum(largest, np.sqrt(steepness) * slopes * tau)

    costs = fill(at, problem.budget, largest)
    counted = problem.noise_of_costs(costs)
    # v = s left + rho N0 (g + s / K) / r_min, solved for s.
    artificial = (counted - trusted * need / weakest) / (left + trusted / per_noise)
    artificial = np.where(by_level, 0.0, np.maximum(artificial, 0.0))
    levels = (need + artificial / devices) / weakest
    lowered = counted / max(trusted, 1e-300)
    return Schedule(
        problem=problem,
        policy=NAME,
        speakers=everybody(problem),
        inverse_levels=np.where(by_level, np.maximum(lowered, levels), levels),
        noise_variances=np.broadcast_to(artificial / devices, problem.power_gains.shape).copy(),
        costs=costs,
    ).check()
