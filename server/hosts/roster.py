"""Who takes part: hosts knock, say who their devices are, and the list closes when all are there.

An index follows from a device's name and not from who came first, so that a run over any number of
processes is the run in one. Once the run has begun, whoever is on the list may go and come back,
with the same devices and the same keys; nobody else comes.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from edge_runtime.control.nats_link import GivenUp, NatsLink, give_up
from edge_runtime.joining import messages
from edge_runtime.joining.messages import (
    Agreed,
    Hello,
    JoiningMessage,
    Knock,
    Refused,
    RunTerms,
    Start,
    here_subject,
    knock_subject,
    server_subject,
)
from edge_runtime.protocol.errors import EdgeError, LinkRenewedError, WireError
from edge_runtime.protocol.members import Member
from server.errors import HostRenewedError, HostsError
from server.hosts.desk import Desk

_START_S = 120.0
_RENEWED = "its link was lost since, and what was on the way with it"
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Listed:
    """One host on the list.

    Attributes:
        since_s: when it came, on the roster's clock.
        members: name of each of its devices -> what it says of it.
        where: on which computer.
        challenge: that its start has to give back.
        instance: names the process that has come; any, where that was to another server.
        is_here: whether it has come since this server was started.
    """

    since_s: float
    members: Mapping[str, Member]
    where: str = "before this server was started"
    challenge: str = ""
    instance: str = "any"
    is_here: bool = True


class Roster:
    """Takes hosts in until the configured number of devices is there.

    Args:
        link: to the broker; it stays its owner's.
        terms: of the run, as every host is told them.
        num_devices: of the run.
        clock: monotonic seconds.
        listed: host -> name of each of its devices -> what is known of it, of a run that goes on.
    """

    def __init__(
        self,
        link: NatsLink,
        terms: RunTerms,
        num_devices: int,
        clock: Callable[[], float] = time.monotonic,
        listed: Mapping[str, Mapping[str, Member]] = MappingProxyType({}),
    ) -> None:
        self._link, self._terms, self._num_devices = link, terms, num_devices
        self._clock = clock
        self._hosts = {h: Listed(clock(), members, is_here=False) for h, members in listed.items()}
        self._has_begun = bool(listed)
        self._came_back: set[str] = set()
        self._changed = threading.Condition()
        self._desk = Desk(link, "roster", self._answer)
        for subject in (knock_subject("*"), f"pz.{terms.run_id}.hello.*"):
            self._desk.listen(subject)
        link.be_at(server_subject(terms.run_id))

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._terms.run_id

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

    @property
    def listed(self) -> dict[str, dict[str, Member]]:
        """Host -> name of each of its devices -> what is known of it."""
        with self._changed:
            return {host: dict(listed.members) for host, listed in sorted(self._hosts.items())}

    @property
    def here(self) -> tuple[str, ...]:
        """The hosts that have come."""
        with self._changed:
            return tuple(host for host, listed in self._hosts.items() if listed.is_here)

    @property
    def came_back(self) -> tuple[str, ...]:
        """Hosts that were started again, and wait for their start."""
        with self._changed:
            return tuple(sorted(self._came_back))

    def look_for(self) -> None:
        """Find hosts that have outlived the server they began with."""
        for host in sorted(set(self.listed) - set(self.here)):
            if self._is_there(host):
                with self._changed:
                    self._hosts[host] = replace(self._hosts[host], is_here=True)

    def _is_there(self, host: str) -> bool:
        """Whether the process that has come under a name is there, or any, if none has."""
        instance = self._hosts[host].instance
        return self._link.is_anybody_at(here_subject(self._terms.run_id, host, instance))

    def wait_for_all(
        self,
        timeout_s: float,
        enough: int | None = None,
        check: Callable[[], None] = lambda: None,
        on_listed: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Return when every device is there.

        Args:
            timeout_s: how long.
            enough: with so many it is no error if the rest does not come.
            check: called now and then; what it raises ends the waiting.
            on_listed: told of every host that comes, for a person.

        Raises:
            HostsError: not all have come; the message says who has.
        """
        until_s = self._clock() + timeout_s
        told: set[str] = set()
        while True:
            if self._has_begun:
                self.look_for()
            with self._changed:
                here = {h: len(one.members) for h, one in self._hosts.items() if one.is_here}
                for host in sorted(set(here) - told):
                    on_listed(f"{host}, {here[host]} devices")
                    told.add(host)
                if sum(here.values()) >= self._num_devices:
                    return
                check()
                if self._clock() > until_s:
                    if enough is not None and sum(here.values()) >= enough:
                        return
                    raise HostsError(
                        f"{sum(here.values())} of {self._num_devices} devices have come in "
                        f"{timeout_s:g} s: {_in_words(here)}."
                    )
                self._changed.wait(_LOOK_S)

    def challenge_of(self, host: str) -> str:
        """What a host has said when it came; nothing, if that was to another server."""
        with self._changed:
            return self._hosts[host].challenge

    def start(
        self,
        heard: Mapping[str, int],
        hosts: Mapping[str, str] | None = None,
        last_order: tuple[int, int] = (-1, -1),
        said: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Tell hosts their devices' indices; all are ready when this returns.

        Args:
            heard: name of a device -> how many releases of it have been heard before.
            hosts: who is told, and the challenge of each; all who are here, if not given.
            last_order: epoch and sequence of it.
            said: host -> the challenge that it has said last, as other threads hear it.

        Raises:
            HostRenewedError: a host has another challenge than it was told, and has not started.
            HostsError: a host is not ready, or does not answer.
        """
        indices = self.indices
        told = {h: self.challenge_of(h) for h in self.here} if hosts is None else hosts
        self._has_begun = True
        waits = {host: GivenUp() for host in told}
        with concurrent.futures.ThreadPoolExecutor(max(1, len(told))) as pool:
            telling = {}
            for host in sorted(told):
                own = {name: indices[name] for name in self._hosts[host].members}
                already = {n: heard[n] for n in own if n in heard}
                start = Start(self._terms.run_id, own, already, told[host], *last_order)
                telling[pool.submit(self._tell, host, start, waits[host])] = host
            while late := concurrent.futures.wait(telling, _LOOK_S).not_done:
                for host in (telling[one] for one in late):
                    if said.get(host, told[host]) != told[host]:
                        give_up(waits[host], _RENEWED)
        for one in telling:
            one.result()

    def _tell(self, host: str, start: Start, wait: GivenUp) -> None:
        subject = f"pz.{self._terms.run_id}.start.{host}"
        try:
            reply = self._link.request(subject, messages.encode(start), _START_S, wait)
        except EdgeError as error:
            if self._link.is_up:
                self._forget(host)  # it had its time
            is_renewed = wait.done() and wait.result() == _RENEWED
            raise (HostRenewedError if is_renewed else HostsError)(
                f"{host} cannot be started: {error}"
            ) from error
        self._forget(host)
        if reply is None:
            raise HostsError(f"{host} is not there any more.")
        try:
            answer = messages.decode(reply)
            reason = messages.refusal_of(answer)
        except WireError as error:
            raise HostsError(f"{host} cannot be started: {error}") from error
        if isinstance(answer, Refused) and answer.kind == LinkRenewedError.__name__:
            raise HostRenewedError(f"{host} cannot start: {reason}")
        if reason:
            raise HostsError(f"{host} cannot start: {reason}")

    def _forget(self, host: str) -> None:
        """A host that came back waits no longer, or is not there to."""
        with self._changed:
            self._came_back.discard(host)

    def close(self) -> None:
        """Take nobody in any more. Idempotent."""
        self._desk.close()

    def _answer(self, asker: str, message: JoiningMessage) -> JoiningMessage:
        if not isinstance(message, Knock | Hello):
            raise WireError(f"got {type(message).__name__}, wanted knock or hello")
        if message.host != asker:
            raise WireError(f"{asker} says that it is {message.host}")
        # Outside of the lock: it waits for the broker.
        instance = message.instance if isinstance(message, Hello) else None
        is_there = (
            message.host in self._hosts
            and self._hosts[message.host].instance != instance
            and self._is_there(message.host)
        )
        with self._changed:
            members: Mapping[str, Member] = message.members if isinstance(message, Hello) else {}
            reason = self._why_not(message.host, len(members), is_there)
            if isinstance(message, Knock):
                return Refused(reason) if reason else self._terms
            if reason := reason or self._what_is_wrong(message):
                return Refused(reason)
            if self._has_begun:
                # Who it is was settled then; without a promise it may have made new keys.
                members = self._hosts[message.host].members
                self._came_back.add(message.host)
            self._hosts[message.host] = Listed(
                self._clock(),
                dict(members),
                message.where,
                message.challenge,
                message.instance,
            )
            self._changed.notify_all()
        return Agreed()

    def _why_not(self, host: str, num_devices: int, is_there: bool) -> str:
        listed = self._hosts.get(host)
        if listed is not None and is_there:
            return (
                f"{host!r} is on the list already, since {self._clock() - listed.since_s:.0f} s, "
                f"with {len(listed.members)} devices (from {listed.where}). Two hosts need two "
                "names: --name."
            )
        others = {h: len(one.members) for h, one in self._hosts.items() if h != host}
        if self._has_begun:
            has_begun = f"run {self._terms.run_id} has begun with {_in_words(others)}"
            return "" if listed is not None else f"{has_begun}. Wait for the next."
        if sum(others.values()) + max(num_devices, 1) > self._num_devices:
            return (
                f"the run has {self._num_devices} devices, and {sum(others.values())} are on the "
                f"list: {_in_words(others)}. Wait for the next run, or raise "
                "federation.num_devices."
            )
        return ""

    def _what_is_wrong(self, hello: Hello) -> str:
        if hello.run_id != self._terms.run_id:
            return f"this is run {self._terms.run_id}, the host wants {hello.run_id}."
        if self._has_begun:
            return self._what_has_changed(hello)
        others = [listed for host, listed in self._hosts.items() if host != hello.host]
        known = {name for listed in others for name in listed.members}
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
        commitments = [m.commitment for listed in others for m in listed.members.values()]
        commitments += [member.commitment for member in hello.members.values()]
        if len(set(commitments)) < len(commitments):
            return "two devices have the same key: their noise would be the same."
        return ""

    def _what_has_changed(self, hello: Hello) -> str:
        """Whoever comes back is who went."""
        before = self._hosts[hello.host].members
        if set(hello.members) != set(before):
            return (
                f"{hello.host} began with devices {', '.join(sorted(before))}, and comes back with "
                f"{', '.join(sorted(hello.members)) or 'none'}. Start it with the same --data."
            )
        for name, member in sorted(hello.members.items()):
            if self._terms.is_private and member != before[name]:
                what = "key" if member.commitment != before[name].commitment else "data"
                return (
                    f"device {name!r} comes back with another {what}. Start it with the same "
                    "--state and --data; without them it cannot take part in this run again."
                )
        return ""


def _in_words(hosts: Mapping[str, int]) -> str:
    return ", ".join(f"{host} ({number})" for host, number in sorted(hosts.items())) or "nobody"
