"""The planning problem as it stands, for a convex solver: what the closed forms are held against.

Variables are scaled by a schedule that is feasible and not far off, round by round, because levels
of deep fades differ by many orders of magnitude and an unscaled problem comes back
"optimal_inaccurate" and half wrong.

Source: theory.md, section 5.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from radio.arrays import Float64Array
from server.power.convex import library, solve
from server.power.policies import equal_split, sign
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule, with_most_artificial_noise

MAX_FULL_VARIABLES = 5000
"""Up to so many devices times rounds every noise is a variable of its own."""


def plan_convex(problem: PlanningProblem) -> Schedule:
    """The best schedule in which everybody speaks in every round, by a solver.

    Raises:
        ConfigurationError: cvxpy is not installed.
        InfeasiblePlanError: the solver did not find the optimum.
    """
    cp = library()
    speakers = everybody(problem)
    start = with_most_artificial_noise(problem, "convex", _even_costs(problem), speakers)
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
    return with_most_artificial_noise(problem, "convex", costs, speakers).check()


def equal_split_objective(problem: PlanningProblem, num_missing: int) -> float:
    """Of the best schedule with equal noises that holds without q of them."""
    cp = library()
    devices = problem.num_devices
    left = (devices - num_missing) / devices
    weakest, need = problem.reaches.min(axis=0), problem.needs.max()
    start = equal_split.plan_equal_split(problem, num_missing)
    level_unit = start.inverse_levels
    noise_unit = problem.noise_of_costs(_even_costs(problem))
    levels = cp.Variable(problem.num_rounds, nonneg=True)
    total = cp.Variable(problem.num_rounds, nonneg=True)
    counted = left * total + cp.multiply(problem.trusted_noise * level_unit / noise_unit, levels)
    shares = np.square(problem.sensitivities) / (2.0 * noise_unit) / problem.budget
    scale = weakest * level_unit
    limits = [
        need / scale + cp.multiply(noise_unit / devices / scale, total) <= levels,
        cp.sum(cp.multiply(shares, cp.inv_pos(counted))) <= 1.0,
    ]
    worth = problem.weights * noise_unit / devices**2
    heard = problem.noise_power * level_unit / noise_unit
    goal = cp.sum(cp.multiply(worth / worth.sum(), total + cp.multiply(heard, levels)))
    statement = cp.Problem(cp.Minimize(goal), limits)
    solve(statement)
    return float(statement.value * worth.sum())


def sign_objective(problem: PlanningProblem, wrong_sign_probability: float) -> float:
    """sum omega e_t of the best schedule of votes."""
    cp = library()
    sign.check_votes(problem, wrong_sign_probability)
    rounds = RoundCosts.of(problem, everybody(problem))
    spread, margin = sign.vote_moments(
        np.array([float(problem.num_devices)]), wrong_sign_probability
    )
    squared = np.square(problem.sensitivities)
    untrusted = problem.noise_power - problem.trusted_noise
    below = untrusted / (rounds.total_reach + problem.trusted_noise)
    unit = 2.0 * problem.budget / problem.num_rounds / squared
    u = cp.Variable(problem.num_rounds, nonneg=True)

    def share(kappa: np.ndarray, shift: np.ndarray) -> Any:
        """B2 / (B + x), with x = kappa / u + shift."""
        base = spread + margin + shift
        beyond = cp.multiply(base * unit / kappa, u)
        return cp.multiply(margin / base, 1.0 - cp.inv_pos(1.0 + beyond))

    gains = share(1.0 + below, below * rounds.total_need)
    if untrusted > 0.0:  # else both are the same, and a solver stumbles over that
        gains = cp.minimum(gains, share(np.ones_like(below), untrusted * rounds.least))
    limits = [cp.sum(cp.multiply(squared * unit / 2.0 / problem.budget, u)) <= 1.0]
    finite = np.isfinite(rounds.largest)
    if finite.any():
        most = 2.0 * rounds.largest[finite] / squared[finite] / unit[finite]
        limits.append(u[np.flatnonzero(finite)] <= most)
    weights = problem.weights / problem.weights.sum()
    statement = cp.Problem(cp.Maximize(cp.sum(cp.multiply(weights, gains))), limits)
    solve(statement)
    return float(problem.weights.sum() * (1.0 - statement.value))


def central_limit_objective(
    problem: PlanningProblem, *, sampling_probability: float, mu: float
) -> float:
    """sum omega v of the best schedule under the central limit of subsampled rounds."""
    cp = library()
    rounds = RoundCosts.of(problem, everybody(problem))
    limit = (mu / sampling_probability) ** 2
    squared = np.square(problem.sensitivities)
    doubled = cp.Variable(problem.num_rounds, nonneg=True)  # Delta^2 u, the exponent
    unit = np.minimum(math.log1p(limit / problem.num_rounds), 2.0 * rounds.largest)
    limits = [
        cp.sum(cp.exp(cp.multiply(unit, doubled)) - 1.0) / limit <= 1.0,
    ]
    finite = np.isfinite(rounds.largest)
    if finite.any():
        most = 2.0 * rounds.largest[finite] / unit[finite]
        limits.append(doubled[np.flatnonzero(finite)] <= most)
    worth = problem.weights * squared / unit
    goal = cp.sum(cp.multiply(worth / worth.sum(), cp.inv_pos(doubled)))
    statement = cp.Problem(cp.Minimize(goal), limits)
    solve(statement)
    return float(statement.value * worth.sum())


def _even_costs(problem: PlanningProblem) -> Float64Array:
    """An equal price for every round, or what it costs without noise of its own."""
    largest = RoundCosts.of(problem, everybody(problem)).largest
    costs: Float64Array = np.minimum(problem.budget / problem.num_rounds, largest)
    return costs
