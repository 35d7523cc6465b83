"""Schedules of whole runs: closed form against solver, limits that hold, plans that break."""

import dataclasses
import math
import sys

import convex_oracle
import numpy as np
import pytest
from convex_oracle import plan_convex
from hindsight import plan_optimal
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.power import convex
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    InfeasiblePlanError,
    PlanningProblem,
    with_most_artificial_noise,
)
from server.power.water_filling import fill


def make_problem(seed=0, num_devices=5, num_rounds=60, snr_db=0.0, **changes):
    rng = np.random.default_rng(seed)
    path = rng.uniform(0.1, 1.0, (num_devices, 1))
    forgetting = 0.99 ** -np.arange(num_rounds)
    values = {
        "power_gains": rng.exponential(size=(num_devices, num_rounds)) * path,
        "bounds": rng.uniform(0.3, 1.5, num_devices),
        "sensitivities": np.full(num_rounds, 2.0),
        "weights": forgetting / forgetting.max(),
        "noise_power": 10 ** (-snr_db / 10),
        "budget": 3.0,
        **changes,
    }
    return PlanningProblem(**values)


problems = st.builds(
    make_problem,
    seed=st.integers(0, 2**31),
    num_devices=st.integers(1, 12),
    num_rounds=st.integers(1, 80),
    snr_db=st.floats(-30, 30),
    budget=st.floats(0.01, 50.0),
    trusted_noise_fraction=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    peak_factor=st.sampled_from([0.0, 2.0, 8.0]),
)


# The optimum


@given(problems)
def test_an_optimal_schedule_keeps_every_limit(problem):
    schedule = plan_optimal(problem)  # checks itself
    assert schedule.spent <= problem.budget * (1 + 1e-9)
    assert schedule.speakers.all()
    # The peak form itself, not its convex stand-in.
    peaks = problem.bounds[:, None] + problem.peak_factor * np.sqrt(schedule.noise_variances)
    there = problem.max_power * problem.power_gains * schedule.inverse_levels
    if problem.peak_factor > 0:
        assert np.all(np.square(peaks) <= there * (1 + 1e-9))


@pytest.mark.parametrize("trusted", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("peak_factor", [0.0, 8.0])
def test_the_closed_form_is_never_worse_than_the_solver(trusted, snr_db, peak_factor):
    problem = make_problem(
        seed=int(snr_db) + 100, snr_db=snr_db, trusted_noise_fraction=trusted,
        peak_factor=peak_factor,
    )  # fmt: skip
    ours, theirs = plan_optimal(problem), plan_convex(problem)
    assert ours.objective <= theirs.objective * (1 + 1e-6)
    assert ours.objective >= theirs.objective * (1 - 1e-4)


def test_the_reduced_statement_is_the_full_one():
    problem = make_problem(num_devices=4, num_rounds=50, trusted_noise_fraction=0.3)
    full = plan_convex(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convex_oracle, "MAX_FULL_VARIABLES", 0)
        reduced = plan_convex(problem)
    assert reduced.objective == pytest.approx(full.objective, rel=1e-5)


def test_negative_control_a_schedule_that_is_not_optimal_is_seen():
    problem = make_problem()
    even = np.full(problem.num_rounds, problem.budget / problem.num_rounds)
    everybody = np.ones(problem.power_gains.shape, dtype=bool)
    schedule = with_most_artificial_noise(problem, "even", even, everybody).check()
    assert schedule.objective > plan_convex(problem).objective * 1.01


def test_where_the_receiver_is_noisy_enough_privacy_is_free():
    problem = make_problem(snr_db=-30.0, trusted_noise_fraction=1.0)
    schedule = plan_optimal(problem)
    assert schedule.spent < 0.5 * problem.budget
    assert not schedule.artificial_noise.any()
    largest = RoundCosts.of(problem, everybody(problem)).largest
    np.testing.assert_allclose(schedule.costs, largest)


def test_without_trust_there_is_always_artificial_noise():
    schedule = plan_optimal(make_problem(snr_db=-30.0, trusted_noise_fraction=0.0))
    assert np.all(schedule.artificial_noise > 0)
    assert schedule.spent == pytest.approx(schedule.problem.budget, rel=1e-9)


def test_equally_good_schedules_differ_in_what_rests_on_the_receiver():
    """rho = 1: the member with the most artificial noise, of the same objective."""
    problem = make_problem(snr_db=0.0, trusted_noise_fraction=1.0)
    schedule = plan_optimal(problem)
    all_trusted = problem.noise_of_costs(schedule.costs) / problem.noise_power
    least = problem.least_inverse_levels.max(axis=0)
    other = problem.noise_power * np.maximum(all_trusted, least)
    assert np.sum(problem.weights * other) / problem.num_devices**2 == pytest.approx(
        schedule.objective, rel=1e-6
    )
    assert schedule.artificial_noise.sum() > 0


@given(problems, st.integers(0, 2**31))
def test_devices_may_come_in_any_order(problem, seed):
    order = np.random.default_rng(seed).permutation(problem.num_devices)
    shuffled = dataclasses.replace(
        problem, power_gains=problem.power_gains[order], bounds=problem.bounds[order]
    )
    ours, theirs = plan_optimal(problem), plan_optimal(shuffled)
    np.testing.assert_allclose(theirs.inverse_levels, ours.inverse_levels, rtol=1e-9)
    np.testing.assert_allclose(
        theirs.noise_variances, ours.noise_variances[order], rtol=1e-6, atol=1e-12
    )


@given(problems)
def test_a_larger_budget_never_makes_more_noise(problem):
    richer = dataclasses.replace(problem, budget=2 * problem.budget)
    assert plan_optimal(richer).objective <= plan_optimal(problem).objective * (1 + 1e-9)


def test_rounds_that_weigh_more_get_more():
    problem = make_problem(snr_db=120.0)
    schedule = plan_optimal(problem)
    assert np.all(np.diff(schedule.costs) > 0)


# Schedules that break


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"costs": lambda s: 2 * s.costs}, "add up to 2.0"),
        ({"costs": lambda s: 0.9 * s.costs}, "costs more than was planned"),
        ({"costs": lambda s: s.costs * np.nan}, "not a number"),
        ({"noise_variances": lambda s: 4 * s.noise_variances}, "times the power"),
        ({"noise_variances": lambda s: 0.5 * s.noise_variances}, "costs more than was planned"),
        ({"noise_variances": lambda s: -s.noise_variances}, "negative"),
        ({"inverse_levels": lambda s: 0.5 * s.inverse_levels}, "times the power"),
        ({"inverse_levels": lambda s: s.inverse_levels * np.nan}, "a level is not a number"),
        ({"inverse_levels": lambda s: s.inverse_levels * np.inf}, "speakers and no level"),
        ({"speakers": lambda s: np.zeros_like(s.speakers)}, "a level and no speakers"),
    ],
)
def test_a_schedule_that_breaks_a_limit_is_never_handed_out(changes, message):
    schedule = plan_optimal(make_problem())
    ((name, change),) = changes.items()
    with pytest.raises(InfeasiblePlanError, match=message):
        dataclasses.replace(schedule, **{name: change(schedule)}).check()


def test_a_silent_device_has_no_noise():
    schedule = plan_optimal(make_problem())
    speakers = schedule.speakers.copy()
    speakers[0] = False
    with pytest.raises(InfeasiblePlanError, match="a silent device has noise"):
        dataclasses.replace(schedule, speakers=speakers).check()


def test_silent_rounds_cost_nothing_and_count_for_nothing():
    problem = make_problem(num_rounds=4)
    speakers = np.ones((5, 4), dtype=bool)
    speakers[:, 2] = False
    costs = np.array([0.1, 0.0, 0.5, 0.2])
    schedule = with_most_artificial_noise(problem, "some", costs, speakers).check()
    np.testing.assert_array_equal(schedule.is_silent, [False, True, True, False])
    np.testing.assert_array_equal(schedule.costs, [0.1, 0.0, 0.0, 0.2])
    assert schedule.inverse_levels[1] == math.inf
    assert math.isfinite(schedule.objective)
    assert np.isinf(schedule.sum_noise[[1, 2]]).all()


# Solvers that fail


class Library:
    """cvxpy, as far as `solve` looks at it."""

    OPTIMAL, CLARABEL = "optimal", "CLARABEL"

    class SolverError(Exception):
        pass


class Statement:
    def __init__(self, status, error=None):
        self.status = status
        self.error = error

    def solve(self, solver):
        if self.error:
            raise self.error


@pytest.mark.parametrize("status", ["optimal_inaccurate", "infeasible", "unbounded", None])
def test_any_other_end_than_the_optimum_is_an_error(monkeypatch, status):
    monkeypatch.setitem(sys.modules, "cvxpy", Library)
    with pytest.raises(InfeasiblePlanError, match="wanted 'optimal'"):
        convex.solve(Statement(status))
    convex.solve(Statement("optimal"))


def test_a_solver_that_fails_or_is_missing_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", Library)
    with pytest.raises(InfeasiblePlanError, match="the solver failed: numbers"):
        convex.solve(Statement("optimal", Library.SolverError("numbers")))
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        plan_convex(make_problem())


# Problems that cannot be


@pytest.mark.parametrize(
    "changes",
    [
        {"power_gains": np.ones(5)},
        {"power_gains": np.ones((5, 0))},
        {"power_gains": np.zeros((5, 60))},
        {"power_gains": np.full((5, 60), np.nan)},
        {"bounds": np.ones(4)},
        {"bounds": np.zeros(5)},
        {"sensitivities": np.ones(59)},
        {"weights": np.full(60, -1.0)},
        {"noise_power": -1.0},
        {"noise_power": math.nan},
        {"budget": 0.0},
        {"budget": math.inf},
        {"max_power": 0.0},
        {"trusted_noise_fraction": 1.1},
        {"trusted_noise_fraction": math.nan},
        {"peak_factor": -1.0},
    ],
)
def test_a_problem_that_cannot_be_is_refused(changes):
    with pytest.raises(ConfigurationError, match=r"got|wanted"):
        make_problem(**changes)


def test_a_budget_that_no_noise_can_keep_is_refused():
    with pytest.raises(ConfigurationError, match="too small for any noise"):
        fill(lambda tau: np.array([1.0]), 0.5, np.array([np.inf]))
