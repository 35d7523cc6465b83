"""The devices of a run, on hosts of their own: who they are, orders to them, the air between.

A host may go, and come back. Who does not answer is away: its devices are not counted on any more,
and pay nothing. Who is back has caught up from the log, and takes part again when its digest is the
server's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.control.over_nats import NatsChannel
from edge_runtime.control.step_log import StepLog
from edge_runtime.joining import messages
from edge_runtime.joining.messages import RadioNote
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.rounds import (
    Access,
    BandLevels,
    DigestRequest,
    PacketLevels,
    RoundResult,
    RunEnded,
    TransmitOrder,
)
from edge_runtime.protocol.wire import MAX_BODY_BYTES
from edge_runtime.uplink import ScalarBox
from radio.pluto.settings import PlutoSettings
from radio.transceiver import Transceiver
from server.air.link import RadioLink, ideal_air, listening_link, played_link
from server.config.plan_config import PlanConfig
from server.errors import (
    ConfigurationError,
    HostRenewedError,
    HostsError,
    HostsMissingError,
)
from server.hosts.own_radios import OwnRadios
from server.hosts.played_air import PlayedAirServer
from server.hosts.roster import Roster
from server.hosts.standing import HostStanding, RadioState

_logger = logging.getLogger(__name__)

_REST_OF_A_PLAN = 1024
"""Bytes: what is in a plan beside the orders, with some room."""

_LOOK_S = 0.1
_HELLO_S = 1.0
_STARTS = 60


class RemoteHosts:
    """The server's side of hosts that are all on the list.

    Args:
        link: to the broker; it stays its owner's.
        roster: of the run, complete.
        deadline_s: how long answers to an order are waited for.
        epoch: of this server's life; larger than any before.
        receiver: how the server's radio is set, where devices have radios of their own.
        are_radios_new: whether nobody can hold anything on them yet.
        min_devices: with fewer there the run pauses.
        patience_s: how long.
        check: called while it does; what it raises ends the run.
    """

    def __init__(
        self,
        link: NatsLink,
        roster: Roster,
        deadline_s: float,
        *,
        epoch: int = 0,
        receiver: PlutoSettings | None = None,
        are_radios_new: bool = True,
        min_devices: int = 1,
        patience_s: float = 0.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._roster = roster
        self._link, self.run_id, self.epoch = link, roster.run_id, epoch
        self.control = NatsChannel(
            link, roster.run_id, roster.hosts, deadline_s=deadline_s, epoch=epoch
        )
        self.control.on_gone = self._silence
        self._min_devices, self._patience_s, self._check = min_devices, patience_s, check
        self._receiver, self._are_radios_new = receiver, are_radios_new
        self._air: PlayedAirServer | OwnRadios | None = None
        self._log: StepLog | None = None
        self._heard: Callable[[], Mapping[str, int]] = dict
        self._awaited: frozenset[str] = frozenset()
        self._started_with: dict[str, str] = {}
        self._radios: dict[int, RadioState] = {}
        self.is_pausing = False
        link.subscribe(f"pz.{roster.run_id}.radio.*", self._note_radio)

    @property
    def standing(self) -> tuple[HostStanding, ...]:
        """How each host stands; from any thread."""
        return tuple(
            HostStanding(
                name=host,
                devices=tuple(devices),
                is_here=host in self.control.present,
                away_s=self._away_s(host),
                radios={k: self._radios[k] for k in devices if k in self._radios},
            )
            for host, devices in self._roster.hosts.items()
        )

    def _away_s(self, host: str) -> int | None:
        heard_s = self.control.heard_s.get(host)
        if host in self.control.present or heard_s is None:
            return None
        return int(time.monotonic() - heard_s)

    def _note_radio(self, subject: str, data: bytes, reply: Reply | None) -> None:
        host = subject.rsplit(".", 1)[-1]
        try:
            note = messages.decode(data)
        except WireError as error:
            _logger.warning("%s: a note of its radio that is none: %s", host, error)
            return
        if isinstance(note, RadioNote) and note.device_index in self._roster.hosts.get(host, ()):
            self._radios[note.device_index] = RadioState(
                temperature_c=note.temperature_c, num_underflows=note.num_underflows
            )

    @property
    def members(self) -> tuple[Member, ...]:
        """What each device says of itself, by index."""
        return self._roster.members

    def keep_keys(self, folder: Path) -> None:
        """The hosts keep their own."""

    def open_air(self, config: PlanConfig) -> RadioLink:
        """The server's end of the air, which it plays unless devices have radios of their own."""
        if self._receiver is not None:
            own = OwnRadios(
                self._link,
                self.run_id,
                self.control,
                self._roster.hosts,
                max_hold_s=config.radio.max_hold_s,
                may_be_held=not self._are_radios_new,
            )
            self._air = own
            return listening_link(config, self._receiver, own.wait_until_silent)
        box: ScalarBox | None = None
        radios: tuple[Transceiver, ...] = ()
        if config.radio.backend == "ideal":
            box = ScalarBox()
            link = RadioLink(uplinks=(), air=ideal_air(config, box), noise_symbols=1)
        else:
            link, radios = played_link(config, config.run.seed)
        self._air = PlayedAirServer(
            self._link,
            self.run_id,
            self.control,
            self._roster.hosts,
            num_numbers=config.optimizer.directions,
            box=box,
            radios=radios,
        )
        return link

    @property
    def listed(self) -> dict[str, dict[str, Member]]:
        """Host -> name of each of its devices -> what it says of itself."""
        return self._roster.listed

    def start(
        self,
        steps: Callable[[int], Sequence[RoundResult]],
        heard: Callable[[], Mapping[str, int]],
    ) -> None:
        """All hosts that are here are ready for their first order when this returns.

        Args:
            steps: those that the store holds, from a round on.
            heard: device -> how many releases of it have been heard.

        Raises:
            LinkError: the broker keeps no log, or another one's.
            HostsError: a host is not ready.
        """
        self._heard = heard
        self._log = StepLog(self._link, self.run_id, steps)
        here = self._roster.here
        if self.epoch:
            # Whether they hold these weights, each has to prove.
            self.control.let_go(self.control.hosts)
            self._awaited = frozenset(here)
        else:
            self._start_all(here)

    def note(self, result: RoundResult) -> None:
        """A step for the log."""
        if self._log is not None:
            self._log.append(result)

    def gather(
        self, num_rounds: int, digest: Callable[[], str], should_stop: Callable[[], bool]
    ) -> bool:
        """Take back whoever has come back; pause while too few are there.

        Raises:
            HostsMissingError: they have not come in time; the message says who is missing.
            HostsError: they cannot come.
        """
        has_changed = self._take_back(num_rounds, digest)
        until_s = time.monotonic() + self._patience_s
        is_told = False
        while (few := self._too_few()) or not self._awaited <= set(self.control.present):
            self.is_pausing = bool(few)
            if few and not is_told:
                _logger.warning("round %d: %s. The run pauses", num_rounds, few)
                is_told = True
            self._check()
            is_late = time.monotonic() > until_s
            if few and is_late:
                raise HostsMissingError(
                    f"round {num_rounds}: {few} (federation.min_speakers), and have not come "
                    f"in {self._patience_s:g} s. What was paid stays paid. See whether they and "
                    "the network are up, and continue with --resume."
                )
            if is_late or should_stop():
                break
            time.sleep(_LOOK_S)
            has_changed = self._take_back(num_rounds, digest) or has_changed
        self._awaited, self.is_pausing = frozenset(), False
        return has_changed

    def _too_few(self) -> str:
        """Who is missing, where too few are there; else nothing."""
        here = len(self.control.devices_of(self.control.present))
        if here >= self._min_devices:
            return ""
        missing = ", ".join(self.control.away)
        return f"{here} devices are there, wanted {self._min_devices}; {missing} are missing"

    def end(self, num_rounds: int) -> None:
        """Whoever is away now, and there all the same, is told that there are no more rounds."""
        self.control.tell(RunEnded(self.run_id, num_rounds), self.control.away)
        if self._log is not None:
            try:
                self._log.remove()
            except LinkError as error:
                _logger.warning("the run's log stays on the broker: %s", error)

    def _take_back(self, num_rounds: int, digest: Callable[[], str]) -> bool:
        if not (self._roster.came_back or self._renewed or self.control.back):
            return False
        assert self._log is not None
        try:
            self._log.bring_up()
        except LinkError as error:
            _logger.warning("round %d: %s", num_rounds, error)
            return False
        for host in (*self._roster.came_back, *self._renewed):
            self.control.let_go([host])
            try:
                self._start([host])
            except HostsError as error:
                _logger.warning("round %d: %s", num_rounds, error)
        return any([self._has_proved(host, num_rounds, digest) for host in self.control.back])

    @property
    def _renewed(self) -> tuple[str, ...]:
        """Hosts whose link was lost, or that have outlived a server: they ask for a proof."""
        return tuple(
            host
            for host, challenge in sorted(self.control.challenges.items())
            if self._started_with.get(host) != challenge
        )

    def _has_proved(self, host: str, num_rounds: int, digest: Callable[[], str]) -> bool:
        """Whether a host holds the weights that the server holds; then it is not away any more."""
        answers = self.control.ask(DigestRequest(self.run_id, num_rounds), [host])
        for refusal in answers.refusals.values():
            _logger.warning("%s does not come back: %s", host, refusal.reason)
        for report in answers.digests:
            own = digest()
            if report.round_index == num_rounds - 1 and report.parameter_digest == own:
                self.control.welcome(host)
                _logger.warning("round %d: %s is back", num_rounds, host)
                return True
            _logger.warning(
                "%s does not come back: it holds weights %s after %d rounds, the server %s after "
                "%d. Delete its journal in the folder of its --state, and start it again",
                host, report.parameter_digest[:16], report.round_index + 1, own[:16],
                num_rounds,
            )  # fmt: skip
            self._awaited -= {host}
        self.control.let_go([host])  # until it says again that it waits
        return False

    def _start_all(self, hosts: Sequence[str]) -> None:
        """Start hosts; whoever has lost its link since its hello says another."""
        for tries in range(_STARTS):
            try:
                self._start(hosts)
            except HostRenewedError as error:
                if tries + 1 == _STARTS:
                    raise
                _logger.warning("%s Told again.", error)
                time.sleep(_HELLO_S)
            else:
                return

    def _start(self, hosts: Sequence[str]) -> None:
        heard = self._heard()
        by_name = {n: heard[str(i)] for n, i in self._roster.indices.items() if str(i) in heard}
        came_back = self._roster.came_back
        for host in hosts:
            said = self.control.challenges.get(host)
            if said is None or host in came_back:
                said = self._roster.challenge_of(host)
            self._started_with[host] = self.control.challenges[host] = said
        told = {host: self._started_with[host] for host in hosts}
        try:
            self._roster.start(by_name, told, self.control.last_order, self.control.challenges)
        except HostRenewedError:
            raise
        except HostsError:
            for host in told:  # when one says again that it waits, it is told again
                self.control.challenges.pop(host, None)
                self._started_with.pop(host, None)
            raise

    def _silence(self, hosts: Iterable[str]) -> None:
        if self._air is not None:
            self._air.silence(hosts)

    def close(self) -> None:
        """Let the air go. Idempotent."""
        if self._air is not None:
            self._air.close()
            self._air = None


def _order_bytes(config: PlanConfig) -> int:
    """The largest order to one device."""
    bands = packet = None
    if config.radio.waveform.adds_powers:
        bands = BandLevels((0.1,) * (2 * config.optimizer.directions), 0.1)
    elif not config.radio.waveform.superposes:
        packet = PacketLevels(0.1, 0.1)
    order = TransmitOrder(config.federation.num_devices, 0.1, 0.1, 0.1, bands, packet)
    return len(msgspec.msgpack.encode(order))


def check_can_be_remote(config: PlanConfig) -> None:
    """Return if devices on hosts of their own can carry a run.

    Raises:
        ConfigurationError: they cannot yet; the message says what can.
    """
    bytes_needed = config.federation.num_devices * _order_bytes(config)
    if bytes_needed > MAX_BODY_BYTES - _REST_OF_A_PLAN:
        most = (MAX_BODY_BYTES - _REST_OF_A_PLAN) // _order_bytes(config)
        raise ConfigurationError(
            f"federation.num_devices: orders of a round to {config.federation.num_devices} devices "
            f"take {bytes_needed:,} bytes, a message has {MAX_BODY_BYTES:,}. At most {most} "
            "devices with so many numbers each."
        )
    if config.privacy.has_system_keys and config.access is Access.SUPERPOSED:
        raise ConfigurationError(
            'privacy.noise_source = "system": over an air that the server plays it sees each '
            "device alone, so nobody's noise covers another. Use a waveform whose devices are "
            'covered by their own (radio.waveform = "energy"), or "simulation".'
        )
