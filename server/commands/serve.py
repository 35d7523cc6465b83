"""``pairzero serve``: the server of a run whose devices are on hosts of their own."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime.control.bundle_store import publish
from edge_runtime.control.credentials import SUFFIX, Credentials
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.seal import SERVER
from edge_runtime.joining.messages import AirTerms, PlutoTerms, RunTerms
from edge_runtime.protocol.members import Member
from radio import logs
from radio.pluto.settings import PlutoSettings
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import PacketsSideBySide
from radio.waveforms.slotted import SlottedWaveform
from server.air.link import waveform_of
from server.commands.run import check_page, finish, folder_of
from server.commands.settings import overrides
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.hosts.broker import CONFIGURATION_FILE, Broker
from server.hosts.remote_hosts import RemoteHosts, check_can_be_remote
from server.hosts.roster import Roster
from server.report.terminal import ProgressPrinter
from server.run.data import RunData, load_run_data
from server.run.experiment import Experiment
from server.run.names import new_run_id
from server.run.round_loop import example_plan
from server.store.run_store import RunStore

_logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 1e6


def serve(args: argparse.Namespace) -> int:
    """Wait for the devices, and carry the run out with them; returns the exit code."""
    if not 0.0 < args.wait <= _LONGEST_WAIT_S:
        raise ConfigurationError(
            f"--wait: got {args.wait:g}, wanted seconds, 0 to {_LONGEST_WAIT_S:g}."
        )
    check_page(args)
    begun = has_begun(args)
    config: RunConfig = args.asked_for if begun is None else begun.config
    _check_can_be_served(config)
    folder = folder_of(args) if begun is None else args.resume
    data = load_run_data(config, deals=False)
    run_id = new_run_id(config.task.name) if begun is None else begun.run_id
    with contextlib.ExitStack() as opened:
        link, join_with = _link_of(args, opened)
        roster = opened.enter_context(
            contextlib.closing(roster_of(link, config, run_terms(config, data, run_id), begun))
        )
        publish(link, data.bundle)  # for hosts that have another
        policy = " --policy POLICY.toml" if config.privacy.enabled else ""
        radio = " --radio URI" if config.radio.has_plutos else ""
        _say(f"run {run_id} waits for {config.federation.num_devices} devices. On each host:")
        _say(f"  pairzero-device join {join_with} --data FILE{policy}{radio}")
        roster.wait_for_all(
            args.wait,
            None if begun is None else config.federation.min_speakers,
            on_listed=lambda text: _say(f"  {text}"),
        )
        hosts = hosts_of(
            link,
            roster,
            config,
            begun,
            receiver=receiver_of(config, config.pluto.receiver),
            are_radios_new=begun is None,
            patience_s=args.wait,
        )
        return carry_out(hosts, data, folder, args)


def _link_of(args: argparse.Namespace, opened: contextlib.ExitStack) -> tuple[NatsLink, str]:
    """To a broker, which is started where none is named; and what a host joins it with."""
    url = args.broker
    if args.credentials is None:
        if url is None:
            url = opened.enter_context(Broker()).url
        link, join_with = NatsLink(url, SERVER), f"{url} --name NAME"
    else:
        if url is None:
            opened.enter_context(Broker(args.credentials / CONFIGURATION_FILE))
        file = args.credentials / f"{SERVER}{SUFFIX}"
        credentials = Credentials(file, () if url is None else (_address_of(url),))
        link, join_with = NatsLink(None, SERVER, credentials=credentials), f"NAME{SUFFIX}"
    return opened.enter_context(contextlib.closing(link)), join_with


def _address_of(url: str) -> str:
    scheme, _, address = url.partition("://")
    if scheme not in ("nats", "tls") or not address.rpartition(":")[2].isdigit():
        raise ConfigurationError(f"--broker: got {url!r}, wanted tls://HOST:PORT.")
    return address


def _check_can_be_served(config: RunConfig) -> None:
    check_can_be_remote(config)
    if config.radio.backend == "virtual-pluto":
        raise ConfigurationError(
            'radio.backend = "virtual-pluto" starts radios for this machine alone: use pairzero '
            'up. Over hosts of their own set radio.backend = "pluto" and pluto.receiver; virtual '
            "radios for them come from pairzero-radio virtual-pluto."
        )
    if config.pluto.devices or config.pluto.xo_corrections:
        raise ConfigurationError(
            "pluto.devices, pluto.xo_corrections: each host names its own radio (pairzero-device "
            "join --radio URI --xo-correction HZ). Leave them out."
        )
    if config.privacy.has_simulated_keys:
        raise ConfigurationError(
            'privacy.noise_source = "simulation": such noise can be undone by whoever knows the '
            "configuration, so devices of others do not take part with it. Set "
            '"system"; `pairzero up` rehearses with simulated keys on one machine.'
        )


@dataclass(frozen=True, slots=True)
class Begun:
    """A run over hosts that was interrupted.

    Attributes:
        config: of the run.
        run_id: of the run.
        listed: host -> name of each of its devices -> what it has said of itself.
        epoch: of the server that goes on with it.
    """

    config: RunConfig
    run_id: str
    listed: dict[str, dict[str, Member]]
    epoch: int


def has_begun(args: argparse.Namespace) -> Begun | None:
    """The run that --resume names; None for a new one.

    Raises:
        ConfigurationError: it has ended, or has no hosts of its own; or other settings are given.
        RunStoreError: there is none.
    """
    if args.resume is None:
        return None
    if args.config is not None or args.out is not None or overrides(args):
        raise ConfigurationError(
            "--resume continues a run as it was planned, in its own folder; it takes no other "
            "settings, and no --out."
        )
    store = RunStore.open_to_read(args.resume)
    try:
        if store.outcome.is_final:
            raise ConfigurationError(
                f"{args.resume}: the run has ended ({store.outcome}). There is nothing to "
                f"continue; pairzero report {args.resume} shows it."
            )
        if not (listed := store.meta("hosts")):
            raise ConfigurationError(
                f"{args.resume}: its devices are in one process. Go on with: pairzero run --resume "
                f"{args.resume}"
            )
        return Begun(
            store.config(), str(store.meta("run_id")), listed, (store.meta("epoch") or 0) + 1
        )
    finally:
        store.close()


def roster_of(link: NatsLink, config: RunConfig, terms: RunTerms, begun: Begun | None) -> Roster:
    """The list of a new run, or of one that goes on."""
    listed = {} if begun is None else begun.listed
    return Roster(link, terms, config.federation.num_devices, listed=listed)


def hosts_of(
    link: NatsLink,
    roster: Roster,
    config: RunConfig,
    begun: Begun | None,
    *,
    receiver: PlutoSettings | None = None,
    are_radios_new: bool = True,
    patience_s: float,
    check: Callable[[], None] = lambda: None,
) -> RemoteHosts:
    """The devices on the list, as the run has them."""
    return RemoteHosts(
        link,
        roster,
        config.federation.deadline_s,
        epoch=0 if begun is None else begun.epoch,
        receiver=receiver,
        are_radios_new=are_radios_new,
        min_devices=config.federation.min_speakers,
        patience_s=patience_s,
        check=check,
    )


def carry_out(hosts: RemoteHosts, data: RunData, folder: Path, args: argparse.Namespace) -> int:
    """The run, now that its devices are there; returns the exit code."""
    printer = ProgressPrinter(sys.stderr if args.json else sys.stdout)
    with contextlib.closing(hosts):
        if args.resume is None:
            experiment = Experiment.start(
                args.asked_for, folder, has_to_learn=not args.force, hosts=hosts, data=data
            )
        else:
            experiment = Experiment.resume(folder, hosts=hosts)
        return finish(experiment, folder, printer, args)


def _say(text: str) -> None:
    logs.tell(_logger, text)


def run_terms(
    config: RunConfig, data: RunData, run_id: str, *, seed: int | None = None
) -> RunTerms:
    """What every host is told of a run.

    Args:
        config: of the run.
        data: its model and task.
        run_id: of the run.
        seed: from which hosts derive their keys; None, and they make their own.
    """
    moved = config.model.trainable
    return RunTerms(
        run_id=run_id,
        bundle_digest=data.bundle.digest,
        task=msgspec.structs.replace(data.task, train="", validation=""),
        max_tokens=config.task.max_tokens,
        trainable=(moved,) if isinstance(moved, str) else tuple(moved),
        example=example_plan(config, run_id),
        rounds=config.optimizer.rounds,
        is_private=config.privacy.enabled,
        air=air_terms(config),
        simulated_seed=seed,
    )


def receiver_of(config: RunConfig, uri: str) -> PlutoSettings | None:
    """How the server's own radio is set; None where it plays the air."""
    if not config.radio.has_plutos:
        return None
    return config.pluto.settings([uri], config.radio)[0]


def _pluto(config: RunConfig) -> PlutoTerms | None:
    # What the receiver is set to everybody is, whatever its address.
    common = receiver_of(config, "ip:127.0.0.1")
    if common is None:
        return None
    return PlutoTerms(
        carrier_hz=common.carrier_hz,
        rf_bandwidth_hz=common.rf_bandwidth_hz,
        tx_attenuation_db=common.tx_attenuation_db,
        max_hold_s=common.max_hold_s,
    )


def air_terms(config: RunConfig) -> AirTerms | None:
    """What every host is told of a run's radio; None for the link without one."""
    if config.radio.backend == "ideal":
        return None
    waveform, radio = waveform_of(config), config.radio
    return AirTerms(
        sample_rate_hz=radio.rate_hz,
        max_amplitude=radio.max_amplitude,
        pluto=_pluto(config),
        coherent=waveform if isinstance(waveform, CoherentWaveform) else None,
        energy=waveform if isinstance(waveform, EnergyWaveform) else None,
        packets=waveform if isinstance(waveform, SlottedWaveform) else None,
        side_by_side=waveform if isinstance(waveform, PacketsSideBySide) else None,
    )
