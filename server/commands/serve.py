"""``pairzero serve``: the server of a run whose devices are on hosts of their own."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import msgspec

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining.messages import AirTerms, RunTerms
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import PacketsSideBySide
from radio.waveforms.slotted import SlottedWaveform
from server.air.link import waveform_of
from server.commands.run import finish, folder_of
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.hosts.broker import Broker
from server.hosts.remote_hosts import RemoteHosts, check_can_be_remote
from server.hosts.roster import Roster
from server.report.terminal import ProgressPrinter
from server.run.data import RunData, load_run_data
from server.run.experiment import Experiment
from server.run.names import new_run_id
from server.run.round_loop import example_plan

_LONGEST_WAIT_S = 1e6


def serve(args: argparse.Namespace) -> int:
    """Wait for the devices, and carry the run out with them; returns the exit code."""
    config: RunConfig = args.asked_for
    check_can_be_remote(config)
    if config.privacy.has_simulated_keys:
        raise ConfigurationError(
            'privacy.noise_source = "simulation": such noise can be undone by whoever knows the '
            "configuration, so devices of others do not take part with it. Set "
            '"system"; `pairzero up` rehearses with simulated keys on one machine.'
        )
    if not 0.0 < args.wait <= _LONGEST_WAIT_S:
        raise ConfigurationError(
            f"--wait: got {args.wait:g}, wanted seconds, 0 to {_LONGEST_WAIT_S:g}."
        )
    folder = folder_of(args)
    data = load_run_data(config, deals=False)
    run_id, num_devices = new_run_id(config.task.name), config.federation.num_devices
    with contextlib.ExitStack() as opened:
        url = args.broker
        if url is None:
            url = opened.enter_context(Broker()).url
        link = opened.enter_context(contextlib.closing(NatsLink(url, "server")))
        terms = run_terms(config, data, run_id)
        roster = opened.enter_context(contextlib.closing(Roster(link, terms, num_devices)))
        policy = " --policy POLICY.toml" if config.privacy.enabled else ""
        _say(f"run {run_id} waits for {num_devices} devices. On each host:")
        _say(f"  pairzero-device join {url} --name NAME --data FILE{policy}")
        roster.wait_for_all(args.wait, on_listed=lambda text: _say(f"  {text}"))
        return carry_out(
            RemoteHosts(link, roster, run_id, config.federation.deadline_s), data, folder, args
        )


def carry_out(hosts: RemoteHosts, data: RunData, folder: Path, args: argparse.Namespace) -> int:
    """The run, now that all of its devices are there; returns the exit code."""
    printer = ProgressPrinter(sys.stderr if args.json else sys.stdout)
    with contextlib.closing(hosts):
        experiment = Experiment.start(
            args.asked_for, folder, has_to_learn=not args.force, hosts=hosts, data=data
        )
        return finish(experiment, folder, printer, args)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    return RunTerms(
        run_id=run_id,
        bundle_digest=data.bundle.digest,
        task=msgspec.structs.replace(data.task, train="", validation=""),
        max_tokens=config.task.max_tokens,
        trainable=tuple(config.model.trainable),
        example=example_plan(config, run_id),
        rounds=config.optimizer.rounds,
        is_private=config.privacy.enabled,
        air=_air(config),
        simulated_seed=seed,
    )


def _air(config: RunConfig) -> AirTerms | None:
    if config.radio.backend == "ideal":
        return None
    waveform, radio = waveform_of(config), config.radio
    return AirTerms(
        sample_rate_hz=radio.rate_hz,
        max_amplitude=radio.max_amplitude,
        coherent=waveform if isinstance(waveform, CoherentWaveform) else None,
        energy=waveform if isinstance(waveform, EnergyWaveform) else None,
        packets=waveform if isinstance(waveform, SlottedWaveform) else None,
        side_by_side=waveform if isinstance(waveform, PacketsSideBySide) else None,
    )
