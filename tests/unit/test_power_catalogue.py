"""Which policies there are and where they are refused; prices of devices that are covered alone."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.protocol.rounds import Access
from server.errors import ConfigurationError
from server.power import policies
from server.power.catalogue import POLICIES, own_noise_costs, policy_named
from server.power.reserve import Dropouts, budget_to_plan_with, multiplier_to_plan_with


def test_every_policy_has_a_file_and_every_file_a_policy():
    files = {p.stem for p in Path(policies.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(POLICIES)
    for name in files:
        module = importlib.import_module(f"server.power.policies.{name}")
        assert f"Power policy ``{name}``" in module.__doc__


def test_what_promises_nothing_is_refused_where_something_is_promised():
    for name in ("perfect", "paper"):
        with pytest.raises(ConfigurationError, match="keeps no promise"):
            policy_named(name, access=Access.SUPERPOSED, has_promise=True)
        assert policy_named(name, access=Access.SUPERPOSED, has_promise=False).name == name


def test_slotted_access_is_planned_or_refused_by_name():
    planned = set()
    for name, policy in POLICIES.items():
        if policy.promises and not policy.why_not_slotted:
            planned.add(policy_named(name, access=Access.SLOTTED, has_promise=True).name)
            continue
        with pytest.raises(ConfigurationError, match=rf"'{name}': not for radios|keeps no promise"):
            policy_named(name, access=Access.SLOTTED, has_promise=True)
    assert planned == {"optimal", "static", "reversed", "subsampled"}


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'optimal'"):
        policy_named("optimum", access=Access.SUPERPOSED, has_promise=True)


def test_devices_that_are_covered_alone_get_shares_of_the_budget():
    weights = 0.98 ** -np.arange(50.0)
    sensitivities = np.full(50, 2.0)

    def noise(name):
        costs = own_noise_costs(name, weights=weights, sensitivities=sensitivities, budget=3.0)
        assert math.fsum(costs) <= 3.0
        assert math.fsum(costs) == pytest.approx(3.0, rel=1e-12)
        return math.fsum(weights * np.square(sensitivities) / (2.0 * costs))

    best = noise("optimal")
    assert best < noise("static") < noise("reversed")
    # By Cauchy and Schwarz nothing does better.
    bound = math.fsum(sensitivities * np.sqrt(weights / 2.0)) ** 2 / 3.0
    assert best == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "selection"},
        {"name": "subsampled"},
        {"weights": np.zeros(3)},
        {"weights": np.ones(2)},
        {"sensitivities": np.full(3, np.nan)},
        {"budget": 0.0},
        {"budget": math.inf},
    ],
)
def test_prices_that_cannot_be_are_refused(changes):
    asked = {"name": "static", "weights": np.ones(3), "sensitivities": np.ones(3), "budget": 1.0}
    asked |= changes
    with pytest.raises(ConfigurationError):
        own_noise_costs(asked.pop("name"), **asked)


# A reserve for dropouts


def simulated_spending(costs, num_devices, probability, rng, num_runs):
    missing = rng.binomial(num_devices, probability, (num_runs, len(costs)))
    factors = np.where(missing < num_devices, num_devices / np.maximum(num_devices - missing, 1), 0)
    return (costs * factors).sum(axis=1)


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("num_devices", [2, 5, 20])
def test_a_run_with_the_dropouts_it_was_told_of_ends_with_its_last_round(probability, num_devices):
    costs = np.linspace(0.5, 1.5, 300)
    planned = budget_to_plan_with(10.0, costs, Dropouts(num_devices, probability))
    rng = np.random.default_rng(num_devices)
    spent = simulated_spending(
        planned * costs / costs.sum(), num_devices, probability, rng, num_runs=2000
    )
    assert spent.max() <= 10.0 * (1 + 1e-12)
    # And not far below: the reserve is one, not a surrender.
    assert spent.mean() > 8.0


def test_negative_control_without_a_reserve_the_budget_is_exceeded():
    costs = np.ones(300)
    rng = np.random.default_rng(0)
    spent = simulated_spending(10.0 * costs / costs.sum(), 5, 0.05, rng, num_runs=200)
    assert spent.min() > 10.0


def test_without_dropouts_nothing_is_reserved():
    nobody = Dropouts(5, 0.0)
    assert nobody.factor == (1.0, 0.0)
    assert budget_to_plan_with(3.0, np.ones(4), nobody) == 3.0
    assert multiplier_to_plan_with(0.9, 450, nobody) == 0.9


def test_those_who_are_not_counted_anyway_cost_nothing_more():
    factors, chances = Dropouts(6, 0.1, num_missing=2).factors
    assert factors == pytest.approx([1, 1, 1, 4 / 3, 4 / 2, 4 / 1])
    assert chances.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("multiplier", "beyond"), [(0.9, 0.02), (4.0, 0.0)])
def test_subsampled_rounds_are_planned_for_the_expected_price(multiplier, beyond):
    """Against a simulation of central-limit prices: within the budget, and not far below.

    With little noise a round without most of it may cost a run by itself: some in a hundred such
    runs end early.
    """
    rounds, dropouts = 400, Dropouts(5, 0.05)
    planned = multiplier_to_plan_with(multiplier, rounds, dropouts)
    assert planned > multiplier
    rng = np.random.default_rng(3)
    missing = rng.binomial(5, 0.05, (2000, rounds))
    factors = np.where(missing < 5, 5 / np.maximum(5 - missing, 1), 0.0)
    spent = np.expm1(factors / planned**2).sum(axis=1)
    budget = rounds * math.expm1(1 / multiplier**2)
    assert np.mean(spent > budget) <= beyond
    assert np.median(spent) > 0.75 * budget


@pytest.mark.parametrize(
    ("devices", "probability", "message"),
    [(0, 0.1, "num_devices"), (5, 1.0, "dropout_probability"), (5, -0.1, "dropout_probability")],
)
def test_dropouts_that_cannot_be_are_refused(devices, probability, message):
    with pytest.raises(ConfigurationError, match=message):
        Dropouts(devices, probability)
    with pytest.raises(ConfigurationError, match="wanted numbers"):
        budget_to_plan_with(0.0, np.ones(3), Dropouts(5, 0.1))
