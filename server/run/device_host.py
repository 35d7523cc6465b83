"""The devices of a run within one process: one agent on one copy of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edge_runtime.agent import DeviceAgent, ScalarObserver, VirtualDevice
from edge_runtime.device_limits import DeviceLimits
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, choose_max_rows
from edge_runtime.protocol.rounds import Access
from edge_runtime.tasks import PromptSet
from edge_runtime.uplink import Uplink
from server.config.plan_config import PlanConfig
from server.errors import PrivacyError
from server.planning.online_run import plans_as_it_goes
from server.planning.privacy_terms import PrivacyTerms
from server.store.device_keys import DeviceKeys


def build_device_host(
    config: PlanConfig,
    *,
    max_tokens: int,
    run_id: str,
    prompts: Sequence[PromptSet],
    keys: DeviceKeys,
    uplinks: Sequence[Uplink],
    terms: PrivacyTerms | None,
    weights: ParameterStore,
    forward: OnnxForward,
    vocab_size: int,
    observe_scalar: ScalarObserver | None,
) -> DeviceAgent:
    """The agent of all devices, each with its own data, keys, radio and limits.

    Args:
        config: what is planned.
        max_tokens: of a prompt.
        run_id: names it.
        prompts: each device's data.
        keys: each device's private key.
        uplinks: each device's radio.
        terms: of privacy; None where nothing is promised.
        weights: the copy that the devices share.
        forward: the session on it.
        vocab_size: tokens of the model.
        observe_scalar: told every scalar before its noise; None where real keys promise privacy.

    Raises:
        PrivacyError: a device has another key than the one that its noise will be charged under.
    """
    limits = device_limits(config, terms)
    max_rows = MAX_ROWS
    if terms is not None:
        max_rows = choose_max_rows(forward, vocab_size=vocab_size, max_tokens=max_tokens)
    owners = zip(prompts, keys.private_randoms(), uplinks, strict=True)
    devices = [
        VirtualDevice(index, own_prompts, private_random, uplink, limits)
        for index, (own_prompts, private_random, uplink) in enumerate(owners)
    ]
    if terms is not None:
        _check_keys(devices, terms)
    return DeviceAgent(
        host="in-process",
        run_id=run_id,
        devices=devices,
        store=weights,
        forward=forward,
        max_rows=max_rows,
        observe_scalar=observe_scalar,
    )


def _check_keys(devices: Sequence[VirtualDevice], terms: PrivacyTerms) -> None:
    """Noise of one key for two devices would be charged as if it were independent."""
    if len(set(terms.commitments)) < len(devices):
        raise PrivacyError(
            "two devices have the same key: their noise would be the same. Nothing was sent. "
            "Please report how the run was started."
        )
    for device, charged in zip(devices, terms.commitments, strict=True):
        if device.private_random.commitment != charged:
            raise PrivacyError(
                f"device {device.device_index} has another key than the one that its noise is "
                "charged under. Nothing was sent. Please report how the run was started."
            )


def device_limits(config: PlanConfig, terms: PrivacyTerms | None) -> DeviceLimits:
    """What every honest plan keeps to; a device speaks under no other."""
    least_noise = 0.0
    if terms is not None:
        least_noise = terms.least_noise_multiplier * terms.sensitivity
        if plans_as_it_goes(config) or config.privacy.trusted_noise_fraction > 0.0:
            # Noise is dealt out as power allows it, the weakest may be left with none; and how much
            # the receiver's own spares no device can tell.
            least_noise = 0.0
        elif config.access is Access.SUPERPOSED:
            # At most all devices share the noise, equally.
            least_noise /= math.sqrt(config.federation.num_devices)
    return DeviceLimits(
        max_clip=config.optimizer.clip,
        min_batch_size=config.optimizer.batch_size,
        min_noise_std=least_noise,
        access=config.access,
        vote=config.vote,
        is_private=terms is not None,
    )
