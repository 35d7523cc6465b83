"""One subsampled round's loss, held against dp_accounting's and against quadrature."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from server.errors import PrivacyError
from server.privacy.composition import FFT_DELTA_PER_ROUND
from server.privacy.subsampled_gaussian import _Way, one_round

RATES = [1e-4, 0.003, 0.05, 0.5, 0.99, 1.0]


def theirs(multiplier, rate, interval):
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=multiplier,
        sampling_prob=rate,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
        use_connect_dots=True,
    )


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0, 300.0])
def test_it_is_what_the_library_makes_of_it(multiplier, rate):
    interval = 1e-3
    ours, wanted = one_round(multiplier, rate, interval), theirs(multiplier, rate, interval)
    epsilons = np.linspace(-3.0, 6.0, 60)
    deltas = [ours.delta_at(epsilon) for epsilon in epsilons]
    errors = np.abs(np.subtract(deltas, wanted.get_delta_for_epsilon(epsilons)))
    assert errors[epsilons >= 0.0].max() < 1e-14
    # Below, deltas near one: a rounding of 1e-16 is 1e-13 in a mass, and processors differ in it.
    assert errors.max() < 1e-12
    # Composed, they differ by less than what is set aside for rounding in the composition.
    composed, by_them = ours.times(20), wanted.self_compose(20)
    reserve = 20 * FFT_DELTA_PER_ROUND
    for delta in (1e-9, 1e-5, 1e-2):
        found = composed.epsilon_at(delta)
        assert found <= by_them.get_epsilon_for_delta(delta - reserve) * (1.0 + 1e-9)
        assert found >= by_them.get_epsilon_for_delta(delta + reserve) * (1.0 - 1e-9)


@pytest.mark.parametrize("rate", RATES[:-1])
def test_it_is_not_below_the_exact_divergence(rate):
    """Of (1 - q) N(0, m^2) + q N(1, m^2) and N(0, m^2), both ways, by quadrature on a fine grid."""
    multiplier = 0.8
    loss = one_round(multiplier, rate, 1e-3)
    x, dx = np.linspace(-12.0, 13.0, 2_000_001, retstep=True)
    p = norm.pdf(x, scale=multiplier)
    q = (1.0 - rate) * p + rate * norm.pdf(x - 1.0, scale=multiplier)
    for epsilon in (0.0, 0.05, 0.5, 1.5):
        exact = max(
            np.sum(np.maximum(one - math.exp(epsilon) * other, 0.0)) * dx
            for one, other in ((p, q), (q, p))
        )
        found = loss.delta_at(epsilon)
        assert exact * (1.0 - 1e-6) - 1e-12 <= found <= exact * 1.01 + 1e-6


def test_a_round_whose_deltas_rise_has_no_price(monkeypatch):
    def wavy(self, epsilons):
        return 0.5 + 0.1 * np.sin(np.arange(len(epsilons)))

    monkeypatch.setattr(_Way, "deltas", wavy)
    with pytest.raises(PrivacyError, match=r"rate 0\.05: its deltas do not fall"):
        one_round(2.0, 0.05, 1e-3)
