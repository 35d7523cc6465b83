"""Keeps a host's agent in step with its run: its own journal first, then the log.

An order names how many steps it takes for granted. A host that has fewer takes those that it lacks
before it carries the order out, so one that was away is in step with the first order that reaches
it; whether it really is, its digest says.
"""

from __future__ import annotations

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.step_log import num_steps, read_steps
from edge_runtime.joining.journal import Journal
from edge_runtime.protocol.orders import OrderMessage
from edge_runtime.protocol.rounds import DigestRequest, RoundPlan, RoundResult

_TOGETHER = 500


class InStep:
    """Between the orders and the agent of a host.

    Args:
        link: to the broker; it stays its owner's.
        agent: of the host.
        journal: of the run; it stays its owner's.
    """

    def __init__(self, link: NatsLink, agent: DeviceAgent, journal: Journal) -> None:
        self._link, self._agent, self._journal = link, agent, journal

    def come_back(self) -> int:
        """Take every step that the run has taken so far; returns how many those are.

        Raises:
            LinkError, WireError: the log does not give them.
            PlanRefusedError, LatticeError: they cannot be taken.
            JournalError: the journal cannot be written.
        """
        for step in self._journal.steps():
            self._agent.apply_result(step)
        self._take_up_to(num_steps(self._link, self._agent.run_id))
        return self._agent.num_steps

    def before(self, message: OrderMessage) -> None:
        """Take the steps that an order takes for granted.

        Raises:
            EdgeError: as `come_back`.
        """
        if isinstance(message, RoundPlan | RoundResult | DigestRequest):
            self._take_up_to(message.round_index)

    def after(self, message: OrderMessage) -> None:
        """An order has been carried out.

        Raises:
            JournalError: the journal cannot be written.
        """
        if isinstance(message, RoundResult):
            self._journal.append([message])

    def _take_up_to(self, number: int) -> None:
        taken = self._agent.num_steps
        if taken >= number:
            return
        steps: list[RoundResult] = []
        try:
            for step in read_steps(self._link, self._agent.run_id, taken, number):
                self._agent.apply_result(step)
                steps.append(step)
                if len(steps) == _TOGETHER:
                    self._journal.append(steps)
                    steps = []
        finally:
            self._journal.append(steps)
