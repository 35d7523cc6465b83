"""Every power policy: it keeps its limits, it is what it says, and the solver agrees."""

import dataclasses
import math

import numpy as np
import pytest
from convex_oracle import central_limit_objective, equal_split_objective, sign_objective
from hindsight import (
    central_limit_costs,
    plan_optimal,
    plan_reversed,
    plan_sign,
    plan_static_prices,
    plan_subsampled,
    wrong_majority_bound,
)
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.power.policies.constant_inversion import plan_constant_inversion
from server.power.policies.equal_split import plan_equal_split
from server.power.policies.optimal import everybody
from server.power.policies.paper import plan_paper, printed_budget
from server.power.policies.perfect import perfect_for
from server.power.policies.selection import plan_selection
from server.power.policies.truncated_inversion import plan_truncated_inversion
from server.power.schedule import PlanningProblem
from server.privacy.composition import (
    Composer,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import budget_of, gdp_mu_of


def make_problem(seed=0, num_devices=6, num_rounds=50, snr_db=0.0, forgetting=0.99, **changes):
    rng = np.random.default_rng(seed)
    path = rng.uniform(0.1, 1.0, (num_devices, 1))
    weights = forgetting ** -np.arange(num_rounds)
    values = {
        "power_gains": rng.exponential(size=(num_devices, num_rounds)) * path,
        "bounds": np.ones(num_devices),
        "sensitivities": np.full(num_rounds, 2.0),
        "weights": weights / weights.max(),
        "noise_power": 10 ** (-snr_db / 10),
        "budget": 3.0,
        **changes,
    }
    return PlanningProblem(**values)


problems = st.builds(
    make_problem,
    seed=st.integers(0, 2**31),
    num_devices=st.integers(2, 10),
    num_rounds=st.integers(1, 40),
    snr_db=st.floats(-30, 30),
    budget=st.floats(0.05, 50.0),
    trusted_noise_fraction=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    peak_factor=st.sampled_from([0.0, 8.0]),
)
FULL = (
    plan_optimal,
    plan_static_prices,
    plan_reversed,
    plan_constant_inversion,
    lambda problem: plan_equal_split(problem, 0),
    lambda problem: plan_equal_split(problem, 1),
)


@given(problems)
def test_no_policy_of_full_participation_beats_the_optimum(problem):
    best = plan_optimal(problem).objective
    for plan in FULL:
        schedule = plan(problem)  # checks itself
        assert schedule.speakers.all()
        assert schedule.objective >= best * (1 - 1e-9), schedule.policy


@given(problems)
def test_selection_is_never_worse_than_full_participation(problem):
    """But for the gap that integers leave: a jump of the last round that changes its number."""
    schedule = plan_selection(problem)
    assert schedule.objective <= plan_optimal(problem).objective * 1.05


@given(problems, st.floats(0.0, 1.0))
def test_a_fairness_floor_is_kept(problem, floor):
    schedule = plan_selection(problem, floor)
    shares = schedule.speakers.mean(axis=1)
    assert np.all(shares >= floor - 1e-9)


def test_policies_are_what_they_say():
    problem = make_problem(trusted_noise_fraction=0.5)
    static = plan_static_prices(problem)
    share = problem.budget / problem.num_rounds
    assert np.all(static.costs <= share * (1 + 1e-12))
    assert np.any(static.costs == share)
    constant = plan_constant_inversion(problem)
    assert np.ptp(constant.inverse_levels) == 0.0
    truncated = plan_truncated_inversion(problem, 0.8)
    spoken = ~truncated.is_silent
    assert np.ptp(truncated.inverse_levels[spoken]) == 0.0
    np.testing.assert_allclose(truncated.speakers.mean(axis=1), 0.8, atol=0.02)
    mirrored = plan_reversed(dataclasses.replace(problem, weights=problem.weights[::-1].copy()))
    np.testing.assert_allclose(mirrored.costs, plan_optimal(problem).costs)


def test_reversed_is_the_optimum_where_rounds_weigh_the_same():
    problem = make_problem(forgetting=1.0)
    assert plan_reversed(problem).objective == plan_optimal(problem).objective


def test_selection_drops_the_weakest_where_power_is_short():
    """theory.md's cell, on a smaller scale: client level, epsilon 5, delta 0.01, noise in full."""
    problem = PlanningProblem(
        power_gains=np.random.default_rng(1).exponential(size=(20, 400)),
        bounds=np.ones(20),
        sensitivities=np.full(400, 2.0),
        weights=np.ones(400),
        noise_power=100.0,
        budget=budget_of(5.0, 0.01),
        trusted_noise_fraction=1.0,
        peak_factor=0.0,
    )
    ratio = plan_optimal(problem).objective / plan_selection(problem).objective
    assert ratio > 8.0


def test_perfect_and_paper_promise_less_than_they_spend():
    problem = make_problem(snr_db=10.0)
    perfect = perfect_for(problem, everybody(problem))
    assert not perfect.artificial_noise.any()
    assert perfect.objective < plan_optimal(problem).objective
    paper = plan_paper(problem, epsilon=5.0, delta=0.01)
    assert not paper.artificial_noise.any()
    # Exact composition allows a larger budget than the one that is printed: theory.md, section 3.
    assert paper.problem.budget == pytest.approx(printed_budget(5.0, 0.01))
    assert printed_budget(5.0, 0.01) < budget_of(5.0, 0.01)
    assert paper.spent <= paper.problem.budget * (1 + 1e-9)


def test_the_papers_theorem_is_the_optimum_of_its_own_problem():
    problem = make_problem(
        snr_db=5.0, trusted_noise_fraction=1.0, peak_factor=0.0, budget=printed_budget(5.0, 0.01)
    )
    paper = plan_paper(problem, epsilon=5.0, delta=0.01)
    assert paper.objective == pytest.approx(plan_optimal(problem).objective, rel=1e-9)


# Equal split


@pytest.mark.parametrize("num_missing", [0, 2])
@pytest.mark.parametrize("trusted", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("snr_db", [-15.0, 5.0])
def test_an_equal_split_is_what_the_solver_finds(num_missing, trusted, snr_db):
    problem = make_problem(snr_db=snr_db, trusted_noise_fraction=trusted)
    ours = plan_equal_split(problem, num_missing).objective
    theirs = equal_split_objective(problem, num_missing)
    assert theirs * (1 - 1e-5) <= ours <= theirs * (1 + 1e-6)


def test_those_who_are_left_are_covered():
    problem = make_problem(snr_db=10.0)
    schedule = plan_equal_split(problem, 2)
    for missing in ((0, 1), (3, 5)):
        left = np.delete(schedule.noise_variances, missing, axis=0).sum(axis=0)
        owed = np.square(problem.sensitivities) / (2.0 * left)
        assert math.fsum(owed) <= problem.budget * (1 + 1e-9)
    without_reserve = plan_equal_split(problem, 0)
    left = np.delete(without_reserve.noise_variances, (0, 1), axis=0).sum(axis=0)
    assert math.fsum(np.square(problem.sensitivities) / (2.0 * left)) > 1.2 * problem.budget


# Votes


@pytest.mark.parametrize("trusted", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("snr_db", [-15.0, 10.0])
@pytest.mark.parametrize("e0", [0.3, 0.48])
def test_votes_are_scheduled_as_the_solver_does(trusted, snr_db, e0):
    problem = make_problem(snr_db=snr_db, trusted_noise_fraction=trusted, forgetting=0.97)
    schedule = plan_sign(problem, e0)
    ours = math.fsum(problem.weights * wrong_majority_bound(schedule, e0))
    theirs = sign_objective(problem, e0)
    assert theirs * (1 - 1e-5) <= ours <= theirs * (1 + 1e-6)


def test_votes_that_noise_would_decide_are_not_cast():
    problem = make_problem(num_rounds=100, snr_db=20.0, forgetting=0.97, budget=2.0)
    schedule = plan_sign(problem, 0.4)
    assert 0.2 < schedule.is_silent.mean() < 0.9
    # The rounds that weigh least are the silent ones.
    assert schedule.is_silent[:30].mean() > schedule.is_silent[-30:].mean()
    assert schedule.costs[schedule.is_silent].sum() == 0.0
    assert wrong_majority_bound(schedule, 0.4)[schedule.is_silent].min() == 1.0


# Subsampled rounds


@pytest.mark.parametrize("trusted", [0.0, 0.5])
def test_the_central_limit_is_optimised_as_the_solver_does(trusted):
    problem = make_problem(snr_db=-10.0, trusted_noise_fraction=trusted, num_rounds=80)
    costs = central_limit_costs(problem, sampling_probability=0.05, mu=0.5)
    ours = math.fsum(problem.weights * problem.noise_of_costs(costs))
    theirs = central_limit_objective(problem, sampling_probability=0.05, mu=0.5)
    assert theirs * (1 - 1e-5) <= ours <= theirs * (1 + 1e-6)


def test_a_subsampled_schedule_keeps_epsilon_by_composition():
    problem = make_problem(num_rounds=60, sensitivities=np.full(60, 1.0))
    schedule = plan_subsampled(problem, sampling_probability=0.05, epsilon=1.0, delta=1e-5)
    multipliers = np.sqrt(schedule.artificial_noise)
    counts = {}
    for multiplier in multipliers:
        price = PriceClass(0.05, grid_index_below(float(multiplier)))
        counts[price] = counts.get(price, 0) + 1
    composer = Composer(loss_interval=loss_interval_for(1.0), delta=1e-5)
    epsilon = composer.epsilon(make_history(counts))
    assert 0.85 < epsilon <= 1.0
    # Without the sampling it would cost far more.
    assert schedule.spent > 3 * gdp_mu_of(1.0, 1e-5) ** 2 / 2


# Requests


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda p: plan_selection(p, 1.1), "min_participation"),
        (lambda p: plan_truncated_inversion(p, 0.0), "participation"),
        (lambda p: plan_equal_split(p, 6), "num_missing"),
        (lambda p: plan_sign(p, 0.5), "wrong_sign_probability"),
        (lambda p: plan_sign(dataclasses.replace(p, bounds=2 * p.bounds), 0.4), "bounds"),
        (
            lambda p: plan_subsampled(p, sampling_probability=0.0, epsilon=1.0, delta=1e-5),
            "sampling_probability",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_refused(plan, message):
    with pytest.raises(ConfigurationError, match=message):
        plan(make_problem())
