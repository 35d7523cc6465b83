r"""Power policy ``subsampled``: record level, Poisson batches.

Subsampling at rate q makes many rounds cheap; for budgets that are small a round,

    q^2 sum_t (exp(Delta_t^2 u_t) - 1) <= mu^2,      u_t = 1 / v_t

stands for the composition (a central limit of Dong, Roth, Su), and the least noise of the
means is at

    omega = zeta q^2 Delta^2 u^2 exp(Delta^2 u)
    =>   u = (2 / Delta^2) W( (Delta / 2 q) sqrt(omega / zeta) )

with Lambert's W, and at most what the level's trusted noise allows. It is a shape and no promise:
`repaired` scales all noises by one factor until the composition by privacy loss distributions,
which is what the ledger pays, keeps epsilon.

Source: theory.md, section 5.6.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
from scipy.special import lambertw

from radio.arrays import Float64Array
from server.errors import ConfigurationError
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)
from server.power.water_filling import fill
from server.privacy.composition import (
    GRID_POINTS_PER_OCTAVE,
    Composer,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import gdp_mu_of

NAME = "subsampled"
_REPAIRS = 30
_REPAIR_TOLERANCE = 1e-3
_CLASSES_PER_OCTAVE = 16
"""Of noise multipliers: rounds are priced in so many classes, rounded to the dear side."""


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
    schedule = with_most_artificial_noise(rich, NAME, costs, everybody(problem)).check()
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


def subsampled_offsets(
    contraction: float, num_rounds: int, *, sampling_probability: float, mu: float
) -> tuple[int, ...]:
    """The shape of a run's noise multipliers where no receiver noise is trusted.

    Then levels and channels do not enter: the shape follows from the weights omega_t = A^-t alone.

    Args:
        contraction: A, what a round leaves of the noise of the one before.
        num_rounds: T.
        sampling_probability: q.
        mu: of the promise, as if it were Gaussian (`server.privacy.gaussian`).

    Returns:
        Steps of the multiplier grid above the round with the least noise, in few classes, rounded
        towards less noise: what is calibrated is what is used.
    """
    weights = contraction ** np.arange(num_rounds - 1, -1, -1.0)
    slopes = np.sqrt(weights / weights.max())
    limit = (mu / sampling_probability) ** 2

    def price(tau: float) -> Float64Array:
        return np.expm1(np.minimum(2.0 * np.real(lambertw(slopes * tau)), 700.0))

    filled = fill(price, limit, np.full(num_rounds, np.inf))
    octaves = -0.5 * np.log2(np.log1p(filled))
    steps = np.floor(_CLASSES_PER_OCTAVE * (octaves - octaves.min()) + 1e-9)
    width = GRID_POINTS_PER_OCTAVE // _CLASSES_PER_OCTAVE
    return tuple(int(step) * width for step in steps)


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
