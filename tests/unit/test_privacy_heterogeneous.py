"""Runs whose rounds all differ: what the accountant says is held against dp-accounting's own."""

import functools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution, privacy_loss_mechanism
from privacy_records import make_record

from server.errors import BudgetExhaustedError
from server.privacy.accountant import Accountant
from server.privacy.composition import (
    Composer,
    PriceClass,
    gdp_mu_of_squares,
    grid_index_below,
    grid_multiplier,
    make_history,
    sum_of_squares,
)

TOLERANCE = 1.005


@pytest.mark.parametrize("seed", range(40))
def test_gaussian_rounds_cost_what_they_cost_and_at_most_half_a_percent_more(seed):
    rng = np.random.default_rng(seed)
    multipliers = rng.uniform(3.0, 60.0, size=rng.integers(2, 400))
    delta = 10.0 ** rng.uniform(-7.0, -2.0)
    account = Accountant(epsilon=1e3, delta=delta)
    for index, multiplier in enumerate(multipliers):
        account.compose(make_record(index, multiplier=float(multiplier), rate=1.0))
    spent = account.worst_spent()
    exact_mu = math.sqrt(math.fsum(1.0 / multipliers**2))
    exact = privacy_loss_mechanism.GaussianPrivacyLoss(1.0 / exact_mu)
    assert exact.get_delta_for_epsilon(spent) <= delta
    assert exact.get_delta_for_epsilon(spent / TOLERANCE) > delta


@pytest.mark.parametrize("seed", range(6))
def test_subsampled_rounds_cost_what_they_cost_and_at_most_half_a_percent_more(seed):
    """In a run that spends its budget: the grid of losses is a share of that."""
    rng = np.random.default_rng([7, seed])
    rate, delta = float(rng.uniform(0.005, 0.3)), 10.0 ** rng.uniform(-6.0, -3.0)
    groups = [(float(rng.uniform(0.8, 4.0)), int(rng.integers(1, 30))) for _ in range(6)]
    below, above = (
        functools.reduce(
            lambda total, part: total.compose(part),
            (
                privacy_loss_distribution.from_gaussian_mechanism(
                    standard_deviation=multiplier,
                    sampling_prob=rate,
                    value_discretization_interval=5e-4,
                    pessimistic_estimate=is_pessimistic,
                    use_connect_dots=is_pessimistic,
                ).self_compose(count)
                for multiplier, count in groups
            ),
        ).get_epsilon_for_delta(delta)
        for is_pessimistic in (False, True)
    )
    account = Accountant(epsilon=1.01 * above, delta=delta)
    multipliers = [multiplier for multiplier, count in groups for _ in range(count)]
    for index, multiplier in enumerate(multipliers):
        account.compose(make_record(index, multiplier=multiplier, rate=rate))
    assert below <= account.worst_spent() <= TOLERANCE * above


def test_squares_add_up_in_any_order_and_are_never_below_the_reals():
    indices = list(range(-3000, 20_000, 97))
    forwards = make_history({PriceClass(1.0, index): 3 for index in indices})
    total = sum_of_squares(forwards)
    assert total == sum(PriceClass(1.0, index).square * 3 for index in reversed(indices))
    exact = math.fsum(3.0 / grid_multiplier(index) ** 2 for index in indices)
    assert gdp_mu_of_squares(total) >= math.sqrt(exact) * (1.0 - 1e-15)
    assert gdp_mu_of_squares(total) == pytest.approx(math.sqrt(exact), rel=1e-11)
    assert sum_of_squares(make_history({PriceClass(0.5, 0): 1})) is None


def test_thousands_of_different_rounds_stop_at_the_budget_and_not_before():
    account = Accountant(epsilon=2.0, delta=1e-5)
    rng = np.random.default_rng(3)
    count = 0
    with pytest.raises(BudgetExhaustedError):
        for count in range(5000):
            record = make_record(count, multiplier=float(rng.uniform(60.0, 140.0)), rate=1.0)
            account.check_affordable(record)
            account.compose(record)
    assert count > 1000
    assert 1.999 < account.worst_spent() <= 2.0
    # Exactly that account, composed at once.
    (history,) = account.histories()
    composer = Composer(loss_interval=1e-3, delta=1e-5)
    assert composer.epsilon(history) == account.worst_spent()


def test_a_subsampled_release_on_a_gaussian_account_is_counted_with_the_rest():
    account = Accountant(epsilon=50.0, delta=1e-5)
    account.compose(make_record(0, multiplier=2.0, rate=1.0))
    alone = account.worst_spent()
    account.compose(make_record(1, multiplier=1.0, rate=0.1))
    both = make_history(
        {PriceClass(1.0, grid_index_below(2.0)): 1, PriceClass(0.1, grid_index_below(1.0)): 1}
    )
    composer = Composer(loss_interval=2e-3, delta=1e-5)
    assert account.worst_spent() == composer.epsilon(both) > alone
    account.compose(make_record(2, multiplier=2.0, rate=1.0))
    assert account.worst_spent() > composer.epsilon(both)


def test_the_dearest_of_gaussian_accounts_is_the_promise():
    account = Accountant(epsilon=50.0, delta=1e-5)
    for device, multiplier in enumerate((3.0, 2.0, 2.0, 5.0)):
        account.compose(make_record(0, device, multiplier=multiplier, rate=1.0))
    assert account.worst_spent() == account.spent(1) == account.spent(2)
