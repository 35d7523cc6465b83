"""The control channel within one process: encoded both ways, answers once and in order."""

import pytest

from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import PlanRefusedError, WireError
from edge_runtime.protocol.rounds import DigestReport, DigestRequest, RoundResult


class FakeAgent:
    def __init__(self, name, answers=1):
        self.name, self.answers, self.heard, self.error = name, answers, [], None
        self.num_closed = 0

    def handle(self, data):
        if self.error:
            raise self.error
        message = wire.decode(data)
        self.heard.append(message)
        return [
            wire.encode(DigestReport(message.run_id, message.round_index, f"{self.name}{i}", "d"))
            for i in range(self.answers)
        ]

    def close(self):
        self.num_closed += 1


@pytest.fixture
def agents():
    return [FakeAgent("a"), FakeAgent("b", answers=2), FakeAgent("c", answers=0)]


def hosts(messages):
    return [message.host for message in messages]


def test_everybody_hears_and_answers_come_in_order_once(agents):
    channel = InProcessChannel(agents)
    request = DigestRequest("run", 3)
    channel.broadcast(request)
    assert all(agent.heard == [request] for agent in agents)
    answers = channel.collect()
    assert hosts(answers) == ["a0", "b0", "b1"]
    assert all(isinstance(answer, DigestReport) for answer in answers)
    assert channel.collect() == []


def test_only_answers_to_the_last_broadcast_are_collected(agents):
    channel = InProcessChannel(agents)
    channel.broadcast(DigestRequest("run", 1))
    channel.broadcast(DigestRequest("run", 2))
    assert [answer.round_index for answer in channel.collect()] == [2, 2, 2]


def test_a_refusal_reaches_the_caller_and_old_answers_do_not_stand_in_for_new_ones(agents):
    channel = InProcessChannel(agents)
    channel.broadcast(DigestRequest("run", 1))
    agents[1].error = PlanRefusedError("no")
    with pytest.raises(PlanRefusedError):
        channel.broadcast(DigestRequest("run", 2))
    assert [answer.round_index for answer in channel.collect() if answer.round_index == 1] == []


def test_a_message_that_cannot_travel_reaches_nobody(agents):
    channel = InProcessChannel(agents)
    with pytest.raises(WireError, match="may travel"):
        channel.broadcast(DigestReport("run", 0, "h" * (wire.MAX_BODY_BYTES + 1), ""))
    assert all(agent.heard == [] for agent in agents)


def test_closing_closes_every_agent(agents):
    channel = InProcessChannel(agents)
    channel.close()
    channel.close()
    assert all(agent.num_closed >= 1 for agent in agents)


def test_with_real_agents_weights_agree_after_a_round(make_host, make_plan):
    runs = [make_host(2), make_host(2)]
    channel = InProcessChannel([host.agent for host in runs])
    plan = make_plan(devices=(0, 1))
    channel.broadcast(plan)
    assert len(channel.collect()) == 4
    channel.broadcast(RoundResult(plan.run_id, 0, plan.direction_seed, (12345678901,)))
    channel.broadcast(DigestRequest(plan.run_id, 0))
    assert len({report.parameter_digest for report in channel.collect()}) == 1
    channel.close()
    assert all(uplink.is_closed for host in runs for uplink in host.uplinks)
