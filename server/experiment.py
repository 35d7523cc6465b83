"""Experiment: builds everything a run needs from its configuration, and drives it to the end.

This is the one place where the parts meet: data, weights, devices, air, receiver, price, store.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge_runtime.agent import DeviceAgent, DeviceLimits, VirtualDevice
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, Bundle, open_bundle
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.errors import TaskError
from edge_runtime.tasks import Batch, PromptSet, TaskSpec, load_task, read_examples
from edge_runtime.uplink import IdealUplink, OverTheAirUplink, ScalarBox, Uplink
from radio.channel_models import channel_from_name
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from radio.waveforms.coherent import ChannelEstimate, CoherentWaveform
from server.config import BUNDLED_MODEL, RunConfig, dump_config, parse_config
from server.errors import ConfigurationError, RunStoreError
from server.evaluation import Evaluation, evaluate
from server.federation import split_iid
from server.pricing import Pricing, PrivacyTerms, agree_terms
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.receiver import IdealReceiver, RadioReceiver, Receiver
from server.round_loop import Air, RoundLoop
from server.run_store import EvaluationRow, RoundRow, RunStore
from server.simulation import NoAir, ScalarTruth, SimulatedAir, simulation_rng

_logger = logging.getLogger(__name__)

_KEYS_FILE = "private_keys.json"
_EVALUATION_BATCH = 50


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever watches it."""

    rounds_done: int
    rounds_planned: int
    row: RoundRow | None
    evaluation: EvaluationRow | None
    rounds_per_s: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run, ready to go on from wherever its store says it is."""

    config: RunConfig
    folder: Path
    store: RunStore
    loop: RoundLoop
    pricing: Pricing
    terms: PrivacyTerms | None
    forward: OnnxForward
    validation: tuple[Batch, ...]
    source: str
    num_parameters: int
    num_trainable: int

    @classmethod
    def start(cls, config: RunConfig, folder: Path) -> Experiment:
        """Begin a new run in an empty or missing folder.

        Everything that can be wrong with the request is found before the folder is made.
        """
        ingredients = _gather(config)
        keys = _make_keys(config)
        terms = _agree(config, ingredients, keys)
        store = RunStore.create(
            folder,
            {
                "run_id": f"{config.task.name}-{secrets.token_hex(4)}",
                "config": dump_config(config),
                "bundle_digest": ingredients.bundle.digest,
                "environment": environment(),
                "wall_s": 0.0,
            },
        )
        if config.privacy.enabled and config.privacy.noise_source == "system":
            _save_keys(folder, keys)
        return cls._build(config, folder, store, ingredients, keys, terms)

    @classmethod
    def resume(cls, folder: Path) -> Experiment:
        """Continue a run that was interrupted; it ends with the bits it would have had.

        Raises:
            RunStoreError: the model or a library is another one than the run was started with.
            LedgerCorruptError: the privacy ledger cannot be trusted.
        """
        store = RunStore.open(folder)
        try:
            config = parse_config(store.meta("config"), source=str(store.path))
            ingredients = _gather(config)
            _check_same(store, "bundle_digest", ingredients.bundle.digest)
            _check_same(store, "environment", environment())
            keys = _load_keys(config, folder)
            terms = _agree(config, ingredients, keys)
            return cls._build(config, folder, store, ingredients, keys, terms)
        except BaseException:
            store.close()
            raise

    @classmethod
    def _build(
        cls,
        config: RunConfig,
        folder: Path,
        store: RunStore,
        ingredients: _Ingredients,
        keys: Sequence[bytes],
        terms: PrivacyTerms | None,
    ) -> Experiment:
        run_id = str(store.meta("run_id"))
        workers = config.run.workers or os.cpu_count() or 1
        bundle, trainable = ingredients.bundle, config.model.trainable
        device_weights = ParameterStore.from_bundle(bundle, trainable)
        device_weights.check_perturbation_scale(2.0**config.optimizer.perturbation_scale_log2)
        replica = ParameterStore.from_bundle(bundle, trainable)
        truth = ScalarTruth()
        uplinks, receiver, air, noise_symbols = _build_air(config)
        agent = DeviceAgent(
            host="in-process",
            run_id=run_id,
            devices=[
                VirtualDevice(
                    device_index=index,
                    prompts=prompts,
                    private_random=PrivateRandom(keys[index]),
                    uplink=uplinks[index],
                    limits=DeviceLimits(config.optimizer.clip, config.optimizer.batch_size),
                )
                for index, prompts in enumerate(ingredients.device_prompts)
            ],
            store=device_weights,
            forward=OnnxForward(
                bundle,
                device_weights,
                intra_op_threads=config.run.intra_op_threads,
                num_workers=workers,
            ),
            observe_scalar=truth.observe,
        )
        pricing = _build_pricing(config, terms, store, noise_symbols)
        loop = RoundLoop(
            run_id=run_id,
            config=config,
            control=InProcessChannel([agent]),
            receiver=receiver,
            pricing=pricing,
            replica=replica,
            store=store,
            air=air,
            truth=truth,
        )
        for result in store.results(run_id):
            loop.take_step(result)
        return cls(
            config=config,
            folder=folder,
            store=store,
            loop=loop,
            pricing=pricing,
            terms=terms,
            forward=OnnxForward(
                bundle,
                replica,
                intra_op_threads=config.run.intra_op_threads,
                num_workers=workers,
            ),
            validation=tuple(
                ingredients.validation.batches_by_length(
                    range(len(ingredients.validation)), _EVALUATION_BATCH
                )
            ),
            source=receiver.source,
            num_parameters=replica.num_parameters,
            num_trainable=replica.num_trainable,
        )

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
        is_fresh_process: bool = True,
    ) -> bool:
        """Carry on to the last round, or until asked to stop between two rounds.

        Args:
            on_progress: told after every round.
            should_stop: asked before every round.
            clock: monotonic seconds.
            is_fresh_process: whether this process's peak memory is this run's; a second run in one
                process records none.

        Returns:
            Whether the run is complete.
        """
        rounds = self.config.optimizer.rounds
        started, wall_before = clock(), float(self.store.meta("wall_s"))
        first = done = self.store.num_rounds()
        channel: ChannelEstimate | None = None
        if first == 0:
            on_progress(Progress(0, rounds, None, self.evaluate(0), 0.0))
        try:
            while done < rounds and not should_stop():
                if channel is None or done % self.config.radio.coherence_rounds == 0:
                    channel = self.loop.learn_channel(done)
                row = self.loop.run_round(done, channel)
                done += 1
                if done % self.config.run.digest_interval == 0 or done == rounds:
                    self.loop.compare_replicas(done)
                due = done % self.config.run.evaluation_interval == 0 or done == rounds
                evaluation = self.evaluate(done) if due else None
                pace = (done - first) / (clock() - started)
                on_progress(Progress(done, rounds, row, evaluation, pace))
        finally:
            self.store.set_meta("wall_s", wall_before + clock() - started)
            self.store.set_meta("peak_rss_mb", peak_rss_mb() if is_fresh_process else None)
            self.store.set_meta("epsilon_spent", self.pricing.epsilon_spent())
            self.store.set_meta("source", self.source)
        if done == rounds:
            self.store.set_meta("parameter_digest", self.loop.compare_replicas(done))
        return done == rounds

    def evaluate(self, num_rounds: int) -> EvaluationRow:
        """Evaluate the server's replica and record the result."""
        result: Evaluation = evaluate(self.forward, self.validation)
        row = EvaluationRow(
            num_rounds=num_rounds,
            loss=result.loss,
            accuracy=result.accuracy,
            epsilon=self.pricing.epsilon_spent(),
        )
        self.store.append_evaluation(row)
        return row

    def close(self) -> None:
        """Silence the devices, let the receiver go, close the store. Idempotent."""
        self.loop.control.close()
        self.loop.receiver.close()
        self.forward.close()
        self.store.close()


@dataclass(frozen=True, slots=True)
class _Ingredients:
    """What a run is made of before anything is started."""

    bundle: Bundle
    task: TaskSpec
    device_prompts: tuple[PromptSet, ...]
    validation: PromptSet


def _gather(config: RunConfig) -> _Ingredients:
    """Load and check model, task and data; nothing is written."""
    folder = BUNDLED_MODEL_FOLDER
    if config.model.bundle != BUNDLED_MODEL:
        folder = Path(config.model.bundle)
    bundle = open_bundle(folder)
    task, task_folder = load_task(config.task.name)
    if dict(bundle.manifest.label_words) != task.label_words:
        raise TaskError(
            f"{folder}: exported for task {bundle.manifest.task!r} with the words "
            f"{list(bundle.manifest.label_words.values())}, the task {task.name!r} has "
            f"{list(task.label_words.values())}. Export again: pairzero export ... --task "
            f"{config.task.name}"
        )
    train = read_examples(_data_path(config.task.train, task.train, task_folder), task)
    validation = read_examples(
        _data_path(config.task.validation, task.validation, task_folder), task
    )
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
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))

    def prompts(examples: Sequence[Any]) -> PromptSet:
        return PromptSet(examples, task, tokenizer, config.task.max_tokens)

    parts = split_iid(train, config.federation.num_devices, config.run.seed)
    return _Ingredients(
        bundle=bundle,
        task=task,
        device_prompts=tuple(prompts(part) for part in parts),
        validation=prompts(validation),
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
        # Full scale through a channel of mean power gain 1 arrives with power max_amplitude^2.
        noise_power=radio.max_amplitude**2 * 10.0 ** (-radio.snr_db / 10.0),
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


def _agree(
    config: RunConfig, ingredients: _Ingredients, keys: Sequence[bytes]
) -> PrivacyTerms | None:
    if not config.privacy.enabled:
        return None
    return agree_terms(
        config,
        [len(prompts) for prompts in ingredients.device_prompts],
        [PrivateRandom(key).commitment for key in keys],
    )


def _build_pricing(
    config: RunConfig, terms: PrivacyTerms | None, store: RunStore, noise_symbols: int
) -> Pricing:
    """The accountant starts from what the ledger says was spent, never from memory."""
    if terms is None:
        return Pricing(config, None, None, None, noise_symbols)
    ledger = PrivacyLedger(store.connection)
    privacy = config.privacy
    accountant = Accountant(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        csi_delta=privacy.delta * privacy.csi_failure_fraction,
    )
    accountant.compose_all(ledger.records())
    return Pricing(config, terms, accountant, ledger, noise_symbols)


def _make_keys(config: RunConfig) -> list[bytes]:
    """One private key per device; repeatable ones for simulations that ask for them."""
    devices = range(config.federation.num_devices)
    if config.privacy.enabled and config.privacy.noise_source == "system":
        return [PrivateRandom.generate_key() for _ in devices]
    return [PrivateRandom.simulated_key(config.run.seed, index) for index in devices]


def _save_keys(folder: Path, keys: Sequence[bytes]) -> None:
    """The devices' secrets, readable by their owner only; a resumed run needs them."""
    descriptor = os.open(folder / _KEYS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump([key.hex() for key in keys], file)
        file.flush()
        os.fsync(file.fileno())


def _load_keys(config: RunConfig, folder: Path) -> list[bytes]:
    if not (config.privacy.enabled and config.privacy.noise_source == "system"):
        return _make_keys(config)
    path = folder / _KEYS_FILE
    try:
        keys = [bytes.fromhex(text) for text in json.loads(path.read_text())]
        if len(keys) != config.federation.num_devices:
            raise ValueError(f"{len(keys)} keys for {config.federation.num_devices} devices")
    except (OSError, ValueError, TypeError) as error:
        raise RunStoreError(
            f"{path}: the devices' private keys cannot be read ({error}). Without them a repeated "
            "round would be a second release, so the run cannot be continued."
        ) from error
    return keys


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6, 1)


def environment() -> dict[str, str]:
    """What decides the bits of a forward pass: libraries and machine."""
    libraries = {name: version(name) for name in ("pairzero", "numpy", "onnxruntime", "tokenizers")}
    return {**libraries, "machine": platform.machine()}


def _check_same(store: RunStore, key: str, now: Any) -> None:
    then = store.meta(key)
    if then != now:
        raise RunStoreError(
            f"{store.path}: {key} was {then} when the run was started and is {now} now. The same "
            "bits cannot be promised, and a round repeated with other bits would be a second "
            "release. Restore what was there, or start a new run."
        )
