"""The log of a run's steps: whatever becomes of the broker, it holds each once, at its place."""

import shutil
import time

import pytest

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.step_log import StepLog, num_steps, read_steps
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.rounds import RoundResult
from tests.support.killable_broker import KillableBroker

RUN = "run"


def step(round_index, run_id=RUN):
    return RoundResult(run_id, round_index, 7919 * round_index, (round_index, -round_index))


STEPS = [step(t) for t in range(1200)]


@pytest.fixture
def broker(tmp_path):
    broker = KillableBroker(tmp_path / "broker")
    yield broker
    broker.kill()


@pytest.fixture
def link(broker):
    link = NatsLink(broker.url, "test")
    yield link
    link.close()


def log_of(link, steps):
    return StepLog(link, RUN, lambda first: steps[first:])


def until_up(link):
    for _ in range(600):
        if link.is_up:
            return
        time.sleep(0.05)
    pytest.fail("the link does not come back")


def test_what_is_written_is_read_from_any_round_to_any_other(link):
    log_of(link, STEPS)
    assert num_steps(link, RUN) == 1200
    for first, end in ((0, 1200), (0, 1), (1199, 1200), (300, 1100), (7, 7)):
        assert list(read_steps(link, RUN, first, end)) == STEPS[first:end]


def test_a_step_is_there_once_however_often_it_is_written(link):
    held = STEPS[:3]
    log = log_of(link, held)
    held.append(STEPS[3])
    log.append(STEPS[3])
    log.append(STEPS[3])
    log_of(link, held)
    assert list(read_steps(link, RUN, 0, 4)) == STEPS[:4]
    assert num_steps(link, RUN) == 4


def test_a_log_that_lacks_what_is_wanted_says_so_at_once(link):
    log_of(link, STEPS[:5])
    with pytest.raises(LinkError, match="does not give the step of round 3, and those up to 5"):
        list(read_steps(link, RUN, 3, 6))
    with pytest.raises(LinkError, match="does not give the step of round 0"):
        list(read_steps(link, "another", 0, 1))


def test_steps_of_a_broker_that_was_gone_are_made_up_for(broker, link):
    held = STEPS[:2]
    log = log_of(link, held)
    broker.kill()
    for late in STEPS[2:4]:
        held.append(late)
        log.append(late)
    with pytest.raises(LinkError):
        log.bring_up()
    broker.start()
    until_up(link)
    held.append(STEPS[4])
    log.append(STEPS[4])
    assert list(read_steps(link, RUN, 0, 5)) == STEPS[:5]


def test_a_broker_whose_disk_is_gone_gets_all_of_it_again(broker, link):
    held = STEPS[:5]
    log = log_of(link, held)
    broker.kill()
    shutil.rmtree(broker.folder / "disk")
    broker.start()
    until_up(link)
    assert num_steps(link, RUN) == 0
    log.bring_up()  # nothing has failed, and it is found all the same
    assert list(read_steps(link, RUN, 0, 5)) == STEPS[:5]
    broker.kill()
    shutil.rmtree(broker.folder / "disk")
    broker.start()
    until_up(link)
    held.append(STEPS[5])
    log.append(STEPS[5])  # finds that the log is gone
    log.bring_up()
    assert list(read_steps(link, RUN, 0, 6)) == STEPS[:6]


def test_a_store_that_was_put_back_is_not_written_over_a_longer_log(link):
    log_of(link, STEPS[:5])
    with pytest.raises(LinkError, match=r"log has 5 rounds, the run's own store has fewer"):
        log_of(link, STEPS[:3])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"garbage", WireError),
        (wire.pack(b"\xc1"), WireError),
        (wire.encode_step(step(2, "another")), WireError),
        (wire.encode_step(step(3)), LinkError),
        (wire.encode_step(step(1)), LinkError),
    ],
)
def test_what_somebody_else_wrote_there_is_no_step(link, data, error):
    log = log_of(link, STEPS[:2])
    link.publish(f"pz.{RUN}.log", data)
    assert list(read_steps(link, RUN, 0, 2)) == STEPS[:2]
    with pytest.raises(error):
        list(read_steps(link, RUN, 0, 3))
    log.append(STEPS[2])  # its place is taken: told, and not written behind it
    assert num_steps(link, RUN) == 3


def test_a_log_that_is_over_is_gone(link):
    log_of(link, STEPS[:2]).remove()
    assert num_steps(link, RUN) == 0


def test_a_broker_without_a_disk_is_named(tmp_path):
    broker = KillableBroker(tmp_path / "bare", keeps=False)
    try:
        link = NatsLink(broker.url, "test")
        with pytest.raises(LinkError, match=r"JetStream is off.*Start it with -js"):
            log_of(link, [])
        link.close()
    finally:
        broker.kill()
