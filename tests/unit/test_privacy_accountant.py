import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from privacy_records import make_record
from scipy.stats import norm

from edge_runtime.guard.sensitivity import NeighbouringRelation
from server.errors import (
    BudgetExhaustedError,
    ConfigurationError,
    PrivacyError,
)
from server.privacy.accountant import Accountant
from server.privacy.composition import (
    MAX_NOISE_MULTIPLIER,
    Composer,
    PriceClass,
    grid_index_below,
    grid_multiplier,
    make_history,
    price_class_of,
)
from server.privacy.round_squares import RoundSquares

DELTA = 1e-5


def gaussian_delta(epsilon, gdp_mu):
    """The exact curve of a Gaussian mechanism."""
    upper = norm.cdf(-epsilon / gdp_mu + gdp_mu / 2)
    return upper - math.exp(epsilon) * norm.cdf(-epsilon / gdp_mu - gdp_mu / 2)


@pytest.mark.parametrize(("num_rounds", "multiplier"), [(1, 2.0), (50, 8.0), (1000, 64.0)])
def test_spent_is_just_above_the_exact_gaussian_curve(num_rounds, multiplier):
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    record = make_record(multiplier=multiplier, rate=1.0)
    for _ in range(num_rounds):
        accountant.compose(record)
    spent = accountant.spent(0)
    gdp_mu = math.sqrt(num_rounds) / multiplier
    assert gaussian_delta(spent, gdp_mu) <= DELTA
    assert gaussian_delta(0.995 * spent - 0.002, gdp_mu) > DELTA


def test_spent_lies_between_an_optimistic_and_a_loose_witness():
    num_rounds, multiplier, rate = 500, 0.75, 16 / 2757
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    accountant.compose_all([make_record(multiplier=multiplier, rate=rate)] * num_rounds)
    spent = accountant.spent(0)
    optimistic = privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=5e-4,
    ).self_compose(num_rounds)
    renyi = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    renyi.compose(event, num_rounds)
    assert optimistic.get_epsilon_for_delta(DELTA) < spent < renyi.get_epsilon(DELTA)


def test_a_device_that_never_spoke_has_spent_nothing():
    accountant = Accountant(epsilon=1.0, delta=DELTA)
    assert accountant.spent(7) == 0.0
    assert accountant.worst_spent() == 0.0
    assert accountant.num_records(7) == 0
    assert accountant.device_indices == ()


def test_devices_have_accounts_of_their_own():
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    accountant.compose_all(make_record(t, 0) for t in range(20))
    accountant.compose_all(make_record(t, 3) for t in range(5))
    assert accountant.device_indices == (0, 3)
    assert accountant.spent(3) < accountant.spent(0) == accountant.worst_spent()
    assert accountant.num_records(0) == 20


@pytest.mark.parametrize(
    ("accounts", "num_composed"),
    [
        # Releases of two prices by each device, and how many accounts no other one covers.
        ([(3, 0), (5, 0), (5, 0), (4, 0)], 1),
        ([(3, 2), (5, 0), (2, 2), (3, 1)], 2),
        ([(0, 1), (9, 0), (1, 1)], 2),
    ],
)
def test_the_worst_account_is_found_without_composing_those_that_another_covers(
    accounts, num_composed, monkeypatch
):
    accountant, every = Accountant(epsilon=8.0, delta=DELTA), Accountant(epsilon=8.0, delta=DELTA)
    for device, counts in enumerate(accounts):
        for multiplier, count in zip((0.8, 1.1), counts, strict=True):
            record = make_record(device_index=device, multiplier=multiplier)
            accountant.compose_all([record] * count)
            every.compose_all([record] * count)
    composed = []
    one_account = Composer.epsilon
    monkeypatch.setattr(
        Composer, "epsilon", lambda self, h: composed.append(h) or one_account(self, h)
    )

    worst = accountant.worst_spent()

    assert len(composed) == num_composed
    assert worst == max(every.spent(device) for device in range(len(accounts))) > 0
    assert accountant.worst_spent() == worst


def test_a_release_with_hardly_any_noise_is_the_worst_even_of_a_device_that_another_outspends():
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    accountant.compose_all([make_record(device_index=0)] * 5)
    accountant.compose_all([make_record(device_index=1)] * 2)
    accountant.compose(make_record(device_index=1, multiplier=1e-3))
    assert accountant.worst_spent() == math.inf


def spend_all(accountant, record):
    """Compose rounds like this one until the budget refuses; returns how many it took."""
    count = 0
    while True:
        try:
            accountant.check_affordable(record)
        except BudgetExhaustedError:
            return count
        accountant.compose(record)
        count += 1


def test_check_affordable_charges_nothing_and_stops_at_the_budget():
    accountant = Accountant(epsilon=2.0, delta=DELTA)
    record = make_record(multiplier=4.0, rate=1.0)
    affordable = spend_all(accountant, record)
    assert affordable >= 2
    assert accountant.spent(0) <= 2.0
    for _ in range(3):
        with pytest.raises(BudgetExhaustedError, match="budget is 2"):
            accountant.check_affordable(record)
    assert accountant.num_records(0) == affordable
    accountant.compose(record)
    assert accountant.spent(0) > 2.0


def test_a_cheaper_round_may_still_be_affordable():
    accountant = Accountant(epsilon=2.0, delta=DELTA)
    dear, cheap = (make_record(multiplier=m, rate=1.0) for m in (4.0, 100.0))
    spend_all(accountant, dear)
    with pytest.raises(BudgetExhaustedError):
        accountant.check_affordable(dear)
    assert spend_all(accountant, cheap) > 0
    assert accountant.spent(0) <= 2.0


def test_a_ledger_that_is_read_back_is_counted_even_above_the_budget():
    accountant = Accountant(epsilon=0.5, delta=DELTA)
    accountant.compose_all([make_record(multiplier=1.0, rate=1.0)] * 3)
    assert accountant.spent(0) > 0.5
    with pytest.raises(BudgetExhaustedError):
        accountant.check_affordable(make_record(multiplier=1000.0, rate=1.0))


def test_many_classes_agree_with_one_fold_whatever_the_order():
    records = [make_record(t, 0, multiplier=5.0 + t / 4, rate=1.0) for t in range(9)]
    forward, backward = (Accountant(epsilon=8.0, delta=DELTA) for _ in range(2))
    for record in records:
        forward.check_affordable(record)
        forward.compose(record)
        forward.spent(0)
    backward.compose_all(reversed(records))
    assert forward.spent(0) == pytest.approx(backward.spent(0), rel=1e-9)
    gdp_mu = math.sqrt(sum(1 / r.noise_multiplier**2 for r in records))
    assert gaussian_delta(forward.spent(0), gdp_mu) <= DELTA


def test_csi_delta_is_taken_off_before_the_mechanism():
    record = make_record(multiplier=3.0, rate=1.0)
    plain = Accountant(epsilon=8.0, delta=1e-5)
    careful = Accountant(epsilon=8.0, delta=1e-5, csi_delta=5e-6)
    halved = Accountant(epsilon=8.0, delta=5e-6)
    for accountant in (plain, careful, halved):
        accountant.compose_all([record] * 10)
    assert careful.spent(0) > plain.spent(0)
    assert careful.spent(0) == pytest.approx(halved.spent(0))
    assert (careful.epsilon, careful.delta, careful.csi_delta) == (8.0, 1e-5, 5e-6)


def test_two_promises_do_not_share_an_account():
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    accountant.compose(make_record(rate=1.0))
    other = make_record(rate=1.0, relation=NeighbouringRelation.REPLACE_ONE)
    with pytest.raises(PrivacyError, match="promise"):
        accountant.check_affordable(other)
    with pytest.raises(PrivacyError, match="promise"):
        accountant.compose(other)


def test_a_record_is_priced_as_what_it_says():
    subsampled, plain = (
        make_record(multiplier=2.0, rate=0.01),
        make_record(multiplier=2.0, rate=1.0),
    )
    index = grid_index_below(subsampled.noise_multiplier)
    assert price_class_of(subsampled) == PriceClass(0.01, index)
    assert price_class_of(plain) == PriceClass(1.0, index)
    assert price_class_of(plain).is_gaussian and not price_class_of(subsampled).is_gaussian


@pytest.mark.parametrize("noise_multiplier", [0.0, 0.05, -1.0, math.nan])
def test_hardly_any_noise_is_refused(noise_multiplier):
    with pytest.raises(PrivacyError, match="noise multiplier"):
        grid_index_below(noise_multiplier)


def test_too_small_a_delta_proves_nothing():
    composer = Composer(loss_interval=1e-3, delta=1e-11)
    price = PriceClass(0.5, grid_index_below(50.0))
    assert composer.epsilon(make_history({price: 1000})) == math.inf
    assert math.isfinite(composer.epsilon(make_history({price: 10})))


def test_the_grid_never_rounds_a_multiplier_up():
    for exponent in range(-3 * 7, 20 * 7):
        value = 2.0 ** (exponent / 7)
        for near in (math.nextafter(value, 0.0), value, math.nextafter(value, math.inf)):
            grid = grid_multiplier(grid_index_below(near))
            assert near * (1 - 7e-4) < grid <= near
    assert grid_multiplier(grid_index_below(math.inf)) == MAX_NOISE_MULTIPLIER


@pytest.mark.parametrize(
    ("epsilon", "delta", "csi_delta"),
    [
        (0.0, 1e-5, 0.0),
        (math.inf, 1e-5, 0.0),
        (math.nan, 1e-5, 0.0),
        (1.0, 0.0, 0.0),
        (1.0, 1.0, 0.0),
        (1.0, math.nan, 0.0),
        (1.0, 1e-5, 1e-5),
        (1.0, 1e-5, -1e-9),
        (1.0, 1e-5, math.nan),
    ],
)
def test_a_budget_nobody_can_mean_is_refused(epsilon, delta, csi_delta):
    with pytest.raises(ConfigurationError):
        Accountant(epsilon=epsilon, delta=delta, csi_delta=csi_delta)


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_a_correction_takes_the_place_of_the_release_it_corrects(rate):
    """Beside it, an account that was told the truth at once; the others' records lie between."""

    def account(*multipliers_of_round_one):
        accountant = Accountant(epsilon=20.0, delta=DELTA)
        accountant.compose(make_record(0, multiplier=2.0, rate=rate))
        for multiplier in multipliers_of_round_one:
            accountant.compose(make_record(1, multiplier=multiplier, rate=rate))
            accountant.compose(make_record(1, 1, multiplier=4.0, rate=rate))
        accountant.compose(make_record(2, multiplier=2.0, rate=rate))
        return accountant

    corrected, truth = account(2.0, 1.5, 0.9), account(0.9)
    assert corrected.spent(0) == truth.spent(0)
    assert corrected.num_records(0) == truth.num_records(0) == 3
    # The same noise again, or more of it, corrects nothing: it is charged once more.
    for again in (0.9, 1.5):
        assert account(0.9, again).num_records(0) == 4
        assert account(0.9, again).spent(0) > truth.spent(0)


def test_squares_of_rounds_know_corrections_too():
    squares, truth = RoundSquares(), RoundSquares()
    squares.add([make_record(t, multiplier=m, rate=1.0) for t, m in ((0, 2.0), (1, 3.0), (1, 1.0))])
    truth.add([make_record(t, multiplier=m, rate=1.0) for t, m in ((0, 2.0), (1, 1.0))])
    assert np.array_equal(squares.before(1, 2), truth.before(1, 2))
    assert np.array_equal(squares.before(2, 2), truth.before(2, 2))
    squares.add([make_record(1, multiplier=0.5, rate=1.0)])
    truth.add(
        [make_record(1, 1, multiplier=0.5, rate=1.0), make_record(0, 1, multiplier=2.0, rate=1.0)]
    )
    # The truth's second device had in one account what the first has had to correct.
    assert squares.before(2, 2).tolist()[0] == truth.before(2, 2).tolist()[1]
