"""A host's end of a control channel: every order is carried out once, and answered."""

from __future__ import annotations

import logging
from typing import Protocol

from edge_runtime.agent import DeviceAgent
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import EdgeError, LinkRenewedError, WireError
from edge_runtime.protocol.orders import Answer, AtHand, Order, OrderMessage, Refusal, Report
from edge_runtime.protocol.rounds import RoundResult, RunEnded, SilenceOrder
from radio.errors import RadioError

_logger = logging.getLogger(__name__)

_NEVER_TOO_LATE = (RoundResult, SilenceOrder, RunEnded)


class AroundOrders(Protocol):
    """What a host does about an order beside carrying it out."""

    def before(self, message: OrderMessage) -> None:
        """What the order takes for granted; an EdgeError of it is a refusal."""

    def after(self, message: OrderMessage) -> None:
        """Once it has been carried out; likewise."""


class HostEnd:
    """Between bytes and an agent.

    Guarantees: an order that comes twice is answered twice and carried out once; one that is older
    than the last is neither; bytes that are no order do nothing.

    Args:
        agent: of the host's devices.
        at_hand: told which order is being carried out, where somebody else needs to know.
        around: what else is done about an order.
    """

    def __init__(
        self,
        agent: DeviceAgent,
        at_hand: AtHand | None = None,
        around: AroundOrders | None = None,
    ) -> None:
        self._agent = agent
        self._at_hand = AtHand() if at_hand is None else at_hand
        self._around = around
        self._last = (-1, -1)
        self._is_unproven = False
        self._has_ended = False
        self._last_answer = b""

    @property
    def host(self) -> str:
        """The host's name."""
        return self._agent.host

    @property
    def device_indices(self) -> tuple[int, ...]:
        """Its devices."""
        return self._agent.device_indices

    @property
    def has_ended(self) -> bool:
        """Whether it has been told that there are no more rounds."""
        return self._has_ended

    def begin_after(self, epoch: int, sequence: int) -> None:
        """The server is there now, and this was its last order: older ones are refused."""
        self._last, self._last_answer = (epoch, sequence), b""
        self._is_unproven = False

    def suspect(self) -> None:
        """The link was lost: until `begin_after` orders may be of before, but for silence."""
        self._is_unproven = True

    def answer(self, data: bytes, is_newest: bool = True) -> bytes | None:
        """Carry an order out; what is said to it, None for what is none of this host's.

        Args:
            data: the order.
            is_newest: whether no other one waits behind it. If one does, nobody waits for the
                answer to this one any more: what would speak, or only tell, is left alone.

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
        if not is_newest and not isinstance(order.message, _NEVER_TOO_LATE):
            _logger.warning("%s %s is too late: dropped", type(order.message).__name__, now)
            return None
        # Before it is carried out: whatever becomes of it, it will not be a second time.
        self._last, self._last_answer = now, b""
        self._at_hand.epoch, self._at_hand.sequence = now
        reports: tuple[Report, ...] = ()
        refusal = None
        try:
            if self._is_unproven and not isinstance(order.message, SilenceOrder):
                raise LinkRenewedError(
                    "the link was lost meanwhile, and the server has not answered this host's "
                    "challenge since."
                )
            if self._around is not None:
                self._around.before(order.message)
            reports = tuple(self._agent.carry_out(order.message))
            if self._around is not None:
                self._around.after(order.message)
        except (EdgeError, RadioError) as error:
            # Errors of orders, weights and radios: none of them tells of a record.
            _logger.warning("%s: %s", type(order.message).__name__, error)
            refusal = Refusal(type(error).__name__, str(error))
        self._has_ended = isinstance(order.message, RunEnded) and refusal is None
        said = Answer(self._agent.run_id, order.epoch, order.sequence, self.host, reports, refusal)
        self._last_answer = wire.encode(said)
        return self._last_answer

    def close(self) -> None:
        """Close the agent."""
        self._agent.close()
