"""A round's plan, from what is known of the channel: who speaks, how loud, with how much noise.

Superposed access (coherent waveform): the artificial noise of those who speak, and what is counted
of the receiver's, adds up to

    certified_noise_std = noise_multiplier * sensitivity * (1 + eta) / (1 - eta),

eta being the round's bound on the received amplitude's relative error: one record may weigh up to
1 + eta, the others' noise may arrive as weak as 1 - eta (theory of the mechanism:
`server.privacy.mechanism`).

Slotted access (energy waveform, digital packets): every device has that much noise of its own, with
eta = 0, because its noise is part of the number it sends and arrives as loud as the rest of it.

Signs (waveforms that vote) need room for 1 and for the noise that is added after them; noise before
a sign is spent when the sign is taken, on either kind of air, and never on the air itself.

What is not counted of the receiver's noise comes on top and is promised to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from edge_runtime.protocol.rounds import Access, Vote
from radio.arrays import Float64Array
from radio.waveforms.coherent import ChannelEstimate
from radio.waveforms.energy_calibration import Calibration
from radio.waveforms.error_model import receiver_noise_std
from server.config.plan_config import PlanConfig
from server.config.privacy import PrivacySection
from server.config.radio import RadioSection
from server.planning.gain_error import MAX_AMPLITUDE_ERROR, gain_error_bound, sensitivity_growth
from server.planning.online_run import RunPlanner
from server.planning.privacy_statement import check_assumption
from server.planning.privacy_terms import PrivacyTerms
from server.power.channel_inversion import PowerPlan, plan_static
from server.power.energy_waveform import EnergyPowerPlan, plan_energy
from server.power.slotted_waveform import PacketPowerPlan, plan_packets


@dataclass(frozen=True, slots=True)
class NothingLearnt:
    """What digital packets need to know of the channel.

    Attributes:
        num_devices: K.
        away: who is not there.
    """

    num_devices: int
    away: frozenset[int] = frozenset()


ChannelKnowledge = ChannelEstimate | Calibration | NothingLearnt
"""What a sounding or a calibration has told of the channel."""


def without(channel: ChannelKnowledge, away: AbstractSet[int]) -> ChannelKnowledge:
    """What is known of the channel, those who are away taken for out of reach: none speaks."""
    if not away:
        return channel
    if isinstance(channel, NothingLearnt):
        return NothingLearnt(channel.num_devices, frozenset(away))
    if isinstance(channel, Calibration):
        for device in sorted(away):
            channel = channel.without(device)
        return channel
    gains = channel.gains.copy()
    gains[sorted(away)] = 0.0
    return replace(channel, gains=gains)


RoundPower = PowerPlan | EnergyPowerPlan | PacketPowerPlan
"""How loud and how noisy, by one waveform or another."""

CALIBRATION_SLACK = 1e-6
"""Noise added on top, so that rounding on the way never makes a round dearer than planned."""


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """How loud and how noisy."""

    round_index: int
    power: RoundPower
    amplitude_error_bound: float
    weakest_gain: float

    def noise_std_of_mean(self, speakers: Sequence[int]) -> float:
        """Standard deviation of the artificial noise on the means over those who spoke.

        Where numbers have different weights, the root mean square over them.
        """
        if not speakers:
            return 0.0
        # One weight for a device, or one for each of its numbers.
        weights = np.array([self.power.weights[k] for k in speakers]).reshape(len(speakers), -1)
        noises = np.array([[self.power.artificial_noise_std[k]] for k in speakers])
        said = weights.sum(axis=0)
        of_sums = np.linalg.norm(weights * noises, axis=0)[said > 0.0]
        return float(np.sqrt(np.mean(np.square(of_sums / said[said > 0.0]))))


def plan_round(
    config: PlanConfig,
    terms: PrivacyTerms | None,
    round_index: int,
    channel: ChannelKnowledge,
    noise_symbols: int,
    planner: RunPlanner | None = None,
    spent: Float64Array | None = None,
) -> PlannedRound:
    """Who speaks, how loud, and with how much noise.

    Args:
        config: of the run.
        terms: of privacy, None without.
        round_index: the round.
        channel: what is known.
        noise_symbols: silent samples from which a channel estimate's noise power was measured.
        planner: of superposed rounds that are planned as the run goes; else None.
        spent: sum of y on every account before this round, for it [K].
    """
    if isinstance(channel, Calibration):
        return _plan_bands(config, terms, round_index, channel)
    if isinstance(channel, NothingLearnt):
        here = [k for k in range(channel.num_devices) if k not in channel.away]
        return _plan_packets(config, terms, round_index, here)
    if config.access is Access.SLOTTED:
        return _plan_uncovered(config, terms, round_index, channel)
    return _plan_superposed(config, terms, round_index, channel, noise_symbols, planner, spent)


def _plan_superposed(
    config: PlanConfig,
    terms: PrivacyTerms | None,
    round_index: int,
    channel: ChannelEstimate,
    noise_symbols: int,
    planner: RunPlanner | None,
    spent: Float64Array | None,
) -> PlannedRound:
    radio = config.radio
    min_gain, gain_error = radio.min_gain, 0.0
    if terms is not None:
        gain_error = gain_error_bound(
            config.radio, channel.noise_power, noise_symbols, terms.csi_failure_probability
        )
        min_gain = max(min_gain, gain_error / MAX_AMPLITUDE_ERROR)
    is_loud_enough = np.abs(channel.gains) >= min_gain
    weakest_gain = float(np.min(np.abs(channel.gains)[is_loud_enough], initial=math.inf))
    eta = gain_error / weakest_gain
    if planner is not None:
        assert spent is not None
        power = planner.plan(round_index, channel.gains, is_loud_enough, eta, spent)
    else:
        required = 0.0
        if terms is not None:
            multiplier = terms.noise_multiplier(round_index)
            required = multiplier * terms.sensitivity * sensitivity_growth(eta)
        power = plan_static(
            gain_estimates=channel.gains,
            max_amplitude=radio.max_amplitude,
            scalar_bound=config.largest_number,
            required_noise_std=required * (1.0 + CALIBRATION_SLACK),
            min_gain=min_gain,
            min_participants=config.federation.min_speakers,
            num_missing=config.privacy.missing_devices if terms is not None else 0,
            trusted_noise_power=counted_noise_power(config.radio, config.privacy)
            if terms is not None
            else 0.0,
        )
    if terms is not None and power.participants:
        check_assumption(
            config,
            math.hypot(
                power.sum_noise_std,
                counted_noise_std(config.radio, config.privacy, power.receive_scale),
            ),
            receiver_noise_std(channel.noise_power, radio.payload_symbols, power.receive_scale),
        )
    return PlannedRound(
        round_index=round_index,
        power=power,
        amplitude_error_bound=eta,
        weakest_gain=weakest_gain if power.participants else 0.0,
    )


def counted_noise_power(radio: RadioSection, privacy: PrivacySection) -> float:
    """rho N0 of an arriving sum: what the promise counts of the receiver's noise."""
    floor = radio.noise_power / (2.0 * radio.payload_symbols)
    return privacy.counted_noise_fraction * floor


def counted_noise_std(radio: RadioSection, privacy: PrivacySection, receive_scale: float) -> float:
    """Standard deviation of it at a common level, in units of the scalar."""
    return math.sqrt(counted_noise_power(radio, privacy)) / receive_scale


def _own_noise_std(terms: PrivacyTerms | None, round_index: int) -> float:
    """Standard deviation of a device's noise that nobody else's covers."""
    if terms is None:
        return 0.0
    return terms.noise_multiplier(round_index) * terms.sensitivity * (1.0 + CALIBRATION_SLACK)


def _plan_uncovered(
    config: PlanConfig, terms: PrivacyTerms | None, round_index: int, channel: ChannelEstimate
) -> PlannedRound:
    """At positions, and nobody's noise covers another: signs of noisy numbers, or the ideal link.

    As loud as without noise: signs have had theirs.
    """
    power = plan_static(
        gain_estimates=channel.gains,
        max_amplitude=config.radio.max_amplitude,
        scalar_bound=config.largest_number,
        required_noise_std=0.0,
        min_gain=config.radio.min_gain,
        min_participants=config.federation.min_speakers,
    )
    noise_std = dict.fromkeys(power.participants, _own_noise_std(terms, round_index))
    gains = np.abs(channel.gains)[list(power.participants)]
    return PlannedRound(
        round_index=round_index,
        power=replace(power, artificial_noise_std=noise_std),
        amplitude_error_bound=0.0,
        weakest_gain=float(np.min(gains, initial=math.inf)) if power.participants else 0.0,
    )


def _plan_bands(
    config: PlanConfig, terms: PrivacyTerms | None, round_index: int, calibration: Calibration
) -> PlannedRound:
    noise_std = _own_noise_std(terms, round_index)
    power = plan_energy(
        waveform=config.energy_waveform,
        calibration=calibration,
        max_amplitude=config.radio.max_amplitude,
        scalar_bound=config.largest_number,
        noise_std=noise_std,
        air_noise_std=0.0 if config.vote is Vote.NOISE_BEFORE else noise_std,
        min_gain=config.radio.min_band_gain,
        min_participants=config.federation.min_speakers,
    )
    return PlannedRound(
        round_index=round_index,
        power=power,
        amplitude_error_bound=0.0,
        weakest_gain=power.weakest_gain,
    )


def _plan_packets(
    config: PlanConfig, terms: PrivacyTerms | None, round_index: int, devices: Sequence[int]
) -> PlannedRound:
    power = plan_packets(
        devices=devices,
        max_amplitude=config.radio.max_amplitude,
        scalar_bound=config.largest_number,
        noise_std=_own_noise_std(terms, round_index),
    )
    return PlannedRound(round_index, power, amplitude_error_bound=0.0, weakest_gain=0.0)
