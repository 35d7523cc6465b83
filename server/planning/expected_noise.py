"""What the radio will add to a sum, were every channel known and of unit gain."""

from __future__ import annotations

import math

import numpy as np

from edge_runtime.protocol.rounds import Access
from radio.waveforms.energy_error_model import sum_variances
from radio.waveforms.error_model import receiver_noise_std
from server.config.plan_config import PlanConfig
from server.planning.round_plan import counted_noise_power
from server.power.channel_inversion import PowerPlan, plan_static
from server.power.energy_waveform import range_for


def own_sum_std(config: PlanConfig, noise_std: float) -> float:
    """Standard deviation of all artificial noise on a sum, in units of the scalar.

    Args:
        config: of the run, with a promise.
        noise_std: that has to count: on the sum in superposed access, on each number in slotted.
    """
    if config.access is Access.SLOTTED:
        return noise_std * math.sqrt(config.federation.num_devices)
    return _at_unit_gains(config, noise_std).sum_noise_std


def radio_sum_std(config: PlanConfig, noise_std: float) -> float:
    """Standard deviation of what channel and receiver add to a sum, in units of the scalar.

    Args:
        config: of the run, with a promise.
        noise_std: that has to count: on the sum over the coherent waveform, on each number over
            others.
    """
    if config.radio.waveform.needs_common_clock:
        return _coherent_sum_std(config, noise_std)
    if config.radio.waveform.adds_powers:
        return _energy_sum_std(config, noise_std)
    return _packet_sum_std(config, noise_std)


def _coherent_sum_std(config: PlanConfig, noise_std: float) -> float:
    """Standard deviation of receiver noise on a sum."""
    power = _at_unit_gains(config, noise_std)
    return receiver_noise_std(
        config.radio.noise_power, config.radio.payload_symbols, power.receive_scale
    )


def _at_unit_gains(config: PlanConfig, noise_std: float) -> PowerPlan:
    return plan_static(
        gain_estimates=np.ones(config.federation.num_devices, dtype=np.complex128),
        max_amplitude=config.radio.max_amplitude,
        scalar_bound=config.optimizer.clip,
        required_noise_std=noise_std,
        min_gain=1.0,
        num_missing=config.privacy.missing_devices,
        trusted_noise_power=counted_noise_power(config.radio, config.privacy),
    )


def _energy_sum_std(config: PlanConfig, noise_std: float) -> float:
    """Standard deviation, on a sum, of receiver noise and of privacy noises on one another."""
    waveform, num_devices = config.energy_waveform, config.federation.num_devices
    full_range = range_for(config.optimizer.clip, noise_std)
    variances = sum_variances(
        waveform,
        np.full((num_devices, waveform.num_scalars), noise_std / full_range),
        np.zeros(num_devices),
        noise_power=config.radio.noise_power,
        arrival_power=waveform.arrival_power(config.radio.max_amplitude),
    )
    return full_range * math.sqrt(variances.max())


def _packet_sum_std(config: PlanConfig, noise_std: float) -> float:
    """Standard deviation, on a sum, of the rounding of numbers to bits."""
    full_range = range_for(config.optimizer.clip, noise_std)
    step = full_range / config.packets.largest_integer
    return step * math.sqrt(config.federation.num_devices / 12.0)
