"""Power plan of the energy waveform: at one level, or as near to it as a device can come.

Loudness is all that a calibration knows, so nothing is turned and nothing adds up in phase: a
device sends in each band with the amplitude that makes the largest number arrive at a common level.
Who cannot reach it sends at full power and weighs less; the receiver divides by the sum of the
weights. Pulling everybody down to the weakest would bury the sum in receiver noise, and a silent
device takes its number away, and its share of the averaging of everybody's noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.rounds import BandLevels, TransmitOrder
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration
from radio.waveforms.energy_error_model import sum_variance
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
        receive_scale: c, amplitude at which the largest number arrives in either band from a device
            of weight 1, as a gain on the waveform's full power; 0 if nobody speaks.
        full_range: R, the largest number, in units of the scalar.
        band_amplitudes: in bands A and B, over full scale.
        weights: power at which each participant arrives over that of the common level, 0 to 1.
        artificial_noise_std: sigma_k of each participant in units of the scalar.
    """

    participants: tuple[int, ...]
    silent: tuple[int, ...]
    receive_scale: float
    full_range: float
    band_amplitudes: Mapping[int, tuple[float, float]]
    weights: Mapping[int, float]
    artificial_noise_std: Mapping[int, float]

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        for name in ("band_amplitudes", "weights", "artificial_noise_std"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def orders(self) -> tuple[TransmitOrder, ...]:
        """What each participant is told."""
        return tuple(
            TransmitOrder(
                device_index=k,
                tx_gain_real=0.0,
                tx_gain_imag=0.0,
                artificial_noise_std=self.artificial_noise_std[k],
                bands=BandLevels(*self.band_amplitudes[k], self.full_range),
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
    r"""The level with the least predicted noise on the weighted mean, among what devices can reach.

    ::

        R   = scalar_bound + 4 air_noise_std
        m_k = max_amplitude abs(h_k), in the weaker band
        w_k = min(1, m_k / c)^2,       a_k,band = min(c, m_k) / abs(h_k,band)
        c   = argmin over c in {m_k} of ((noise_std^2 + s^2) sum w_k^2 + R^2 V(c)) / (sum w_k)^2

    with s a twentieth of R, by which the devices' numbers are taken to scatter around what they
    have in common, V of `radio.waveforms.energy_error_model` for numbers of that size, and the
    noise of the calibration's silence.

    Args:
        waveform: bands and window.
        calibration: gains of both bands, and which of them are known well enough.
        max_amplitude: largest amplitude over full scale, 0 to 1.
        scalar_bound: G, the bound on the number that is sent, before its noise.
        noise_std: sigma of every device's own artificial noise, in units of what it is added to.
        air_noise_std: of the noise on the number that is sent: sigma, or 0 for signs of noisy
            numbers.
        min_gain: truncation threshold on abs(h_k) in the weaker band.
        min_participants: with fewer, nobody speaks.

    Guarantees:
        * a_k <= max_amplitude, and at least one device has weight 1;
        * silent devices are exactly those not heard or below min_gain, or all of them;
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
    devices = range(calibration.num_devices)
    heard = {k: calibration.gains(k) for k in devices if calibration.is_heard(k)}
    gains = {k: both for k, both in heard.items() if min(both) >= min_gain}
    if len(gains) < max(1, min_participants):
        return EnergyPowerPlan((), tuple(devices), 0.0, 0.0, {}, {}, {})
    full_range = range_for(scalar_bound, air_noise_std)
    reach = {k: max_amplitude * min(both) for k, both in gains.items()}

    def noise_at(level: float) -> float:
        weights = np.minimum(1.0, np.array(list(reach.values())) / level) ** 2
        of_one = noise_std**2 + (_TYPICAL_SHARE * full_range) ** 2
        of_devices = of_one * float(np.sum(weights**2))
        of_radio = full_range**2 * _radio_variance(waveform, calibration, weights, level)
        return (of_devices + of_radio) / float(np.sum(weights)) ** 2

    level = min(sorted(reach.values()), key=noise_at)
    arrivals = {k: min(level, most) for k, most in reach.items()}
    return EnergyPowerPlan(
        participants=tuple(gains),
        silent=tuple(k for k in devices if k not in gains),
        receive_scale=level,
        full_range=full_range,
        # min: a quotient of floats may come out above the limit by its last bit.
        band_amplitudes={
            k: (min(arrivals[k] / a, max_amplitude), min(arrivals[k] / b, max_amplitude))
            for k, (a, b) in gains.items()
        },
        weights={k: (arrival / level) ** 2 for k, arrival in arrivals.items()},
        artificial_noise_std=dict.fromkeys(gains, noise_std),
    )


def _radio_variance(
    waveform: EnergyWaveform,
    calibration: Calibration,
    weights: npt.NDArray[np.float64],
    level: float,
) -> float:
    """V: of a sum of numbers of typical size, half of them each way."""
    shares = _TYPICAL_SHARE * weights * np.where(np.arange(weights.size) % 2, 1.0, -1.0)
    noise_energy = max(calibration.silence.a, calibration.silence.b)
    noise_power = noise_energy * waveform.plateau_samples / waveform.num_guarded_bins
    return sum_variance(
        waveform,
        shares,
        np.zeros(weights.size),
        noise_power=noise_power,
        arrival_power=(level * waveform.full_power_amplitude) ** 2,
    )
