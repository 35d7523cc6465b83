"""What is known of the paths between devices and receiver, how well, and for how long.

Radios without a common clock learn the loudness of a path and nothing else. The frame of a
calibration, each slot a held burst and one capture anywhere inside it::

    | silence | pilot of device 0 | pilot of device 1 | ... | pilot of device K-1 |

A pilot has full power, evenly in all 2 Q bands, so with an amplitude A of the transmitter and p_p
its share of the power P1 of the largest number, device k's power gain in a band b is

    abs(h_kb)^2 = D_b / (p_p P1 A^2),      D = energy of the pilot's capture - energy of the silence

with the relative error of `radio.waveforms.energy_error_model.pilot_relative_errors`. Neighbouring
bands of one path are about as loud, and a band alone has little of the pilot's power: so what the
bands of a device have in common is taken from all of them, and what they differ by only as far as
it is more than chance (the random-effects estimate of DerSimonian and Laird, Controlled Clinical
Trials 7(3), 1986, with n bands of equal error e, their mean m and variance s^2):

    t^2 = max(0, s^2 - e^2),    w = t^2 / (t^2 + e^2)
    abs(h_kb)^2 = m + w (D_b-gain - m),    error^2 = e^2 (w + (1 - w^2) / n)

Bands equally loud are known e / sqrt(n) well, bands as different as after echoes each by itself;
where they differ by about as much as chance would have it, up to 1.4 times worse than is stated.

A device whose gain is off by a factor e weighs e times as much in every sum. That worsens the error
of the sum (`radio.waveforms.energy`), and not the promise of privacy: the device's noise is part of
its numbers and weighs the same. For the coherent waveform a wrong amplitude does reach the price
(`radio.waveforms.coherent.ChannelEstimate`).

A gain holds as long as nothing moves and nothing warms up. `Calibration.check_fresh` knows how long
that is, in rounds, seconds and kelvins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from radio.arrays import BoolArray, Float64Array
from radio.checks import check_integer, check_positive
from radio.errors import RadioCalibrationError, RadioConfigurationError
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_error_model import pilot_relative_errors

MAX_RELATIVE_ERROR = 0.25
"""A power gain known worse than this is not used: its device was not heard in that band."""


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
    """Power gains of all devices in all bands, from one pilot each.

    Attributes:
        power_gains: abs(h_kb)^2, real [num_devices, num_scalars, 2]; 0 where nothing rose above the
            silence.
        relative_errors: standard deviation of each over itself, of the same shape; infinite for a
            device that sent no pilot, and where it was not heard.
        silence: energies while nobody sent [num_scalars, 2].
        made: when.
    """

    power_gains: Float64Array
    relative_errors: Float64Array
    silence: Float64Array
    made: Moment

    @property
    def num_devices(self) -> int:
        """K."""
        return len(self.power_gains)

    @property
    def hears(self) -> BoolArray:
        """Whether gains are known well enough for a number [num_devices, num_scalars]."""
        return np.all(self.relative_errors <= MAX_RELATIVE_ERROR, axis=2)

    def is_heard(self, device_index: int) -> bool:
        """Whether they are for any number at all."""
        return bool(np.any(self.hears[device_index]))

    def without(self, device_index: int) -> Calibration:
        """This calibration, with a device taken for unheard."""
        errors = self.relative_errors.copy()
        errors[device_index] = math.inf
        errors.flags.writeable = False
        return dataclasses.replace(self, relative_errors=errors)

    def gains(self, device_index: int) -> Float64Array:
        """abs(h_k) in all bands, amplitude ratios [num_scalars, 2].

        Raises:
            RadioCalibrationError: the device sent no pilot, or none that was heard.
        """
        if not self.is_heard(device_index):
            error = float(np.min(np.max(self.relative_errors[device_index], axis=1)))
            raise RadioCalibrationError(
                f"device {device_index}: its gain is known to {error:.0%} and at most "
                f"{MAX_RELATIVE_ERROR:.0%} will do; it sent no pilot or was not heard. Raise its "
                "power or bring it nearer, then calibrate again."
            )
        return np.sqrt(self.power_gains[device_index])

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
    heard = waveform.pilot_power * float(waveform.arrival_power(amplitude))
    in_a_band = float(pilot_relative_errors(waveform, heard, silence))
    error = in_a_band / math.sqrt(2.0 * waveform.num_scalars)
    if error > MAX_RELATIVE_ERROR:
        raise RadioCalibrationError(
            f"at this noise a gain would be known to {error:.0%}, at most {MAX_RELATIVE_ERROR:.0%} "
            "will do: nobody would be heard. Raise the SNR or lengthen the plateau."
        )


def calibrate(
    waveform: EnergyWaveform,
    *,
    num_devices: int,
    silence: Float64Array,
    pilots: Mapping[int, Float64Array],
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
    if not np.all(silence >= 0.0) or not np.all(np.isfinite(silence)):
        raise RadioConfigurationError(
            f"energy of a silent capture: got {silence.tolist()}, wanted finite numbers >= 0."
        )
    sent = waveform.pilot_power * float(waveform.arrival_power(amplitude))
    shape = (num_devices, waveform.num_scalars, 2)
    power_gains, relative_errors = np.zeros(shape), np.full(shape, math.inf)
    for device, energies in pilots.items():
        together = pooled(waveform, energies - silence, silence)
        power_gains[device] = np.maximum(together.heard, 0.0) / sent
        relative_errors[device] = together.relative_errors
    power_gains.flags.writeable = False
    relative_errors.flags.writeable = False
    return Calibration(power_gains, relative_errors, silence, made)


class Pooled(NamedTuple):
    """What all bands of a pilot say together of each of them.

    Attributes:
        heard: D of each band [num_scalars, 2].
        relative_errors: of each; infinite where it did not rise above the silence.
        left: by which pooling makes the error of a band smaller, w + (1 - w^2) / n, a variance's.
    """

    heard: Float64Array
    relative_errors: Float64Array
    left: float


def pooled(waveform: EnergyWaveform, heard: Float64Array, silence: Float64Array) -> Pooled:
    """Gains of bands from all bands of one pilot; equations in the module.

    Args:
        waveform: what the energies were taken with.
        heard: D of each band [num_scalars, 2].
        silence: E of each while nobody sent.
    """
    mean, num_bands = float(np.mean(heard)), heard.size
    if mean <= 0.0:
        return Pooled(heard, np.full(heard.shape, math.inf), 1.0)
    # Of a band as loud as the mean: what a faint one would say of itself follows its own error.
    of_one = float(np.mean(np.square(mean * pilot_relative_errors(waveform, mean, silence))))
    differ = max(0.0, float(np.var(heard, ddof=1)) - of_one)
    weight = differ / (differ + of_one)
    left = weight + (1.0 - weight**2) / num_bands
    found = mean + weight * (heard - mean)
    is_heard = found > 0.0
    errors = math.sqrt(left * of_one) / np.where(is_heard, found, 1.0)
    return Pooled(found, np.where(is_heard, errors, math.inf), left)
