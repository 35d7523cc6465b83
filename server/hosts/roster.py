"""Who takes part: hosts knock, say who their devices are, and the list closes when all are there.

An index follows from a device's name and not from who came first, so that a run over any number of
processes is the run in one.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining import messages
from edge_runtime.joining.messages import (
    LOBBY,
    Agreed,
    Hello,
    JoiningMessage,
    Knock,
    Refused,
    RunTerms,
    Start,
)
from edge_runtime.protocol.errors import EdgeError, WireError
from edge_runtime.protocol.members import Member
from server.errors import HostsError
from server.hosts.desk import Desk

_START_S = 120.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Listed:
    """One host on the list.

    Attributes:
        since_s: when it came, on the roster's clock.
        members: name of each of its devices -> what it says of it.
    """

    since_s: float
    members: Mapping[str, Member]


class Roster:
    """Takes hosts in until the configured number of devices is there.

    Args:
        link: to the broker; it stays its owner's.
        terms: of the run, as every host is told them.
        num_devices: of the run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: NatsLink,
        terms: RunTerms,
        num_devices: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._terms, self._num_devices = link, terms, num_devices
        self._clock = clock
        self._hosts: dict[str, Listed] = {}
        self._changed = threading.Condition()
        self._desk = Desk(link, "roster", self._answer)
        for subject in (LOBBY, f"pz.{terms.run_id}.hello"):
            self._desk.listen(subject)

    @property
    def hosts(self) -> dict[str, tuple[int, ...]]:
        """Name of each host -> its devices' indices."""
        indices = self.indices
        with self._changed:
            return {
                host: tuple(sorted(indices[name] for name in listed.members))
                for host, listed in sorted(self._hosts.items())
            }

    @property
    def indices(self) -> dict[str, int]:
        """Name of each device -> its index: its place among all names."""
        with self._changed:
            names = sorted(name for listed in self._hosts.values() for name in listed.members)
        return {name: index for index, name in enumerate(names)}

    @property
    def members(self) -> tuple[Member, ...]:
        """What is known of each device, by index."""
        with self._changed:
            by_name = {n: m for listed in self._hosts.values() for n, m in listed.members.items()}
        return tuple(by_name[name] for name in sorted(by_name))

    def wait_for_all(
        self,
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
        on_listed: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Return when every device is there.

        Args:
            timeout_s: how long.
            check: called now and then; what it raises ends the waiting.
            on_listed: told of every host that comes, for a person.

        Raises:
            HostsError: not all have come; the message says who has.
        """
        until_s = self._clock() + timeout_s
        told: set[str] = set()
        with self._changed:
            while True:
                for host in sorted(set(self._hosts) - told):
                    on_listed(f"{host}, {len(self._hosts[host].members)} devices")
                    told.add(host)
                if self._num_listed() >= self._num_devices:
                    return
                check()
                if self._clock() > until_s:
                    raise HostsError(
                        f"{self._num_listed()} of {self._num_devices} devices have come in "
                        f"{timeout_s:g} s: {self._in_words()}."
                    )
                self._changed.wait(_LOOK_S)

    def start(self, heard: Mapping[str, int]) -> None:
        """Tell every host its devices' indices; all are ready when this returns.

        Args:
            heard: name of a device -> how many releases of it have been heard before.

        Raises:
            HostsError: a host is not ready, or does not answer.
        """
        indices = self.indices

        def tell(host: str) -> None:
            own = {name: indices[name] for name in self._hosts[host].members}
            start = Start(self._terms.run_id, own, {n: heard[n] for n in own if n in heard})
            subject = f"pz.{self._terms.run_id}.start.{host}"
            try:
                reply = self._link.request(subject, messages.encode(start), _START_S)
                if reply is None:
                    raise HostsError(f"{host} is not there any more.")
                if reason := messages.refusal_of(messages.decode(reply)):
                    raise HostsError(f"{host} cannot start: {reason}")
            except EdgeError as error:
                raise HostsError(f"{host} cannot be started: {error}") from error

        with concurrent.futures.ThreadPoolExecutor(len(self._hosts)) as pool:
            for told in [pool.submit(tell, host) for host in sorted(self._hosts)]:
                told.result()

    def close(self) -> None:
        """Take nobody in any more. Idempotent."""
        self._desk.close()

    def _answer(self, asker: str, message: JoiningMessage) -> JoiningMessage:
        if isinstance(message, Knock):
            with self._changed:
                reason = self._why_not(message.host, 0)
            return Refused(reason) if reason else self._terms
        if not isinstance(message, Hello):
            raise WireError(f"got {type(message).__name__}, wanted knock or hello")
        with self._changed:
            reason = self._why_not(message.host, len(message.members)) or self._what_is_wrong(
                message
            )
            if reason:
                return Refused(reason)
            self._hosts[message.host] = Listed(self._clock(), dict(message.members))
            self._changed.notify_all()
        return Agreed()

    def _why_not(self, host: str, num_devices: int) -> str:
        listed = self._hosts.get(host)
        if listed is not None:
            return (
                f"{host!r} is on the list already, since {self._clock() - listed.since_s:.0f} s, "
                f"with {len(listed.members)} devices. Two hosts need two names: --name."
            )
        if self._num_listed() + max(num_devices, 1) > self._num_devices:
            return (
                f"the run has {self._num_devices} devices, and {self._num_listed()} are on the "
                f"list: {self._in_words()}. Wait for the next run, or raise "
                "federation.num_devices."
            )
        return ""

    def _what_is_wrong(self, hello: Hello) -> str:
        if hello.run_id != self._terms.run_id:
            return f"this is run {self._terms.run_id}, the host wants {hello.run_id}."
        known = {name for listed in self._hosts.values() for name in listed.members}
        if twice := known & set(hello.members):
            return f"there is a device {min(twice)!r} already. Name this host's otherwise."
        if not hello.members:
            return "a host without devices."
        for name, member in hello.members.items():
            if member.num_records < self._terms.example.batch_size:
                return (
                    f"device {name!r} has {member.num_records} records, optimizer.batch_size is "
                    f"{self._terms.example.batch_size}."
                )
        commitments = [m.commitment for listed in self._hosts.values() for m in
                       listed.members.values()]  # fmt: skip
        commitments += [member.commitment for member in hello.members.values()]
        if len(set(commitments)) < len(commitments):
            return "two devices have the same key: their noise would be the same."
        return ""

    def _num_listed(self) -> int:
        return sum(len(listed.members) for listed in self._hosts.values())

    def _in_words(self) -> str:
        hosts = sorted(self._hosts.items())
        return ", ".join(f"{host} ({len(listed.members)})" for host, listed in hosts) or "nobody"
