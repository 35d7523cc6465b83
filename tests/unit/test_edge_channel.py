"""The control channel within one process: encoded both ways, one answer a host."""

import pytest

from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import PlanRefusedError, WireError
from edge_runtime.protocol.orders import Answer, Order, Refusal
from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    Participation,
    RoundReport,
    RoundResult,
    SilenceOrder,
    SoundingOrder,
)


class FakeAgent:
    run_id = "run"

    def __init__(self, name, devices=(0,)):
        self.host, self.device_indices, self.heard, self.error = name, devices, [], None
        self.num_closed = 0

    def carry_out(self, message):
        self.heard.append(message)
        if self.error:
            raise self.error
        if isinstance(message, DigestRequest):
            return [DigestReport("run", message.round_index, self.host, "d")]
        return [
            RoundReport("run", message.round_index, k, Participation.READY)
            for k in self.device_indices
        ]

    def close(self):
        self.num_closed += 1


@pytest.fixture
def agents():
    return [FakeAgent("a", (4,)), FakeAgent("b", (1, 3)), FakeAgent("c", ())]


@pytest.fixture
def channel(agents):
    return InProcessChannel("run", [HostEnd(agent) for agent in agents])


def test_everybody_hears_and_answers_once(agents, channel):
    request = DigestRequest("run", 3)
    answers = channel.ask(request)
    assert all(agent.heard == [request] for agent in agents)
    assert [report.host for report in answers.digests] == ["a", "b", "c"]
    assert (answers.missing, answers.unknown_devices, answers.refusals) == ((), (), {})


def test_reports_come_in_the_devices_order_and_only_who_is_asked_hears(agents, channel):
    assert [r.device_index for r in channel.ask(SilenceOrder("run", 1)).reports] == [1, 3, 4]
    answers = channel.ask(SilenceOrder("run", 2), channel.hosts_of([3]))
    assert [r.device_index for r in answers.reports] == [1, 3]
    assert [len(agent.heard) for agent in agents] == [1, 2, 1]
    assert channel.devices_of(["b", "a"]) == (1, 3, 4)


def test_a_refusal_is_an_answer_and_the_others_have_theirs(agents, channel):
    agents[1].error = PlanRefusedError("no")
    answers = channel.ask(SilenceOrder("run", 2))
    assert answers.refusals == {"b": Refusal("PlanRefusedError", "no")}
    assert [r.device_index for r in answers.reports] == [4]
    assert answers.missing == ()


def test_a_defect_of_the_program_is_none(agents, channel):
    agents[1].error = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        channel.ask(SilenceOrder("run", 2))
    agents[1].error = None
    assert len(channel.ask(SilenceOrder("run", 3)).reports) == 3


def test_a_message_that_cannot_travel_reaches_nobody(agents, channel):
    with pytest.raises(WireError, match="may travel"):
        channel.ask(SoundingOrder("r" * (wire.MAX_BODY_BYTES + 1), 0, 1.0, 0))
    assert all(agent.heard == [] for agent in agents)


def test_closing_closes_every_agent(agents, channel):
    channel.close()
    channel.close()
    assert all(agent.num_closed >= 1 for agent in agents)


def test_an_order_that_comes_twice_is_carried_out_once_and_answered_twice(agents):
    end = HostEnd(agents[0])
    data = wire.encode(Order(0, 5, SilenceOrder("run", 1)))
    first = end.answer(data)
    assert wire.decode(first) == Answer(
        "run", 0, 5, "a", (RoundReport("run", 1, 4, Participation.READY),)
    )
    assert end.answer(data) == first
    assert len(agents[0].heard) == 1


@pytest.mark.parametrize("older", [(0, 4), (0, 0), (-1, 9)])
def test_an_order_that_comes_late_is_nobodys(agents, older):
    end = HostEnd(agents[0])
    end.answer(wire.encode(Order(0, 5, SilenceOrder("run", 1))))
    assert end.answer(wire.encode(Order(*older, SilenceOrder("run", 1)))) is None
    assert len(agents[0].heard) == 1
    # A new connection begins anew.
    assert end.answer(wire.encode(Order(1, 0, SilenceOrder("run", 1)))) is not None


def test_what_is_no_order_does_nothing(agents):
    end = HostEnd(agents[0])
    damaged = bytearray(wire.encode(Order(0, 5, SilenceOrder("run", 1))))
    damaged[20] ^= 1
    for data in (b"", bytes(damaged), wire.encode(Answer("run", 0, 1, "a"))):
        assert end.answer(data) is None
    assert agents[0].heard == []


def test_an_order_that_ended_in_a_defect_is_not_carried_out_again(agents):
    end = HostEnd(agents[0])
    agents[0].error = KeyError("defect")
    data = wire.encode(Order(0, 1, SilenceOrder("run", 1)))
    with pytest.raises(KeyError):
        end.answer(data)
    assert end.answer(data) is None
    assert len(agents[0].heard) == 1


def test_with_real_agents_weights_agree_after_a_round(make_host, make_plan):
    run = make_host(2)
    channel = InProcessChannel(make_plan().run_id, [HostEnd(run.agent)])
    plan = make_plan(devices=(0, 1))
    assert len(channel.ask(plan).reports) == 2
    channel.ask(RoundResult(plan.run_id, 0, plan.direction_seed, (12345678901,)))
    (report,) = channel.ask(DigestRequest(plan.run_id, 0)).digests
    assert report.parameter_digest == run.store.digest()
    # The same plan once more is refused by the agent; the server hears why.
    assert channel.ask(plan).refusals["host-of-the-tests"].kind == "PlanRefusedError"
    channel.close()
    assert all(uplink.is_closed for uplink in run.uplinks)
