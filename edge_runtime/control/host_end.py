"""A host's end of a control channel: every order is carried out once, and answered."""

from __future__ import annotations

import logging

from edge_runtime.agent import DeviceAgent
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import EdgeError, WireError
from edge_runtime.protocol.orders import Answer, Order, Refusal, Report
from radio.errors import RadioError

_logger = logging.getLogger(__name__)


class HostEnd:
    """Between bytes and an agent.

    Guarantees: an order that comes twice is answered twice and carried out once; one that is older
    than the last is neither; bytes that are no order do nothing.

    Args:
        agent: of the host's devices.
    """

    def __init__(self, agent: DeviceAgent) -> None:
        self._agent = agent
        self._last = (-1, -1)
        self._last_answer = b""

    @property
    def host(self) -> str:
        """The host's name."""
        return self._agent.host

    @property
    def device_indices(self) -> tuple[int, ...]:
        """Its devices."""
        return self._agent.device_indices

    def answer(self, data: bytes) -> bytes | None:
        """Carry an order out; what is said to it, None for what is none of this host's.

        Raises:
            Exception: a defect of the program, which no answer may hide.
        """
        try:
            order = wire.decode(data)
        except WireError as error:
            _logger.warning("an order that is none: %s", error)
            return None
        if not isinstance(order, Order):
            _logger.warning("got %s, wanted an order", type(order).__name__)
            return None
        now = (order.epoch, order.sequence)
        if now == self._last:
            return self._last_answer or None
        if now < self._last:
            _logger.warning("order %s comes after order %s: dropped", now, self._last)
            return None
        # Before it is carried out: whatever becomes of it, it will not be a second time.
        self._last, self._last_answer = now, b""
        reports: tuple[Report, ...] = ()
        refusal = None
        try:
            reports = tuple(self._agent.carry_out(order.message))
        except (EdgeError, RadioError) as error:
            # Errors of orders, weights and radios: none of them tells of a record.
            _logger.warning("%s: %s", type(order.message).__name__, error)
            refusal = Refusal(type(error).__name__, str(error))
        said = Answer(self._agent.run_id, order.epoch, order.sequence, self.host, reports, refusal)
        self._last_answer = wire.encode(said)
        return self._last_answer

    def close(self) -> None:
        """Close the agent."""
        self._agent.close()
