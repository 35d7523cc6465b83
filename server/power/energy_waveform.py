"""Power plan of the energy waveform: at one level, or as near to it as a device can come.

Loudness is all that a calibration knows, so nothing is turned and nothing adds up in phase: a
device sends in each band with the amplitude that makes the largest number arrive at a common level.
Who cannot reach it sends as loud as it may and weighs less; the receiver divides by the sum of the
weights. Pulling everybody down to the weakest would bury the sum in receiver noise, and a silent
device takes its number away, and its share of the averaging of everybody's noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edge_runtime.protocol.rounds import BandLevels, TransmitOrder
from radio.arrays import Float64Array
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration
from radio.waveforms.energy_error_model import sum_variances
from server.numeric import check_not_negative, check_positive

RANGE_IN_NOISE_STDS = 4.0
"""Room for a device's noise beyond its clip. What is beyond is sent as the end of the range, with
probability below 3.2e-5 a number; the promise does not mind (`EnergyWaveform.powers`)."""

_TYPICAL_SHARE = 0.05
"""Of the range, a device's number: what decides how much unequal weights and self-noise cost."""


@dataclass(frozen=True, slots=True)
class EnergyPowerPlan:
    """Who speaks, how loud, and with how much noise.

    Attributes:
        participants: devices that speak, ascending.
        silent: the others, ascending.
        levels: c of each number, amplitude at which the largest arrives in either of its bands from
            a device of weight 1, as a gain on the waveform's full power; 0 for a number that nobody
            says [num_scalars], and empty if nobody speaks.
        full_range: R, the largest number, in units of the scalar.
        band_amplitudes: of each participant over full scale, as `BandLevels` has them.
        weights: powers at which each participant's numbers arrive over that of the common level, 0
            to 1; 0 where a device does not reach the receiver in the bands of a number.
        artificial_noise_std: sigma_k of each participant in units of the scalar.
        weakest_gain: smallest amplitude gain that is used; 0 if nobody speaks.
    """

    participants: tuple[int, ...]
    silent: tuple[int, ...]
    levels: tuple[float, ...]
    full_range: float
    band_amplitudes: Mapping[int, tuple[float, ...]]
    weights: Mapping[int, tuple[float, ...]]
    artificial_noise_std: Mapping[int, float]
    weakest_gain: float

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        for name in ("band_amplitudes", "weights", "artificial_noise_std"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def receive_scale(self) -> float:
        """The lowest level of a number; 0 if nobody speaks."""
        return min((level for level in self.levels if level > 0.0), default=0.0)

    def orders(self) -> tuple[TransmitOrder, ...]:
        """What each participant is told."""
        return tuple(
            TransmitOrder(
                device_index=k,
                tx_gain_real=0.0,
                tx_gain_imag=0.0,
                artificial_noise_std=self.artificial_noise_std[k],
                bands=BandLevels(self.band_amplitudes[k], self.full_range),
            )
            for k in self.participants
        )


def range_for(scalar_bound: float, noise_std: float) -> float:
    """R, the largest number that is sent as it is: the bound, and room for the noise on it."""
    return scalar_bound + RANGE_IN_NOISE_STDS * noise_std


def plan_energy(
    *,
    waveform: EnergyWaveform,
    calibration: Calibration,
    max_amplitude: float,
    scalar_bound: float,
    noise_std: float,
    air_noise_std: float,
    min_gain: float,
    min_participants: int = 1,
) -> EnergyPowerPlan:
    r"""For each number the level with the least predicted noise on its weighted mean.

    ::

        R    = scalar_bound + 4 air_noise_std
        m_kq = max_amplitude abs(h_kq), in the weaker band of the number
        w_kq = min(1, m_kq / c_q)^2,      a_kq,band = min(c_q, m_kq) / abs(h_kq,band)
        c_q  = argmin over c in {m_kq} of
               ((noise_std^2 + s^2) sum_k w_kq^2 + R^2 V(c)) / (sum_k w_kq)^2

    with s a twentieth of R, by which the devices' numbers are taken to scatter around what they
    have in common, V of `radio.waveforms.energy_error_model` for numbers of that size, and the
    noise of the calibration's silence. Each number has a level of its own: where echoes make bands
    unequal, one level for all would be that of the worst band of the worst device, and bury the
    others' sums in receiver noise; where bands are equal the levels are, too.

    Args:
        waveform: bands and window.
        calibration: gains of all bands, and which of them are known well enough.
        max_amplitude: largest amplitude over full scale, 0 to 1.
        scalar_bound: G, the bound on the number that is sent, before its noise.
        noise_std: sigma of every device's own artificial noise, in units of what it is added to.
        air_noise_std: of the noise on the number that is sent: sigma, or 0 for signs of noisy
            numbers.
        min_gain: truncation threshold on abs(h_kq) in the weaker band of a number: below it a
            device does not say that number.
        min_participants: with fewer, nobody speaks.

    Guarantees:
        * a_k <= max_amplitude, and at least one device has weight 1 in a number that is said;
        * silent devices are exactly those not heard or below min_gain in all bands, or all of them;
        * if everybody is silent the plan has no participants: charge nothing.

    Raises:
        ConfigurationError: a value out of range.

    Source: theory.md, sections 1.1 and 11; levels and weights are ours.
    """
    check_positive("max_amplitude", max_amplitude)
    check_positive("scalar_bound", scalar_bound)
    check_positive("min_gain", min_gain)
    check_not_negative("noise_std", noise_std)
    check_not_negative("air_noise_std", air_noise_std)
    gains = np.sqrt(calibration.power_gains)
    reach = max_amplitude * gains.min(axis=2)
    says = calibration.hears & (gains.min(axis=2) >= min_gain)
    participants = np.flatnonzero(says.any(axis=1))
    if participants.size < max(1, min_participants):
        everybody = tuple(range(calibration.num_devices))
        return EnergyPowerPlan((), everybody, (), 0.0, {}, {}, {}, 0.0)
    full_range = range_for(scalar_bound, air_noise_std)
    reach = np.where(says, reach, 0.0)
    of_one = noise_std**2 + (_TYPICAL_SHARE * full_range) ** 2

    def weights_at(levels: Float64Array) -> Float64Array:
        heard = levels > 0.0
        ratio = np.divide(reach, levels, out=np.zeros_like(reach), where=heard)
        return np.asarray(np.square(np.minimum(1.0, ratio)))

    def noises_at(levels: Float64Array) -> Float64Array:
        """Noise of each number; infinite where nobody would say it."""
        weights = weights_at(levels)
        said = weights.sum(axis=0)
        of_devices = of_one * np.square(weights).sum(axis=0)
        of_radio = full_range**2 * _radio_variances(waveform, calibration, weights, levels)
        whole = np.square(np.where(said > 0.0, said, 1.0))
        return np.where(said > 0.0, (of_devices + of_radio) / whole, math.inf)

    # The devices in the order of their reach, number by number: level j is that of the j-th.
    candidates = np.sort(reach, axis=0)
    noises = np.stack([noises_at(levels) for levels in candidates])
    best = np.argmin(noises, axis=0)
    levels = np.take_along_axis(candidates, best[None, :], axis=0)[0]
    weights = weights_at(levels)
    arrivals = np.minimum(levels, reach)[:, :, None]
    amplitudes = np.divide(arrivals, gains, out=np.zeros_like(gains), where=arrivals > 0.0)
    # min: a quotient of floats may come out above the limit by its last bit.
    amplitudes = np.minimum(amplitudes, max_amplitude)
    return EnergyPowerPlan(
        participants=tuple(participants.tolist()),
        silent=tuple(np.flatnonzero(~says.any(axis=1)).tolist()),
        levels=tuple(levels.tolist()),
        full_range=full_range,
        band_amplitudes={k: tuple(amplitudes[k].ravel().tolist()) for k in participants.tolist()},
        weights={k: tuple(weights[k].tolist()) for k in participants.tolist()},
        artificial_noise_std=dict.fromkeys(participants.tolist(), noise_std),
        weakest_gain=float(gains[says].min()),
    )


def _radio_variances(
    waveform: EnergyWaveform,
    calibration: Calibration,
    weights: Float64Array,
    levels: Float64Array,
) -> Float64Array:
    """V of each number: of a sum of numbers of typical size, half of them each way."""
    signs = np.where(np.arange(len(weights)) % 2, 1.0, -1.0)[:, None]
    return sum_variances(
        waveform,
        _TYPICAL_SHARE * weights * signs,
        np.zeros(len(weights)),
        noise_power=waveform.noise_power(calibration.silence),
        arrival_power=waveform.arrival_power(np.where(levels > 0.0, levels, 1.0)),
    )
