"""One round over the software radio with what a device has installed, and nothing of the server.

Builds a few virtual devices on the bundled model and data, plays the server's part in the plainest
way (invert the channel, add what comes back, order the step), and checks what must hold: the
weights are restored bit for bit, the receiver's sum is the devices' sum, and the step moves the
weights by the same bits as its replay. No privacy noise is added and nothing leaves the process.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.agent import DeviceAgent
from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.direction import GENERATOR, derive_direction_seed
from edge_runtime.protocol.errors import EdgeError
from edge_runtime.protocol.rounds import (
    Access,
    Participation,
    RoundPlan,
    RoundResult,
    SoundingOrder,
    TransmitOrder,
)
from edge_runtime.spsa import ScalarEstimate
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import Example, PromptSet, label_token_ids, load_tokenizer, read_examples
from edge_runtime.uplink import CoherentUplink
from edge_runtime.virtual_device import VirtualDevice
from radio.software_air.channel_models import RayleighBlockFading
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform

_RUN_ID = "selftest"
_CLIP = 50.0
_BATCH_SIZE = 8
_EXAMPLES_PER_DEVICE = 64
_MAX_TOKENS = 64
_NOISE_POWER = 1e-4
_STEP = 1e-3
_TIMEOUT_S = 5.0
_MAX_NMSE_DB = -20.0


@dataclass(frozen=True, slots=True)
class SelftestResult:
    """What one round gave.

    Attributes:
        num_devices: virtual devices that spoke.
        num_parameters: weights of the model.
        true_mean: mean of the clipped scalars.
        mean_estimate: what the receiver made of their superposition.
        parameter_digest: of the weights after the step.
        round_s: duration of the round.
    """

    num_devices: int
    num_parameters: int
    true_mean: float
    mean_estimate: float
    parameter_digest: str
    round_s: float


def run_selftest(
    bundle_folder: Path, *, task_name: str | None = None, num_devices: int
) -> SelftestResult:
    """Play one round and check it.

    Args:
        bundle_folder: of the model.
        task_name: a task with training data, by name or file; None takes the bundle's own, whose
            labels' names stand for data that no bundle holds.
        num_devices: that take part.

    Raises:
        EdgeError: a check failed, or bundle and data do not fit; the message says which.
    """
    bundle = open_bundle(bundle_folder)
    tokenizer = load_tokenizer(bundle.tokenizer_path)
    if task_name is None:
        task = bundle.manifest.task
        names = [Example(index, label) for index, label in enumerate(task.labels)]
        examples = names * math.ceil(_EXAMPLES_PER_DEVICE * num_devices / len(names))
    else:
        task, folder = load_task(task_name)
        examples = read_examples(folder / task.train, task)
    if len(examples) < num_devices:
        raise EdgeError(
            f"task {task.name!r}: {len(examples)} examples for {num_devices} devices, wanted one "
            "for each at least. Ask for fewer with --devices."
        )
    parts = [examples[k::num_devices][:_EXAMPLES_PER_DEVICE] for k in range(num_devices)]
    store = ParameterStore.from_bundle(bundle)
    replay = ParameterStore.from_bundle(bundle)
    waveform = CoherentWaveform(num_devices=num_devices)
    rng = np.random.default_rng(0)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=1e6,
        noise_power=_NOISE_POWER,
        noise_rng=rng,
        channel_name="rayleigh",
    )
    medium.set_gains(RayleighBlockFading().gains(rng, num_devices))
    receiver = LoopbackTransceiver(medium, None)
    scalars: dict[int, ScalarEstimate] = {}

    def observe(
        round_index: int, device_index: int, estimate: ScalarEstimate, noise: tuple[complex, ...]
    ) -> None:
        scalars[device_index] = estimate

    agent = DeviceAgent(
        host="selftest",
        run_id=_RUN_ID,
        devices=[
            VirtualDevice(
                device_index=k,
                owner=str(k),
                prompts=PromptSet(parts[k], task, tokenizer, _MAX_TOKENS),
                private_random=PrivateRandom(PrivateRandom.generate_key()),
                uplink=CoherentUplink(LoopbackTransceiver(medium, k), waveform),
            )
            for k in range(num_devices)
        ],
        store=store,
        forward=OnnxForward(bundle, store, label_token_ids=label_token_ids(task, tokenizer)),
        observe_scalar=observe,
    )
    try:
        started = time.perf_counter()
        agent.send_pilots(SoundingOrder(_RUN_ID, 0, 1.0, 0))
        sounding = receiver.receive(waveform.sounding_samples, start_sample=0, timeout_s=_TIMEOUT_S)
        gains = waveform.estimate_gains(sounding, 1.0).gains
        medium.clear()
        # Every scalar may reach the clip, so the weakest device sets the level for all.
        receive_scale = float(np.min(np.abs(gains))) / (_CLIP * 1.01)
        plan = _plan(gains, receive_scale)
        before = store.digest()
        reports = agent.run_round(plan)
        _require(
            all(report.participation is Participation.TRANSMITTED for report in reports),
            f"not every device could speak: {[r.reason for r in reports if r.reason]}",
        )
        _require(store.digest() == before, "the weights were not restored bit for bit")
        payload = receiver.receive(waveform.payload_samples, start_sample=0, timeout_s=_TIMEOUT_S)
        (sum_estimate,) = waveform.demodulate(payload, receive_scale).sum_estimates
        mean_estimate = sum_estimate / num_devices
        true_mean = math.fsum(s.clipped_scalars[0] for s in scalars.values()) / num_devices
        error_db = 20.0 * math.log10(abs(mean_estimate - true_mean) / _CLIP + 1e-12)
        _require(
            error_db < _MAX_NMSE_DB,
            f"the receiver heard {mean_estimate:.4f}, the devices said {true_mean:.4f}",
        )
        step_integer = round(_STEP * mean_estimate * 2**40)
        result = RoundResult(_RUN_ID, 0, plan.direction_seed, (step_integer,))
        agent.apply_result(result)
        replay.apply_step(result)
        _require(store.digest() == replay.digest(), "the step and its replay differ")
        return SelftestResult(
            num_devices=num_devices,
            num_parameters=store.num_parameters,
            true_mean=true_mean,
            mean_estimate=mean_estimate,
            parameter_digest=store.digest(),
            round_s=time.perf_counter() - started,
        )
    finally:
        agent.close()
        receiver.close()


def _plan(gains: np.ndarray, receive_scale: float) -> RoundPlan:
    tx_gains = [complex(receive_scale / gain) for gain in gains]
    return RoundPlan(
        run_id=_RUN_ID,
        round_index=0,
        direction_seed=derive_direction_seed(0, 0),
        direction_generator=GENERATOR,
        perturbation_scale=2.0**-10,
        clip=_CLIP,
        batch_size=_BATCH_SIZE,
        access=Access.SUPERPOSED,
        frame_start_sample=0,
        orders=tuple(TransmitOrder(k, g.real, g.imag, 0.0) for k, g in enumerate(tx_gains)),
    )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise EdgeError(
            f"selftest: {problem}. This installation cannot be trusted with a run: reinstall "
            "pairzero and its dependencies, and report the versions if it stays."
        )
