"""``pairzero up``: a whole federation on this machine, a broker, a server and processes of devices.

It deals data and keys as ``pairzero run`` does in one process, and ends with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.task_spec import TaskSpec
from edge_runtime.tasks import Example
from radio.virtual_pluto.process import VirtualPlutoProcess
from server.commands.policy import policy_text
from server.commands.run import check_page, folder_of
from server.commands.serve import (
    carry_out,
    has_begun,
    hosts_of,
    receiver_of,
    roster_of,
    run_terms,
)
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.hosts.broker import Broker
from server.hosts.processes import HostProcesses
from server.hosts.remote_hosts import check_can_be_remote
from server.planning.device_policy import policy_of, proved_epsilon
from server.planning.privacy_terms import csi_delta, plan_privacy_terms
from server.run.data import RunData, bundle_folder, deal_examples, load_run_data
from server.run.names import new_run_id

_JOIN_S = 300.0
_PAUSE_S = 60.0
_MOST_PROCESSES = 64


def up(args: argparse.Namespace) -> int:
    """Carry out a run over processes; returns the exit code."""
    check_page(args)
    begun = has_begun(args)
    config: RunConfig = args.asked_for if begun is None else begun.config
    check_can_be_remote(config)
    num_devices = config.federation.num_devices
    num_processes = num_devices if args.processes is None else args.processes
    if begun is not None:
        num_processes = len(begun.listed)
    if not 1 <= num_processes <= min(num_devices, _MOST_PROCESSES):
        raise ConfigurationError(
            f"--processes: got {num_processes}, wanted 1 to {min(num_devices, _MOST_PROCESSES)}, "
            "with one device in each at least."
        )
    folder = folder_of(args) if begun is None else args.resume
    data = load_run_data(config)
    run_id = new_run_id(config.task.name) if begun is None else begun.run_id
    # A run without a promise draws its batches by its seed, as in one process.
    seed = None if config.privacy.has_system_keys else config.run.seed
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="pairzero-up-")))
        broker = opened.enter_context(Broker())
        link = opened.enter_context(contextlib.closing(NatsLink(broker.url, "server")))
        terms = run_terms(config, data, run_id, seed=seed)
        roster = opened.enter_context(contextlib.closing(roster_of(link, config, terms, begun)))
        radios = _radios(config, opened)
        processes = opened.enter_context(HostProcesses(scratch))
        policies = _policies(config, data)
        for host, dealt in _shares(
            deal_examples(config.task, num_devices, config.run.seed), num_processes
        ).items():
            _write(scratch / host, dealt, data.task)
            if policies:
                _write_policies(scratch / f"{host}-policies", dealt, policies)
            processes.start(
                host,
                ["join", broker.url, "--name", host, "--data", str(scratch / host),
                 "--state", str(folder / host), *_agreed(scratch / f"{host}-policies"),
                 "--bundle", str(bundle_folder(config.model.bundle)),
                 "--prefix-cache", str(config.model.prefix_cache_mb),
                 *_radio_of_each(config, radios, dealt),
                 "--simulated-keys", "--until-input-ends"],
            )  # fmt: skip
        roster.wait_for_all(_JOIN_S, check=processes.check)
        hosts = hosts_of(
            link,
            roster,
            config,
            begun,
            receiver=receiver_of(config, radios[0]) if radios else None,
            patience_s=_PAUSE_S,
            check=processes.check,
        )
        code = carry_out(hosts, data, folder, args)
        processes.wait()
    return code


def _radios(config: RunConfig, opened: contextlib.ExitStack) -> list[str]:
    """URIs of the receiver and then of every device's radio; none where the server plays the air.

    Args:
        config: of the run.
        opened: keeps virtual ones served.
    """
    if config.radio.backend == "virtual-pluto":
        return opened.enter_context(VirtualPlutoProcess(config.bench)).uris
    if config.radio.backend == "pluto":
        config.pluto.check_has_all(config.federation.num_devices)
        return [config.pluto.receiver, *config.pluto.devices]
    return []


def _radio_of_each(config: RunConfig, radios: Sequence[str], names: Iterable[str]) -> list[str]:
    """What a host is told of its devices' radios."""
    told = []
    for name in names if radios else ():
        told += ["--radio", f"{name}={radios[1 + int(name)]}"]
        if config.pluto.xo_corrections:
            told += ["--xo-correction", f"{name}={config.pluto.xo_corrections[int(name)]}"]
    return told


def _policies(config: RunConfig, data: RunData) -> dict[int, str]:
    """Number of records -> the policy of who holds so many; none where nothing is promised."""
    if not config.privacy.enabled:
        return {}
    num_records = [len(prompts) for prompts in data.device_prompts]
    terms = plan_privacy_terms(config, num_records, [""] * len(num_records))
    texts = {}
    for number in set(num_records):
        found = policy_of(config, terms, number)
        texts[number] = policy_text(found, number, proved_epsilon(found, csi_delta(config, 1)))
    return texts


def _write_policies(
    folder: Path, dealt: dict[str, Sequence[Example]], policies: dict[int, str]
) -> None:
    folder.mkdir()
    for name, examples in dealt.items():
        (folder / f"{name}.toml").write_text(policies[len(examples)], encoding="utf-8")


def _agreed(policies: Path) -> list[str]:
    """What a host is told of its owners' policies; nothing where nothing is promised."""
    return ["--policy", str(policies)] if policies.is_dir() else []


def _shares(
    parts: Sequence[Sequence[Example]], num_processes: int
) -> dict[str, dict[str, Sequence[Example]]]:
    """Host -> name of each of its devices -> its examples; neighbours share a host."""
    digits = len(str(len(parts) - 1))
    names = [f"{index:0{digits}d}" for index in range(len(parts))]
    per_host: dict[str, dict[str, Sequence[Example]]] = {}
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        host = f"host-{index * num_processes // len(parts)}"
        per_host.setdefault(host, {})[name] = part
    return per_host


def _write(folder: Path, dealt: dict[str, Sequence[Example]], task: TaskSpec) -> None:
    """A file for each device, as an owner would have it."""
    folder.mkdir()
    for name, examples in dealt.items():
        lines = [f"{task.labels[e.label_index]}\t{e.text}\n" for e in examples]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
