"""Whole runs in closed form, every channel known: what planning as a run goes is held against.

Nobody knows all channels in advance; a run plans each round as its pilots come
(`server.planning.online_run`). Sources: theory.md, sections 5.2, 5.4, 5.6, 6 and 7.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
from scipy.special import lambertw

from radio.arrays import Float64Array
from server.errors import ConfigurationError
from server.power.policies import optimal, sign
from server.power.policies.optimal import everybody, optimal_for
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule, with_most_artificial_noise
from server.power.water_filling import fill
from server.privacy.composition import (
    Composer,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import gdp_mu_of

_CLASSES_PER_OCTAVE = 16
"""Of noise multipliers: rounds are priced in so many classes, rounded to the dear side."""

_REPAIRS = 30
_REPAIR_TOLERANCE = 1e-3


def plan_optimal(problem: PlanningProblem) -> Schedule:
    """The best schedule in which everybody speaks in every round.

    Guarantees: within the budget and the peak limits; no other schedule of full participation has a
    smaller objective; of equally good ones it has the most artificial noise.

    Raises:
        ConfigurationError: see `PlanningProblem`.
    """
    return optimal_for(problem, everybody(problem), optimal.NAME)


def plan_static_prices(problem: PlanningProblem) -> Schedule:
    """y_t = min(R / T, Y_max)."""
    speakers = everybody(problem)
    share = problem.budget / problem.num_rounds
    costs = np.minimum(share, RoundCosts.of(problem, speakers).largest)
    return with_most_artificial_noise(problem, "static", costs, speakers).check()


def plan_reversed(problem: PlanningProblem) -> Schedule:
    """As `plan_optimal` for omega_T ... omega_1, judged by the weights there are."""
    mirrored = dataclasses.replace(problem, weights=problem.weights[::-1].copy())
    schedule = optimal_for(mirrored, everybody(problem), "reversed")
    return dataclasses.replace(schedule, problem=problem).check()


def plan_sign(problem: PlanningProblem, wrong_sign_probability: float) -> Schedule:
    """The schedule of the least bound on wrong majorities; bounds and sensitivities are votes'.

    Args:
        problem: to be solved; a vote has amplitude 1 and one record turns it by 2.
        wrong_sign_probability: e0, below one half.

    Raises:
        ConfigurationError: a probability out of range, or bounds that are no votes'.
    """
    sign.check_votes(problem, wrong_sign_probability)
    speakers = everybody(problem)
    rounds = RoundCosts.of(problem, speakers)
    costs_at = sign.prices(problem, rounds, wrong_sign_probability)
    costs = fill(costs_at, problem.budget, rounds.largest)
    return with_most_artificial_noise(problem, sign.NAME, costs, speakers).check()


def wrong_majority_bound(schedule: Schedule, wrong_sign_probability: float) -> Float64Array:
    """e_t [T]; 1 in silent rounds, which decide nothing."""
    spread, margin = sign.vote_moments(schedule.num_speakers, wrong_sign_probability)
    with np.errstate(invalid="ignore"):
        share = margin / (spread + schedule.sum_noise + margin)
    bound: Float64Array = 1.0 - share
    return bound


def plan_subsampled(
    problem: PlanningProblem, *, sampling_probability: float, epsilon: float, delta: float
) -> Schedule:
    """The best shape under the central limit, scaled to keep (epsilon, delta) by composition.

    Its costs are Delta^2 / (2 v), those of the rounds without subsampling.

    Args:
        problem: to be solved; its budget is not used.
        sampling_probability: q, of the device that is drawn from most often.
        epsilon: of the whole run.
        delta: likewise.

    Raises:
        ConfigurationError: a probability out of range.
        PrivacyError: no amount of noise keeps epsilon.
    """
    if not 0.0 < sampling_probability <= 1.0:
        raise ConfigurationError(
            f"sampling_probability: got {sampling_probability}, wanted above 0, at most 1."
        )
    shape = central_limit_costs(
        problem, sampling_probability=sampling_probability, mu=gdp_mu_of(epsilon, delta)
    )
    costs = repaired(
        problem, shape, sampling_probability=sampling_probability, epsilon=epsilon, delta=delta
    )
    rich = dataclasses.replace(problem, budget=math.fsum(costs) * (1.0 + 1e-9))
    schedule = with_most_artificial_noise(rich, "subsampled", costs, everybody(problem)).check()
    return dataclasses.replace(schedule, problem=problem)


def central_limit_costs(
    problem: PlanningProblem, *, sampling_probability: float, mu: float
) -> Float64Array:
    """y [T] = Delta^2 u / 2 of the optimum under the central limit."""
    rounds = RoundCosts.of(problem, everybody(problem))
    limit = (mu / sampling_probability) ** 2

    def at(tau: float) -> Float64Array:
        argument = rounds.slopes * tau
        return np.minimum(np.real(lambertw(argument)), rounds.largest)

    def price(costs: Float64Array) -> Float64Array:
        return np.expm1(np.minimum(2.0 * costs, 700.0))

    with np.errstate(over="ignore"):
        dearest = price(rounds.largest)
    filled = fill(lambda tau: price(at(tau)), limit, dearest)
    costs: Float64Array = np.log1p(filled) / 2.0
    return costs


def repaired(
    problem: PlanningProblem,
    costs: Float64Array,
    *,
    sampling_probability: float,
    epsilon: float,
    delta: float,
) -> Float64Array:
    """The prices times one factor, the largest found at which the composition keeps epsilon."""
    composer = Composer(loss_interval=loss_interval_for(epsilon), delta=delta)
    rounds = RoundCosts.of(problem, everybody(problem))

    def keeps(log_factor: float) -> bool:
        scaled = np.minimum(costs * math.exp(log_factor), rounds.largest)
        multipliers = 1.0 / np.sqrt(2.0 * scaled)
        return composer.epsilon(_history(multipliers, sampling_probability)) <= epsilon

    low, high = -1.0, 1.0
    while not keeps(low):
        low, high = 2.0 * low, low
        if low < -64.0:
            raise ConfigurationError(
                f"epsilon: {epsilon:g} is kept by no noise that can be priced."
            )
    while high < 8.0 and keeps(high):
        low, high = high, high + 1.0
    for _ in range(_REPAIRS):
        if high - low < _REPAIR_TOLERANCE:
            break
        middle = 0.5 * (low + high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    kept: Float64Array = np.minimum(costs * math.exp(low), rounds.largest)
    return kept


def _history(
    multipliers: Float64Array, sampling_probability: float
) -> tuple[tuple[PriceClass, int], ...]:
    classes = np.floor(_CLASSES_PER_OCTAVE * np.log2(multipliers)) / _CLASSES_PER_OCTAVE
    counts = Counter(
        PriceClass(sampling_probability, grid_index_below(float(2.0**c))) for c in classes
    )
    return make_history(counts)
