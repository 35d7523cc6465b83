"""ControlChannel: how orders reach the devices and answers come back. Never a scalar.

An order goes to hosts, and each answers once: what its devices did, or why it refuses. Whoever has
not answered by the deadline is missing, and what its devices did is unknown. The interface is the
same within one process and across machines, and all of it is bytes of
`edge_runtime.protocol.wire`, so the in-process run exercises what a network carries.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkRenewedError, WireError
from edge_runtime.protocol.orders import Answer, Order, OrderMessage, Refusal
from edge_runtime.protocol.rounds import DigestReport, RoundReport

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of an order.

    Attributes:
        answered: host -> its answer, refusals included.
        missing: hosts that did not answer in time.
        unknown_devices: theirs; nobody knows what they did. Ascending.
    """

    answered: Mapping[str, Answer] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unknown_devices: tuple[int, ...] = ()

    @property
    def reports(self) -> list[RoundReport]:
        """What devices did, in their order."""
        reports = (r for answer in self.answered.values() for r in answer.reports)
        return sorted(
            (r for r in reports if isinstance(r, RoundReport)), key=lambda r: r.device_index
        )

    @property
    def digests(self) -> list[DigestReport]:
        """What hosts said of their weights."""
        reports = (r for answer in self.answered.values() for r in answer.reports)
        return [r for r in reports if isinstance(r, DigestReport)]

    @property
    def refusals(self) -> dict[str, Refusal]:
        """Host -> why it did not do as it was told."""
        return {
            host: answer.refusal
            for host, answer in self.answered.items()
            if answer.refusal is not None
        }


class ControlChannel(ABC):
    """One server, many hosts.

    Guarantees: of each host at most one answer to an order is counted, the first, and only if it is
    to this order, of this run and epoch, and about the host's own devices. Whatever else arrives is
    logged and changes nothing.

    Where hosts can come back (`lets_go`), one that did not answer is away: it is not asked again,
    and nobody waits for it, until it has been welcomed.

    Args:
        run_id: of the run.
        hosts: name of each host -> its devices.
        deadline_s: how long answers are waited for, where an order does not say.
        epoch: of the connection.
        clock: monotonic seconds.
    """

    lets_go = False
    """Whether a host that has not answered is away."""

    def __init__(
        self,
        run_id: str,
        hosts: Mapping[str, Sequence[int]],
        *,
        deadline_s: float = 60.0,
        epoch: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run_id
        self._hosts = {host: tuple(devices) for host, devices in hosts.items()}
        self._deadline_s = deadline_s
        self._epoch = epoch
        self._clock = clock
        self._sequence = 0
        self._asking: tuple[int, int] | None = None
        self._away: set[str] = set()
        self.waited_s: defaultdict[str, float] = defaultdict(float)
        """Kind of an order -> how long answers to such orders were waited for, in all."""

    @property
    def asking(self) -> tuple[int, int] | None:
        """Epoch and sequence of the order that is waited for now; read from other threads too."""
        return self._asking

    @property
    def last_order(self) -> tuple[int, int]:
        """Epoch and sequence of the last order."""
        return self._epoch, self._sequence

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of all hosts."""
        return tuple(self._hosts)

    @property
    def present(self) -> tuple[str, ...]:
        """Those who are asked."""
        return tuple(host for host in self._hosts if host not in self._away)

    @property
    def away(self) -> tuple[str, ...]:
        """Those who are not."""
        return tuple(host for host in self._hosts if host in self._away)

    @property
    def away_devices(self) -> frozenset[int]:
        """The devices of those who are away."""
        return frozenset(self.devices_of(self._away))

    def let_go(self, hosts: Iterable[str]) -> None:
        """These are away from here on."""
        self._away.update(hosts)

    def welcome(self, host: str) -> None:
        """This one is not any more."""
        self._away.discard(host)

    def hosts_of(self, devices: Collection[int]) -> tuple[str, ...]:
        """Those that have one of these devices."""
        return tuple(h for h, own in self._hosts.items() if not set(own).isdisjoint(devices))

    def devices_of(self, hosts: Iterable[str]) -> tuple[int, ...]:
        """All devices of these hosts, ascending."""
        return tuple(sorted(device for host in hosts for device in self._hosts[host]))

    def ask(
        self,
        message: OrderMessage,
        hosts: Sequence[str] | None = None,
        deadline_s: float | None = None,
    ) -> Answers:
        """Give an order, and wait until all have answered or the time is up.

        Args:
            message: what is to be done.
            hosts: who is asked; all who are not away, if not told.
            deadline_s: instead of the channel's.

        Raises:
            WireError: the order cannot travel; it has reached nobody.
        """
        asked = self.present if hosts is None else tuple(hosts)
        if not asked:
            return Answers()
        self._sequence += 1
        data = wire.encode(Order(self._epoch, self._sequence, message))
        begun_s = self._clock()
        until_s = begun_s + (self._deadline_s if deadline_s is None else deadline_s)
        self._asking = (self._epoch, self._sequence)
        self.send(data, asked)
        answered: dict[str, Answer] = {}
        while len(answered) < len(asked):
            reply = self.receive(until_s - self._clock())
            if reply is None:
                break
            answer = self._checked(reply, message)
            if answer is None or answer.host not in asked or answer.host in answered:
                continue
            answered[answer.host] = answer
        self._asking = None
        self.waited_s[type(message).__name__] += self._clock() - begun_s
        if self.lets_go:
            # Whoever asks for a proof has done nothing, and does nothing before it has one.
            answered = {h: a for h, a in answered.items() if not _asks_for_proof(a)}
        missing = tuple(host for host in asked if host not in answered)
        if missing:
            kind = type(message).__name__
            _logger.warning("%s: no answer of %s", kind, ", ".join(missing))
            if self.lets_go:
                self.let_go(missing)
        return Answers(answered, missing, self.devices_of(missing))

    def _checked(self, reply: bytes, message: OrderMessage) -> Answer | None:
        """An answer to the order that is asked now; None for anything else."""
        try:
            answer = wire.decode(reply)
        except WireError as error:
            _logger.warning("an answer that is none: %s", error)
            return None
        if not isinstance(answer, Answer):
            _logger.warning("got %s, wanted an answer", type(answer).__name__)
            return None
        order = (self._run_id, self._epoch, self._sequence)
        if (answer.run_id, answer.epoch, answer.sequence) != order:
            # Late, doubled, or of another run: nobody waits for it any more.
            _logger.info("an answer of %s to another order", answer.host)
            return None
        own = set(self._hosts.get(answer.host, ()))
        for report in answer.reports:
            is_own = isinstance(report, DigestReport) or report.device_index in own
            if not is_own or report.run_id != self._run_id or not _is_about(report, message):
                _logger.warning("%s answers for others, or of another round", answer.host)
                return None
        devices = [r.device_index for r in answer.reports if isinstance(r, RoundReport)]
        if len(set(devices)) < len(devices):
            _logger.warning("%s answers twice for a device", answer.host)
            return None
        return answer

    @abstractmethod
    def send(self, data: bytes, hosts: Sequence[str]) -> None:
        """Bytes to these hosts."""

    @abstractmethod
    def receive(self, timeout_s: float) -> bytes | None:
        """The next bytes from any host; None if there are none within that time."""

    @abstractmethod
    def close(self) -> None:
        """Let go of every host. Idempotent."""


def _asks_for_proof(answer: Answer) -> bool:
    return answer.refusal is not None and answer.refusal.kind == LinkRenewedError.__name__


def _is_about(report: RoundReport | DigestReport, message: OrderMessage) -> bool:
    """Whether a report is of the round of an order; a digest is of whatever round it is of."""
    return isinstance(report, DigestReport) or report.round_index == message.round_index
