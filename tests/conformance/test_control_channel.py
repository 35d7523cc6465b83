"""What every control channel must do, and what a network in between may do to it.

The hosts' ends and the bytes are the real ones; devices only note what they are told.
"""

import contextlib
import threading

import pytest
from hostile_channel import (
    HostileChannel,
    altered,
    cut,
    damaged,
    doubled,
    doubled_and_late,
    late,
    lost,
    noise,
    of_another_version,
    oversized,
)

from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.over_nats import NatsChannel, NatsHost
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import PlanRefusedError
from edge_runtime.protocol.orders import Order
from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    NumbersHold,
    Participation,
    RoundReport,
    SilenceOrder,
)
from server.air.orders import ask, check_none_missing, silence_all, those_who
from server.errors import HostsMissingError
from server.hosts.broker import Broker

RUN = "run"
DEVICES = {"a": (4,), "b": (1, 3), "c": (0, 2)}


class NotingAgent:
    run_id = RUN

    def __init__(self, host):
        self.host, self.device_indices, self.heard = host, DEVICES[host], []
        self.refuses = None

    def carry_out(self, message):
        self.heard.append(message)
        if self.refuses:
            raise self.refuses
        if isinstance(message, DigestRequest):
            return [DigestReport(RUN, message.round_index, self.host, "d")]
        if isinstance(message, SilenceOrder):
            return []
        return [report(message.round_index, k) for k in self.device_indices]

    def close(self):
        pass


def report(round_index, device):
    return RoundReport(RUN, round_index, device, Participation.TRANSMITTED)


@pytest.fixture
def agents():
    return {host: NotingAgent(host) for host in DEVICES}


@pytest.fixture(scope="module")
def broker():
    with Broker() as broker:
        yield broker


@contextlib.contextmanager
def over_nats(broker, ends):
    """The server's end and three hosts, each with a connection and a thread of its own."""
    with contextlib.ExitStack() as opened:
        hosts = []
        for end in ends:
            link = NatsLink(broker.url, end.host)
            opened.callback(link.close)
            hosts.append(NatsHost(link, RUN, end.host))
            thread = threading.Thread(target=hosts[-1].serve, args=(end,))
            thread.start()
            opened.callback(thread.join, 30.0)
            opened.callback(hosts[-1].stop)
        link = NatsLink(broker.url, "server")
        opened.callback(link.close)
        yield NatsChannel(link, RUN, {end.host: end.device_indices for end in ends})


@pytest.fixture(params=[InProcessChannel, HostileChannel, NatsChannel])
def channel(request, agents):
    ends = [HostEnd(agent) for agent in agents.values()]
    if request.param is NatsChannel:
        with over_nats(request.getfixturevalue("broker"), ends) as channel:
            yield channel
    else:
        yield request.param(RUN, ends)


@pytest.fixture
def hostile(agents):
    return HostileChannel(RUN, [HostEnd(agent) for agent in agents.values()])


def spoke(answers):
    return [r.device_index for r in answers.reports]


def test_every_order_reaches_whom_it_is_for_and_is_answered(channel, agents):
    assert spoke(channel.ask(NumbersHold(RUN, 0))) == [0, 1, 2, 3, 4]
    assert spoke(channel.ask(NumbersHold(RUN, 1), ["c", "a"])) == [0, 2, 4]
    assert channel.ask(SilenceOrder(RUN, 1)).missing == ()
    assert {d.host for d in channel.ask(DigestRequest(RUN, 1)).digests} == {"a", "b", "c"}
    assert [len(agents[host].heard) for host in DEVICES] == [4, 3, 4]


def test_who_refuses_is_heard_and_keeps_nobody_else(channel, agents):
    agents["b"].refuses = PlanRefusedError("no")
    answers = channel.ask(NumbersHold(RUN, 0))
    assert spoke(answers) == [0, 2, 4]
    assert list(answers.refusals) == ["b"]
    assert those_who(Participation.TRANSMITTED, answers) == (0, 2, 4)
    for agent in agents.values():
        agent.refuses = PlanRefusedError("no")
    with pytest.raises(PlanRefusedError, match="no"):
        those_who(Participation.TRANSMITTED, channel.ask(NumbersHold(RUN, 1)))


GONE = [
    lost, late, damaged, cut, oversized, of_another_version, noise,
    altered(run_id="another"), altered(epoch=7), altered(sequence=99), altered(host="c"),
    altered(host="nobody"), altered(reports=(report(0, 0),)), altered(reports=(report(5, 1),)),
    altered(reports=(report(0, 1), report(0, 1))),
    altered(reports=(RoundReport("another", 0, 1, Participation.TRANSMITTED),)),
]  # fmt: skip


@pytest.mark.parametrize("fault", GONE)
def test_an_answer_that_does_not_come_or_is_none_leaves_its_host_unknown(hostile, agents, fault):
    hostile.faults["b"] = [fault]
    answers = hostile.ask(NumbersHold(RUN, 0))
    assert (answers.missing, answers.unknown_devices) == (("b",), (1, 3))
    assert spoke(answers) == [0, 2, 4]
    assert agents["b"].heard == [NumbersHold(RUN, 0)]  # it did as it was told, for all we know
    # Nothing of it is taken for an answer to what comes then.
    hostile.faults["b"] = [lost]
    assert hostile.ask(NumbersHold(RUN, 1)).missing == ("b",)
    assert spoke(hostile.ask(NumbersHold(RUN, 2))) == [0, 1, 2, 3, 4]


def test_a_late_answer_is_not_waited_for_and_not_taken_for_the_next_one(hostile):
    hostile.faults["b"] = [late]
    assert hostile.ask(NumbersHold(RUN, 0)).missing == ("b",)
    assert hostile.now_s == pytest.approx(5.0)
    # It comes while the next order is asked, and so does that one's own.
    hostile.faults["b"] = [lambda data: [(data, 3.0)]]
    answers = hostile.ask(NumbersHold(RUN, 1))
    assert [r.round_index for r in answers.reports] == [1] * 5
    assert hostile.now_s == pytest.approx(8.0)


@pytest.mark.parametrize("fault", [doubled, doubled_and_late])
def test_an_answer_that_comes_twice_counts_once(hostile, fault):
    hostile.faults["b"] = [fault, fault, fault]
    for index in range(3):
        answers = hostile.ask(NumbersHold(RUN, index))
        assert spoke(answers) == [0, 1, 2, 3, 4]
        assert {r.round_index for r in answers.reports} == {index}


def test_answers_in_another_order_are_the_same_answers(hostile):
    hostile.faults["a"] = [lambda data: [(data, 2.0)]]
    hostile.faults["c"] = [lambda data: [(data, 1.0)]]
    assert spoke(hostile.ask(NumbersHold(RUN, 0))) == [0, 1, 2, 3, 4]


def test_an_order_that_comes_twice_or_late_is_carried_out_once(hostile, agents):
    kept = []
    hostile.orders["b"] = [
        lambda data: [data, data],
        lambda data: kept.append(data) or [],
        lambda data: [data, *kept],
    ]
    assert hostile.ask(NumbersHold(RUN, 0)).missing == ()
    assert hostile.ask(NumbersHold(RUN, 1)).missing == ("b",)
    assert hostile.ask(NumbersHold(RUN, 2)).missing == ()
    assert [m.round_index for m in agents["b"].heard] == [0, 2]


def test_orders_that_are_none_or_of_an_older_connection_do_nothing(hostile, agents):
    end = HostEnd(agents["a"])
    order = Order(3, 1, NumbersHold(RUN, 0))
    assert end.answer(wire.encode(order)) is not None
    old = wire.encode(Order(2, 99, NumbersHold(RUN, 1)))
    (spoilt, _), *_ = damaged(wire.encode(Order(3, 2, NumbersHold(RUN, 1))))
    for data in (old, spoilt, b"", wire.encode(Order(3, 2, NumbersHold(RUN, 1)))[:-1]):
        assert end.answer(data) is None
    assert len(agents["a"].heard) == 1


def test_what_the_server_makes_of_who_is_missing(hostile, agents):
    for host in DEVICES:
        hostile.faults[host] = [lost]
    answers = ask(hostile, NumbersHold(RUN, 4))
    # Not an error of theirs: they may have spoken.
    assert those_who(Participation.TRANSMITTED, answers) == ()
    assert answers.unknown_devices == (0, 1, 2, 3, 4)
    with pytest.raises(HostsMissingError, match=r"round 4: no answer of a, b, c in time.*--resume"):
        check_none_missing(answers, 4)
    hostile.faults["c"] = [lost]
    with pytest.raises(HostsMissingError, match="no answer of c"):
        silence_all(hostile, RUN, 4)
    silence_all(hostile, RUN, 4)


def test_a_refusal_beside_a_missing_host_is_no_end_of_the_run(hostile, agents):
    hostile.faults["a"] = [lost]
    agents["b"].refuses = agents["c"].refuses = PlanRefusedError("no")
    answers = ask(hostile, NumbersHold(RUN, 0))
    assert those_who(Participation.TRANSMITTED, answers) == ()
    assert answers.unknown_devices == (4,)
