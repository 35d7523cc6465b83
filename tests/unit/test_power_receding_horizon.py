"""Limits over a whole run, kept round by round: no path breaks them, little is lost by it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.power.limits import PowerLimits, energies, mean_squares
from server.power.policies.limited import plan_limited
from server.power.receding_horizon import HORIZON, PowerUsed, RecedingHorizonPlanner
from server.power.schedule import PlanningProblem

NUM_DEVICES, NUM_ROUNDS, BUDGET = 4, 16, 3.0
PATHS = np.array([[1.0], [0.6], [0.4], [0.2]])
EVERYBODY = np.ones(NUM_DEVICES, dtype=bool)


def make_problem(num_draws, seed=0, snr_db=5.0):
    rng = np.random.default_rng(seed)
    return PlanningProblem(
        power_gains=np.maximum(rng.exponential(size=(NUM_DEVICES, num_draws)) * PATHS, 1e-3),
        bounds=np.ones(NUM_DEVICES),
        sensitivities=np.ones(num_draws),
        weights=np.ones(num_draws),
        noise_power=10 ** (-snr_db / 10),
        budget=BUDGET,
    )


ASSUMED = make_problem(200, seed=99)
WEIGHTS = 0.95 ** np.arange(NUM_ROUNDS - 1, -1, -1.0)


def make_planner(limits, weights=WEIGHTS):
    return RecedingHorizonPlanner(
        ASSUMED, weights, limits, np.ones(ASSUMED.power_gains.shape, dtype=bool)
    )


def carry_out(planner, path, audible=None, budget=BUDGET):
    """All rounds on a path [K, T]: the schedules, and what was left on every account."""
    used, left, schedules = PowerUsed.nothing(NUM_DEVICES), np.full(NUM_DEVICES, budget), []
    for position in range(path.shape[1]):
        schedule = planner.plan(
            position,
            path[:, position],
            left,
            used,
            may_speak=EVERYBODY if audible is None else audible[:, position],
            sensitivity=1.0,
        )
        left = np.maximum(0.0, left - schedule.costs[0] * schedule.speakers[:, 0])
        used = used.and_round(mean_squares(schedule)[:, 0])
        schedules.append(schedule)
    return schedules, used, left


def objective(schedules):
    return math.fsum(
        weight * float(schedule.mean_noise[0])
        for weight, schedule in zip(WEIGHTS, schedules, strict=True)
    )


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    energy=st.floats(1e-3, 3.0),
    poor=st.floats(1e-3, 1.0),
    duty=st.floats(0.1, 1.0),
    cap=st.floats(0.05, 1.0),
    bad_law=st.floats(0.01, 10.0),
)
def test_no_path_breaks_a_limit_whatever_was_assumed(seed, energy, poor, duty, cap, bad_law):
    limits = PowerLimits(
        max_energy=np.array([energy * poor, energy, energy, energy]), max_duty=duty, peak_caps=cap
    )
    path = make_problem(NUM_ROUNDS, seed).power_gains * bad_law
    rng = np.random.default_rng(seed)
    audible = rng.random(path.shape) < 0.9
    schedules, used, _ = carry_out(make_planner(limits), path, audible)
    for device in range(NUM_DEVICES):
        paid = [s.costs[0] for s in schedules if s.speakers[device, 0]]
        assert math.fsum(paid) <= BUDGET * (1 + 1e-9)
    assert np.all(used.energy <= limits.max_energy * (1 + 1e-9))
    assert np.all(used.rounds <= duty * NUM_ROUNDS + 1e-9)
    for position, schedule in enumerate(schedules):
        speaks = schedule.speakers[:, 0]
        assert not np.any(speaks & ~audible[:, position])
        peaks = 1.0 + 8.0 * np.sqrt(schedule.noise_variances[:, 0])
        there = cap * path[:, position] * schedule.inverse_levels[0]
        assert np.all((np.square(peaks) <= there * (1 + 1e-9))[speaks])


def test_the_same_past_and_channel_give_the_same_round():
    limits = PowerLimits(max_energy=0.3, max_duty=0.7)
    path = make_problem(NUM_ROUNDS, 5).power_gains
    used = PowerUsed(np.full(NUM_DEVICES, 0.1), np.full(NUM_DEVICES, 3.0))
    arguments = (4, path[:, 4], np.full(NUM_DEVICES, 2.0), used)
    one, other = (
        make_planner(limits).plan(*arguments, may_speak=EVERYBODY, sensitivity=1.0)
        for _ in range(2)
    )
    assert np.array_equal(one.noise_variances, other.noise_variances)
    assert np.array_equal(one.inverse_levels, other.inverse_levels)
    assert np.array_equal(one.speakers, other.speakers)


@pytest.mark.parametrize(("battery", "lost"), [(0.05, 0.25), (0.5, 0.1)])
def test_little_is_lost_by_not_knowing_the_channels_to_come(battery, lost):
    """Against the whole run planned in hindsight, for the same speakers; median of three paths."""
    limits, ratios = PowerLimits(max_energy=battery), []
    for seed in range(3):
        path = make_problem(NUM_ROUNDS, seed)
        schedules, _, _ = carry_out(make_planner(limits), path.power_gains)
        speakers = np.hstack([schedule.speakers for schedule in schedules])
        known = dataclasses.replace(path, weights=WEIGHTS)
        accounts = np.full(NUM_DEVICES, BUDGET)
        best = plan_limited(known, limits, speakers=speakers, accounts=accounts).objective
        ratios.append(objective(schedules) / best)
    assert min(ratios) >= 1.0 - 1e-3
    assert np.median(ratios) < 1.0 + lost


def test_a_battery_of_one_does_not_lower_the_level_for_all():
    """With an eighth of what it would need it speaks now and then, in its best rounds."""
    path = make_problem(NUM_ROUNDS, 3).power_gains
    _, free, _ = carry_out(make_planner(PowerLimits()), path)
    scarce = np.full(NUM_DEVICES, np.inf)
    scarce[1] = free.energy[1] / 8
    schedules, used, _ = carry_out(make_planner(PowerLimits(max_energy=scarce)), path)
    assert 0 < used.rounds[1] < NUM_ROUNDS / 2
    assert used.energy[1] <= scarce[1]
    assert np.all(used.rounds[[0, 2, 3]] >= free.rounds[[0, 2, 3]] - 1)
    unlimited, _, _ = carry_out(make_planner(PowerLimits()), path)
    assert objective(schedules) < 2.5 * objective(unlimited)


def test_a_device_speaks_in_its_best_rounds_and_at_least_as_often_as_fairness_wants():
    rng = np.random.default_rng(8)
    path = rng.exponential(size=(NUM_DEVICES, NUM_ROUNDS)) * PATHS
    schedules, used, _ = carry_out(make_planner(PowerLimits(max_duty=0.5)), path)
    speaks = np.hstack([schedule.speakers for schedule in schedules])
    assert np.all(used.rounds <= NUM_ROUNDS // 2)
    assert np.all(used.rounds >= NUM_ROUNDS // 4)
    for device in range(NUM_DEVICES):
        assert path[device, speaks[device]].mean() > 1.2 * path[device].mean()
    # The weakest is worth little: only fairness has it speak, and then as often as it says.
    weak = path * np.array([[1.0], [1.0], [1.0], [1e-3]])
    _, unfair, _ = carry_out(make_planner(PowerLimits()), weak)
    _, fair, _ = carry_out(make_planner(PowerLimits(min_duty=0.5)), weak)
    assert unfair.rounds[3] < NUM_ROUNDS // 2 <= fair.rounds[3]


def test_a_device_pays_for_the_rounds_it_speaks_in_and_for_no_others():
    """Half the rounds at about twice the price: less noise than if all rounds shared a budget."""
    path = make_problem(NUM_ROUNDS, 6).power_gains
    schedules, _, left = carry_out(make_planner(PowerLimits(max_duty=0.5)), path)
    total = math.fsum(schedule.spent for schedule in schedules)
    assert 1.3 * BUDGET < total
    assert np.all(left >= 0.0)
    assert left.min() < 0.01 * BUDGET


def test_who_has_nothing_left_to_pay_with_is_silent():
    path = make_problem(NUM_ROUNDS, 6).power_gains
    accounts = np.array([1.0, 0.0, 1.0, 1e-3])
    schedule = make_planner(PowerLimits()).plan(
        3,
        path[:, 3],
        accounts,
        PowerUsed.nothing(NUM_DEVICES),
        may_speak=EVERYBODY,
        sensitivity=1.0,
    )
    speaks = schedule.speakers[:, 0]
    assert not speaks[1]
    assert schedule.costs[0] <= accounts[speaks].min()


def test_where_nothing_is_left_nobody_speaks():
    path = make_problem(NUM_ROUNDS, 2).power_gains
    planner = make_planner(PowerLimits(max_energy=1.0, max_duty=0.5))
    fresh = PowerUsed.nothing(NUM_DEVICES)
    spent = PowerUsed(np.full(NUM_DEVICES, 1.0), np.zeros(NUM_DEVICES))
    often = PowerUsed(np.zeros(NUM_DEVICES), np.full(NUM_DEVICES, NUM_ROUNDS / 2))
    rich = np.ones(NUM_DEVICES)
    for used, accounts, may_speak in (
        (fresh, 0.0 * rich, EVERYBODY),
        (fresh, rich, ~EVERYBODY),
        (spent, rich, EVERYBODY),
        (often, rich, EVERYBODY),
    ):
        schedule = planner.plan(3, path[:, 3], accounts, used, may_speak=may_speak, sensitivity=1.0)
        assert schedule.is_silent.all()
        assert schedule.spent == 0.0
        assert energies(schedule).max() == 0.0


def test_a_long_run_is_planned_on_a_few_rounds_that_stand_for_it():
    """Ten thousand rounds: the first is planned like one of them, and at once."""
    weights = np.ones(10_000)
    planner = make_planner(PowerLimits(max_energy=100.0), weights)
    schedule = planner.plan(
        0,
        ASSUMED.power_gains.mean(axis=1),
        np.full(NUM_DEVICES, BUDGET),
        PowerUsed.nothing(NUM_DEVICES),
        may_speak=EVERYBODY,
        sensitivity=1.0,
    )
    assert schedule.spent == pytest.approx(BUDGET / 10_000, rel=0.5)
    assert mean_squares(schedule).max() < 20 * 100.0 / 10_000
    assert HORIZON < 100
