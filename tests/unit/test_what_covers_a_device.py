"""Whose noise counts: without any q others, and with a part of the receiver's."""

import dataclasses
import itertools
import math

import msgspec
import numpy as np
import pytest

from edge_runtime.guard.cover import ArtificialNoise, certified_noise_stds
from edge_runtime.protocol.errors import PromiseError
from edge_runtime.protocol.rounds import Access
from radio.waveforms.coherent import ChannelEstimate
from radio.waveforms.error_model import receiver_noise_std
from server.config.files import parse_config
from server.errors import (
    BudgetExceededError,
    ConfigurationError,
    PrivacyError,
    UnknownMechanismError,
)
from server.planning.online_run import RunPlanner
from server.planning.privacy_statement import assumed_receiver_noise, promise
from server.planning.privacy_terms import plan_privacy_terms
from server.power.channel_inversion import plan_static
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.privacy.receiver_noise import KEPT_BACK
from server.run.pricing import Pricing
from server.store.run_store import RunStore
from tests.support.privacy_records import make_record

NUM_DEVICES, NOISE_SYMBOLS = 5, 256
GAINS = np.array([1.0, -0.9j, 0.8 + 0.3j, 0.7, 1.2])


def configure(unit="device", **privacy):
    return parse_config(
        {
            "federation": {"num_devices": NUM_DEVICES},
            "optimizer": {"rounds": 12, "batch_size": 8, "clip": 5.0},
            "radio": {"snr_db": 5.0, "payload_symbols": 4, "coherence_rounds": 4},
            "power": {"policy": "static"},
            "privacy": {"unit": unit, "epsilon": 40.0, "delta": 1e-4, **privacy},
        },
        source="test",
    )


def with_policy(config, name):
    return msgspec.structs.replace(config, power=msgspec.structs.replace(config.power, policy=name))


def channel(config, measured=1.0):
    """Known almost exactly; the receiver as noisy as it should be, times a factor."""
    power = config.radio.noise_power * measured
    return ChannelEstimate(gains=GAINS, error_variance=1e-9, noise_power=power)


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path, {})
    yield store
    store.close()


def open_pricing(store, config, epsilon=None):
    commitments = tuple(f"{index:08x}" for index in range(NUM_DEVICES))
    terms = plan_privacy_terms(config, [100] * NUM_DEVICES, commitments)
    ledger = PrivacyLedger(store.connection)
    accountant = Accountant(epsilon=epsilon or config.privacy.epsilon, delta=1e-4, csi_delta=1e-5)
    return Pricing(config, terms, accountant, ledger, NOISE_SYMBOLS), ledger


def pay(pricing, config, round_index=0):
    planned = pricing.plan_round(round_index, channel(config))
    price = pricing.price(planned, f"release {round_index}")
    pricing.charge(price)
    return planned.power, price


# What is certified


@pytest.mark.parametrize("num_missing", [0, 1, 2, 5])
@pytest.mark.parametrize("receiver", [0.0, 0.7])
def test_the_certified_noise_is_what_the_worst_missing_ones_leave(num_missing, receiver):
    """Beside it, every choice of q others is tried."""
    stds = {0: 0.3, 1: 0.0, 2: 1.2, 3: 0.4, 4: 1.2, 5: 0.5}
    certified = certified_noise_stds(
        access=Access.SUPERPOSED,
        artificial_noise=ArtificialNoise.CIRCULAR,
        noise_stds=stds,
        num_missing=num_missing,
        receiver_noise_std=receiver,
    )
    for index in stds:
        others = [std for other, std in stds.items() if other != index]
        left = min(
            math.hypot(receiver, stds[index], *kept)
            for kept in itertools.combinations(others, max(0, len(others) - num_missing))
        )
        assert certified[index] == pytest.approx(left, rel=1e-12)
        assert certified[index] <= left


def test_a_device_that_can_be_told_apart_is_covered_by_no_receiver():
    for access, noise in (
        (Access.SLOTTED, ArtificialNoise.CIRCULAR),
        (Access.SUPERPOSED, ArtificialNoise.IN_PHASE),
    ):
        with pytest.raises(PromiseError, match="own noise alone"):
            certified_noise_stds(
                access=access, artificial_noise=noise, noise_stds={0: 1.0}, receiver_noise_std=0.1
            )


@pytest.mark.parametrize(
    "changes",
    [
        {"receiver_noise_std": -0.1},
        {"receiver_noise_std": math.nan},
        {"receiver_noise_std": 2.0},
        {"num_missing": -1},
        {"num_missing": True},
        {"num_missing": 1.0},
    ],
)
def test_records_refuse_noise_that_cannot_be(changes):
    with pytest.raises(PrivacyError):
        make_record(**changes)


def test_a_slotted_record_counts_no_receiver_noise():
    with pytest.raises(UnknownMechanismError, match="nothing else"):
        make_record(access=Access.SLOTTED, receiver_noise_std=0.1)


# What is planned


@pytest.mark.parametrize("num_missing", [0, 1, 4])
@pytest.mark.parametrize("trusted", [0.0, 1e-4, 1e-2])
def test_a_static_plan_has_what_counts_and_no_more(num_missing, trusted):
    plan = plan_static(
        gain_estimates=GAINS,
        max_amplitude=1.0,
        scalar_bound=5.0,
        required_noise_std=3.0,
        min_gain=0.3,
        num_missing=num_missing,
        trusted_noise_power=trusted,
    )
    std = plan.artificial_noise_std[0]
    counted = math.hypot(
        math.sqrt(NUM_DEVICES - num_missing) * std, math.sqrt(trusted) / plan.receive_scale
    )
    assert counted >= 3.0
    if std > 0.0:
        assert counted == pytest.approx(3.0, rel=1e-5)
    # As loud as the weakest can be.
    peak = max(abs(plan.tx_gains[k]) for k in plan.participants) * (5.0 + 8.0 * std)
    assert 1.0 - 1e-5 < peak <= 1.0


def test_where_receiver_noise_is_enough_devices_add_none():
    plan = plan_static(
        gain_estimates=GAINS,
        max_amplitude=1.0,
        scalar_bound=5.0,
        required_noise_std=3.0,
        min_gain=0.3,
        trusted_noise_power=1.0,
    )
    assert set(plan.artificial_noise_std.values()) == {0.0}
    assert 1.0 / plan.receive_scale >= 3.0


def test_with_as_few_as_may_be_missing_nobody_speaks():
    plan = plan_static(
        gain_estimates=np.array([1.0, 1.0, 0.1]),
        max_amplitude=1.0,
        scalar_bound=5.0,
        required_noise_std=3.0,
        min_gain=0.3,
        num_missing=2,
    )
    assert plan.participants == ()


@pytest.mark.parametrize("unit", ["device", "example"])
@pytest.mark.parametrize("num_missing", [0, 2])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_every_round_is_priced_at_what_the_run_can_afford(store, unit, num_missing, fraction):
    config = configure(unit, missing_devices=num_missing, trusted_noise_fraction=fraction)
    pricing, ledger = open_pricing(store, config)
    for round_index in range(12):
        power, price = pay(pricing, config, round_index)
        for record in price:
            assert record.num_missing == num_missing
            part = min(fraction, 1.0 - KEPT_BACK)
            counted = math.sqrt(part) * receiver_noise_std(
                config.radio.noise_power, config.radio.payload_symbols, power.receive_scale
            )
            assert record.receiver_noise_std == pytest.approx(counted, rel=1e-12)
            assert record.receiver_noise_std <= counted
    assert len(ledger.records()) == 12 * NUM_DEVICES
    assert pricing.epsilon_spent() <= 40.0
    if power.artificial_noise_std[0] > 0.0:  # else the receiver's noise is more than enough
        assert pricing.epsilon_spent() > 0.95 * 40.0


@pytest.mark.parametrize("name", ["optimal", "selection", "equal_split", "constant_inversion"])
def test_plans_that_follow_the_channel_count_receiver_noise_too(store, name):
    """Less noise of their own for the same price; the budget is spent and not exceeded."""
    noises = {}
    for fraction in (0.0, 1.0):
        config = with_policy(configure(trusted_noise_fraction=fraction), name)
        commitments = tuple(f"{index:08x}" for index in range(NUM_DEVICES))
        terms = plan_privacy_terms(config, [100] * NUM_DEVICES, commitments)
        planner = RunPlanner(config, terms, NOISE_SYMBOLS)
        everybody = np.ones(NUM_DEVICES, dtype=bool)
        plan = planner.plan(0, GAINS, everybody, 0.0, np.zeros(NUM_DEVICES))
        noises[fraction] = plan.sum_noise_std
    assert noises[1.0] < noises[0.0]


def test_an_equal_split_is_planned_without_the_missing(store):
    config = with_policy(configure(missing_devices=2), "equal_split")
    pricing, _ = open_pricing(store, config)
    power, price = pay(pricing, config)
    std = power.artificial_noise_std[0]
    assert set(power.artificial_noise_std.values()) == {std}
    for record in price:
        assert record.certified_noise_std == pytest.approx(math.sqrt(3) * std, rel=1e-12)


# What is charged afterwards


def test_as_many_may_fall_silent_as_were_planned_for(store):
    config = configure(missing_devices=2)
    pricing, ledger = open_pricing(store, config, epsilon=400.0)
    power, price = pay(pricing, config)
    pricing.charge_correction(price, power, [0, 1, 2])
    assert ledger.records() == price
    pricing.charge_correction(price, power, [0, 1])
    corrected = ledger.records()[len(price) :]
    assert [record.device_index for record in corrected] == [0, 1]
    for record in corrected:
        assert record.num_missing == 0
        std = power.artificial_noise_std[0]
        assert record.certified_noise_std == pytest.approx(math.sqrt(2) * std, rel=1e-12)


def measured(config, power, factor=1.0):
    radio = config.radio
    true = receiver_noise_std(radio.noise_power, radio.payload_symbols, power.receive_scale)
    return factor * true


def test_a_receiver_that_is_as_noisy_as_was_counted_changes_no_price(store):
    config = configure(trusted_noise_fraction=1.0)
    pricing, ledger = open_pricing(store, config)
    power, price = pay(pricing, config)
    # 256 samples know a power to some percent: less than it should be proves nothing yet.
    for factor in (0.95, 1.0, 3.0):
        pricing.charge_quiet_receiver(
            price, power, power.participants, measured(config, power, factor)
        )
    assert ledger.records() == price


def test_a_receiver_that_is_quieter_than_was_counted_makes_the_round_dearer(store):
    config = configure(trusted_noise_fraction=1.0)
    pricing, ledger = open_pricing(store, config, epsilon=400.0)
    power, price = pay(pricing, config)
    before = pricing.epsilon_spent()
    quiet = measured(config, power, 0.5)
    pricing.charge_quiet_receiver(price, power, power.participants, quiet)
    corrected = ledger.records()[len(price) :]
    assert len(corrected) == NUM_DEVICES
    for record, paid in zip(corrected, price, strict=True):
        assert 0.5 * quiet < record.receiver_noise_std < quiet
        assert record.certified_noise_std < paid.certified_noise_std
    assert pricing.epsilon_spent() > before


@pytest.mark.parametrize("num_missing", [1, 2])
def test_a_quiet_receiver_is_charged_without_the_noise_of_those_who_may_be_missing(
    store, num_missing
):
    config = configure(trusted_noise_fraction=1.0, missing_devices=num_missing)
    pricing, ledger = open_pricing(store, config, epsilon=4000.0)
    power, price = pay(pricing, config)
    # Some of the noise is the devices' own; so loud that it would show if it were counted.
    stds = {k: 1.0 + 0.1 * k for k in power.participants}
    louder = dataclasses.replace(power, artificial_noise_std=stds)
    paid = [msgspec.structs.replace(r, certified_noise_std=99.0, num_missing=0) for r in price]
    ledger_records = ledger.append([msgspec.structs.replace(r, round_index=1) for r in paid])
    pricing.charge_quiet_receiver(
        ledger_records, louder, power.participants, measured(config, power, 0.1)
    )
    corrected = [r for r in ledger.records() if r.round_index == 1][len(price) :]
    assert len(corrected) == NUM_DEVICES
    for record in corrected:
        others = sorted(s for k, s in stds.items() if k != record.device_index)
        kept = others[: len(others) - num_missing]
        wanted = math.hypot(record.receiver_noise_std, stds[record.device_index], *kept)
        assert record.certified_noise_std == pytest.approx(wanted, rel=1e-9)
        assert record.num_missing == num_missing


def test_a_quiet_receiver_that_costs_the_budget_ends_the_run(store):
    config = configure(trusted_noise_fraction=1.0)
    pricing, _ = open_pricing(store, config)
    for round_index in range(12):
        power, price = pay(pricing, config, round_index)
    with pytest.raises(BudgetExceededError):
        pricing.charge_quiet_receiver(
            price, power, power.participants, measured(config, power, 0.1)
        )


def test_a_quiet_receiver_costs_nothing_where_its_noise_is_not_counted(store):
    config = configure()
    pricing, ledger = open_pricing(store, config)
    power, price = pay(pricing, config)
    pricing.charge_quiet_receiver(price, power, power.participants, 1e-9)
    assert ledger.records() == price


def test_a_receiver_without_noise_is_refused_before_anything_is_paid(store):
    config = configure()
    pricing, ledger = open_pricing(store, config)
    with pytest.raises(PrivacyError, match="Nothing was transmitted"):
        pricing.plan_round(0, channel(config, measured=0.0))
    least = assumed_receiver_noise(config, 0.0)
    quiet = channel(config, measured=(least / 10) ** 2 / config.radio.noise_power)
    with pytest.raises(PrivacyError, match="told apart by their grids and by what is rounded off"):
        pricing.plan_round(0, quiet)
    assert ledger.records() == ()


# What is said


def test_the_promise_says_what_it_counts():
    config = configure(missing_devices=2, trusted_noise_fraction=0.25)
    said = promise(config.privacy, config.access)
    assert said.endswith(
        "superposed access, without the noise of any 2 others, 25% of the receiver noise counted"
    )


@pytest.mark.parametrize(
    ("privacy", "power", "message"),
    [
        ({"trusted_noise_fraction": 1.1}, "static", "trusted_noise_fraction"),
        ({"trusted_noise_fraction": -0.1}, "static", "trusted_noise_fraction"),
        ({"missing_devices": NUM_DEVICES}, "static", "missing_devices"),
        ({"missing_devices": -1}, "static", "missing_devices"),
        ({"missing_devices": 1}, "optimal", "deals noise out as power allows"),
    ],
)
def test_what_cannot_be_counted_is_refused(privacy, power, message):
    base = msgspec.to_builtins(configure())
    base["privacy"] |= privacy
    base["power"] |= {"policy": power}
    with pytest.raises(ConfigurationError, match=message):
        parse_config(base, source="test")


def test_radios_that_can_be_told_apart_count_no_receiver_noise():
    document = {"radio": {"waveform": "energy"}, "privacy": {"trusted_noise_fraction": 0.5}}
    with pytest.raises(ConfigurationError, match="own noise alone"):
        parse_config(document, source="test")
