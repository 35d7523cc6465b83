"""The control channel within one process: a broadcast is a call, an answer is its return value.

Does not model: delay, loss, reordering, duplication, a host that dies.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol import wire
from edge_runtime.protocol.wire import Message


class InProcessChannel(ControlChannel):
    """Hands encoded messages straight to the agents, in order."""

    def __init__(self, agents: Sequence[DeviceAgent]) -> None:
        self._agents = tuple(agents)
        self._answers: list[bytes] = []

    def broadcast(self, message: Message) -> None:
        """Every agent handles the message before this returns."""
        data = wire.encode(message)
        self._answers = []  # should an agent refuse, old answers must not pass for new ones
        self._answers = [answer for agent in self._agents for answer in agent.handle(data)]

    def collect(self) -> list[Message]:
        """The answers to the last broadcast, once."""
        answers, self._answers = self._answers, []
        return [wire.decode(answer) for answer in answers]

    def close(self) -> None:
        """Close every agent."""
        for agent in self._agents:
            agent.close()
