"""Planning as the run goes: the budget on every path, and how near the rules come to hindsight."""

import dataclasses
import math

import numpy as np
import pytest
from hindsight import plan_optimal
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.power.online import OnlinePlanner, Rule
from server.power.schedule import PlanningProblem

NUM_DEVICES = 5


def make_run(seed=0, num_rounds=60, snr_db=0.0, forgetting=0.99, **changes):
    """Whole run with the gains that will come, and the planner's view without them."""
    rng = np.random.default_rng(seed)
    weights = forgetting ** -np.arange(num_rounds)
    values = {
        "power_gains": rng.exponential(size=(NUM_DEVICES, num_rounds)),
        "bounds": np.ones(NUM_DEVICES),
        "sensitivities": np.full(num_rounds, 2.0),
        "weights": weights / weights.max(),
        "noise_power": 10 ** (-snr_db / 10),
        "budget": 3.0,
        **changes,
    }
    run = PlanningProblem(**values)
    draws = rng.exponential(size=(NUM_DEVICES, 500))
    assumed = dataclasses.replace(
        run, power_gains=draws, sensitivities=np.full(500, 2.0), weights=np.ones(500)
    )
    return run, assumed


def carry_out(run, assumed, rule):
    """(objective, what was spent)."""
    planner = OnlinePlanner(assumed, run.weights, rule)
    objective, spent = [], []
    for t in range(run.num_rounds):
        schedule = planner.plan_round(run.power_gains[:, t])
        objective.append(schedule.objective if schedule.speakers.any() else math.inf)
        spent.append(schedule.spent)
    assert planner.rounds_left == 0
    return math.fsum(objective), math.fsum(spent)


runs = st.builds(
    make_run,
    seed=st.integers(0, 2**31),
    num_rounds=st.integers(1, 25),
    snr_db=st.floats(-30, 30),
    forgetting=st.floats(0.95, 1.0),
    budget=st.floats(0.01, 30.0),
    trusted_noise_fraction=st.sampled_from([0.0, 0.3, 1.0]),
    peak_factor=st.sampled_from([0.0, 8.0]),
)


@given(runs, st.sampled_from(list(Rule)))
def test_the_budget_holds_on_every_path(run, rule):
    _, spent = carry_out(*run, rule)
    assert spent <= run[0].budget


@given(runs, st.sampled_from(list(Rule)))
def test_nobody_does_better_than_hindsight(run, rule):
    objective, _ = carry_out(*run, rule)
    assert objective >= plan_optimal(run[0]).objective * (1 - 1e-9)


@pytest.mark.parametrize("trusted", [0.0, 1.0])
@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 15.0])
def test_mpc_is_within_a_percent_of_hindsight(snr_db, trusted):
    ratios = []
    for seed in range(3):
        run = make_run(
            seed, num_rounds=200, snr_db=snr_db, trusted_noise_fraction=trusted, peak_factor=0.0
        )
        objective, spent = carry_out(*run, Rule.MPC)
        ratios.append(objective / plan_optimal(run[0]).objective)
        assert spent <= run[0].budget
    assert np.mean(ratios) < 1.01


def test_rules_that_know_less_do_worse():
    costs = {rule: [] for rule in Rule}
    for seed in range(5):
        run = make_run(
            seed, num_rounds=150, snr_db=-8.0, trusted_noise_fraction=1.0, peak_factor=0.0,
            forgetting=0.98,
        )  # fmt: skip
        best = plan_optimal(run[0]).objective
        for rule in Rule:
            costs[rule].append(carry_out(*run, rule)[0] / best)
    mean = {rule: float(np.mean(values)) for rule, values in costs.items()}
    assert mean[Rule.MPC] < mean[Rule.ONE_STEP]
    assert mean[Rule.MPC] < mean[Rule.WEIGHTED] < mean[Rule.EVEN]


def test_a_wrong_law_costs_noise_and_never_the_budget():
    run, assumed = make_run(num_rounds=100, snr_db=-5.0, trusted_noise_fraction=1.0)
    far_off = dataclasses.replace(assumed, power_gains=100.0 * assumed.power_gains)
    for wrong in (far_off, dataclasses.replace(assumed, power_gains=assumed.power_gains / 100.0)):
        objective, spent = carry_out(run, wrong, Rule.MPC)
        assert spent <= run.budget
        assert objective >= carry_out(run, assumed, Rule.MPC)[0] * (1 - 1e-6)


def test_a_run_has_no_more_rounds_than_it_was_planned_for():
    run, assumed = make_run(num_rounds=2)
    planner = OnlinePlanner(assumed, run.weights, Rule.EVEN)
    planner.plan_round(run.power_gains[:, 0])
    planner.plan_round(run.power_gains[:, 1])
    assert planner.remaining < 1e-9
    with pytest.raises(ConfigurationError, match="planned for as many"):
        planner.plan_round(run.power_gains[:, 1])


def test_what_cannot_be_planned_is_refused():
    run, assumed = make_run()
    uneven = dataclasses.replace(assumed, sensitivities=np.linspace(1.0, 2.0, 500))
    with pytest.raises(ConfigurationError, match="the same in all rounds"):
        OnlinePlanner(uneven, run.weights, Rule.EVEN)
    planner = OnlinePlanner(assumed, run.weights, Rule.EVEN)
    with pytest.raises(ConfigurationError, match="power_gains"):
        planner.plan_round(np.full(NUM_DEVICES, np.nan))
