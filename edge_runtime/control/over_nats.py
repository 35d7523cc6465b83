"""The control channel over a NATS broker: both ends, between the same bytes as in one process.

Subjects: orders to all hosts on pz.RUN.order, to one on pz.RUN.order.HOST; answers on
pz.RUN.answer.HOST, and on pz.RUN.alive.HOST that orders, or the start, are waited for. Names of
runs and hosts are tokens: letters, digits, - and _.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkError
from edge_runtime.protocol.members import is_token
from edge_runtime.protocol.orders import Answer, Order, OrderMessage

_logger = logging.getLogger(__name__)


def token(what: str, name: str) -> str:
    """A name that can be part of a subject.

    Raises:
        LinkError: it cannot.
    """
    if not is_token(name):
        raise LinkError(
            f"{what}: got {name!r}, wanted 1 to 64 letters, digits, - and _: it is part of "
            "addresses on the broker."
        )
    return name


class NatsChannel(ControlChannel):
    """The server's end.

    An order that the broker does not take has reached nobody, and then nobody is waited for: all
    who were asked are missing, and the run pauses.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        hosts: name of each host -> its devices.
        deadline_s: how long answers are waited for.
        epoch: of this server's life: a larger one than any before.
    """

    lets_go = True

    def __init__(
        self,
        link: NatsLink,
        run_id: str,
        hosts: Mapping[str, Sequence[int]],
        *,
        deadline_s: float = 60.0,
        epoch: int = 0,
    ) -> None:
        for host in hosts:
            token("host", host)
        super().__init__(run_id, hosts, deadline_s=deadline_s, epoch=epoch)
        self._link = link
        self._subject = f"pz.{token('run', run_id)}"
        self._replies: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._sender = ""
        self._is_sent = True
        self._idle: set[str] = set()
        self.heard_s: dict[str, float] = {}
        """Host -> when something of it came last, by the channel's clock."""
        self.challenges: dict[str, str] = {}
        """Host -> the challenge that it has said last."""
        self.on_gone: Callable[[Iterable[str]], None] = lambda hosts: None
        """Called with hosts that are let go."""
        link.subscribe(f"{self._subject}.answer.*", self._take)
        link.subscribe(f"{self._subject}.alive.*", self._note_idle)

    @property
    def back(self) -> tuple[str, ...]:
        """Those who are away, and have said since that they wait for orders."""
        return tuple(host for host in self.away if host in self._idle)

    def let_go(self, hosts: Iterable[str]) -> None:
        """These are away from here on, until they say something."""
        hosts = tuple(hosts)
        super().let_go(hosts)
        self._idle.difference_update(hosts)
        self.on_gone(hosts)

    def tell(self, message: OrderMessage, hosts: Sequence[str]) -> None:
        """Give an order that nobody's answer is waited for."""
        if hosts:
            self._sequence += 1
            self.send(wire.encode(Order(self._epoch, self._sequence, message)), hosts)

    def send(self, data: bytes, hosts: Sequence[str]) -> None:
        """One message to all, or one to each of those who are asked."""
        self._is_sent = True
        subjects = [f"{self._subject}.order"]
        if set(hosts) != set(self.hosts):
            subjects = [f"{self._subject}.order.{host}" for host in hosts]
        try:
            for subject in subjects:
                self._link.publish(subject, data)
        except LinkError as error:
            _logger.warning("an order was not sent: %s", error)
            self._is_sent = False

    def receive(self, timeout_s: float) -> bytes | None:
        """What a host answers."""
        if not self._is_sent or timeout_s <= 0.0:
            return None
        try:
            self._sender, data = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return data

    def _checked(self, reply: bytes, message: OrderMessage) -> Answer | None:
        """As everywhere; and nobody answers for another."""
        answer = super()._checked(reply, message)
        if answer is not None and answer.host != self._sender:
            _logger.warning("%s answers for %s", self._sender, answer.host)
            return None
        return answer

    def close(self) -> None:
        """The hosts' processes are their own; their link ends with the server's."""

    def _take(self, subject: str, data: bytes, reply: Reply | None) -> None:
        host = subject.rsplit(".", 1)[-1]
        self.heard_s[host] = self._clock()
        self._replies.put((host, data))

    def _note_idle(self, subject: str, data: bytes, reply: Reply | None) -> None:
        host, challenge = subject.rsplit(".", 1)[-1], data.decode("ascii", "replace")
        if host in self.hosts and is_token(challenge):
            self.heard_s[host] = self._clock()
            self.challenges[host] = challenge
            self._idle.add(host)


class NatsHost:
    """A host's end: orders wait in a queue, and are carried out one by one in `serve`'s thread.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        host: name of the host.
    """

    def __init__(self, link: NatsLink, run_id: str, host: str) -> None:
        self._link = link
        self._host = token("host", host)
        self._subject = f"pz.{token('run', run_id)}"
        self._orders: queue.SimpleQueue[bytes | Callable[[], None] | None] = queue.SimpleQueue()
        self._is_idle = False
        for subject in ("order", f"order.{self._host}"):
            link.subscribe(f"{self._subject}.{subject}", self._take)

    def serve(self, end: HostEnd) -> None:
        """Carry out orders until the run has ended, or `stop` is called.

        Args:
            end: of the host's agent.
        """
        self._is_idle = True
        while not end.has_ended and (data := self._orders.get()) is not None:
            self._is_idle = False
            if not isinstance(data, bytes):
                data()
            elif (answer := end.answer(data, is_newest=self._orders.empty())) is not None:
                self._answer(answer)
            self._is_idle = True
        self._is_idle = False

    def between_orders(self, do: Callable[[], None]) -> None:
        """Have something done in `serve`'s thread, behind the orders that wait; from any thread."""
        self._orders.put(do)

    def say_idle(self, challenge: str) -> None:
        """Tell the server, if it is so, that orders are waited for; from any thread."""
        if self._is_idle and self._orders.empty():
            self.say_waiting(challenge)

    def say_waiting(self, challenge: str) -> None:
        """Tell the server that this host waits for orders, or still for its start."""
        with contextlib.suppress(LinkError):  # the next time
            self._link.publish(f"{self._subject}.alive.{self._host}", challenge.encode())

    def stop(self) -> None:
        """Let `serve` return when the order at hand is carried out; from any thread."""
        self._orders.put(None)

    def _answer(self, data: bytes) -> None:
        try:
            self._link.publish(f"{self._subject}.answer.{self._host}", data)
        except LinkError as error:
            # The server takes the devices for unknown; asked again, they give the same answer.
            _logger.warning("an answer was not sent: %s", error)

    def _take(self, subject: str, data: bytes, reply: Reply | None) -> None:
        self._orders.put(data)
