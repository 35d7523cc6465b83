"""What is known of the paths between devices and receiver, how well, and for how long.

Radios without a common clock learn the loudness of a path and nothing else. The frame of a
calibration, each slot a held burst and one capture anywhere inside it::

    | silence | pilot of device 0 | pilot of device 1 | ... | pilot of device K-1 |

A pilot has half of full power in each band, so with an amplitude A of the transmitter and the
full power P1 of the waveform (back-off included) device k's power gain in a band is

    abs(h_k)^2 = D / (P1 A^2 / 2),      D = energy of the pilot's capture - energy of the silence

with the relative error of `radio.waveforms.energy_error_model.pilot_relative_error`. A device whose
gain is off by a factor e weighs e times as much in every sum. That worsens the error of the sum
(`radio.waveforms.energy`), and not the promise of privacy: the device's noise is part of its number
and weighs the same. For the coherent waveform a wrong amplitude does reach the price
(`radio.waveforms.coherent.ChannelEstimate`).

A gain holds as long as nothing moves and nothing warms up. `Calibration.check_fresh` knows how long
that is, in rounds, seconds and kelvins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from radio.arrays import Float64Array
from radio.checks import check_integer, check_not_negative, check_positive
from radio.errors import RadioCalibrationError
from radio.waveforms.energy import PILOT_POWERS, BandEnergies, EnergyWaveform
from radio.waveforms.energy_error_model import pilot_relative_error

MAX_RELATIVE_ERROR = 0.25
"""A power gain known worse than this is not used: its device was not heard."""


@dataclass(frozen=True, slots=True)
class CalibrationLimits:
    """How long a calibration holds.

    Attributes:
        max_rounds: rounds it serves, the first included.
        max_age_s: seconds.
        max_drift_k: change of the radio's temperature, in kelvins, where it has a thermometer.
    """

    max_rounds: int
    max_age_s: float = 600.0
    max_drift_k: float = 5.0

    def __post_init__(self) -> None:
        check_integer("max_rounds", self.max_rounds, minimum=1)
        check_positive("max_age_s", self.max_age_s)
        check_positive("max_drift_k", self.max_drift_k)


@dataclass(frozen=True, slots=True)
class Moment:
    """When, as far as a calibration cares.

    Attributes:
        round_index: of the run.
        clock_s: of a monotonic clock.
        temperature_c: of the receiver, None where it has no thermometer.
    """

    round_index: int
    clock_s: float
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Power gains of all devices in both bands, from one pilot each.

    Attributes:
        power_gains: abs(h_k)^2, real [num_devices, 2]; 0 where nothing rose above the silence.
        relative_errors: standard deviation of each over itself [num_devices, 2]; infinite for a
            device that sent no pilot or was not heard.
        silence: energies while nobody sent.
        made: when.
    """

    power_gains: Float64Array
    relative_errors: Float64Array
    silence: BandEnergies
    made: Moment

    @property
    def num_devices(self) -> int:
        """K."""
        return len(self.power_gains)

    def is_heard(self, device_index: int) -> bool:
        """Whether a device's gains are known well enough to use."""
        return bool(np.all(self.relative_errors[device_index] <= MAX_RELATIVE_ERROR))

    def without(self, device_index: int) -> Calibration:
        """This calibration, with a device taken for unheard."""
        errors = self.relative_errors.copy()
        errors[device_index] = math.inf
        errors.flags.writeable = False
        return dataclasses.replace(self, relative_errors=errors)

    def gains(self, device_index: int) -> tuple[float, float]:
        """abs(h_k) in bands A and B, amplitude ratios.

        Raises:
            RadioCalibrationError: the device sent no pilot, or none that was heard.
        """
        if not self.is_heard(device_index):
            error = float(np.max(self.relative_errors[device_index]))
            raise RadioCalibrationError(
                f"device {device_index}: its gain is known to {error:.0%} and at most "
                f"{MAX_RELATIVE_ERROR:.0%} will do; it sent no pilot or was not heard. Raise its "
                "power or bring it nearer, then calibrate again."
            )
        a, b = np.sqrt(self.power_gains[device_index]).tolist()
        return a, b

    def check_fresh(self, now: Moment, limits: CalibrationLimits) -> None:
        """Return if the calibration still holds.

        Raises:
            RadioCalibrationError: it does not; the message says by which limit.
        """
        rounds = now.round_index - self.made.round_index
        age_s = now.clock_s - self.made.clock_s
        if not 0 <= rounds < limits.max_rounds:
            stale = f"{rounds} rounds old, wanted fewer than {limits.max_rounds}"
        elif not 0 <= age_s <= limits.max_age_s:
            stale = f"{age_s:.1f} s old, wanted at most {limits.max_age_s:g} s"
        elif self._drift_k(now) > limits.max_drift_k:
            stale = (
                f"made at {self.made.temperature_c:g} degrees Celsius, it is "
                f"{now.temperature_c:g} now, wanted within {limits.max_drift_k:g}"
            )
        else:
            return
        raise RadioCalibrationError(
            f"calibration: {stale}. Nothing was transmitted; send pilots again first."
        )

    def _drift_k(self, now: Moment) -> float:
        if self.made.temperature_c is None or now.temperature_c is None:
            return 0.0
        return abs(now.temperature_c - self.made.temperature_c)


def check_can_be_heard(waveform: EnergyWaveform, noise_power: float, amplitude: float) -> None:
    """Return if a pilot through unit gain would be heard in this noise.

    Args:
        waveform: bands and back-off.
        noise_power: N0 per complex sample.
        amplitude: of the pilot over full scale.

    Raises:
        RadioCalibrationError: its gain would be known worse than MAX_RELATIVE_ERROR.
    """
    silence = noise_power * waveform.num_guarded_bins / waveform.plateau_samples
    heard = PILOT_POWERS[0] * (amplitude * waveform.full_power_amplitude) ** 2
    error = pilot_relative_error(waveform, heard, silence)
    if error > MAX_RELATIVE_ERROR:
        raise RadioCalibrationError(
            f"at this noise a gain would be known to {error:.0%}, at most {MAX_RELATIVE_ERROR:.0%} "
            "will do: nobody would be heard. Raise the SNR or lengthen the plateau."
        )


def calibrate(
    waveform: EnergyWaveform,
    *,
    num_devices: int,
    silence: BandEnergies,
    pilots: Mapping[int, BandEnergies],
    amplitude: float,
    made: Moment,
) -> Calibration:
    """Gains from energies; equations in the module.

    Args:
        waveform: what the energies were taken with.
        num_devices: K.
        silence: of a capture while nobody sent.
        pilots: of the capture of each device that was to send a pilot.
        amplitude: A of all pilots over full scale, > 0.
        made: when the pilots were sent.

    Raises:
        RadioConfigurationError: an argument out of range.
    """
    check_integer("num_devices", num_devices, minimum=1)
    check_positive("amplitude", amplitude)
    sent = PILOT_POWERS[0] * (amplitude * waveform.full_power_amplitude) ** 2
    power_gains = np.zeros((num_devices, 2))
    relative_errors = np.full((num_devices, 2), math.inf)
    for device, energies in pilots.items():
        heard = energies.less(silence)
        bands = ((heard.a, silence.a), (heard.b, silence.b))
        for band, (energy, noise) in enumerate(bands):
            check_not_negative("energy of a silent capture", noise)
            power_gains[device, band] = max(energy, 0.0) / sent
            relative_errors[device, band] = pilot_relative_error(waveform, energy, noise)
    power_gains.flags.writeable = False
    relative_errors.flags.writeable = False
    return Calibration(power_gains, relative_errors, silence, made)
