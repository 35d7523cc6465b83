r"""Power policy ``limited``: batteries, duty cycles, caps and fairness, by a convex solver.

No closed form is known. What is integer, who speaks, is chosen first
(`PowerLimits.choose_speakers`, from what `selection` would like); for those speakers and fixed
shares theta of each round's noise, sigma_kt = theta_kt sigma_t, the problem is convex in (a, sigma)
as it stands::

    minimise  sum_t omega_t (sigma_t^2 + N0 a_t) / n_t^2
    subject to  sum_t Delta_t^2 / (2 sigma_t^2) <= R
                G_k + phi theta_kt sigma_t <= sqrt(P_k H_kt a_t)                 peak, exactly
                sum_t (G_k^2 / a_t + theta_kt^2 sigma_t^2 / a_t) / H_kt <= E_k    energy

or, with an account R_k for each device, sum_t Delta_t^2 / (2 sigma_t^2) <= R_k over the rounds in
which it speaks.

Receiver noise is not counted for the promise, whatever `trusted_noise_fraction` says: what is
convex in sigma is not convex together with it, and this errs on the safe side. Solvers stop at a
tolerance, so noise is then raised to the budget and levels lowered to the limits.

Source: ours; 1/sigma^2, sigma^2/a and -sqrt(a) are convex.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.power.convex import library, solve
from server.power.limits import PowerLimits, energies
from server.power.policies.optimal import optimal_for
from server.power.policies.selection import plan_selection
from server.power.schedule import (
    InfeasiblePlanError,
    PlanningProblem,
    Schedule,
)

NAME = "limited"
_POLISHING_STEPS = 200
_ATTEMPTS = 4


def plan_limited(
    problem: PlanningProblem,
    limits: PowerLimits,
    *,
    speakers: BoolArray | None = None,
    repeats: Float64Array | None = None,
    accounts: Float64Array | None = None,
    solver: str = "CLARABEL",
) -> Schedule:
    """The best schedule within the limits, for the speakers chosen.

    Args:
        problem: to be solved.
        limits: beyond its own.
        speakers: who speaks [K, T]; left out, chosen as the module says.
        repeats: rounds of the run that each round stands for, in its energies [T]; one if left out.
            Weights and sensitivities that stand for r rounds are r and sqrt(r) times as large.
        accounts: what each device may pay for the rounds that it speaks in [K]; left out, all
            rounds together are held to the problem's budget.
        solver: of those that cvxpy has.

    Guarantees: within budget, peaks, energies and duties; otherwise an error.

    Raises:
        ConfigurationError: limits that do not fit the problem.
        InfeasiblePlanError: the solver did not find the optimum.
    """
    capped = _with_caps(problem, limits)
    if speakers is None:
        speakers = limits.choose_speakers(problem, plan_selection(capped).speakers)
    if repeats is None:
        repeats = np.ones(problem.num_rounds)
    start = optimal_for(capped, speakers, NAME)
    purses = _purses(start, accounts)
    levels, noises = _solved(capped, limits, start, repeats, purses, solver)
    polished = _polished(capped, limits, start, levels, noises, repeats, purses)
    return limits.check(polished.check(), repeats)


_Purses = list[tuple[Float64Array, float]]
"""Rounds [T] that are paid out of a budget, 1 or 0, and the budget."""


def _purses(start: Schedule, accounts: Float64Array | None) -> _Purses:
    if accounts is None:
        return [(np.ones(start.problem.num_rounds), start.problem.budget)]
    # Of devices that speak in the same rounds the poorest counts: solvers stumble over repetitions.
    least: dict[bytes, tuple[Float64Array, float]] = {}
    for speaks, account in zip(start.speakers.astype(np.float64), accounts, strict=True):
        _, before = least.get(speaks.tobytes(), (speaks, np.inf))
        if speaks.any():
            least[speaks.tobytes()] = speaks, min(before, float(account))
    return list(least.values())


def _with_caps(problem: PlanningProblem, limits: PowerLimits) -> PlanningProblem:
    """Without trust, and with the smallest of the caps where all have one."""
    return dataclasses.replace(
        problem,
        trusted_noise_fraction=0.0,
        max_power=float(limits.powers_allowed(problem).max()),
    )


def _solved(
    problem: PlanningProblem,
    limits: PowerLimits,
    start: Schedule,
    repeats: Float64Array,
    purses: _Purses,
    solver: str,
) -> tuple[Float64Array, Float64Array]:
    """(a, sigma) of all rounds.

    A solver that ends near the optimum is started again in units of where it was, in which the
    optimum is all ones; what it ends with then has to be the optimum.
    """
    short = np.maximum(energies(start, repeats) / limits.energies_allowed(problem.num_devices), 1.0)
    lower = np.where(start.speakers, short[:, None], 1.0).max(axis=0)
    # Likewise for who cannot pay for all of it: the same rounds with that much more noise.
    dearer = np.max(
        [np.where(paid > 0.0, start.costs @ paid / budget, 1.0) for paid, budget in purses],
        axis=0,
        initial=1.0,
    )
    levels = start.inverse_levels * lower * dearer
    noises = np.sqrt(start.artificial_noise * dearer)
    for attempt in range(_ATTEMPTS):
        try:
            units = levels, noises
            return _solved_in_units(problem, limits, start, units, repeats, purses, solver)
        except InaccurateSolutionError as near:
            if attempt + 1 == _ATTEMPTS:
                raise
            spoken = ~start.is_silent
            levels[spoken], noises[spoken] = near.values
    raise AssertionError  # the loop returns or raises


class InaccurateSolutionError(InfeasiblePlanError):
    """The solver ended near the optimum, and where.

    Examples: units of rounds that differ by many orders of magnitude.
    """

    def __init__(self, message: str, values: tuple[Float64Array, Float64Array]) -> None:
        super().__init__(message)
        self.values = values


def _solved_in_units(
    problem: PlanningProblem,
    limits: PowerLimits,
    start: Schedule,
    units: tuple[Float64Array, Float64Array],
    repeats: Float64Array,
    purses: _Purses,
    solver: str,
) -> tuple[Float64Array, Float64Array]:
    cp = library()
    spoken = np.flatnonzero(~start.is_silent)
    speaking = start.speakers[:, spoken]
    shares = noise_shares(start)[:, spoken]
    level_unit, noise_unit = units[0][spoken], units[1][spoken]
    levels = cp.Variable(len(spoken), nonneg=True)
    noises = cp.Variable(len(spoken), nonneg=True)
    prices = np.square(problem.sensitivities[spoken] / noise_unit) / 2.0
    parts = np.stack([prices * paid[spoken] / budget for paid, budget in purses])
    limited = [parts @ cp.power(noises, -2) <= 1.0]
    # One row for each device and round in which it speaks: stated together they are stated fast.
    devices, rounds = np.nonzero(speaking)
    gains = problem.power_gains[:, spoken][speaking] * level_unit[rounds]
    bounds, own = problem.bounds[devices], shares[speaking] * noise_unit[rounds]
    unit = np.sqrt(limits.powers_allowed(problem)[devices] * gains)
    limited.append(
        bounds / unit + cp.multiply(problem.peak_factor * own / unit, noises[rounds])
        <= cp.sqrt(levels)[rounds]
    )
    allowed = limits.energies_allowed(problem.num_devices)
    has_battery = np.isfinite(allowed) & speaking.any(axis=1)
    if has_battery.any():
        squares = cp.Variable(len(spoken), nonneg=True)  # sigma^2 / a
        cone = cp.vstack([2.0 * noises, levels - squares])
        limited.append(cp.SOC(levels + squares, cone, axis=0))
        often = repeats[spoken][rounds] / allowed[devices]
        of_bound, of_noise = np.zeros(speaking.shape), np.zeros(speaking.shape)
        of_bound[speaking] = often * np.square(bounds) / gains
        of_noise[speaking] = often * np.square(own) / gains
        spent = of_bound[has_battery] @ cp.inv_pos(levels) + of_noise[has_battery] @ squares
        limited.append(spent <= 1.0)
    worth = problem.weights[spoken] / np.square(start.num_speakers[spoken])
    of_noise = worth * np.square(noise_unit)
    of_level = worth * problem.noise_power * level_unit
    scale = float(np.sum(of_noise + of_level))
    goal = cp.sum(cp.multiply(of_noise / scale, cp.square(noises)))
    goal = goal + cp.sum(cp.multiply(of_level / scale, levels))
    try:
        solve(cp.Problem(cp.Minimize(goal), limited), solver)
    except InfeasiblePlanError as error:
        if levels.value is None or not np.all(levels.value > 0) or not np.all(noises.value > 0):
            raise
        found = level_unit * levels.value, noise_unit * noises.value
        raise InaccurateSolutionError(str(error), found) from error
    full_levels = np.full(problem.num_rounds, np.inf)
    full_noises = np.zeros(problem.num_rounds)
    full_levels[spoken] = level_unit * np.asarray(levels.value)
    full_noises[spoken] = noise_unit * np.asarray(noises.value)
    return full_levels, full_noises


def noise_shares(schedule: Schedule) -> Float64Array:
    """theta [K, T]: each device's share of a round's noise, as amplitudes."""
    total = schedule.artificial_noise
    shares: Float64Array = np.sqrt(
        np.divide(
            schedule.noise_variances,
            total[None, :],
            out=np.zeros_like(schedule.noise_variances),
            where=total[None, :] > 0.0,
        )
    )
    return shares


def _polished(
    problem: PlanningProblem,
    limits: PowerLimits,
    start: Schedule,
    levels: Float64Array,
    noises: Float64Array,
    repeats: Float64Array,
    purses: _Purses,
) -> Schedule:
    """The solver's answer, with what its tolerance broke made good."""
    spoken: BoolArray = ~start.is_silent
    variances = np.square(noises)
    costs = np.zeros(problem.num_rounds)
    costs[spoken] = np.square(problem.sensitivities[spoken]) / (2.0 * variances[spoken])
    spent = [float(costs @ paid) / budget for paid, budget in purses]
    excess = max(1.0, *spent) * (1.0 + 1e-12)
    variances, costs = variances * excess, costs / excess
    each = np.square(noise_shares(start)) * variances
    powers = limits.powers_allowed(problem)[:, None]
    # The convex stand-in of the schedule's own check is stricter than the peak itself.
    strict = (problem.needs[:, None] + each) / problem.reaches
    peaks = np.square(problem.bounds[:, None] + problem.peak_factor * np.sqrt(each))
    least = np.maximum(strict, peaks / (powers * problem.power_gains))
    floor = np.where(start.speakers, least, 0.0).max(axis=0)
    total = max(problem.budget, float(costs.sum()))  # more than one budget, if there are accounts
    schedule = dataclasses.replace(
        start,
        problem=dataclasses.replace(problem, budget=total),
        inverse_levels=np.where(spoken, np.maximum(levels, floor), np.inf),
        noise_variances=each,
        costs=costs,
    )
    allowed = limits.energies_allowed(problem.num_devices)
    for _ in range(_POLISHING_STEPS):
        excess = float(np.max(energies(schedule, repeats) / allowed))
        if excess <= 1.0:
            break
        lower = schedule.inverse_levels * excess * (1.0 + 1e-12)
        schedule = dataclasses.replace(schedule, inverse_levels=lower)
    return schedule
