"""Exact Gaussian differential privacy: inverse pairs, an oracle, limits, the safe side."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import strategies as st

from server.errors import PrivacyError
from server.privacy.gaussian import budget_of, delta_of, epsilon_of, gdp_mu_of

epsilons = st.floats(0.05, 20.0)
deltas = st.floats(1e-9, 0.1)
mus = st.floats(0.02, 8.0)


@given(epsilons, deltas)
def test_a_mu_is_the_largest_that_keeps_what_it_was_asked_to(epsilon, delta):
    mu = gdp_mu_of(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta
    assert delta_of(epsilon, mu * (1 + 1e-6)) > delta * (1 - 1e-3)


@given(mus, deltas)
def test_an_epsilon_is_the_smallest_that_is_kept(mu, delta):
    epsilon = epsilon_of(mu, delta)
    assert delta_of(epsilon, mu) <= delta
    if epsilon > 1e-6:
        assert delta_of(epsilon * (1 - 1e-6), mu) > delta * (1 - 1e-3)


@given(mus, deltas)
def test_going_there_and_back_never_gains(mu, delta):
    epsilon = epsilon_of(mu, delta)
    if epsilon > 0.0:
        assert gdp_mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-5)
        assert epsilon_of(gdp_mu_of(epsilon, delta), delta) <= epsilon * (1 + 1e-12)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_never_below_an_accountant_that_knows_nothing_of_the_formula(mu, delta):
    events = [dp_accounting.GaussianDpEvent(math.sqrt(7) / mu)] * 7
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=5e-4)
    theirs = accountant.compose(dp_accounting.ComposedDpEvent(events)).get_epsilon(delta)
    ours = epsilon_of(mu, delta)
    assert ours <= theirs  # theirs is pessimistic
    assert ours >= theirs * 0.995 - 1e-3
    optimistic = pld.from_gaussian_mechanism(
        1.0 / mu, value_discretization_interval=5e-4, pessimistic_estimate=False
    )
    assert ours >= optimistic.get_epsilon_for_delta(delta)


def test_negative_control_the_oracle_sees_noise_that_is_five_percent_off():
    delta = 1e-5
    exact = pld.from_gaussian_mechanism(1.0, value_discretization_interval=1e-4)
    assert not epsilon_of(0.95, delta) >= exact.get_epsilon_for_delta(delta) * 0.995
    assert epsilon_of(1.05, delta) > exact.get_epsilon_for_delta(delta)


def test_limits():
    assert delta_of(1.0, 0.0) == 0.0
    assert delta_of(0.0, 1.0) == pytest.approx(2 * 0.6914624612740131 - 1, rel=1e-8)
    assert delta_of(0.0, 1e3) == 1.0
    assert epsilon_of(1e-4, 0.1) == 0.0
    assert budget_of(5.0, 1e-2) == pytest.approx(gdp_mu_of(5.0, 1e-2) ** 2 / 2)
    assert budget_of(5.0, 1e-2) < gdp_mu_of(5.0, 1e-2) ** 2 / 2


def test_the_papers_bound_costs_noise():
    """theory.md, section 3: exact composition allows more than the bound the paper prints."""
    zcdp = (math.sqrt(5.0 + math.log(1e5)) - math.sqrt(math.log(1e5))) ** 2
    assert budget_of(5.0, 1e-5) > 1.1 * zcdp


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_of(-1.0, 1.0), "epsilon"),
        (lambda: delta_of(math.nan, 1.0), "epsilon"),
        (lambda: delta_of(1.0, math.inf), "gdp_mu"),
        (lambda: epsilon_of(1.0, 0.0), "delta"),
        (lambda: epsilon_of(1.0, 1.0), "delta"),
        (lambda: gdp_mu_of(1.0, math.nan), "delta"),
        (lambda: gdp_mu_of(math.inf, 0.1), "epsilon"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(PrivacyError, match=message):
        call()
