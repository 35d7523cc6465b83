r"""Power policy ``optimal``: least noise of the means, everybody speaking in every round.

Closed form. With sums over all devices, and

    a_min = max_k g_k / r_k,   v_min = rho N0 a_min,   v_fit = a_min sum r - sum g + v_min
    Y_max = Delta^2 / (2 v_min),   Y_fit = Delta^2 / (2 v_fit)
    kappa = (sum r + N0) / (sum r + rho N0),   b = Delta sqrt(omega / 2)

    y_t(tau) = min{ Y_max, max{ b tau, min{ Y_fit, sqrt(kappa) b tau } } },   sum_t y_t(tau) = R

Each price is constant or proportional to tau, and grows with it, so tau is a root of a monotone
piecewise linear function. If all rounds at their largest price stay below the budget, they are
that: the receiver's noise is enough.

Source: theory.md, section 5.2; with rho = 1 the corrected form of the paper's theorem 3.
"""

from __future__ import annotations

import numpy as np

from server.power.schedule import (
    FloatArray,
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)
from server.power.water_filling import fill

NAME = "optimal"


def plan_optimal(problem: PlanningProblem) -> Schedule:
    """The best schedule in which everybody speaks in every round.

    Guarantees: within the budget and the peak limits; no other schedule of full participation has a
    smaller objective; of equally good ones it has the most artificial noise.

    Raises:
        ConfigurationError: see `PlanningProblem`.
    """
    everybody = np.ones(problem.power_gains.shape, dtype=bool)
    costs = optimal_costs(problem)
    return with_most_artificial_noise(problem, NAME, costs, everybody).check()


def optimal_costs(problem: PlanningProblem) -> FloatArray:
    """y [T]."""
    slopes = problem.sensitivities * np.sqrt(problem.weights / 2.0)
    largest = largest_costs(problem)
    least = problem.least_inverse_levels.max(axis=0)
    total_reach = problem.reaches.sum(axis=0)
    noise, trusted = problem.noise_power, problem.trusted_noise
    fits = np.maximum(least * total_reach - problem.needs.sum(), 0.0) + trusted * least
    with np.errstate(divide="ignore"):
        fitting = np.square(problem.sensitivities) / (2.0 * fits)
    steeper = slopes * np.sqrt((total_reach + noise) / (total_reach + trusted))

    def costs_at(tau: float) -> FloatArray:
        inner = np.minimum(fitting, steeper * tau)
        return np.minimum(largest, np.maximum(slopes * tau, inner))

    return fill(costs_at, problem.budget, largest)


def largest_costs(problem: PlanningProblem) -> FloatArray:
    """Y_max [T]: the price of a round without artificial noise; infinite if none is trusted."""
    least = problem.least_inverse_levels.max(axis=0)
    with np.errstate(divide="ignore"):
        costs: FloatArray = np.square(problem.sensitivities) / (2.0 * problem.trusted_noise * least)
    return costs
