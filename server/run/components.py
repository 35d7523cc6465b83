"""Assembly: a run's data, radio and devices, built each in its own place, connected here.

Nothing in it writes to the disk, so whatever is wrong with a request is found before a run folder
exists.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.guard.guard import Guard
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import keep_prefixes
from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.processors import usable_processors
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.rounds import RoundResult
from edge_runtime.tasks import Batch
from server.air.base import Air
from server.air.channel_simulation import ScalarTruth
from server.air.link import RadioLink, build_radio_link
from server.config.learning import RunSection
from server.config.plan_config import PlanConfig
from server.config.privacy import PrivacySection
from server.config.run_config import RunConfig
from server.errors import PrivacyError
from server.planning.privacy_terms import WHOLE_RUN, PrivacyTerms, Stretch, plan_privacy_terms
from server.run.crew import Crew, SteadyCrew
from server.run.data import RunData
from server.run.local_host import LocalHost, build_agent
from server.store.run_store import RunStore

if TYPE_CHECKING:
    # At run time it needs the client of a broker, which one process does without.
    from server.hosts.remote_hosts import RemoteHosts

_EVALUATION_BATCH = 50


HeardReleases = Callable[[], Mapping[str, int]]
"""Device -> how many releases of it the server has heard by now."""

Begin = Callable[[RunStore, HeardReleases], None]
"""Called before the first order: from then on the devices are ready, and guard themselves."""


@dataclass(frozen=True, slots=True)
class RunComponents:
    """Everything that takes part in a run, connected, but not yet written down anywhere."""

    control: ControlChannel
    begin: Begin
    crew: Crew
    link: RadioLink
    truth: ScalarTruth
    replica: ParameterStore
    forward: OnnxForward
    validation: tuple[Batch, ...]
    own_forward: OnnxForward | None = None

    def keep_prefixes(
        self, folder: Path, max_mb: int, max_tokens: int, known: PrefixCache | None
    ) -> PrefixCache | None:
        """Keep what frozen layers give, for devices and replica alike; see `pass_shapes`.

        Args:
            folder: of the run, or where that will be made; no file of it has a name.
            max_mb: of that file; 0 keeps nothing.
            max_tokens: of a prompt.
            known: what an earlier run of this process kept.
        """
        there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        kept = keep_prefixes(self.forward, there, max_mb * 10**6, max_tokens, known)
        if kept is not None and self.own_forward is not None:
            self.own_forward.keep_prefixes(kept)
        return kept

    def close(self) -> None:
        """Silence radios and stop threads; everything is tried, whatever fails."""
        with contextlib.ExitStack() as ends:
            ends.callback(self.replica.close)
            ends.callback(self.forward.close)
            ends.callback(self.link.close)
            ends.callback(self.control.close)


def connect(
    config: RunConfig,
    data: RunData,
    host: LocalHost | RemoteHosts,
    terms: PrivacyTerms | None,
    run_id: str,
) -> RunComponents:
    """Build weights, devices, radio and receiver.

    The devices share one copy of the weights; the server's replica has its own of those that move,
    so that comparing their digests means something.

    Raises:
        EdgeError, RadioError, PrivacyError: what does not fit together.
    """
    if not isinstance(host, LocalHost):
        link = host.open_air(config)
    else:
        link = build_radio_link(config, host.software_noise_seed)
    try:
        _check_keys_fit(config.privacy, link.air)
        if not isinstance(host, LocalHost):
            return _connect_to_hosts(link, config, data, host)
        return _connect_to(link, config, data, host, terms, run_id)
    except BaseException:
        link.close()
        raise


def _connect_to(
    link: RadioLink,
    config: RunConfig,
    data: RunData,
    host: LocalHost,
    terms: PrivacyTerms | None,
    run_id: str,
) -> RunComponents:
    weights = _weights(data, config.model.trainable, config.run)
    replica = weights.replica(_num_workers(config.run))
    forward = _forward_on(weights, data, config.run)
    truth = ScalarTruth(config.vote, config.optimizer.vote_value)
    weights.check_perturbation_scale(2.0**config.optimizer.perturbation_scale_log2)
    agent = build_agent(
        config,
        max_tokens=config.task.max_tokens,
        run_id=run_id,
        prompts=host.prompts,
        keys=host.keys,
        uplinks=link.uplinks,
        terms=terms,
        weights=weights,
        forward=forward,
        vocab_size=int(data.bundle.manifest.architecture["vocab_size"]),
        # Scalars before noise are written down only where nothing is promised to anybody.
        observe_scalar=None if config.privacy.has_system_keys else truth.observe,
    )
    return RunComponents(
        control=InProcessChannel(run_id, [HostEnd(agent)]),
        begin=functools.partial(_guard_themselves, agent),
        crew=SteadyCrew(),
        link=link,
        truth=truth,
        replica=replica,
        forward=_forward_on(replica, data, config.run),
        validation=_validation_batches(data),
        own_forward=forward,
    )


def _connect_to_hosts(
    link: RadioLink, config: RunConfig, data: RunData, hosts: RemoteHosts
) -> RunComponents:
    replica = _weights(data, config.model.trainable, config.run)
    return RunComponents(
        control=hosts.control,
        begin=functools.partial(_start_hosts, hosts),
        crew=hosts,
        link=link,
        # What devices measured before their noise stays with them.
        truth=ScalarTruth(config.vote, config.optimizer.vote_value),
        replica=replica,
        forward=_forward_on(replica, data, config.run),
        validation=_validation_batches(data),
    )


def _start_hosts(hosts: RemoteHosts, store: RunStore, heard: HeardReleases) -> None:
    def steps(first: int) -> list[RoundResult]:
        return [step for step in store.results(hosts.run_id) if step.round_index >= first]

    hosts.start(steps, heard)


def _guard_themselves(agent: DeviceAgent, store: RunStore, heard: HeardReleases) -> None:
    """The devices count what they release, in a ledger of their own.

    Raises:
        DeviceLedgerError: it cannot be trusted; or it knows of fewer.
        PromiseError: the devices' policies do not cover what was released before.
    """
    if not agent.policies:
        return
    guard = Guard(store.path.parent, agent.policies)
    try:
        guard.ledger.check_holds(heard())
    except BaseException:
        guard.close()
        raise
    agent.guard_with(guard)


def _weights(data: RunData, trainable: Sequence[str], section: RunSection) -> ParameterStore:
    return ParameterStore.from_bundle(data.bundle, trainable, _num_workers(section))


def _num_workers(section: RunSection) -> int:
    return section.workers or usable_processors()


def _forward_on(weights: ParameterStore, data: RunData, section: RunSection) -> OnnxForward:
    return OnnxForward(
        data.bundle,
        weights,
        label_token_ids=data.label_token_ids,
        intra_op_threads=section.intra_op_threads,
        num_workers=_num_workers(section),
    )


def plan_privacy(
    config: PlanConfig, members: Sequence[Member], stretch: Stretch = WHOLE_RUN
) -> PrivacyTerms | None:
    """The privacy terms of a run of these devices; None without privacy.

    Raises:
        ConfigurationError, PrivacyError: the promise cannot be made.
    """
    if not config.privacy.enabled:
        return None
    return plan_privacy_terms(
        config,
        [member.num_records for member in members],
        [member.commitment for member in members],
        stretch,
    )


def _validation_batches(data: RunData) -> tuple[Batch, ...]:
    if data.validation is None:
        return ()
    everybody = range(len(data.validation))
    return tuple(data.validation.batches_by_length(everybody, _EVALUATION_BATCH))


def _check_keys_fit(privacy: PrivacySection, air: Air) -> None:
    """Keys that anybody can derive belong to a software radio; noise that nobody can to a real one.

    A software radio's noise is drawn by a program, for whoever has its seed to draw again.
    """
    counted = privacy.trusted_noise_fraction
    if privacy.has_system_keys and counted > 0.0 and air.is_simulated:
        raise PrivacyError(
            f"privacy.trusted_noise_fraction: got {counted:g} with {air.source}, whose receiver "
            "noise a program draws: whoever has its seed takes it off again. Wanted 0 with "
            'system keys on a software radio; or privacy.noise_source = "simulation", which '
            "promises nothing to anybody."
        )
    if privacy.has_simulated_keys and not air.is_simulated:
        raise PrivacyError(
            f'privacy.noise_source: "simulation" with {air.source}. Such noise can be undone by '
            'whoever knows the configuration; on a radio use "system".'
        )
