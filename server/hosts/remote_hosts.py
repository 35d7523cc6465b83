"""The devices of a run, on hosts of their own: who they are, orders to them, the air between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.over_nats import NatsChannel
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.rounds import Access, BandLevels, PacketLevels, TransmitOrder
from edge_runtime.protocol.wire import MAX_BODY_BYTES
from edge_runtime.uplink import ScalarBox
from radio.transceiver import Transceiver
from server.air.link import RadioLink, ideal_air, played_link
from server.config.plan_config import PlanConfig
from server.errors import ConfigurationError
from server.hosts.played_air import PlayedAirServer
from server.hosts.roster import Roster

_REST_OF_A_PLAN = 1024
"""Bytes: what is in a plan beside the orders, with some room."""


class RemoteHosts:
    """The server's side of hosts that are all on the list.

    Args:
        link: to the broker; it stays its owner's.
        roster: of the run, complete.
        run_id: of the run.
        deadline_s: how long answers to an order are waited for.
    """

    def __init__(self, link: NatsLink, roster: Roster, run_id: str, deadline_s: float) -> None:
        self._roster = roster
        self._link, self.run_id = link, run_id
        self.control = NatsChannel(link, run_id, roster.hosts, deadline_s=deadline_s)
        self._air: PlayedAirServer | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """What each device says of itself, by index."""
        return self._roster.members

    def keep_keys(self, folder: Path) -> None:
        """The hosts keep their own."""

    def open_air(self, config: PlanConfig) -> RadioLink:
        """The server's end of the air, which it plays."""
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

    def start(self, heard: Mapping[str, int]) -> None:
        """All hosts are ready for the first order when this returns.

        Raises:
            HostsError: one is not.
        """
        self._roster.start(heard)

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
    if config.radio.has_plutos:
        raise ConfigurationError(
            f'radio.backend = "{config.radio.backend}": hosts of their own have no radios yet. Set '
            'radio.backend = "loopback" or "ideal", or use pairzero run, in one process.'
        )
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
