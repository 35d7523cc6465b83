"""The round as a story: the order of its sentences is what the promise rests on."""

import dataclasses

import msgspec
import numpy as np
import pytest

from edge_runtime.control.channel import Answers, ControlChannel
from edge_runtime.protocol.errors import NonFiniteScalarError, PlanRefusedError
from edge_runtime.protocol.orders import Answer, Refusal
from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    Participation,
    RoundPlan,
    RoundReport,
    RoundResult,
    SoundingOrder,
)
from radio.errors import RadioNotSilentError, RadioTimeoutError
from radio.waveforms.coherent import ChannelEstimate, Reception
from server.air.base import CoherentAir
from server.air.channel_simulation import NoChannelSimulation, ScalarTruth
from server.air.receiver import Receiver
from server.config.files import parse_config
from server.errors import (
    BudgetExceededError,
    BudgetExhaustedError,
    HostsMissingError,
    ReplicaMismatchError,
)
from server.planning.privacy_terms import plan_privacy_terms
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.run.pricing import Pricing
from server.run.round_loop import RoundLoop
from server.store.run_store import RunStore

NUM_DEVICES = 3
ROUNDS = 4
CONFIG = parse_config(
    {
        "federation": {"num_devices": NUM_DEVICES},
        "optimizer": {"rounds": ROUNDS, "batch_size": 8, "clip": 5.0, "learning_rate": 1e-3},
        "radio": {"coherence_rounds": 2},
        "privacy": {"epsilon": 6.0, "delta": 1e-4},
    },
    source="test",
)
CHANNEL = ChannelEstimate(gains=np.array([1.0, 0.9j, -0.8]), error_variance=1e-5, noise_power=1e-2)
NOBODY = ChannelEstimate(gains=np.full(3, 0.01 + 0j), error_variance=1e-5, noise_power=1e-2)
SUM = 6.0


def reception(*sums):
    return Reception(
        sums, receiver_noise_std=0.6, noise_power=1e-2, quadrature_estimates=(0.0,) * len(sums)
    )


class SpyControl(ControlChannel):
    """Notes every order, and what the ledger on the disk held at that moment."""

    def __init__(self, store, log):
        super().__init__("toy", {f"host {k}": (k,) for k in range(NUM_DEVICES)})
        self.store = store
        self.log = log
        self.dropped = ()
        self.digests = ("own",) * NUM_DEVICES
        self.missing, self.refusing = (), {}
        self.rows = []
        self.plans = []

    def ask(self, message, hosts=None, deadline_s=None):
        self.log.append(type(message).__name__)
        self.rows.append(self.store.num_rounds())
        reports = [()] * NUM_DEVICES
        if isinstance(message, RoundPlan):
            (paid,) = self.store.connection.execute(
                "SELECT COUNT(*) FROM privacy_ledger WHERE round_index = ? AND device_index >= 0",
                (message.round_index,),
            ).fetchone()
            self.plans.append((message, paid, self.store.connection.in_transaction))
            reports = [(self.report(message, k),) for k in range(NUM_DEVICES)]
        if isinstance(message, DigestRequest):
            reports = [
                (DigestReport("toy", message.round_index, f"host {k}", digest),) if digest else ()
                for k, digest in enumerate(self.digests)
            ]
        answered = {}
        for k in range(NUM_DEVICES):
            if k not in self.missing:
                refusal = self.refusing.get(k)
                said = () if refusal else reports[k]
                answered[f"host {k}"] = Answer("toy", 0, 0, f"host {k}", said, refusal)
        return Answers(answered, tuple(f"host {k}" for k in self.missing), self.missing)

    def report(self, plan, device_index):
        what, reason = Participation.TRANSMITTED, ""
        if device_index not in plan.orders_by_device():
            what = Participation.TRUNCATED
        elif device_index in self.dropped:
            what, reason = Participation.DROPPED, "2 of 8 losses are NaN"
        return RoundReport("toy", plan.round_index, device_index, what, reason)

    def send(self, data, hosts):
        pass

    def receive(self, timeout_s):
        return None

    def close(self):
        pass


class FakeReceiver(Receiver):
    source = "fake"
    is_simulated = True
    repeats_bit_for_bit = True

    def __init__(self, log):
        self.log = log

    def hear_pilots(self, frame_start_sample, amplitude):
        return CHANNEL

    def hear_sum(self, frame_start_sample, receive_scale):
        self.log.append("hear_sum")
        return reception(SUM)

    def close(self):
        pass


class FakeReplica:
    def __init__(self, log):
        self.log = log
        self.results = []

    def apply_step(self, result):
        self.log.append("own step")
        self.results.append(result)

    def digest(self):
        return "own"


@pytest.fixture(scope="module")
def terms():
    return plan_privacy_terms(CONFIG, (100, 100, 100), ("00000000", "11111111", "22222222"))


@pytest.fixture
def store(tmp_path):
    store = RunStore.create(tmp_path, {})
    yield store
    store.close()


@pytest.fixture
def loop(store, terms):
    log = []
    ledger = PrivacyLedger(store.connection)
    accountant = Accountant(epsilon=6.0, delta=1e-4, csi_delta=1e-5)
    return RoundLoop(
        run_id="toy",
        config=CONFIG,
        control=SpyControl(store, log),
        air=CoherentAir(
            FakeReceiver(log), NoChannelSimulation(), NUM_DEVICES, 1.0, coherence_rounds=2
        ),
        pricing=Pricing(CONFIG, terms, accountant, ledger, 256),
        replica=FakeReplica(log),
        store=store,
        truth=ScalarTruth(),
        clock=iter(range(1000)).__next__,
    )


@pytest.fixture
def generous_loop(loop, store, terms):
    """The same with a budget that has room for corrections."""
    accountant = Accountant(epsilon=60.0, delta=1e-4, csi_delta=1e-5)
    pricing = Pricing(CONFIG, terms, accountant, PrivacyLedger(store.connection), 256)
    return dataclasses.replace(loop, pricing=pricing)


def test_the_ledger_has_the_price_before_the_plan_is_broadcast(loop):
    loop.run_round(0, CHANNEL)
    ((plan, num_paid, in_transaction),) = loop.control.plans
    assert num_paid == len(plan.orders) == NUM_DEVICES
    assert not in_transaction


def test_a_round_runs_in_the_order_of_its_story(loop):
    loop.run_round(0, CHANNEL)
    assert loop.control.log == ["RoundPlan", "hear_sum", "RoundResult", "own step"]


def test_nothing_is_transmitted_when_the_price_is_refused(loop, store):
    for round_index in range(ROUNDS):
        loop.run_round(round_index, CHANNEL)
    messages, steps = len(loop.control.log), len(loop.replica.results)
    with pytest.raises(BudgetExhaustedError):
        loop.run_round(ROUNDS, CHANNEL)
    assert len(loop.control.log) == messages
    assert len(loop.control.plans) == ROUNDS
    assert len(loop.replica.results) == steps
    assert store.num_rounds() == ROUNDS


def test_nothing_is_transmitted_when_the_ledger_cannot_be_written(loop, store):
    store.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(Exception, match="could not be written"):
        loop.run_round(0, CHANNEL)
    assert loop.control.log == []


def test_everybody_is_told_the_step_that_the_server_takes(loop):
    told = []
    ask = loop.control.ask
    loop.control.ask = lambda message, *who: (told.append(message), ask(message, *who))[1]
    row = loop.run_round(0, CHANNEL)
    (result,) = [message for message in told if isinstance(message, RoundResult)]
    assert loop.replica.results == [result]
    assert (row.direction_seed, row.step_integers) == (result.direction_seed, result.step_integers)
    assert row.mean_estimates == (SUM / NUM_DEVICES,)
    assert result.step_integers == (round(1e-3 * 2.0 * 2**40),)


def test_the_row_is_stored_and_tells_what_happened(loop, store):
    row = loop.run_round(0, CHANNEL)
    assert store.rounds() == [row]
    assert row.num_speakers == NUM_DEVICES
    assert row.receiver_noise_std == pytest.approx(0.2)
    assert row.true_means is None
    assert row.weakest_gain == 0.8
    assert row.noise_multiplier > 0
    assert row.wall_s is None  # real keys; see tests/e2e/test_what_a_private_run_keeps.py


def test_the_mean_is_held_within_the_clip(loop):
    loop.air.receiver.hear_sum = lambda *_: reception(1e6)
    assert loop.run_round(0, CHANNEL).mean_estimates == (5.0,)


def test_a_device_that_drops_is_left_out_of_the_mean_and_charged_for(generous_loop, store):
    loop = generous_loop
    loop.control.dropped = (1,)
    row = loop.run_round(0, CHANNEL)
    assert row.num_speakers == 2
    assert row.mean_estimates == (SUM / 2,)
    records = PrivacyLedger(store.connection).records()
    assert [record.device_index for record in records] == [0, 1, 2, 0, 2]


def test_a_dropout_is_charged_for_even_if_the_sum_cannot_be_heard(generous_loop, store):
    loop = generous_loop
    loop.control.dropped = (1,)

    def fail(*_):
        raise RadioTimeoutError("lost buffers")

    loop.air.receiver.hear_sum = fail
    with pytest.raises(RadioTimeoutError):
        loop.run_round(0, CHANNEL)
    records = PrivacyLedger(store.connection).records()
    assert [record.device_index for record in records] == [0, 1, 2, 0, 2]


def test_fewer_speakers_than_the_minimum_move_nothing_and_are_charged(generous_loop, store):
    config = msgspec.structs.replace(
        CONFIG, federation=msgspec.structs.replace(CONFIG.federation, min_speakers=3)
    )
    loop = dataclasses.replace(generous_loop, config=config)
    assert loop.run_round(0, CHANNEL).step_integers != (0,)  # the control: three speak
    loop.control.dropped = (1,)
    row = loop.run_round(1, CHANNEL)
    assert (row.num_speakers, row.step_integers) == (2, (0,))
    assert row.mean_estimates == (SUM / 2,)  # it was heard all the same
    assert loop.replica.results[-1].step_integers == (0,)
    records = PrivacyLedger(store.connection).records()
    assert [r.device_index for r in records if r.round_index == 1] == [0, 1, 2, 0, 2]


def test_a_dropout_beyond_the_budget_takes_no_step(loop, store):
    for round_index in range(ROUNDS - 1):
        loop.run_round(round_index, CHANNEL)
    steps = len(loop.replica.results)
    loop.control.dropped = (0, 1)
    with pytest.raises(BudgetExceededError):
        loop.run_round(ROUNDS - 1, CHANNEL)
    assert len(loop.replica.results) == steps
    assert store.num_rounds() == ROUNDS - 1
    assert loop.pricing.epsilon_spent() > 6.0


def test_a_round_in_which_nobody_is_loud_enough_is_skipped(loop, store):
    row = loop.run_round(0, NOBODY)
    ((plan, num_paid, _),) = loop.control.plans
    assert plan.orders == ()
    assert num_paid == 0
    assert "hear_sum" not in loop.control.log
    assert (row.num_speakers, row.step_integers, row.mean_estimates) == (0, (0,), (0.0,))
    assert loop.pricing.epsilon_spent() == 0.0
    assert store.num_rounds() == 1


def test_a_round_in_which_every_device_fails_stops_the_run(loop, store):
    loop.control.dropped = (0, 1, 2)
    with pytest.raises(NonFiniteScalarError, match=r"round 0.*Device 0.*NaN"):
        loop.run_round(0, CHANNEL)
    assert loop.replica.results == []
    assert store.num_rounds() == 0


@pytest.mark.parametrize("repeats", [True, False])
def test_a_paid_round_is_repeated_by_a_simulation_and_skipped_by_a_radio(
    loop, store, terms, repeats
):
    paid = loop.pricing.price(
        planned := loop.pricing.plan_round(0, CHANNEL), loop.make_plan(0, planned.power).release
    )
    loop.pricing.charge(paid)  # and then the process died
    ledger = PrivacyLedger(store.connection)
    accountant = Accountant(epsilon=6.0, delta=1e-4, csi_delta=1e-5)
    accountant.compose_all(ledger.records())
    loop.air.receiver.repeats_bit_for_bit = repeats
    resumed = dataclasses.replace(loop, pricing=Pricing(CONFIG, terms, accountant, ledger, 256))
    spent = accountant.worst_spent()
    row = resumed.run_round(0, CHANNEL)
    assert row.is_skipped is not repeats
    assert row.num_speakers == (NUM_DEVICES if repeats else 0)
    assert (row.step_integers != (0,)) is repeats
    assert ("RoundPlan" in loop.control.log) is repeats  # nobody is asked to speak again
    assert loop.control.log[-2:] == ["RoundResult", "own step"]  # and everybody counts the round
    assert store.rounds() == [row]
    assert ledger.records() == paid
    assert accountant.worst_spent() == spent
    assert not resumed.run_round(1, CHANNEL).is_skipped


def test_channel_is_learnt_at_the_start_of_its_block(loop):
    orders = []
    ask = loop.control.ask
    loop.control.ask = lambda message, *who: (orders.append(message), ask(message, *who))[1]
    assert loop.channel_for(3) is CHANNEL  # resumed inside a block
    assert loop.channel_for(3, NOBODY) is NOBODY
    (order,) = orders
    assert isinstance(order, SoundingOrder)
    assert order.round_index == 2
    assert loop.channel_for(4, NOBODY) is CHANNEL
    assert orders[1].round_index == 4


def test_equal_replicas_pass_and_others_are_named(loop):
    assert loop.compare_replicas(2) == "own"
    loop.control.digests = ("own", "another", "own")
    with pytest.raises(ReplicaMismatchError, match=r"after round 2: host 1 .*another"):
        loop.compare_replicas(2)


def test_the_step_is_in_the_store_before_anybody_is_told(loop):
    loop.run_round(0, CHANNEL)
    assert dict(zip(loop.control.log[::2], loop.control.rows, strict=True)) == {
        "RoundPlan": 0, "RoundResult": 1,
    }  # fmt: skip


def test_who_does_not_answer_covers_nobody_pays_alone_and_ends_the_sum(generous_loop, store):
    loop = generous_loop
    loop.control.missing = (1,)
    row = loop.run_round(0, CHANNEL)
    assert "hear_sum" not in loop.control.log
    assert (row.num_speakers, row.step_integers) == (2, (0,))
    records = PrivacyLedger(store.connection).records()
    # Its own, alone; and the two others, who lack its noise.
    assert [record.device_index for record in records] == [0, 1, 2, 1, 0, 2]
    planned, alone, two = (records[i].certified_noise_std for i in (1, 3, 4))
    assert alone < two < planned
    assert alone == pytest.approx(planned / NUM_DEVICES**0.5, rel=1e-6)
    # It may come back.
    loop.control.missing = ()
    assert loop.run_round(1, CHANNEL).num_speakers == 3


def test_where_nobody_answers_the_run_pauses_and_everybody_has_paid(generous_loop, store):
    loop = generous_loop
    loop.control.missing = (0, 1, 2)
    with pytest.raises(HostsMissingError, match="no answer of host 0, host 1, host 2"):
        loop.run_round(0, CHANNEL)
    assert store.num_rounds() == 0
    records = PrivacyLedger(store.connection).records()
    assert [record.device_index for record in records] == [0, 1, 2, 0, 1, 2]


def test_who_refuses_is_silent_and_the_others_go_on(generous_loop, store):
    loop = generous_loop
    loop.control.refusing = {2: Refusal("PlanRefusedError", "not under my policy")}
    row = loop.run_round(0, CHANNEL)
    assert (row.num_speakers, row.mean_estimates) == (2, (SUM / 2,))
    records = PrivacyLedger(store.connection).records()
    assert [record.device_index for record in records] == [0, 1, 2, 0, 1]


def test_where_all_refuse_that_is_the_error_and_one_that_is_not_silent_ends_everything(loop):
    refusal = Refusal("PlanRefusedError", "not under my policy")
    loop.control.refusing = dict.fromkeys(range(NUM_DEVICES), refusal)
    with pytest.raises(PlanRefusedError, match="not under my policy"):
        loop.run_round(0, CHANNEL)
    loop.control.refusing = {1: Refusal("RadioNotSilentError", "device 1: usb:1 may be on the air")}
    with pytest.raises(RadioNotSilentError, match="usb:1"):
        loop.run_round(1, CHANNEL)


def test_a_digest_that_nobody_says_is_named(loop):
    loop.control.digests = ("own", None, "own")
    with pytest.raises(ReplicaMismatchError, match="no digest of host 1"):
        loop.compare_replicas(0)
    loop.control.digests, loop.control.missing = ("own",) * 3, (0, 2)
    with pytest.raises(ReplicaMismatchError, match="no digest of host 0, host 2"):
        loop.compare_replicas(0)
