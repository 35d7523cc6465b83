"""Radios that are there: how loud, how far off, how steady, and known numbers over them.

The receiver captures, the transmitters hold; whether they are hardware or virtual their ``source``
says. What a simulation knows - gains, carriers, noise - is measured from pilots here, and the
prediction is made of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radio.arrays import Complex64Array, Float64Array
from radio.checks import check_integer
from radio.errors import RadioCalibrationError
from radio.measurement.bench import MAX_SNR_DB, MIN_SNR_DB, Setting, drawn
from radio.measurement.energy import (
    draw_vectors,
    gains_from_pilots,
    listen,
    variances_of_gains,
)
from radio.measurement.result import Log, Measurement
from radio.software_air.channel_models import AwgnChannel
from radio.transceiver import Transceiver
from radio.units import db_from_power_ratio, mean_power_dbfs
from radio.waveforms import WaveformName
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, Moment, calibrate
from radio.waveforms.energy_error_model import sum_variances
from radio.waveforms.energy_offset import estimate_offset_hz

TRIALS_PER_CALIBRATION = 20
_TIMEOUT_S = 5.0
_NEAR_FULL_SCALE = 2047.0 / 2048.0


class RadioBench:
    """A receiver and transmitters that somebody has opened, and closes."""

    def __init__(
        self, setting: Setting, receiver: Transceiver, devices: Sequence[Transceiver]
    ) -> None:
        self.setting = setting
        self.receiver = receiver
        self.devices = list(devices)
        check_integer("number of transmitters", len(self.devices), minimum=1)
        self.radio_rng, self._number_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(setting.seed).spawn(2)
        )

    @property
    def num_devices(self) -> int:
        """K."""
        return len(self.devices)

    def capture(self, num_samples: int) -> Complex64Array:
        """What the receiver hears of what is held."""
        duration_s = num_samples / self.receiver.sample_rate_hz
        return self.receiver.capture(num_samples, timeout_s=duration_s + _TIMEOUT_S)

    def draw_numbers(self, num_scalars: int, *, signs: bool = False) -> Float64Array:
        """Uniform on [-1, 1] [num_devices, num_scalars], or signs of that."""
        return drawn(self._number_rng, self.num_devices, num_scalars, signs=signs)

    def fall_silent(self) -> None:
        """All of them."""
        for device in self.devices:
            device.fall_silent()


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One transmitter, as the receiver hears its pilots.

    Attributes:
        gain_a_db: power gain in bands A, full scale to full scale, mean of all pilots; -inf if
            nothing was heard.
        gain_b_db: in bands B.
        spread_db: largest less smallest power gain among the pilots, in the worse band.
        relative_error: of one pilot's power gain, predicted, in the worse band.
        is_heard: whether that is good enough to be used.
        offset_hz: of its carrier beside the receiver's, median of the pilots.
        offset_spread_hz: largest less smallest of them.
        level_dbfs: mean power of the receiver's samples while it sends a pilot.
        peak: largest part of a sample then, over full scale.
    """

    gain_a_db: float
    gain_b_db: float
    spread_db: float
    relative_error: float
    is_heard: bool
    offset_hz: float
    offset_spread_hz: float
    level_dbfs: float
    peak: float

    @property
    def is_overloaded(self) -> bool:
        """Whether the receiver's converter was at its end."""
        return self.peak >= _NEAR_FULL_SCALE


@dataclass(frozen=True, slots=True)
class Survey:
    """All transmitters, and the receiver without any.

    Attributes:
        source: of the receiver.
        devices: in their order.
        silence_dbfs: mean power of the receiver's samples while nobody sends.
        num_pilots: of each.
    """

    source: str
    devices: tuple[DeviceReading, ...]
    silence_dbfs: float
    num_pilots: int


def survey(
    waveform: EnergyWaveform,
    receiver: Transceiver,
    devices: Sequence[Transceiver],
    *,
    num_pilots: int,
    seed: int,
) -> Survey:
    """Listen to each transmitter alone, several times over.

    Args:
        waveform: whose pilots they send, at full power.
        receiver: that captures.
        devices: that hold.
        num_pilots: of each, >= 1.
        seed: of the pilots' phases.

    Raises:
        RadioConfigurationError: an argument out of range.
        RadioError: a radio failed.
    """
    check_integer("num_pilots", num_pilots, minimum=1)
    setting = Setting(channel=AwgnChannel(), snr_db=0.0, num_trials=2, seed=seed)
    bench = RadioBench(setting, receiver, devices)
    calibrations: list[Calibration] = []
    offsets = np.zeros((num_pilots, bench.num_devices))
    levels = np.zeros(bench.num_devices)
    peaks = np.zeros(bench.num_devices)
    silence_dbfs = 0.0
    for turn in range(num_pilots):
        bench.fall_silent()
        quiet = bench.capture(waveform.plateau_samples)
        silence_dbfs, pilots = mean_power_dbfs(quiet), {}
        for index, device in enumerate(bench.devices):
            device.hold(waveform.pilot(1.0, bench.radio_rng))
            capture = bench.capture(waveform.plateau_samples)
            device.fall_silent()
            pilots[index] = waveform.energies(capture)
            offsets[turn, index] = estimate_offset_hz(
                waveform, capture, likely_hz=waveform.max_offset_hz
            )
            levels[index] = mean_power_dbfs(capture)
            peaks[index] = max(peaks[index], float(np.abs(capture.view(np.float32)).max()))
        calibrations.append(
            calibrate(
                waveform,
                num_devices=bench.num_devices,
                silence=waveform.energies(quiet),
                pilots=pilots,
                amplitude=1.0,
                made=Moment(0, 0.0),
            )
        )
    readings = [
        _reading(index, calibrations, offsets[:, index], levels[index], peaks[index])
        for index in range(bench.num_devices)
    ]
    return Survey(receiver.source, tuple(readings), silence_dbfs, num_pilots)


def _reading(
    index: int,
    calibrations: Sequence[Calibration],
    offsets_hz: Float64Array,
    level_dbfs: float,
    peak: float,
) -> DeviceReading:
    gains = np.array([c.power_gains[index] for c in calibrations])
    a, b = (db_from_power_ratio(float(mean)) for mean in gains.mean(axis=(0, 1)))
    lowest, highest = gains.min(axis=0), gains.max(axis=0)
    is_heard = all(bool(np.all(c.hears[index])) for c in calibrations)
    spread_db = 0.0
    if np.all(lowest > 0.0):
        spread_db = float(np.max(10.0 * np.log10(highest / lowest)))
    return DeviceReading(
        gain_a_db=a,
        gain_b_db=b,
        spread_db=spread_db,
        relative_error=max(float(c.relative_errors[index].max()) for c in calibrations),
        is_heard=is_heard,
        offset_hz=float(np.median(offsets_hz)),
        offset_spread_hz=float(np.ptp(offsets_hz)),
        level_dbfs=float(level_dbfs),
        peak=float(peak),
    )


def measure_over_the_air(
    waveform: EnergyWaveform,
    setting: Setting,
    receiver: Transceiver,
    devices: Sequence[Transceiver],
) -> Measurement:
    """Known numbers over radios that are there; pilots every twenty trials.

    Args:
        waveform: bands and plateau.
        setting: trials and seed; SNR, channel and impairments are the radios' own.
        receiver: that captures.
        devices: that hold.

    Raises:
        RadioCalibrationError: a device is not heard, or its carrier is beyond the guards.
        RadioError: a radio failed.
    """
    bench = RadioBench(setting, receiver, devices)
    everybody = range(bench.num_devices)
    log = Log()
    offsets = _offsets(waveform, bench)
    level, snr_db = 0.0, 0.0
    for trial in range(setting.num_trials):
        setting.on_trial(trial)
        if trial % TRIALS_PER_CALIBRATION == 0:
            known, errors, shared = gains_from_pilots(waveform, bench)
            level = float(known.min())
        arrival_power = float(waveform.arrival_power(level))
        silence = listen(waveform, bench)
        numbers = draw_vectors(waveform, bench)
        scales = np.ones(bench.num_devices)
        for k in everybody:
            amplitudes = np.minimum(level / known[k], 1.0)
            burst = waveform.burst(numbers[k], amplitudes, bench.radio_rng)
            bench.devices[k].hold(burst.samples)
            scales[k] = burst.scale
        capture = bench.capture(waveform.plateau_samples)
        bench.fall_silent()
        setting.on_capture(capture)
        noise_power = waveform.noise_power(silence)
        said = numbers * scales[:, None]
        variances = sum_variances(
            waveform, said, offsets, noise_power=noise_power, arrival_power=arrival_power
        ) + variances_of_gains(said, errors, shared)
        weight = float(scales.sum())
        sums = waveform.estimate_sums(waveform.energies(capture), silence, arrival_power, weight)
        log.add(
            estimates=sums.tolist(),
            truths=said.sum(axis=0).tolist(),
            variances=variances.tolist(),
            num_speaking=bench.num_devices,
            err_together=True,
        )
        snr_db = db_from_power_ratio(arrival_power / max(noise_power, 1e-300))
    bench.setting = dataclasses.replace(setting, snr_db=min(max(snr_db, MIN_SNR_DB), MAX_SNR_DB))
    return log.measurement(
        bench,
        waveform=WaveformName.ENERGY,
        num_scalars=waveform.num_scalars,
        airtime_s=waveform.captures_of_round * waveform.plateau_s,
    )


def _offsets(waveform: EnergyWaveform, bench: RadioBench) -> Float64Array:
    """The offset of every device's carrier, and whether it can be used at all."""
    found = survey(waveform, bench.receiver, bench.devices, num_pilots=1, seed=bench.setting.seed)
    for index, device in enumerate(found.devices):
        if not device.is_heard:
            raise RadioCalibrationError(
                f"device {index}: not heard, its gain is known to {device.relative_error:.0%}. "
                "Look at it with: pairzero-radio calibrate"
            )
        waveform.check_offset(device.offset_hz)
    return np.array([device.offset_hz for device in found.devices])
