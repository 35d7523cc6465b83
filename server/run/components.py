"""Assembly: a run's data, radio and devices, built each in its own place, connected here.

Nothing in it writes to the disk, so whatever is wrong with a request is found before a run folder
exists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.guard.ledger import DeviceLedger
from edge_runtime.parameters import ParameterStore
from edge_runtime.processors import usable_processors
from edge_runtime.tasks import Batch
from server.air.base import Air
from server.air.channel_simulation import ScalarTruth
from server.air.link import RadioLink, build_radio_link
from server.config.plan_config import PlanConfig
from server.config.privacy import PrivacySection
from server.config.run_config import RunConfig
from server.errors import PrivacyError
from server.planning.privacy_terms import WHOLE_RUN, PrivacyTerms, Stretch, plan_privacy_terms
from server.run.data import RunData
from server.run.device_host import build_device_host
from server.store.device_keys import DeviceKeys

_EVALUATION_BATCH = 50


@dataclass(frozen=True, slots=True)
class RunComponents:
    """Everything that takes part in a run, connected, but not yet written down anywhere."""

    control: InProcessChannel
    agent: DeviceAgent
    link: RadioLink
    truth: ScalarTruth
    replica: ParameterStore
    forward: OnnxForward
    validation: tuple[Batch, ...]

    def count_releases_in(self, folder: Path, heard: Mapping[str, int]) -> None:
        """From here on the devices count what they release, in a ledger of their own.

        Args:
            folder: of the ledger; one that is there goes on.
            heard: device -> how many releases of it the server has heard.

        Raises:
            DeviceLedgerError: it cannot be trusted; or it knows of fewer.
            PromiseError: the devices' policies do not cover what was released before.
        """
        ledger = DeviceLedger(folder)
        try:
            ledger.check_holds(heard)
            self.agent.guard_with(ledger)
        except BaseException:
            ledger.close()
            raise

    def close(self) -> None:
        """Silence radios and stop threads; everything is tried, whatever fails."""
        with contextlib.ExitStack() as ends:
            ends.callback(self.replica.close)
            ends.callback(self.forward.close)
            ends.callback(self.link.close)
            ends.callback(self.control.close)


def connect(
    config: RunConfig, data: RunData, keys: DeviceKeys, terms: PrivacyTerms | None, run_id: str
) -> RunComponents:
    """Build weights, devices, radio and receiver.

    The devices share one copy of the weights; the server's replica is a second one, so that
    comparing their digests means something.

    Raises:
        EdgeError, RadioError, PrivacyError: what does not fit together.
    """
    link = build_radio_link(config, keys.software_noise_seed(config))
    try:
        _check_keys_fit(config.privacy, link.air)
        return _connect_to(link, config, data, keys, terms, run_id)
    except BaseException:
        link.close()
        raise


def _connect_to(
    link: RadioLink,
    config: RunConfig,
    data: RunData,
    keys: DeviceKeys,
    terms: PrivacyTerms | None,
    run_id: str,
) -> RunComponents:
    workers = config.run.workers or usable_processors()

    def load_weights() -> ParameterStore:
        return ParameterStore.from_bundle(data.bundle, config.model.trainable, workers)

    def forward_on(weights: ParameterStore) -> OnnxForward:
        return OnnxForward(
            data.bundle,
            weights,
            label_token_ids=data.label_token_ids,
            intra_op_threads=config.run.intra_op_threads,
            num_workers=workers,
        )

    device_weights, replica = load_weights(), load_weights()
    truth = ScalarTruth(config.vote, config.optimizer.vote_value)
    device_weights.check_perturbation_scale(2.0**config.optimizer.perturbation_scale_log2)
    agent = build_device_host(
        config,
        max_tokens=config.task.max_tokens,
        run_id=run_id,
        prompts=data.device_prompts,
        keys=keys,
        uplinks=link.uplinks,
        terms=terms,
        weights=device_weights,
        forward=forward_on(device_weights),
        vocab_size=int(data.bundle.manifest.architecture["vocab_size"]),
        # Scalars before noise are written down only where nothing is promised to anybody.
        observe_scalar=None if config.privacy.has_system_keys else truth.observe,
    )
    return RunComponents(
        control=InProcessChannel(run_id, [HostEnd(agent)]),
        agent=agent,
        link=link,
        truth=truth,
        replica=replica,
        forward=forward_on(replica),
        validation=_validation_batches(data),
    )


def plan_privacy(
    config: PlanConfig, data: RunData, keys: DeviceKeys, stretch: Stretch = WHOLE_RUN
) -> PrivacyTerms | None:
    """The privacy terms of a run on these data with these keys; None without privacy.

    Raises:
        ConfigurationError, PrivacyError: the promise cannot be made.
    """
    if not config.privacy.enabled:
        return None
    num_records = [len(prompts) for prompts in data.device_prompts]
    return plan_privacy_terms(config, num_records, keys.commitments, stretch)


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
