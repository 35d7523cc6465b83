"""Pricing: enough noise for what is promised, and paid before it is spent."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from edge_runtime.guard.sensitivity import SUM_SHIFT_GROWTH
from edge_runtime.number_grid import SHIFT_GROWTH
from edge_runtime.private_random import noise_stream
from radio.waveforms.coherent import ChannelEstimate
from server.config.files import parse_config
from server.errors import (
    BudgetExceededError,
    BudgetExhaustedError,
    ConfigurationError,
    PrivacyError,
)
from server.planning.gain_error import MAX_AMPLITUDE_ERROR
from server.planning.privacy_terms import plan_privacy_terms
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.run import pricing as pricing_module
from server.run.pricing import Pricing
from server.store.run_store import RunStore

NUM_RECORDS = (120, 100, 110, 130)
COMMITMENTS = tuple(f"{index:08x}" for index in range(4))
NOISE_SYMBOLS = 256
ROUNDS = 12
CONFIG = parse_config(
    {
        "federation": {"num_devices": 4},
        "optimizer": {"rounds": ROUNDS, "batch_size": 8, "clip": 5.0},
        "radio": {"coherence_rounds": 5, "min_gain": 0.3},
        "privacy": {"epsilon": 6.0, "delta": 1e-4},
    },
    source="test",
)
WITHOUT_PRIVACY = parse_config(
    {"optimizer": {"clip": 5.0}, "privacy": {"enabled": False}, "radio": {"min_gain": 0.3}},
    source="test",
)
STRONG = (1.0, -0.9j, 0.8 + 0.3j, 0.7)
# Noise power at which a device's gain is known to about two percent.
GOOD = 0.02
RELATIVE_ROUNDING = 1e-12


def channel(gains=STRONG, noise_power=GOOD):
    return ChannelEstimate(
        gains=np.array(gains, dtype=np.complex128),
        error_variance=noise_power / CONFIG.radio.pilot_symbols,
        noise_power=noise_power,
    )


@pytest.fixture(scope="module")
def terms():
    return plan_privacy_terms(CONFIG, NUM_RECORDS, COMMITMENTS)


def open_pricing(store, terms, epsilon=CONFIG.privacy.epsilon):
    """As the experiment does it: the accountant starts from the ledger.

    ``epsilon`` above the planned one leaves room for corrections.
    """
    ledger = PrivacyLedger(store.connection)
    privacy = CONFIG.privacy
    accountant = Accountant(
        epsilon=epsilon,
        delta=privacy.delta,
        csi_delta=privacy.delta * privacy.csi_failure_fraction,
    )
    accountant.compose_all(ledger.records())
    return Pricing(CONFIG, terms, accountant, ledger, NOISE_SYMBOLS), ledger


def price(pricing, planned):
    """What a round costs; its release names the plan, as RoundPlan.release does."""
    return pricing.price(planned, f"{planned.round_index}/{planned.power}")


def pay(pricing, planned):
    """Pay for a planned round; returns what was paid."""
    paid = price(pricing, planned)
    pricing.charge(paid)
    return paid


def correct(pricing, planned, speakers):
    pricing.charge_correction(price(pricing, planned), planned.power, speakers)


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path, {})
    yield store
    store.close()


@pytest.fixture
def pricing(store, terms):
    return open_pricing(store, terms)[0]


# What is agreed


def test_sensitivity_of_the_sum_is_one_clipped_example(terms):
    on_the_way = SUM_SHIFT_GROWTH
    assert terms.sensitivity == on_the_way * SHIFT_GROWTH * 5.0 / 8


def test_every_record_is_sampled_at_its_device_s_rate(terms):
    assert terms.sampling_probabilities == tuple(8 / n for n in NUM_RECORDS)


def test_a_device_with_fewer_records_than_a_batch_samples_all_of_them():
    config = dataclass_like(CONFIG, "privacy", delta=1e-3, epsilon=50.0)
    terms = plan_privacy_terms(config, (4, 100), COMMITMENTS[:2])
    assert terms.sampling_probabilities == (1.0, 0.08)


def test_statements_about_the_channel_share_their_part_of_delta(terms):
    num_blocks = math.ceil(ROUNDS / 5)
    num_statements = num_blocks * (len(NUM_RECORDS) + 1)
    assert terms.csi_failure_probability * num_statements == pytest.approx(1e-4 * 0.1, rel=1e-12)


def test_the_smallest_device_sets_the_price(terms):
    smaller = plan_privacy_terms(CONFIG, (120, 60, 110, 130), COMMITMENTS)
    assert smaller.least_noise_multiplier > terms.least_noise_multiplier


def test_delta_at_one_over_n_is_refused():
    config = dataclass_like(CONFIG, "privacy", delta=1 / sum(NUM_RECORDS))
    with pytest.raises(ConfigurationError, match="delta"):
        plan_privacy_terms(config, NUM_RECORDS, COMMITMENTS)


def test_a_budget_that_no_noise_meets_is_refused():
    config = dataclass_like(CONFIG, "privacy", epsilon=1e-9)
    with pytest.raises(ConfigurationError, match=r"epsilon: got 1e-09, wanted at least 0\.001"):
        plan_privacy_terms(config, NUM_RECORDS, COMMITMENTS)


def dataclass_like(config, section, **changes):
    replaced = msgspec.structs.replace(getattr(config, section), **changes)
    return msgspec.structs.replace(config, **{section: replaced})


# What is planned


@pytest.mark.parametrize("noise_power", [1e-6, GOOD, 0.5, 2.0])
@pytest.mark.parametrize("gains", [STRONG, (1.0, 0.1, 0.9, 0.05), (0.0, 0.0, 2.0j, 0.0)])
def test_certified_noise_covers_the_multiplier_and_the_amplitude_errors(
    pricing, terms, noise_power, gains
):
    planned = pricing.plan_round(3, channel(gains, noise_power))
    eta = planned.amplitude_error_bound
    needed = terms.noise_multiplier(0) * terms.sensitivity * (1 + eta) / (1 - eta)
    assert 0 < eta <= MAX_AMPLITUDE_ERROR * (1 + RELATIVE_ROUNDING)
    records = price(pricing, planned)
    assert [r.device_index for r in records] == list(planned.power.participants)
    assert records
    sent = math.hypot(*planned.power.artificial_noise_std.values())
    for record in records:
        assert record.certified_noise_std >= needed
        assert record.certified_noise_std <= sent
        assert record.certified_noise_std <= needed * (1 + 1e-5)  # and no more than needed
        assert record.noise_multiplier >= terms.least_noise_multiplier
        assert record.amplitude_error_bound == eta
        assert record.sensitivity == terms.sensitivity
        assert record.sampling_probability == terms.sampling_probabilities[record.device_index]
        named = noise_stream(COMMITMENTS[record.device_index], f"3/{planned.power}")
        assert record.noise_stream == named
        assert record.round_index == 3


def test_the_bound_is_not_below_the_formula_for_the_weakest_speaker(pricing, terms):
    gains = (1.0, 0.5, 0.2, 0.9)
    eta = pricing.plan_round(0, channel(gains)).amplitude_error_bound
    as_measured = GOOD / CONFIG.radio.pilot_symbols
    formula = math.sqrt(as_measured * math.log(1 / terms.csi_failure_probability)) / 0.5
    # The noise power is measured on 256 samples, so its upper limit is above the measurement.
    assert formula < eta < 2 * formula


def test_a_worse_estimate_costs_more_noise(pricing):
    stds = [
        price(pricing, pricing.plan_round(0, channel(noise_power=power)))[0].certified_noise_std
        for power in (1e-4, 1e-2, 1.0)
    ]
    assert stds == sorted(stds)
    assert stds[0] * 1.05 < stds[-1]


def test_weak_gains_are_silent(pricing):
    planned = pricing.plan_round(0, channel((0.31, 0.29, -0.29j, 0.3)))
    assert planned.power.participants == (0, 3)
    assert planned.power.silent == (1, 2)
    assert planned.weakest_gain == 0.3


def test_a_poor_channel_estimate_raises_the_threshold(pricing):
    gains = (2.0, 0.4, 0.32, 3.0)
    good = pricing.plan_round(0, channel(gains, noise_power=1e-3))
    poor = pricing.plan_round(0, channel(gains, noise_power=20.0))
    assert good.power.silent == ()
    assert set(poor.power.silent) == {1, 2}
    assert poor.amplitude_error_bound <= MAX_AMPLITUDE_ERROR


@pytest.mark.parametrize(
    ("gains", "noise_power"), [((0.1,) * 4, GOOD), (STRONG, 1e4), ((0.0,) * 4, GOOD)]
)
def test_a_round_in_which_nobody_can_speak_costs_nothing(store, terms, gains, noise_power):
    pricing, ledger = open_pricing(store, terms)
    planned = pricing.plan_round(0, channel(gains, noise_power))
    assert planned.power.participants == price(pricing, planned) == ()
    assert planned.noise_std_of_mean([]) == 0.0
    assert planned.weakest_gain == 0.0
    pay(pricing, planned)
    assert ledger.records() == ()
    assert pricing.epsilon_spent() == 0.0


def test_noise_of_the_mean_is_that_of_those_who_spoke(pricing):
    planned = pricing.plan_round(0, channel())
    std = planned.power.artificial_noise_std[0]
    assert planned.noise_std_of_mean([0, 1, 2, 3]) == pytest.approx(std / 2)
    assert planned.noise_std_of_mean([1]) == std


def test_without_privacy_nothing_is_added_recorded_or_charged():
    pricing = Pricing(WITHOUT_PRIVACY, None, None, None, NOISE_SYMBOLS)
    planned = pricing.plan_round(0, channel((1.0, 0.2, 0.4, 0.9), noise_power=20.0))
    assert price(pricing, planned) == ()
    assert planned.power.participants == (0, 2, 3)
    assert set(planned.power.artificial_noise_std.values()) == {0.0}
    assert planned.amplitude_error_bound == 0.0
    pay(pricing, planned)
    correct(pricing, planned, [0])
    assert pricing.epsilon_spent() is None


def test_too_few_speakers_for_the_minimum_are_not_asked_and_cost_nothing(store, terms):
    config = dataclass_like(CONFIG, "federation", min_speakers=3)
    ledger = PrivacyLedger(store.connection)
    pricing = Pricing(config, terms, Accountant(epsilon=6.0, delta=1e-4), ledger, NOISE_SYMBOLS)
    enough = pricing.plan_round(0, channel((1.0, 0.1, 1.0, 1.0)))
    too_few = pricing.plan_round(0, channel((1.0, 0.1, 1.0, 0.1)))
    assert enough.power.participants == (0, 2, 3)
    assert too_few.power.participants == price(pricing, too_few) == ()
    assert too_few.power.silent == (0, 1, 2, 3)


def test_planning_a_round_asks_for_everybody_s_noise_once(store, terms, monkeypatch):
    """Once a round and not once a device: 2,048 devices took 0.4 s to plan."""
    asked = []
    certify = pricing_module.certified_noise_stds
    monkeypatch.setattr(
        pricing_module,
        "certified_noise_stds",
        lambda **noise: asked.append(len(noise["noise_stds"])) or certify(**noise),
    )
    pricing, _ = open_pricing(store, terms)
    price(pricing, pricing.plan_round(0, channel()))
    assert asked == [4]


# What is paid


def test_pay_writes_the_ledger_and_charges_the_accounts(store, terms):
    pricing, ledger = open_pricing(store, terms)
    planned = pricing.plan_round(0, channel())
    pay(pricing, planned)
    assert ledger.records() == price(pricing, planned)
    assert not store.connection.in_transaction
    assert 0 < pricing.epsilon_spent() < CONFIG.privacy.epsilon


def test_the_planned_run_fits_its_budget_and_one_more_does_not(store, terms):
    pricing, ledger = open_pricing(store, terms)
    for round_index in range(ROUNDS):
        # Better and worse channels: the multiplier is the same in all of them.
        pay(pricing, pricing.plan_round(round_index, channel(noise_power=GOOD / (1 + round_index))))
    spent, recorded = pricing.epsilon_spent(), ledger.records()
    assert 0.99 * CONFIG.privacy.epsilon < spent <= CONFIG.privacy.epsilon
    with pytest.raises(BudgetExhaustedError):
        pay(pricing, pricing.plan_round(ROUNDS, channel()))
    assert ledger.records() == recorded
    assert pricing.epsilon_spent() == spent


def test_epsilon_spent_never_falls(store, terms):
    pricing, _ = open_pricing(store, terms)
    spent = [pricing.epsilon_spent()]
    for round_index in range(3):
        pay(pricing, pricing.plan_round(round_index, channel()))
        spent.append(pricing.epsilon_spent())
    assert spent == sorted(set(spent))


def test_a_paid_unfinished_round_is_not_charged_twice_after_a_resume(store, terms):
    first, ledger = open_pricing(store, terms)
    pay(first, first.plan_round(0, channel()))
    pay(first, first.plan_round(1, channel()))
    spent, head = first.epsilon_spent(), ledger.head
    resumed, ledger = open_pricing(store, terms)
    assert resumed.epsilon_spent() == spent
    pay(resumed, resumed.plan_round(1, channel()))
    assert ledger.head == head
    assert resumed.epsilon_spent() == spent
    pay(resumed, resumed.plan_round(2, channel()))
    assert resumed.epsilon_spent() > spent


def test_the_paid_last_round_of_a_spent_budget_can_be_finished(store, terms):
    first, _ = open_pricing(store, terms)
    for round_index in range(ROUNDS):
        pay(first, first.plan_round(round_index, channel()))
    resumed, ledger = open_pricing(store, terms)
    head = ledger.head
    pay(resumed, resumed.plan_round(ROUNDS - 1, channel()))  # no BudgetExhaustedError
    assert ledger.head == head
    assert resumed.epsilon_spent() == first.epsilon_spent()


def test_a_resumed_round_under_another_channel_is_fresh_noise_and_charged_again(store, terms):
    first, _ = open_pricing(store, terms)
    paid = pay(first, first.plan_round(0, channel()))
    spent = first.epsilon_spent()
    resumed, ledger = open_pricing(store, terms)
    again = pay(resumed, resumed.plan_round(0, channel((1.0, 0.9, 0.8, 0.7))))
    assert not {r.noise_stream for r in paid} & {r.noise_stream for r in again}
    assert ledger.records() == (*paid, *again)
    assert resumed.epsilon_spent() > spent


def test_one_noise_under_two_prices_is_refused(store, terms):
    """The same order names the same noise; then everything else must be the same as well."""
    pricing, ledger = open_pricing(store, terms)
    pay(pricing, pricing.plan_round(0, channel()))
    head = ledger.head
    other = pricing.price(pricing.plan_round(0, channel(noise_power=1.0)), "another order")
    same = price(pricing, pricing.plan_round(0, channel()))
    mixed = [
        msgspec.structs.replace(o, noise_stream=s.noise_stream)
        for o, s in zip(other, same, strict=True)
    ]
    with pytest.raises(PrivacyError, match="not identical"):
        pricing.charge(mixed)
    assert ledger.head == head


def test_a_resumed_run_knows_which_rounds_were_paid(store, terms):
    first, _ = open_pricing(store, terms)
    pay(first, first.plan_round(0, channel()))
    assert not first.was_charged_before(0)  # by this process: it knows what became of it
    resumed, _ = open_pricing(store, terms)
    assert resumed.was_charged_before(0)
    assert not resumed.was_charged_before(1)


def test_a_device_that_drops_takes_its_noise_away_and_the_others_pay(store, terms):
    pricing, ledger = open_pricing(store, terms, epsilon=30.0)
    planned = pricing.plan_round(0, channel())
    pay(pricing, planned)
    spent = pricing.epsilon_spent()
    correct(pricing, planned, [0, 1, 3])
    corrections = ledger.records()[len(price(pricing, planned)) :]
    assert [r.device_index for r in corrections] == [0, 1, 3]
    std = planned.power.artificial_noise_std[0]
    all_paid = price(pricing, planned)
    for correction, paid in zip(corrections, (all_paid[k] for k in (0, 1, 3)), strict=True):
        assert correction.certified_noise_std <= std * math.sqrt(3)
        assert correction.certified_noise_std == pytest.approx(std * math.sqrt(3))
        assert correction.noise_multiplier < paid.noise_multiplier
        assert correction.noise_stream == paid.noise_stream
    assert pricing.epsilon_spent() > spent


def test_nothing_is_corrected_when_everybody_spoke(store, terms):
    pricing, ledger = open_pricing(store, terms)
    planned = pricing.plan_round(0, channel((1.0, 0.1, 1.0, 1.0)))
    pay(pricing, planned)
    head, spent = ledger.head, pricing.epsilon_spent()
    correct(pricing, planned, [0, 2, 3])
    assert ledger.head == head
    assert pricing.epsilon_spent() == spent


def test_a_correction_is_not_charged_twice_after_a_resume(store, terms):
    first, _ = open_pricing(store, terms, epsilon=30.0)
    planned = first.plan_round(0, channel())
    pay(first, planned)
    correct(first, planned, [0, 3])
    resumed, ledger = open_pricing(store, terms, epsilon=30.0)
    head, spent = ledger.head, resumed.epsilon_spent()
    assert spent == first.epsilon_spent()
    again = resumed.plan_round(0, channel())
    pay(resumed, again)
    correct(resumed, again, [0, 3])
    assert ledger.head == head
    assert resumed.epsilon_spent() == spent


def test_a_correction_is_remembered_by_the_budget(store, terms):
    pricing, _ = open_pricing(store, terms)
    num_paid = 0
    with pytest.raises(BudgetExhaustedError):
        for round_index in range(ROUNDS):
            planned = pricing.plan_round(round_index, channel())
            pay(pricing, planned)
            if round_index == 0:
                correct(pricing, planned, [0, 1, 2])
            num_paid += 1
    assert 0 < num_paid < ROUNDS


def test_a_correction_beyond_the_budget_is_charged_and_ends_the_run(store, terms):
    pricing, _ = open_pricing(store, terms)
    for round_index in range(ROUNDS - 1):
        pay(pricing, pricing.plan_round(round_index, channel()))
    planned = pricing.plan_round(ROUNDS - 1, channel())
    pay(pricing, planned)
    pricing.check_not_exceeded()
    with pytest.raises(BudgetExceededError, match="budget is 6"):
        correct(pricing, planned, [0])
    spent = pricing.epsilon_spent()
    assert CONFIG.privacy.epsilon < spent < math.inf
    resumed, _ = open_pricing(store, terms)
    assert resumed.epsilon_spent() == pytest.approx(spent, rel=1e-9)  # composed in another order
    with pytest.raises(BudgetExceededError):
        resumed.check_not_exceeded()


def test_a_correction_that_cannot_be_priced_is_infinitely_dear(store):
    """One speaker of 64: an eighth of the noise, below what any finite epsilon is computed for."""
    num_devices = 64
    config = dataclass_like(CONFIG, "federation", num_devices=num_devices)
    config = dataclass_like(config, "privacy", delta=1e-5)
    streams = tuple(f"{index:08x}" for index in range(num_devices))
    terms = plan_privacy_terms(config, (500,) * num_devices, streams)
    ledger = PrivacyLedger(store.connection)

    def fresh():
        accountant = Accountant(epsilon=6.0, delta=1e-5, csi_delta=1e-6)
        accountant.compose_all(ledger.records())
        return Pricing(config, terms, accountant, ledger, NOISE_SYMBOLS)

    pricing = fresh()
    planned = pricing.plan_round(0, channel((1.0,) * num_devices))
    pay(pricing, planned)
    with pytest.raises(BudgetExceededError, match="epsilon inf is spent"):
        correct(pricing, planned, [7])
    assert pricing.epsilon_spent() == math.inf
    resumed = fresh()  # it can be opened, and says the same
    assert resumed.epsilon_spent() == math.inf
    with pytest.raises(BudgetExceededError):
        resumed.check_not_exceeded()
    with pytest.raises(BudgetExhaustedError, match="epsilon would be inf"):
        pay(resumed, resumed.plan_round(1, channel((1.0,) * num_devices)))


def test_a_planned_round_cannot_be_changed(pricing):
    planned = pricing.plan_round(0, channel())
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned.weakest_gain = 1.0
