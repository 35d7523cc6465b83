"""Assembly: from a configuration to data, weights, devices and air, connected and ready.

Nothing here writes to the disk, so whatever is wrong with a request is found before a run folder
exists.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.agent import DeviceAgent, DeviceLimits, VirtualDevice
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, Bundle, open_bundle
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, choose_max_rows
from edge_runtime.task_spec import TaskSpec, load_task
from edge_runtime.tasks import (
    Batch,
    PromptSet,
    label_token_ids,
    load_tokenizer,
    read_examples,
    warn_if_merged,
)
from edge_runtime.uplink import IdealUplink, OverTheAirUplink, ScalarBox, Uplink
from radio.channel_models import channel_from_name
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from server.config import BUNDLED_MODEL, RunConfig
from server.device_keys import DeviceKeys
from server.errors import ConfigurationError, PrivacyError
from server.federation import split_iid
from server.pricing import WHOLE_RUN, PrivacyTerms, Stretch, agree_terms
from server.receiver import IdealReceiver, RadioReceiver, Receiver
from server.round_loop import Air
from server.simulation import NoAir, ScalarTruth, SimulatedAir, simulation_rng

_EVALUATION_BATCH = 50


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a run is made of before anything is started.

    ``num_shortened`` counts prompts that were too long, those of private records left out.
    """

    bundle: Bundle
    task: TaskSpec
    label_token_ids: tuple[int, ...]
    device_prompts: tuple[PromptSet, ...]
    validation: PromptSet | None
    num_shortened: int

    def data_commitments(self, keys: DeviceKeys) -> list[str]:
        """Names of each device's data that may be stored; see `PrivateRandom.commit_to_data`."""
        pairs = zip(keys.private_randoms(), self.device_prompts, strict=True)
        return [private_random.commit_to_data(p.digest()) for private_random, p in pairs]

    @property
    def validation_digest(self) -> str | None:
        """Name of the validation data, which are public where there are any."""
        return None if self.validation is None else self.validation.digest()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of, built and connected, but not yet written down anywhere."""

    control: InProcessChannel
    receiver: Receiver
    air: Air
    noise_symbols: int
    num_shortened: int
    truth: ScalarTruth
    replica: ParameterStore
    forward: OnnxForward
    validation: tuple[Batch, ...]

    def close(self) -> None:
        """Stop threads and silence radios."""
        self.control.close()
        self.receiver.close()
        self.forward.close()
        self.replica.close()


def assemble(
    config: RunConfig,
    ingredients: Ingredients,
    keys: DeviceKeys,
    terms: PrivacyTerms | None,
    run_id: str,
) -> Parts:
    """Build weights, devices, air and receiver.

    The devices share one copy of the weights; the server's replica is a second one, so that
    comparing their digests means something.
    """
    workers = config.run.workers or os.cpu_count() or 1
    bundle, trainable = ingredients.bundle, config.model.trainable
    device_weights = ParameterStore.from_bundle(bundle, trainable, workers)
    device_weights.check_perturbation_scale(2.0**config.optimizer.perturbation_scale_log2)
    replica = ParameterStore.from_bundle(bundle, trainable, workers)
    uplinks, receiver, air, noise_symbols = _build_air(config)
    _check_keys_fit(config, receiver.source)
    truth = ScalarTruth()

    def forward_on(weights: ParameterStore) -> OnnxForward:
        return OnnxForward(
            bundle,
            weights,
            label_token_ids=ingredients.label_token_ids,
            intra_op_threads=config.run.intra_op_threads,
            num_workers=workers,
        )

    device_forward = forward_on(device_weights)
    max_rows = MAX_ROWS
    if config.privacy.enabled:
        max_rows = choose_max_rows(
            device_forward,
            vocab_size=int(bundle.manifest.architecture["vocab_size"]),
            max_tokens=config.task.max_tokens,
        )
    private_randoms = keys.private_randoms()
    agent = DeviceAgent(
        host="in-process",
        run_id=run_id,
        devices=[
            VirtualDevice(
                device_index=index,
                prompts=prompts,
                private_random=private_randoms[index],
                uplink=uplinks[index],
                limits=_limits(config, terms),
            )
            for index, prompts in enumerate(ingredients.device_prompts)
        ],
        store=device_weights,
        forward=device_forward,
        max_rows=max_rows,
        # Scalars before noise are written down only where nothing is promised to anybody.
        observe_scalar=None if config.privacy.has_system_keys else truth.observe,
    )
    validation = ingredients.validation
    return Parts(
        control=InProcessChannel([agent]),
        receiver=receiver,
        air=air,
        noise_symbols=noise_symbols,
        num_shortened=ingredients.num_shortened,
        truth=truth,
        replica=replica,
        forward=forward_on(replica),
        validation=()
        if validation is None
        else tuple(validation.batches_by_length(range(len(validation)), _EVALUATION_BATCH)),
    )


def _limits(config: RunConfig, terms: PrivacyTerms | None) -> DeviceLimits:
    """What every honest plan keeps to; a device speaks under no other."""
    least_noise = 0.0
    if terms is not None:
        # At most all devices share the noise, equally.
        sum_noise = terms.noise_multiplier * terms.sensitivity
        least_noise = sum_noise / math.sqrt(config.federation.num_devices)
    return DeviceLimits(
        max_clip=config.optimizer.clip,
        min_batch_size=config.optimizer.batch_size,
        min_noise_std=least_noise,
        access=config.privacy.access,
    )


def _check_keys_fit(config: RunConfig, source: str) -> None:
    """Keys that anybody can derive belong to a software radio."""
    is_real = not source.startswith(("loopback", "ideal"))
    if config.privacy.has_simulated_keys and is_real:
        raise PrivacyError(
            f'privacy.noise_source: "simulation" with {source}. Such noise can be undone by '
            'whoever knows the configuration; on a radio use "system".'
        )


def bundle_folder(config: RunConfig) -> Path:
    """Where the bundle of a run lies."""
    if config.model.bundle == BUNDLED_MODEL:
        return BUNDLED_MODEL_FOLDER
    return Path(config.model.bundle)


def gather(config: RunConfig) -> Ingredients:
    """Load and check model, task and data.

    Raises:
        BundleError, TaskError, ConfigurationError: what does not fit.
    """
    bundle = open_bundle(bundle_folder(config))
    task, task_folder = load_task(config.task.name)
    train_path = _data_path(config.task.train, task.train, task_folder)
    validation_path = _data_path(config.task.validation, task.validation, task_folder)
    train, validation = read_examples(train_path, task), read_examples(validation_path, task)
    if 0 < config.task.validation_examples < len(validation):
        rng = simulation_rng(config.run.seed, "validation", 0)
        chosen = rng.permutation(len(validation))[: config.task.validation_examples]
        validation = [validation[i] for i in sorted(chosen.tolist())]
    max_positions = int(bundle.manifest.architecture["max_position_embeddings"])
    if config.task.max_tokens > max_positions:
        raise ConfigurationError(
            f"task.max_tokens: got {config.task.max_tokens}, the model has {max_positions} "
            "positions."
        )
    tokenizer = load_tokenizer(bundle.tokenizer_path)
    warn_if_merged(task, tokenizer)

    def prompts(examples: Sequence[Any]) -> PromptSet:
        return PromptSet(examples, task, tokenizer, config.task.max_tokens)

    parts = split_iid(train, config.federation.num_devices, config.run.seed)
    fewest = min(len(part) for part in parts)
    if config.optimizer.batch_size > fewest:
        raise ConfigurationError(
            f"optimizer.batch_size: got {config.optimizer.batch_size}, and a device has {fewest} "
            "examples. It would divide their sum by the batch size all the same and take steps "
            f"{fewest / config.optimizer.batch_size:.2g} times as large as meant: lower it, or "
            "federation.num_devices."
        )
    device_prompts = tuple(prompts(part) for part in parts)
    # Evaluations are stored and shown, so they are made of public data or not at all.
    public = prompts(validation) if config.evaluates_in_public else None
    told = [public] if public is not None else []
    if not config.privacy.has_system_keys:  # a count of private records is a release, too
        told += device_prompts
    return Ingredients(
        bundle=bundle,
        task=task,
        label_token_ids=label_token_ids(task, tokenizer),
        device_prompts=device_prompts,
        validation=public,
        num_shortened=sum(owner.num_shortened for owner in told),
    )


def _data_path(configured: str, of_task: str, task_folder: Path) -> Path:
    if configured:
        return Path(configured)
    if not of_task:
        raise ConfigurationError(
            "task: neither the configuration nor the task file names the data. Set task.train and "
            "task.validation."
        )
    return task_folder / of_task


def _build_air(config: RunConfig) -> tuple[list[Uplink], Receiver, Air, int]:
    """The radio of every device, the receiver's, the weather, and the silent samples a frame."""
    radio, num_devices = config.radio, config.federation.num_devices
    if radio.backend == "ideal":
        box = ScalarBox()
        return [IdealUplink(box)] * num_devices, IdealReceiver(box, num_devices), NoAir(), 1
    waveform = CoherentWaveform(
        num_devices=num_devices,
        pilot_symbols=radio.pilot_symbols,
        payload_symbols=radio.payload_symbols,
    )
    channel = channel_from_name(radio.channel)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=radio.sample_rate_hz,
        noise_power=radio.noise_power,
        noise_rng=simulation_rng(config.run.seed, "noise/start", 0),
        channel_name=channel.name,
    )
    uplinks: list[Uplink] = [
        OverTheAirUplink(
            LoopbackTransceiver(medium, index, max_amplitude=radio.max_amplitude), waveform
        )
        for index in range(num_devices)
    ]
    receiver = RadioReceiver(LoopbackTransceiver(medium, None), waveform)
    air = SimulatedAir(
        medium, channel, seed=config.run.seed, coherence_rounds=radio.coherence_rounds
    )
    return uplinks, receiver, air, waveform.noise_symbols


def agree(
    config: RunConfig, ingredients: Ingredients, keys: DeviceKeys, stretch: Stretch = WHOLE_RUN
) -> PrivacyTerms | None:
    """The privacy terms of a run on these data with these keys; None without privacy.

    Raises:
        ConfigurationError, PrivacyError: the promise cannot be made.
    """
    if not config.privacy.enabled:
        return None
    return agree_terms(
        config,
        [len(prompts) for prompts in ingredients.device_prompts],
        keys.commitments,
        stretch,
    )
