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
from server.power.reserve import budget_to_plan_with, dropout_factor


def test_every_policy_has_a_file_and_every_file_a_policy():
    files = {p.stem for p in Path(policies.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(POLICIES)
    for name in files:
        module = importlib.import_module(f"server.power.policies.{name}")
        assert module.NAME == name
        assert f"``{name}``" in module.__doc__


def test_what_promises_nothing_is_refused_where_something_is_promised():
    for name in ("perfect", "paper"):
        with pytest.raises(ConfigurationError, match="keeps no promise"):
            policy_named(name, access=Access.SUPERPOSED, has_promise=True)
        assert policy_named(name, access=Access.SUPERPOSED, has_promise=False).name == name


def test_slotted_access_is_planned_or_refused_by_name():
    planned = set()
    for name, policy in POLICIES.items():
        if policy.slotted:
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
    planned = budget_to_plan_with(
        10.0, costs, num_devices=num_devices, dropout_probability=probability
    )
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
    assert dropout_factor(5, 0.0) == (1.0, 0.0)
    assert budget_to_plan_with(3.0, np.ones(4), num_devices=5, dropout_probability=0.0) == 3.0


@pytest.mark.parametrize(
    ("devices", "probability", "message"),
    [(0, 0.1, "num_devices"), (5, 1.0, "dropout_probability"), (5, -0.1, "dropout_probability")],
)
def test_dropouts_that_cannot_be_are_refused(devices, probability, message):
    with pytest.raises(ConfigurationError, match=message):
        dropout_factor(devices, probability)
    with pytest.raises(ConfigurationError, match="wanted numbers"):
        budget_to_plan_with(0.0, np.ones(3), num_devices=5, dropout_probability=0.1)
