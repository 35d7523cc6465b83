import math

import msgspec
import numpy as np
import privacy_records
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_runtime.guard.cover import ArtificialNoise, certified_noise_stds
from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit, sum_sensitivity
from edge_runtime.protocol.rounds import Access
from server.errors import BudgetExhaustedError, UnknownMechanismError
from server.privacy.accountant import Accountant
from server.privacy.composition import Composer, PriceClass, make_history
from server.privacy.mechanism import (
    MechanismRecord,
)

BUDGET = 3.0
DELTA = 1e-5

stds = st.floats(min_value=1e-3, max_value=1e3)


def make_record(multiplier, *, rate=1.0, device_index=0, round_index=0, **changes):
    own = {"certified_noise_std": multiplier, "noise_stream": "0123456789abcdef"}
    return privacy_records.make_record(round_index, device_index, rate=rate, **{**own, **changes})


records = st.builds(
    make_record,
    multiplier=stds,
    rate=st.floats(min_value=1e-6, max_value=1.0),
    device_index=st.integers(0, 2**63 - 1),
    round_index=st.integers(0, 2**63 - 1),
    access=st.sampled_from(Access),
    sensitivity=stds,
    amplitude_error_bound=st.floats(min_value=0.0, max_value=0.9),
    noise_stream=st.from_regex(r"[0-9a-f]{8,64}", fullmatch=True),
)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12),
    other=st.floats(-1e6, 1e6),
    clip=st.floats(1e-3, 1e3),
    batch_size=st.integers(1, 64),
)
def test_sensitivity_bounds_every_generated_pair(values, other, clip, batch_size):
    def scalar(examples):
        mean = math.fsum(np.clip(examples, -clip, clip)) / batch_size
        return min(clip, max(-clip, mean))

    neighbours = {
        NeighbouringRelation.ZERO_OUT_ONE: values[1:],
        NeighbouringRelation.REPLACE_ONE: [other, *values[1:]],
    }
    for relation, neighbour in neighbours.items():
        shift = abs(scalar(values) - scalar(neighbour))
        for unit in PrivacyUnit:
            bound = sum_sensitivity(clip=clip, batch_size=batch_size, unit=unit, relation=relation)
            assert shift <= bound * (1 + 1e-12) + 1e-12 * clip


@settings(max_examples=60, deadline=None)
@given(records)
def test_decode_inverts_encode(record):
    assert MechanismRecord.decode(record.encode()) == record


@settings(max_examples=100, deadline=None)
@given(record=records, data=st.data())
def test_a_damaged_record_is_refused_or_another_record_but_never_the_same(record, data):
    encoded = record.encode()
    position = data.draw(st.integers(0, len(encoded) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if kind == "flip":
        mask = data.draw(st.integers(1, 255))
        damaged = encoded[:position] + bytes([encoded[position] ^ mask]) + encoded[position + 1 :]
    elif kind == "cut":
        damaged = encoded[:position]
    else:
        damaged = encoded + data.draw(st.binary(min_size=1, max_size=4))
    try:
        result = MechanismRecord.decode(damaged)
    except UnknownMechanismError:
        return
    # A changed digit is another valid record: the ledger's chain is what notices it.
    assert kind == "flip"
    assert result != record
    assert result.encode() == damaged


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 20), stds, min_size=1, max_size=8))
def test_certified_noise_is_between_ones_own_and_everybodys(noise_stds):
    everybody = math.sqrt(math.fsum(s * s for s in noise_stds.values()))
    for device_index, own in noise_stds.items():

        def certify(access, noise, index=device_index):
            certified = certified_noise_stds(
                access=access, artificial_noise=noise, noise_stds=noise_stds
            )
            assert set(certified) == set(noise_stds)
            return certified[index]

        assert own <= certify(Access.SUPERPOSED, ArtificialNoise.CIRCULAR) <= everybody
        assert certify(Access.SUPERPOSED, ArtificialNoise.IN_PHASE) == own
        assert certify(Access.SLOTTED, ArtificialNoise.CIRCULAR) == own


# A coarse loss grid keeps these fast; the arithmetic is the same.
COMPOSER = Composer(loss_interval=2e-2, delta=DELTA)
prices = st.builds(
    PriceClass,
    sampling_probability=st.sampled_from([1e-2, 0.3, 1.0]),
    grid_index=st.sampled_from([0, 1, 512, 1024, 4096]),
)
counts = st.dictionaries(prices, st.integers(1, 40), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(counts=counts, price=prices)
def test_one_more_round_never_costs_less_and_more_noise_never_more(counts, price):
    base = COMPOSER.epsilon(make_history(counts))
    more = COMPOSER.epsilon(make_history({**counts, price: counts.get(price, 0) + 1}))
    assert more >= base * (1 - 1e-9)
    noisier = {
        PriceClass(p.sampling_probability, p.grid_index + 1024): n for p, n in counts.items()
    }
    assert COMPOSER.epsilon(make_history(noisier)) <= base * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(counts=counts)
def test_epsilon_falls_as_delta_grows(counts):
    history = make_history(counts)
    generous = Composer(loss_interval=2e-2, delta=1e-3)
    assert generous.epsilon(history) <= COMPOSER.epsilon(history)


class AccountOfADevice(RuleBasedStateMachine):
    """Compose, check, crash and recover: spent never decreases and never exceeds the budget."""

    def __init__(self):
        super().__init__()
        self.accountant = Accountant(epsilon=BUDGET, delta=DELTA)
        self.ledger = []
        self.highest = [0.0, 0.0]

    @rule(
        multiplier=st.sampled_from([2.0, 3.0, 8.0]),
        device_index=st.integers(0, 1),
        count=st.integers(1, 5),
    )
    def spend(self, multiplier, device_index, count):
        for _ in range(count):
            record = make_record(
                multiplier, device_index=device_index, round_index=len(self.ledger)
            )
            try:
                self.accountant.check_affordable(record)
            except BudgetExhaustedError:
                # True of what was refused: composed all the same, it would exceed the budget.
                beyond = Accountant(epsilon=BUDGET, delta=DELTA)
                beyond.compose_all([*self.ledger, record])
                assert beyond.spent(device_index) > BUDGET * (1 - 1e-9)
                return
            self.ledger.append(record)
            self.accountant.compose(record)

    @rule()
    def crash_and_recover(self):
        self.accountant = Accountant(epsilon=BUDGET, delta=DELTA)
        self.accountant.compose_all(
            MechanismRecord.decode(msgspec.json.encode(record)) for record in self.ledger
        )

    @invariant()
    def spent_is_within_the_budget_and_never_falls(self):
        for device_index in (0, 1):
            spent = self.accountant.spent(device_index)
            # After a crash the same records are folded in another order: equal up to rounding.
            assert self.highest[device_index] * (1 - 1e-9) <= spent <= BUDGET * (1 + 1e-9)
            self.highest[device_index] = max(spent, self.highest[device_index])


TestAccountOfADevice = AccountOfADevice.TestCase
TestAccountOfADevice.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
