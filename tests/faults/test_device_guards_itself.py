"""A server that lies, a ledger that is not the latest, a disk that is full: the antenna is silent.

Each was carried out once by devices that trusted their server.
"""

import dataclasses
import os
import shutil
import sqlite3

import pytest

from edge_runtime.guard.guard import Guard
from edge_runtime.guard.keys import KEYS_FILE, HostKeys
from edge_runtime.guard.ledger import HEAD_FILE, LEDGER_FILE, DeviceLedger, Release
from edge_runtime.guard.policy import AllowedRounds, Cover
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.errors import DeviceLedgerError, PlanRefusedError, PromiseError
from edge_runtime.protocol.rounds import (
    Access,
    Participation,
    PilotHold,
    RoundResult,
    RunEnded,
    SoundingOrder,
    TransmitOrder,
    Vote,
)
from tests.support.policies import make_policy

RUN_ID = "run-of-the-tests"
LEAST = 1.0
"""Noise multiplier; the clip of 4 over 6 records makes a noise of 0.67."""


def rounds(number, least=LEAST):
    return {"rounds": (AllowedRounds(number=number, min_noise_multiplier=least),)}


def said(host):
    return [vector for uplink in host.uplinks for vector in uplink.vectors]


def step(host, round_index):
    host.agent.apply_result(RoundResult(RUN_ID, round_index, 2024, (0,)))


def lie(host, plan, words, error=PlanRefusedError):
    """Nothing is said, nothing is counted, nothing moves."""
    before = said(host), host.store.digest(), host.agent._guard.ledger.head
    with pytest.raises(error, match=words):
        host.agent.run_round(plan)
    assert (said(host), host.store.digest(), host.agent._guard.ledger.head) == before


# ---------------------------------------------------------------- a server that lies


def test_a_plan_for_two_rounds_is_not_repeated_under_new_indices(make_host, make_plan):
    host = make_host(**rounds(2))
    for round_index in range(2):
        host.agent.run_round(make_plan(noise_std=1.0, round_index=round_index))
        step(host, round_index)
    for round_index in range(2, 12):
        lie(
            host,
            make_plan(noise_std=1.0, round_index=round_index),
            "2 are released of the 2 that are allowed in all",
        )
        step(host, round_index)
    assert len(said(host)) == 2


def test_another_run_and_another_key_count_all_the_same(make_host, make_plan, tmp_path):
    for attempt in range(2):
        key = PrivateRandom.simulated_key(attempt, 0)
        host = make_host(keys=(key,), ledger=tmp_path / "own", **rounds(2))
        host.agent.run_round(make_plan(noise_std=1.0))
        host.agent.close()
    host = make_host(keys=(bytes(32),), ledger=tmp_path / "own", **rounds(2))
    lie(host, make_plan(noise_std=1.0), "2 are released of the 2")


def test_a_device_alone_does_not_speak_with_its_part_of_the_noise(make_host, make_plan):
    host = make_host(cover=Cover.FEDERATION, **rounds(9))
    shared = tuple(TransmitOrder(k, 0.1, 0.0, 0.5) for k in range(3))  # 0.87 of all three
    host.agent.run_round(make_plan(orders=shared))
    step(host, 0)
    lie(host, make_plan(orders=shared[:1], round_index=1), "policy rounds: noise of 0.749999 times")


def test_no_noise_under_a_promise_is_not_said(make_host, make_plan):
    for cover in Cover:
        lie(make_host(cover=cover, **rounds(9)), make_plan(noise_std=0.0), "noise of 0 times")


def test_the_noise_of_others_does_not_cover_who_counts_on_its_own(make_host, make_plan):
    orders = (TransmitOrder(0, 0.1, 0.0, 0.0), TransmitOrder(1, 0.1, 0.0, 9.0))
    lie(make_host(cover=Cover.OWN, **rounds(9)), make_plan(orders=orders), "noise of 0 times")


def test_a_batch_a_hundred_times_larger_is_not_drawn(make_host, make_plan):
    host = make_host(max_sampling_rate=1 / 6, **rounds(9))
    lie(host, make_plan(noise_std=9.0, batch_size=100), "policy max_sampling_rate: a batch of 100")


def test_more_directions_under_votes_need_more_noise(make_host, make_plan):
    # One vote moves by 2, nine votes by 6.
    agreed = {"vote": Vote.NOISE_AFTER, "max_directions": 9, **rounds(9)}
    host = make_host(**agreed)
    host.agent.run_round(make_plan(noise_std=2.1, vote=Vote.NOISE_AFTER))
    step(host, 0)
    more = make_plan(noise_std=2.1, vote=Vote.NOISE_AFTER, num_directions=9, round_index=1)
    lie(host, more, "policy rounds: noise of 0.35")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"access": Access.SLOTTED}, 'policy access: "slotted"'),
        ({"vote": Vote.NOISE_BEFORE}, 'policy vote: "noise_before"'),
        ({"clip": 8.0}, "policy max_clip"),
        ({"num_directions": 257 - 1}, "policy max_directions"),
    ],
)
def test_what_the_owner_did_not_agree_to_is_refused(make_host, make_plan, changes, words):
    host = make_host(max_directions=8, **rounds(9))
    lie(host, make_plan(noise_std=99.0, **changes), words)


def test_pilots_are_no_louder_than_the_owner_allows(make_host):
    host = make_host(max_amplitude=0.5)
    with pytest.raises(PlanRefusedError, match="policy max_amplitude"):
        host.agent.send_pilots(SoundingOrder(RUN_ID, 0, 0.6, 0))
    with pytest.raises(PlanRefusedError, match="policy max_amplitude"):
        host.agent.hold_pilot(PilotHold(RUN_ID, 0, 0, 0.6))
    assert not host.uplinks[0].pilots
    host.agent.send_pilots(SoundingOrder(RUN_ID, 0, 0.5, 0))
    assert len(host.uplinks[0].pilots) == 1


def test_one_device_of_a_host_that_may_not_silences_the_host(make_host, make_plan):
    # The order of the round is one; nobody carries out a part of it.
    host = make_host(2, **rounds(1))
    host.agent.run_round(make_plan(noise_std=1.0, devices=(0,)))
    step(host, 0)
    plan = make_plan(noise_std=1.0, devices=(0, 1), round_index=1)
    lie(host, plan, "device 0: policy rounds: 1 are released of the 1")
    host.agent.run_round(make_plan(noise_std=1.0, devices=(1,), round_index=1))
    assert len(said(host)) == 2


def test_without_a_ledger_nothing_is_said(make_host, make_plan):
    host = make_host(is_private=True)
    host.agent._guard.close()
    host.agent._guard = None
    with pytest.raises(PlanRefusedError, match="no ledger to count"):
        host.agent.run_round(make_plan(noise_std=1.0))
    assert not said(host)


# ---------------------------------------------------------------- death and return


def test_the_same_release_again_is_said_again_and_counted_once(make_host, make_plan, tmp_path):
    plan = make_plan(noise_std=1.0)
    hosts = []
    for _ in range(2):
        host = make_host(ledger=tmp_path / "own", **rounds(1))
        host.agent.run_round(plan)
        host.agent.close()
        hosts.append(host)
    assert said(hosts[0]) == said(hosts[1])
    assert len(DeviceLedger(tmp_path / "own").releases("0")) == 1


def test_the_same_noise_on_other_weights_is_never_said(make_host, make_plan, tmp_path):
    """The server tells a device that has died other steps, and asks for the same round again."""
    plan = make_plan(noise_std=1.0, round_index=1)
    first = make_host(ledger=tmp_path / "own", **rounds(9))
    step(first, 0)
    first.agent.run_round(plan)
    first.agent.close()
    returned = make_host(ledger=tmp_path / "own", **rounds(9))
    returned.agent.apply_result(RoundResult(RUN_ID, 0, 2024, (2**30,)))
    lie(returned, plan, "noise of this release was used before, on other weights")
    returned.agent.close()
    honest = make_host(ledger=tmp_path / "own", **rounds(9))
    step(honest, 0)
    honest.agent.run_round(plan)
    assert said(honest) == said(first)


def test_the_same_noise_on_other_data_is_never_said(make_host, make_plan, tmp_path):
    plan = make_plan(noise_std=1.0)
    first = make_host(ledger=tmp_path / "own", **rounds(9))
    first.agent.run_round(plan)
    first.agent.close()
    changed = make_host(ledger=tmp_path / "own", **rounds(9))
    changed.agent._data_names[0] = "another"
    lie(changed, plan, "on other weights or data")


def test_the_end_of_its_run_destroys_its_keys_and_no_other_end_does(make_host, tmp_path):
    own = tmp_path / "own"
    host = make_host(ledger=own, is_private=True)
    HostKeys.fresh(1).keep(own)
    with pytest.raises(PlanRefusedError, match="this device serves run"):
        host.agent.carry_out(RunEnded("another", 4))
    assert (own / KEYS_FILE).exists()
    assert host.agent.carry_out(RunEnded(RUN_ID, 4)) == []
    assert not (own / KEYS_FILE).exists()
    host.agent.carry_out(RunEnded(RUN_ID, 4))  # and a second time there is nothing to do
    make_host().agent.carry_out(RunEnded(RUN_ID, 4))  # nor without a promise


# ---------------------------------------------------------------- its own ledger


def test_it_is_written_down_before_anything_is_computed_or_sent(make_host, make_plan):
    seen = []

    class Watched:
        def __init__(self, real):
            self.real = real

        def begin(self, batches):
            seen.append(host.agent._guard.ledger.head[0])
            return self.real.begin(batches)

        def finish(self, begun):
            return self.real.finish(begun)

        def close(self):
            self.real.close()

    host = make_host(2, wrap_forward=Watched, is_private=True)
    host.agent.run_round(make_plan(devices=(0, 1), noise_std=1.0))
    assert seen == [2]


def spoken(make_host, make_plan, folder, num_rounds=2, **agreed):
    """A host that has spoken, and let its ledger go."""
    host = make_host(ledger=folder, **(agreed or rounds(9)))
    for round_index in range(num_rounds):
        host.agent.run_round(make_plan(noise_std=1.0, round_index=round_index))
        step(host, round_index)
    host.agent.close()
    return host


def test_a_ledger_copied_back_is_refused(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own, 1)
    shutil.copy(own / LEDGER_FILE, tmp_path / "copy")
    host = make_host(ledger=own, **rounds(9))
    step(host, 0)
    host.agent.run_round(make_plan(noise_std=1.0, round_index=1))
    host.agent.close()
    shutil.copy(tmp_path / "copy", own / LEDGER_FILE)
    with pytest.raises(DeviceLedgerError, match="2 releases were written, 1 are here: it is an ol"):
        DeviceLedger(own)


def test_a_ledger_that_is_gone_is_refused(make_host, make_plan, tmp_path):
    spoken(make_host, make_plan, tmp_path / "own")
    (tmp_path / "own" / LEDGER_FILE).unlink()
    with pytest.raises(DeviceLedgerError, match="2 releases were written, 0 are here"):
        DeviceLedger(tmp_path / "own")


@pytest.mark.parametrize("head", [b"", b"garbage", b"1" + b" " * 85, None])
def test_a_ledger_without_its_head_is_refused(make_host, make_plan, tmp_path, head):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own)
    (own / HEAD_FILE).unlink()
    if head is not None:
        (own / HEAD_FILE).write_bytes(head)
    with pytest.raises(DeviceLedgerError, match="not the ledger that its head was written for"):
        DeviceLedger(own)


def test_the_ledger_of_another_host_is_refused(make_host, make_plan, tmp_path):
    spoken(make_host, make_plan, tmp_path / "own")
    spoken(make_host, make_plan, tmp_path / "other", max_clip=8.0, **rounds(8))
    key = PrivateRandom.simulated_key(3, 3)
    host = make_host(keys=(key,), ledger=tmp_path / "third", **rounds(9))
    for round_index in range(3):
        host.agent.run_round(make_plan(noise_std=1.0, round_index=round_index))
        step(host, round_index)
    host.agent.close()
    shutil.copy(tmp_path / "third" / LEDGER_FILE, tmp_path / "own" / LEDGER_FILE)
    with pytest.raises(DeviceLedgerError, match="not the ledger that its head was written for"):
        DeviceLedger(tmp_path / "own")


def test_a_ledger_ahead_of_its_head_has_only_died_in_between(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own, 1)
    head = (own / HEAD_FILE).read_bytes()
    host = make_host(ledger=own, **rounds(9))
    step(host, 0)
    host.agent.run_round(make_plan(noise_std=1.0, round_index=1))
    host.agent.close()
    (own / HEAD_FILE).write_bytes(head)
    ledger = DeviceLedger(own)
    assert ledger.head[0] == 2
    ledger.close()
    assert (own / HEAD_FILE).read_bytes() != head


def test_copies_of_both_are_noticed_by_who_has_heard_more(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own, 2)
    ledger = DeviceLedger(own)
    ledger.check_holds({"0": 2, "1": 0})
    with pytest.raises(DeviceLedgerError, match="3 releases of device 0 were heard, 2 are in its"):
        ledger.check_holds({"0": 3})


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_noticed_or_does_nothing(make_host, make_plan, tmp_path, at):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own)
    known = DeviceLedger(own)
    releases = known.releases("0")
    known.close()
    data = bytearray((own / LEDGER_FILE).read_bytes())
    data[int(at * len(data))] ^= 4
    (own / LEDGER_FILE).write_bytes(data)
    try:
        assert DeviceLedger(own).releases("0") == releases
    except DeviceLedgerError:
        pass


def test_a_changed_release_breaks_the_chain(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    spoken(make_host, make_plan, own)
    connection = sqlite3.connect(own / LEDGER_FILE)
    connection.execute(
        "UPDATE privacy_ledger SET record = replace(CAST(record AS TEXT), '1.', '9.') "
        "WHERE sequence = 1"
    )
    connection.commit()
    connection.close()
    with pytest.raises(DeviceLedgerError, match=r"wrong type|chain breaks at record 1"):
        DeviceLedger(own)


def test_two_processes_do_not_share_a_ledger(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    make_host(ledger=own, **rounds(9)).agent.run_round(make_plan(noise_std=1.0))
    with pytest.raises(DeviceLedgerError, match="Another process may have it open"):
        make_host(ledger=own, **rounds(9))


def full(ledger):
    """No page more than there are: what SQLite says of a full disk."""
    connection = ledger._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


def test_on_a_full_disk_nothing_is_said(make_host, make_plan):
    host = make_host(40, **rounds(9))
    full(host.agent._guard.ledger)
    plan = make_plan(devices=tuple(range(40)), noise_std=1.0)
    lie(host, plan, "full.*nothing may be transmitted", DeviceLedgerError)
    # With some space again the round is carried out as if it was ordered for the first time.
    host.agent._guard.ledger._connection.execute("PRAGMA max_page_count = 100000")
    assert {r.participation for r in host.agent.run_round(plan)} == {Participation.TRANSMITTED}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeviceLedgerError, match="the device's own ledger cannot be opened"):
        DeviceLedger(tmp_path / "file" / "below")


def test_a_release_of_another_version_is_named(tmp_path):
    ledger = DeviceLedger(tmp_path)
    odd = Release(
        owner="0", run_id="r", round_index=0, commitment="c", release="0/x", data="d",
        history="h", noise_multiplier=1.0, sampling_rate=1.0,
    )  # fmt: skip
    ledger.append([odd])
    ledger._table.append([ledger._table.read()[0]._replace(record=b'{"owner": "0", "more": 1}')])
    ledger._write_head()
    ledger.close()
    with pytest.raises(DeviceLedgerError, match="release 2 cannot be read"):
        DeviceLedger(tmp_path)
    assert os.path.exists(tmp_path / LEDGER_FILE)


def test_a_new_policy_has_to_cover_what_the_old_one_let_through(make_host, make_plan, tmp_path):
    own = tmp_path / "own"
    host = spoken(make_host, make_plan, own, 3)
    for agreed in (rounds(2), rounds(9, 2.0), {"max_sampling_rate": 0.5, **rounds(9)}):
        agent = dataclasses.replace(host, uplinks=[]).agent
        agent._devices = (dataclasses.replace(agent._devices[0], policy=make_policy(**agreed)),)
        with pytest.raises(PromiseError, match="does not cover what was released before it"):
            Guard(own, agent.policies)
