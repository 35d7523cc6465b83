"""Power plan of the energy waveform: everybody as loud as the weakest who still counts.

Loudness is all that a calibration knows, so nothing is turned and nothing adds up in phase: a
device sends in each band with the amplitude that makes the largest number arrive at one common
level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edge_runtime.protocol.rounds import BandLevels, TransmitOrder
from radio.calibration import Calibration
from server.errors import ConfigurationError

RANGE_IN_NOISE_STDS = 4.0
"""Room for a device's noise beyond its clip. What is beyond is sent as the end of the range, with
probability below 3.2e-5 a number; the promise does not mind (`EnergyWaveform.powers`)."""


@dataclass(frozen=True, slots=True)
class EnergyPowerPlan:
    """Who speaks, how loud, and with how much noise.

    Attributes:
        participants: devices that speak, ascending.
        silent: the others, ascending.
        receive_scale: c, amplitude at which the largest number arrives in either band, as a gain on
            the waveform's full power; 0 if nobody speaks.
        full_range: R, the largest number, in units of the scalar.
        band_amplitudes: c / abs(h_k) in bands A and B, over full scale.
        artificial_noise_std: sigma_k of each participant in units of the scalar.
    """

    participants: tuple[int, ...]
    silent: tuple[int, ...]
    receive_scale: float
    full_range: float
    band_amplitudes: Mapping[int, tuple[float, float]]
    artificial_noise_std: Mapping[int, float]

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        for name in ("band_amplitudes", "artificial_noise_std"):
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


def plan_energy(
    *,
    calibration: Calibration,
    max_amplitude: float,
    scalar_bound: float,
    noise_std: float,
    air_noise_std: float,
    min_gain: float,
    min_participants: int = 1,
) -> EnergyPowerPlan:
    r"""Truncated inversion of magnitudes, in each band.

    ::

        R        = scalar_bound + 4 air_noise_std
        c        = min over participants and bands of max_amplitude abs(h_k)
        a_k,band = c / abs(h_k,band)

    Args:
        calibration: gains of both bands, and which of them are known well enough.
        max_amplitude: largest amplitude over full scale, 0 to 1.
        scalar_bound: G, the bound on the number that is sent, before its noise.
        noise_std: sigma of every device's own artificial noise, in units of what it is added to.
        air_noise_std: of the noise on the number that is sent: sigma, or 0 for signs of noisy
            numbers.
        min_gain: truncation threshold on abs(h_k) in the weaker band.
        min_participants: with fewer, nobody speaks.

    Guarantees:
        * a_k <= max_amplitude;
        * silent devices are exactly those not heard or below min_gain, or all of them;
        * if everybody is silent the plan has no participants: charge nothing.

    Raises:
        ConfigurationError: a value out of range.

    Source: theory.md, sections 1.1 and 11.
    """
    for name, value in (
        ("max_amplitude", max_amplitude),
        ("scalar_bound", scalar_bound),
        ("min_gain", min_gain),
    ):
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name}: got {value}, wanted a finite number > 0.")
    for name, value in (("noise_std", noise_std), ("air_noise_std", air_noise_std)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(f"{name}: got {value}, wanted a finite number >= 0.")
    devices = range(calibration.num_devices)
    heard = {k: calibration.gains(k) for k in devices if calibration.is_heard(k)}
    gains = {k: both for k, both in heard.items() if min(both) >= min_gain}
    if len(gains) < max(1, min_participants):
        return EnergyPowerPlan((), tuple(devices), 0.0, 0.0, {}, {})
    level = max_amplitude * min(min(both) for both in gains.values())
    return EnergyPowerPlan(
        participants=tuple(gains),
        silent=tuple(k for k in devices if k not in gains),
        receive_scale=level,
        full_range=scalar_bound + RANGE_IN_NOISE_STDS * air_noise_std,
        # min: a quotient of floats may come out above the limit by its last bit.
        band_amplitudes={
            k: (min(level / a, max_amplitude), min(level / b, max_amplitude))
            for k, (a, b) in gains.items()
        },
        artificial_noise_std=dict.fromkeys(gains, noise_std),
    )
