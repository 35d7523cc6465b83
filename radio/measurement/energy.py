"""Known numbers through the energy waveform."""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Float64Array
from radio.checks import check_integer, check_not_negative
from radio.measurement.bench import Bench, HeldBench, Setting
from radio.measurement.result import Log, Measurement
from radio.waveforms import WaveformName
from radio.waveforms.energy import BandEnergies, EnergyWaveform
from radio.waveforms.energy_calibration import MAX_RELATIVE_ERROR, Moment, calibrate
from radio.waveforms.energy_error_model import silence_relative_error, sum_variance


def measure_energy(
    waveform: EnergyWaveform,
    setting: Setting,
    *,
    num_devices: int,
    num_scalars: int = 1,
    calibration_error_db: float | None = None,
    signs: bool = False,
) -> Measurement:
    """A calibration, a silence, and a plateau for each number; full power has its back-off.

    Args:
        waveform: bands and plateau.
        setting: of the measurement; of its impairments the prediction knows carriers and path loss.
        num_devices: K.
        num_scalars: Q, plateaus of a trial.
        calibration_error_db: standard deviation of the power gains that devices are told, 0 for
            the true ones; None measures them from pilots.
        signs: devices say 1 or -1 instead of numbers.

    Raises:
        RadioConfigurationError: an argument out of range, carriers beyond the guards, or all
            devices silent in all trials.
    """
    check_integer("num_scalars", num_scalars, minimum=1)
    waveform.check_offset(setting.largest_offset_hz)
    if calibration_error_db is not None:
        check_not_negative("calibration_error_db", calibration_error_db)
    full_power = waveform.full_power_amplitude**2
    bench = Bench(
        setting,
        num_devices=num_devices,
        sample_rate_hz=waveform.sample_rate_hz,
        full_power=full_power,
    )
    log = Log()
    with bench:
        for trial in bench.trials():
            if calibration_error_db is None:
                known, errors, shared = gains_from_pilots(waveform, bench)
            else:
                told = np.abs(trial.gains)
                known, errors = _gains_as_told(told, calibration_error_db, bench.radio_rng)
                shared = np.zeros((num_devices, 2))
            is_heard = errors <= MAX_RELATIVE_ERROR
            speaking = np.flatnonzero((known.min(axis=1) >= setting.min_gain) & is_heard)
            if speaking.size == 0:
                continue
            level = known[speaking].min()
            arrival_power = level**2 * full_power
            silence = listen(waveform, bench)
            estimates, variances = [], []
            numbers = bench.draw_numbers(num_scalars, signs=signs)
            for shares in numbers.T:
                for k in speaking:
                    a, b = np.minimum(level / known[k], 1.0).tolist()
                    burst = waveform.burst(float(shares[k]), (a, b), bench.radio_rng)
                    bench.devices[k].hold(burst)
                capture = bench.capture(waveform.plateau_samples)
                setting.on_capture(capture)
                plateau = waveform.energies(capture)
                estimates.append(
                    waveform.estimate_sum(plateau, silence, arrival_power, int(speaking.size))
                )
                variance = sum_variance(
                    waveform,
                    shares[speaking],
                    trial.offsets_hz[speaking],
                    noise_power=bench.noise_power,
                    arrival_power=arrival_power,
                )
                variances.append(
                    variance
                    + variance_of_gains(shares[speaking], errors[speaking], shared[speaking])
                )
            for k in speaking:
                bench.devices[k].fall_silent()
            log.add(
                estimates=estimates,
                truths=numbers[speaking].sum(axis=0),
                variances=variances,
                num_speaking=int(speaking.size),
            )
    captures = waveform.captures_of_round(num_scalars)
    if calibration_error_db is None:
        captures += waveform.captures_of_calibration(num_devices)
    return log.measurement(
        bench,
        waveform=WaveformName.VOTE if signs else WaveformName.ENERGY,
        num_scalars=num_scalars,
        airtime_s=captures * waveform.plateau_s,
    )


def listen(waveform: EnergyWaveform, bench: HeldBench) -> BandEnergies:
    """Energies of what is held now."""
    return waveform.energies(bench.capture(waveform.plateau_samples))


def variance_of_gains(shares: Float64Array, errors: Float64Array, shared: Float64Array) -> float:
    """Variance of a sum whose terms weigh wrongly, in part together.

    sum_k s_k^2 (r_k^2 - q_k^2), and (sum of s_k q_k)^2 over those in band A and in band B.

    Args:
        shares: s of those who speak.
        errors: r, of their power gains.
        shared: q, the part of it that comes from the common silence [num_speakers, 2].
    """
    parts = np.where(shares[:, None] * [1.0, -1.0] > 0.0, shares[:, None] * shared, 0.0)
    own = np.square(errors) - np.square(shared.max(axis=1))
    total = np.sum(np.square(shares) * np.maximum(own, 0.0)) + np.sum(parts.sum(axis=0) ** 2)
    return float(total)


def gains_from_pilots(
    waveform: EnergyWaveform, bench: HeldBench
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Amplitude gains [K, 2], relative errors of the power gains [K] and their shared part [K, 2].

    The errors are the worse band's.
    """
    silence, pilots = listen(waveform, bench), {}
    for index, device in enumerate(bench.devices):
        device.hold(waveform.pilot(1.0, bench.radio_rng))
        pilots[index] = listen(waveform, bench)
        device.fall_silent()
    calibration = calibrate(
        waveform,
        num_devices=bench.num_devices,
        silence=silence,
        pilots=pilots,
        amplitude=1.0,
        made=Moment(0, 0.0),
    )
    shared = np.zeros((bench.num_devices, 2))
    for index, pilot in pilots.items():
        heard = pilot.less(silence)
        for band, (energy, noise) in enumerate(((heard.a, silence.a), (heard.b, silence.b))):
            if energy > 0.0:
                shared[index, band] = silence_relative_error(waveform, energy, noise)
    errors = calibration.relative_errors.max(axis=1)
    return np.sqrt(calibration.power_gains), errors, shared


def _gains_as_told(
    gains: Float64Array, error_db: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """The true ones, wrong by a Gaussian number of dB in both bands; E[(10^(x/10) - 1)^2]."""
    told = gains * 10.0 ** (error_db * rng.standard_normal(len(gains)) / 20.0)
    variance = (error_db * math.log(10.0) / 10.0) ** 2
    square = math.exp(2.0 * variance) - 2.0 * math.exp(variance / 2.0) + 1.0
    return np.stack([told, told], axis=1), np.full(len(gains), math.sqrt(square))
