"""The control channel over a NATS broker: both ends, between the same bytes as in one process.

Subjects: orders to all hosts on pz.RUN.order, to one on pz.RUN.order.HOST; answers on
pz.RUN.answer.HOST. Names of runs and hosts are tokens: letters, digits, - and _.
"""

from __future__ import annotations

import logging
import queue
import re
from collections.abc import Mapping, Sequence

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.protocol.errors import LinkError

_logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def token(what: str, name: str) -> str:
    """A name that can be part of a subject.

    Raises:
        LinkError: it cannot.
    """
    if not _TOKEN.fullmatch(name):
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
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_sent = True
        link.subscribe(f"{self._subject}.answer.*", self._take)

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
            return self._replies.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """The hosts' processes are their own; their link ends with the server's."""

    def _take(self, subject: str, data: bytes, reply: Reply | None) -> None:
        self._replies.put(data)


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
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for subject in ("order", f"order.{self._host}"):
            link.subscribe(f"{self._subject}.{subject}", self._take)

    def serve(self, end: HostEnd) -> None:
        """Carry out orders until the run has ended, or `stop` is called.

        Args:
            end: of the host's agent.
        """
        while not end.has_ended and (data := self._orders.get()) is not None:
            answer = end.answer(data)
            if answer is not None:
                self._answer(answer)

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
