"""A process may die at any moment around a transmission; the ledger is never below what was sent.

Devices are stubs that speak or do not, by chance and each time anew; ledger, pricing, accounts,
store and the story of a round are the real ones. What was sent is priced independently: every sum
that went out in any attempt is known to the attacker, sums of the same order share their noise, and
the best linear combination of them is found by linear algebra.
"""

from collections import defaultdict

import dp_accounting
import numpy as np
import pytest

from edge_runtime.control.channel import ControlChannel
from radio.waveforms.coherent import ChannelEstimate
from server.air.base import Air, Heard
from server.air.channel_simulation import ScalarTruth
from server.config.files import dump_config, parse_config
from server.errors import LedgerCorruptError, PrivacyError
from server.planning.privacy_terms import plan_privacy_terms
from server.privacy.ledger import PrivacyLedger
from server.privacy.on_air import SpeakersUnknown
from server.run.accounts import accounts_to_go_on_with, epsilon_spent
from server.run.pricing import Pricing
from server.run.round_loop import RoundLoop
from server.store.run_store import RunStore

NUM_DEVICES, ROUNDS, TRIALS = 3, 3, 1000
DELTA = 1e-4
CONFIG = parse_config(
    {
        "federation": {"num_devices": NUM_DEVICES},
        "optimizer": {"rounds": ROUNDS, "batch_size": 8, "clip": 5.0},
        "power": {"policy": "static"},
        "privacy": {"unit": "device", "epsilon": 60.0, "delta": DELTA},
    },
    source="test",
)
CHANNEL = ChannelEstimate(
    gains=np.array([1.0, -0.9j, 0.8]), error_variance=1e-9, noise_power=CONFIG.radio.noise_power
)
TERMS = plan_privacy_terms(CONFIG, [100] * NUM_DEVICES, [f"{k:08x}" for k in range(NUM_DEVICES)])


class DiedError(Exception):
    """The process is gone."""


class Fate:
    """Dies at the n-th moment that is asked about."""

    def __init__(self, moment):
        self.left = moment

    def moment(self):
        self.left -= 1
        if self.left == 0:
            raise DiedError


class StubAir(Air):
    """Devices that speak or do not. Does not model: what they say."""

    source = "stub"
    is_simulated = True
    repeats_bit_for_bit = True

    def __init__(self, rng, sent, unknown_share=0.0):
        self.rng = rng
        self.unknown_share = unknown_share
        self.sent = sent
        self.fate = Fate(0)

    def needs_channel(self, round_index, channel):
        return False

    def check_channel(self, round_index, channel):
        pass

    def learn_channel(self, control, run_id, round_index):
        return CHANNEL

    def carry(self, control, plan, power, on_spoken, before_sending):
        self.fate.moment()
        speakers = [k for k in power.participants if self.rng.random() < 0.6]
        attempt = []
        if speakers:
            before_sending()
        self.fate.moment()
        stds = {k: power.artificial_noise_std[k] for k in power.participants}
        for k in speakers:
            if not attempt:
                self.sent[plan.round_index, plan.release].append((attempt, stds))
            attempt.append(k)  # all at once; who died in between sent nothing
            self.fate.moment()
        # Some do not answer: they spoke with the others, not at all, or when all had ended.
        unknown = []
        if self.unknown_share:
            unknown = [k for k in power.participants if self.rng.random() < self.unknown_share]
        for k in unknown:
            if speakers and k not in speakers and self.rng.random() < 0.5:
                self.sent[plan.round_index, plan.release].append(([k], stds))
        speakers = [k for k in speakers if k not in unknown]
        on_spoken(speakers, unknown)
        self.fate.moment()
        return Heard(tuple(speakers), unknown=tuple(unknown))

    def close(self):
        pass


class StubControl(ControlChannel):
    def send(self, data, hosts):
        pass

    def receive(self, timeout_s):
        return None

    def close(self):
        pass


class StubReplica:
    def apply_step(self, result):
        pass


class DyingLedger(PrivacyLedger):
    fate = None

    def __init__(self, connection):
        super().__init__(connection)
        append = self._table.append

        def append_or_die(rows):
            if self.fate is not None:
                self.fate.moment()
            append(rows)
            if self.fate is not None:
                self.fate.moment()

        self._table.append = append_or_die


def opened(store, air, ledger_class=DyingLedger):
    """A process that begins, or begins again."""
    ledger = ledger_class(store.connection)
    accountant = accounts_to_go_on_with(CONFIG, 1, ledger)
    ledger.fate = air.fate
    pricing = Pricing(CONFIG, TERMS, accountant, ledger, 256, store.rounds())
    loop = RoundLoop(
        "stub", CONFIG, StubControl("stub", {}), air, pricing, StubReplica(), store, ScalarTruth()
    )
    return loop, accountant


def live(folder, rng, ledger_class=DyingLedger):
    """A run that dies up to twice; (what was sent, the store)."""
    sent = defaultdict(list)
    store = RunStore.create(
        folder, {"config": dump_config(CONFIG), "stretches": [{"first_round": 0, "num_records": 0}]}
    )
    PrivacyLedger(store.connection).note_configuration(store.config_digest())
    air = StubAir(rng, sent, unknown_share=0.1)
    air.repeats_bit_for_bit = bool(rng.random() < 0.5)
    for _ in range(2):
        air.fate = Fate(int(rng.integers(1, 45)))
        try:
            loop, _ = opened(store, air, ledger_class)
            for t in range(store.num_rounds(), ROUNDS):
                loop.run_round(t, CHANNEL)
        except DiedError:
            continue
        except PrivacyError:
            break
    return sent, store


def exact_epsilon(sent, device):
    """dp-accounting's price of everything that was sent, for one device; no receiver noise."""
    squares = 0.0
    for attempts in sent.values():
        sets = {tuple(sorted(attempt)) for attempt, _ in attempts if attempt}
        rows = np.array([[float(k in one) for k in range(NUM_DEVICES)] for one in sets])
        if not len(rows) or not rows[:, device].any():
            continue
        stds = attempts[0][1]
        variances = np.array([stds.get(k, 0.0) ** 2 for k in range(NUM_DEVICES)])
        signal = rows[:, device]
        covariance = rows @ np.diag(variances) @ rows.T
        squares += float(signal @ np.linalg.pinv(covariance) @ signal)
    if squares == 0.0:
        return 0.0
    return dp_accounting.get_epsilon_gaussian(1.0 / (TERMS.sensitivity * squares**0.5), DELTA)


def below_what_was_sent(folder, seed, ledger_class=DyingLedger):
    """Devices whose account is below the price, at whatever moment the run was left."""
    rng = np.random.default_rng([seed, 15])
    sent, store = live(folder, rng, ledger_class)
    try:
        shown = epsilon_spent(store, CONFIG)
        accountant = accounts_to_go_on_with(CONFIG, 1, ledger_class(store.connection))
        exact = [exact_epsilon(sent, k) for k in range(NUM_DEVICES)]
        low = [k for k in range(NUM_DEVICES) if accountant.spent(k) < exact[k] * (1 - 1e-9)]
        if shown < max(exact) * (1 - 1e-9):
            low.append("shown")
        return low
    finally:
        store.close()


@pytest.mark.takes_long
def test_the_ledger_is_never_below_the_price_of_what_was_sent(tmp_path):
    for seed in range(TRIALS):
        assert below_what_was_sent(tmp_path / str(seed), seed) == [], seed


def test_negative_control_without_the_entry_it_would_be(tmp_path):
    class Forgetful(DyingLedger):
        def note_sending(self, entry):
            pass

    assert any(below_what_was_sent(tmp_path / str(s), s, Forgetful) for s in range(100))


def test_negative_control_if_who_does_not_answer_were_taken_for_silent_it_would_be(
    tmp_path, monkeypatch
):
    charge = Pricing.charge_correction

    def forget(pricing, price, power, speakers, unknown):
        charge(pricing, price, power, speakers)

    monkeypatch.setattr(Pricing, "charge_correction", forget)
    assert any(below_what_was_sent(tmp_path / str(s), s) for s in range(100))


def test_a_round_that_died_before_anything_was_sent_costs_what_was_planned(tmp_path):
    """Numbers take most of a round to compute: there a death is free."""
    store = RunStore.create(tmp_path, {})
    air = StubAir(np.random.default_rng(0), defaultdict(list))
    loop, accountant = opened(store, air)
    loop.run_round(0, CHANNEL)
    before = accountant.worst_spent()
    air.fate.left = 1  # in the middle of the computation
    loop.pricing._ledger.fate = None
    with pytest.raises(DiedError):
        loop.run_round(1, CHANNEL)
    planned = accountant.worst_spent()
    assert planned > before
    ledger = PrivacyLedger(store.connection)
    assert ledger.rounds_on_air == ()
    assert accounts_to_go_on_with(CONFIG, 1, ledger).worst_spent() == planned
    store.close()


ENTRY = SpeakersUnknown(round_index=0, devices=(0, 1, 2), alone_noise_stds=(0.5, 0.5, 0.5))


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path, {})
    yield store
    store.close()


def paid(store):
    loop, _ = opened(store, StubAir(np.random.default_rng(1), defaultdict(list)))
    planned = loop.pricing.plan_round(0, CHANNEL)
    loop.pricing.charge(loop.pricing.price(planned, "release"))
    return loop.pricing._ledger


def test_entries_survive_and_are_closed_once(store):
    ledger = paid(store)
    ledger.note_sending(ENTRY)
    ledger.note_sending(ENTRY)
    again = PrivacyLedger(store.connection)
    assert again.rounds_on_air == (ENTRY,)
    assert again.head == ledger.head
    assert len(again.unknown_speakers()) == NUM_DEVICES
    again.settle_unknown_speakers()
    assert again.unknown_speakers() == ()
    again.settle_unknown_speakers()
    assert again.rounds_on_air == (ENTRY,)
    again.note_speakers(0, (2, 0))
    again.note_speakers(0, (2, 0))
    third = PrivacyLedger(store.connection)
    assert third.rounds_on_air == ()
    assert third.head == again.head
    assert len(third.records()) == 2 * NUM_DEVICES


def test_a_round_that_was_never_paid_is_not_sent(store):
    ledger = paid(store)
    with pytest.raises(PrivacyError, match="never charged"):
        ledger.note_sending(SpeakersUnknown(round_index=7, devices=(0,), alone_noise_stds=(1.0,)))
    with pytest.raises(PrivacyError, match="wanted one at least zero for each"):
        SpeakersUnknown(round_index=0, devices=(0, 0), alone_noise_stds=(1.0, 1.0))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE privacy_ledger SET record = replace(record, '0.5', '9.5') WHERE device_index = -1",
        "DELETE FROM privacy_ledger WHERE device_index = -1",
        "UPDATE privacy_ledger SET device_index = 0 WHERE device_index = -1",
        "UPDATE privacy_ledger SET round_index = 1 WHERE device_index = -1",
    ],
)
def test_a_damaged_entry_is_noticed(store, damage):
    paid(store).note_sending(ENTRY)
    with store.connection:
        store.connection.execute(damage)
    with pytest.raises(LedgerCorruptError):
        PrivacyLedger(store.connection)
