"""The planning problem as it stands, for a convex solver: what the closed forms are held against.

The only file that knows cvxpy. Variables are scaled by a schedule that is feasible and not far off,
round by round, because levels of deep fades differ by many orders of magnitude and an unscaled
problem comes back "optimal_inaccurate" and half wrong.

Source: theory.md, section 5.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from server.power.optimal import largest_costs
from server.power.schedule import (
    FloatArray,
    InfeasiblePlanError,
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)

NAME = "convex"
MAX_FULL_VARIABLES = 5000
"""Up to so many devices times rounds every noise is a variable of its own."""


def plan_convex(problem: PlanningProblem) -> Schedule:
    """The best schedule in which everybody speaks in every round, by a solver.

    Raises:
        ConfigurationError: cvxpy is not installed.
        InfeasiblePlanError: the solver did not find the optimum.
    """
    cp = library()
    everybody = np.ones(problem.power_gains.shape, dtype=bool)
    start = with_most_artificial_noise(problem, NAME, _even_costs(problem), everybody)
    level_unit, noise_unit = start.inverse_levels, problem.noise_of_costs(start.costs)
    trusted = problem.trusted_noise * level_unit / noise_unit
    heard = problem.noise_power * level_unit / noise_unit
    levels = cp.Variable(problem.num_rounds, nonneg=True)
    limits = [levels >= problem.least_inverse_levels.max(axis=0) / level_unit]
    if problem.power_gains.size <= MAX_FULL_VARIABLES:
        noises = cp.Variable(problem.power_gains.shape, nonneg=True)
        total = cp.sum(noises, axis=0)
        scale = problem.reaches * level_unit
        across = np.ones((problem.num_devices, 1)) @ cp.reshape(levels, (1, -1), order="C")
        needs = problem.needs[:, None] / scale
        limits.append(needs + cp.multiply(noise_unit / scale, noises) <= across)
    else:
        # What fits all devices together; how it is dealt out follows.
        total = cp.Variable(problem.num_rounds, nonneg=True)
        scale = problem.reaches.sum(axis=0) * level_unit
        limits.append(
            problem.needs.sum() / scale + cp.multiply(noise_unit / scale, total) <= levels
        )
    shares = start.costs / problem.budget
    counted = total + cp.multiply(trusted, levels)
    limits.append(cp.sum(cp.multiply(shares, cp.inv_pos(counted))) <= 1.0)
    worth = problem.weights * noise_unit
    worth = worth / worth.sum()
    goal = cp.sum(cp.multiply(worth, total + cp.multiply(heard, levels)))
    solve(cp.Problem(cp.Minimize(goal), limits))
    costs = np.square(problem.sensitivities) / (2.0 * noise_unit * np.asarray(counted.value))
    # The solver's prices may exceed the budget by its tolerance; a plan may not.
    costs *= min(1.0, problem.budget / float(costs.sum()))
    return with_most_artificial_noise(problem, NAME, costs, everybody).check()


def solve(statement: Any) -> None:
    """Solve a stated problem to its optimum.

    Raises:
        InfeasiblePlanError: any other end.
    """
    cp = library()
    try:
        statement.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        raise InfeasiblePlanError(f"convex plan: the solver failed: {error}") from error
    if statement.status != cp.OPTIMAL:
        raise InfeasiblePlanError(
            f"convex plan: the solver ended with {statement.status!r}, wanted 'optimal'. Loosen "
            "the limits, or take fewer rounds."
        )


def library() -> Any:
    """cvxpy.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise InfeasiblePlanError(
            f"convex plan: {error}. Install the solver with: pip install 'pairzero[plan]'"
        ) from error
    return cvxpy


def _even_costs(problem: PlanningProblem) -> FloatArray:
    """An equal price for every round, or what it costs without noise of its own."""
    costs: FloatArray = np.minimum(problem.budget / problem.num_rounds, largest_costs(problem))
    return costs
