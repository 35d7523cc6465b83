"""Batteries, duty cycles, caps, fairness: what a plan may not break, what the solver finds."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.power.limits import PowerLimits, energies
from server.power.policies.limited import plan_limited
from server.power.policies.selection import plan_selection
from server.power.schedule import InfeasiblePlanError, PlanningProblem

NUM_DEVICES = 5


def make_problem(seed=0, num_rounds=40, snr_db=0.0, **changes):
    rng = np.random.default_rng(seed)
    path = rng.uniform(0.1, 1.0, (NUM_DEVICES, 1))
    weights = 0.99 ** -np.arange(num_rounds)
    values = {
        "power_gains": rng.exponential(size=(NUM_DEVICES, num_rounds)) * path,
        "bounds": rng.uniform(0.5, 1.0, NUM_DEVICES),
        "sensitivities": np.full(num_rounds, 2.0),
        "weights": weights / weights.max(),
        "noise_power": 10 ** (-snr_db / 10),
        "budget": 3.0,
        **changes,
    }
    return PlanningProblem(**values)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    snr_db=st.floats(-20, 20),
    battery=st.floats(0.1, 2.0),
    duty=st.floats(0.3, 1.0),
    cap=st.floats(0.2, 1.0),
)
def test_a_limited_plan_keeps_every_limit(seed, snr_db, battery, duty, cap):
    problem = make_problem(seed, snr_db=snr_db)
    used = energies(plan_selection(problem))
    limits = PowerLimits(
        max_energy=np.maximum(battery * used, 1e-3 * used.max()), max_duty=duty, peak_caps=cap
    )
    schedule = plan_limited(problem, limits)  # checks itself
    assert np.all(energies(schedule) <= limits.max_energy * (1 + 1e-9))
    assert np.all(schedule.speakers.mean(axis=1) <= duty + 1e-9)
    peaks = problem.bounds[:, None] + 8.0 * np.sqrt(schedule.noise_variances)
    there = cap * problem.power_gains * schedule.inverse_levels
    assert np.all((np.square(peaks) <= there * (1 + 1e-9))[schedule.speakers])
    # Nothing of the receiver's noise is counted.
    spoken = ~schedule.is_silent
    owed = np.square(problem.sensitivities[spoken]) / (2 * schedule.artificial_noise[spoken])
    assert math.fsum(owed) <= problem.budget * (1 + 1e-9)


@pytest.mark.parametrize("battery", [0.3, 0.8])
@pytest.mark.parametrize("snr_db", [-10.0, 10.0])
def test_a_second_solver_agrees(snr_db, battery):
    problem = make_problem(3, snr_db=snr_db)
    limits = PowerLimits(max_energy=battery * energies(plan_selection(problem)).max(), max_duty=0.7)
    first = plan_limited(problem, limits)
    second = plan_limited(problem, limits, solver="SCS")
    assert second.objective == pytest.approx(first.objective, rel=1e-3)


def test_a_tighter_battery_costs_noise_until_it_is_all_that_matters():
    problem = make_problem()
    used = energies(plan_selection(problem))
    objectives = [
        plan_limited(problem, PowerLimits(max_energy=share * used)).objective
        for share in (1.5, 0.5, 0.2, 0.05)
    ]
    assert objectives == sorted(objectives)
    assert objectives[-1] > 3 * objectives[0]


def test_without_limits_it_is_selection_but_for_its_fixed_shares():
    problem = make_problem()
    free = plan_limited(problem, PowerLimits()).objective
    assert free == pytest.approx(plan_selection(problem).objective, rel=0.01)


def test_duties_choose_the_best_rounds_first():
    problem = make_problem()
    preferred = np.zeros(problem.power_gains.shape, dtype=bool)
    preferred[:, :20] = True
    chosen = PowerLimits(max_duty=0.25).choose_speakers(problem, preferred)
    assert np.all(chosen.sum(axis=1) == 10)
    assert not chosen[:, 20:].any()
    for device in range(NUM_DEVICES):
        gains = problem.power_gains[device, :20]
        assert gains[chosen[device, :20]].min() > gains[~chosen[device, :20]].max()
    fair = PowerLimits(min_duty=0.75).choose_speakers(problem, preferred)
    assert np.all(fair.sum(axis=1) == 30)
    assert fair[:, :20].all()


def test_every_device_may_have_its_own():
    problem = make_problem()
    duties = np.array([1.0, 0.1, 0.5, 0.2, 0.05])
    schedule = plan_limited(problem, PowerLimits(max_duty=duties))
    assert np.all(schedule.speakers.mean(axis=1) <= duties)


def test_a_schedule_that_breaks_a_limit_is_never_handed_out():
    problem = make_problem()
    used = energies(plan_selection(problem))
    limits = PowerLimits(max_energy=0.5 * used, max_duty=0.6, peak_caps=0.5)
    schedule = plan_limited(problem, limits)
    louder = dataclasses.replace(schedule, inverse_levels=schedule.inverse_levels / 4)
    with pytest.raises(InfeasiblePlanError, match="needs an energy of"):
        limits.check(louder)
    with pytest.raises(InfeasiblePlanError, match="beyond its peak"):
        PowerLimits(peak_caps=0.001).check(schedule)
    with pytest.raises(InfeasiblePlanError, match="more often than its duty"):
        PowerLimits(max_duty=0.01).check(schedule)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_energy": 0.0}, "max_energy"),
        ({"max_energy": math.nan}, "max_energy"),
        ({"max_duty": 0.0}, "max_duty"),
        ({"max_duty": 1.1}, "max_duty"),
        ({"peak_caps": -1.0}, "peak_caps"),
        ({"min_duty": 0.5, "max_duty": 0.4}, "min_duty"),
        ({"min_duty": -0.1}, "min_duty"),
    ],
)
def test_limits_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        PowerLimits(**values)


def test_limits_of_another_number_of_devices_are_refused():
    with pytest.raises(ConfigurationError, match="got 3 values, wanted one, or one for each of 5"):
        plan_limited(make_problem(), PowerLimits(max_duty=np.full(3, 0.5)))
