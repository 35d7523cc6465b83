import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from server.errors import ConfigurationError, PrivacyError
from server.privacy import calibration, composition
from server.privacy.calibration import RECORD_SLACK, calibrate_noise_multiplier
from server.privacy.composition import (
    Composer,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)

REQUEST = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "sampling_probability": 16 / 2757,
    "num_rounds": 200,
    "num_records": 2757,
}


def epsilon_of(multiplier, request):
    composer = Composer(
        loss_interval=loss_interval_for(request["epsilon"]),
        delta=request["delta"] - request.get("csi_delta", 0.0),
    )
    price = PriceClass(request["sampling_probability"], grid_index_below(multiplier))
    return composer.epsilon(make_history({price: request["num_rounds"]}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epsilon": 2.0, "sampling_probability": 0.016},
        {"epsilon": 2.0, "csi_delta": 5e-6, "sampling_probability": 1.0},
        {"epsilon": 4.0, "sampling_probability": 1.0},
    ],
)
def test_the_multiplier_meets_the_budget_and_is_the_smallest_within_a_thousandth(changes):
    request = {**REQUEST, **changes}
    multiplier = calibrate_noise_multiplier(**request)
    assert epsilon_of(multiplier * (1 - RECORD_SLACK), request) <= request["epsilon"]
    assert epsilon_of(multiplier * (1 - 1e-3), request) > request["epsilon"]


def test_without_subsampling_it_is_the_closed_form():
    request = {**REQUEST, "sampling_probability": 1.0, "epsilon": 2.0}

    def excess(gdp_mu):
        upper = norm.cdf(-2.0 / gdp_mu + gdp_mu / 2)
        return upper - math.exp(2.0) * norm.cdf(-2.0 / gdp_mu - gdp_mu / 2) - 1e-5

    exact = math.sqrt(200) / brentq(excess, 1e-2, 10.0, xtol=1e-12)
    multiplier = calibrate_noise_multiplier(**request)
    assert exact <= multiplier <= exact * 1.002


def test_the_published_instance_of_the_theory():
    # theory.md section 6: b = 16, 2000 rounds, n = 1000, (2, 1e-5) -> 1.619.
    multiplier = calibrate_noise_multiplier(
        epsilon=2.0, delta=1e-5, sampling_probability=0.016, num_rounds=2000, num_records=1000
    )
    assert multiplier == pytest.approx(1.619, rel=3e-3)


def test_a_stricter_budget_needs_more_noise():
    request = {**REQUEST, "sampling_probability": 1.0}
    base = calibrate_noise_multiplier(**request)
    assert calibrate_noise_multiplier(**{**request, "epsilon": 4.0}) > base
    assert calibrate_noise_multiplier(**{**request, "delta": 1e-7}) > base
    assert calibrate_noise_multiplier(**{**request, "num_rounds": 400}) > base
    assert calibrate_noise_multiplier(**{**request, "csi_delta": 9e-6}) > base


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": 1 / 2757},
        {"delta": 0.01},
        {"delta": 0.0},
        {"delta": math.nan},
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"num_rounds": 0},
        {"num_records": 0},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.01},
        {"csi_delta": 1e-5},
    ],
)
def test_a_request_nobody_can_mean_is_refused(changes):
    with pytest.raises(ConfigurationError):
        calibrate_noise_multiplier(**{**REQUEST, **changes})


def test_a_delta_below_the_reserve_for_rounding_is_refused_with_true_advice():
    # 1e-13 a round: no epsilon would help, and neither would a smaller delta.
    with pytest.raises(ConfigurationError, match=r"sets aside 2e-11.*Wanted a larger delta"):
        calibrate_noise_multiplier(**{**REQUEST, "delta": 1e-11})
    assert calibrate_noise_multiplier(**{**REQUEST, "delta": 3e-11}) > 0


def test_an_epsilon_that_the_grid_of_losses_cannot_tell_from_none_is_refused_unsearched(
    monkeypatch,
):
    monkeypatch.setattr(calibration, "Composer", None)
    for epsilon in (1e-9, 0.99e-3):
        with pytest.raises(ConfigurationError, match=r"wanted at least 0\.001.*Allow a larger"):
            calibrate_noise_multiplier(**{**REQUEST, "epsilon": epsilon})


def test_one_rounds_loss_is_computed_once_whoever_asks(monkeypatch):
    composition._one_round.cache_clear()
    calibration._calibrated.cache_clear()
    first = calibrate_noise_multiplier(**REQUEST)
    computed = composition._one_round.cache_info().misses
    assert computed > 0
    calibration._calibrated.cache_clear()
    assert calibrate_noise_multiplier(**REQUEST) == first
    assert composition._one_round.cache_info().misses == computed


def test_rounds_are_priced_on_top_of_what_is_spent():
    """The least noise that fits beside every account, and no less."""
    old = calibrate_noise_multiplier(**REQUEST)
    price = PriceClass(REQUEST["sampling_probability"], grid_index_below(old))
    accounts = [((price, REQUEST["num_rounds"]),), ((price, REQUEST["num_rounds"] // 2),), ()]
    larger = {**REQUEST, "epsilon": 1.5 * REQUEST["epsilon"]}
    fresh = calibrate_noise_multiplier(**larger)
    new = calibrate_noise_multiplier(**larger, spent=accounts)
    assert new > fresh
    composer = Composer(loss_interval=loss_interval_for(larger["epsilon"]), delta=larger["delta"])
    added = PriceClass(REQUEST["sampling_probability"], grid_index_below(new))
    less = PriceClass(added.sampling_probability, added.grid_index - 1)
    rounds = REQUEST["num_rounds"]
    assert composer.epsilon(make_history({price: rounds, added: rounds})) <= larger["epsilon"]
    assert composer.epsilon(make_history({price: rounds, less: rounds})) > larger["epsilon"]


def test_no_noise_fits_beside_a_spent_budget():
    price = PriceClass(REQUEST["sampling_probability"], grid_index_below(0.2))
    with pytest.raises(PrivacyError, match="no noise meets"):
        calibrate_noise_multiplier(**REQUEST, spent=[((price, REQUEST["num_rounds"]),)])
