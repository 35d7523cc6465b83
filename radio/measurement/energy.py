"""Known numbers through the energy waveform."""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Complex128Array, Float64Array
from radio.checks import check_not_negative
from radio.measurement.bench import Bench, HeldBench, Setting
from radio.measurement.result import Log, Measurement
from radio.waveforms import WaveformName
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import MAX_RELATIVE_ERROR, Moment, calibrate, pooled
from radio.waveforms.energy_error_model import silence_relative_errors, sum_variances

VECTOR_NORM = 0.4
"""Of several numbers side by side, over the largest: a clipped vector with its noise is shorter."""


def measure_energy(
    waveform: EnergyWaveform,
    setting: Setting,
    *,
    num_devices: int,
    calibration_error_db: float | None = None,
) -> Measurement:
    """A calibration, a silence, and a plateau with all numbers; full power has its back-off.

    Args:
        waveform: bands and plateau; `are_votes` says 1 or -1 instead of numbers.
        setting: of the measurement; of its impairments the prediction knows carriers and path loss.
        num_devices: K.
        calibration_error_db: standard deviation of the power gains that devices are told, 0 for
            the true ones; None measures them from pilots.

    Raises:
        RadioConfigurationError: an argument out of range, carriers beyond the guards, or all
            devices silent in all trials.
    """
    waveform.check_offset(setting.largest_offset_hz)
    if calibration_error_db is not None:
        check_not_negative("calibration_error_db", calibration_error_db)
    bench = Bench(
        setting,
        num_devices=num_devices,
        sample_rate_hz=waveform.sample_rate_hz,
        full_power=waveform.full_power_amplitude**2,
    )
    log = Log()
    with bench:
        for trial in bench.trials():
            if calibration_error_db is None:
                known, errors, shared = gains_from_pilots(waveform, bench)
            else:
                true = band_gains(waveform, trial.taps)
                known, errors = _gains_as_told(true, calibration_error_db, bench.radio_rng)
                shared = np.zeros_like(errors)
            is_heard = np.all(errors <= MAX_RELATIVE_ERROR, axis=(1, 2))
            speaking = np.flatnonzero((known.min(axis=(1, 2)) >= setting.min_gain) & is_heard)
            if speaking.size == 0:
                continue
            # A level for each number, which all who speak reach in both of its bands.
            levels = known[speaking].min(axis=(0, 2))
            arrival_power = waveform.arrival_power(levels)
            silence = listen(waveform, bench)
            numbers = draw_vectors(waveform, bench)
            scales = np.ones(num_devices)
            for k in speaking:
                amplitudes = np.minimum(levels[:, None] / known[k], 1.0)
                burst = waveform.burst(numbers[k], amplitudes, bench.radio_rng)
                bench.devices[k].hold(burst.samples)
                scales[k] = burst.scale
            capture = bench.capture(waveform.plateau_samples)
            setting.on_capture(capture)
            estimates = waveform.estimate_sums(
                waveform.energies(capture), silence, arrival_power, float(scales[speaking].sum())
            )
            for k in speaking:
                bench.devices[k].fall_silent()
            said = (numbers * scales[:, None])[speaking]
            variances = sum_variances(
                waveform,
                said,
                trial.offsets_hz[speaking],
                noise_power=bench.noise_power,
                arrival_power=arrival_power,
            ) + variances_of_gains(said, errors[speaking], shared[speaking])
            log.add(
                estimates=estimates.tolist(),
                truths=said.sum(axis=0),
                variances=variances.tolist(),
                num_speaking=int(speaking.size),
                # A device's gains are wrong by the same in many bands.
                err_together=calibration_error_db is None or calibration_error_db > 0.0,
            )
    captures = waveform.captures_of_round
    if calibration_error_db is None:
        captures += waveform.captures_of_calibration(num_devices)
    return log.measurement(
        bench,
        waveform=WaveformName.VOTE if waveform.are_votes else WaveformName.ENERGY,
        num_scalars=waveform.num_scalars,
        airtime_s=captures * waveform.plateau_s,
    )


def draw_vectors(waveform: EnergyWaveform, bench: HeldBench) -> Float64Array:
    """Known numbers of all devices [num_devices, num_scalars], several of them `VECTOR_NORM` long.

    One by itself is uniform on [-1, 1], and a vote is 1 or -1.
    """
    numbers = bench.draw_numbers(waveform.num_scalars, signs=waveform.are_votes)
    if waveform.num_scalars > 1 and not waveform.are_votes:
        numbers = VECTOR_NORM * numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    return numbers


def listen(waveform: EnergyWaveform, bench: HeldBench) -> Float64Array:
    """Energies of what is held now."""
    return waveform.energies(bench.capture(waveform.plateau_samples))


def variances_of_gains(
    shares: Float64Array, errors: Float64Array, shared: Float64Array
) -> Float64Array:
    """Variances of sums whose terms weigh wrongly, in part together [num_scalars].

    sum_k s_k^2 (r_k^2 - q_k^2), and (sum of s_k q_k)^2 over those in band A and in band B.

    Args:
        shares: s of those who speak [num_speakers, num_scalars].
        errors: r, of their power gains [num_speakers, num_scalars, 2].
        shared: q, the part of it that comes from the common silence, of the same shape.
    """
    in_bands = np.stack([np.maximum(shares, 0.0), np.maximum(-shares, 0.0)], axis=2)
    own = np.maximum(np.square(errors) - np.square(shared), 0.0)
    total = np.sum(np.square(in_bands) * own, axis=0) + np.square(np.sum(in_bands * shared, axis=0))
    return np.asarray(total.sum(axis=1))


def gains_from_pilots(
    waveform: EnergyWaveform, bench: HeldBench
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Amplitude gains, relative errors of the power gains and their shared part [K, Q, 2]."""
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
    errors = calibration.relative_errors
    shared = np.zeros_like(errors)
    for index, pilot in pilots.items():
        together = pooled(waveform, pilot - silence, silence)
        alone = silence_relative_errors(waveform, together.heard, silence)
        shared[index] = np.minimum(alone * math.sqrt(together.left), errors[index])
    return np.sqrt(calibration.power_gains), errors, shared


def band_gains(waveform: EnergyWaveform, taps: Complex128Array) -> Float64Array:
    """Amplitude gains of bands, roots of mean power gains [num_devices, num_scalars, 2].

    Left out of every formula: that within a band a gain may be uneven, which on average over
    devices with echoes of their own changes no interference between them.
    """
    shape = (len(taps), waveform.num_scalars, 2)
    if taps.shape[1] == 1:
        return np.broadcast_to(np.abs(taps)[:, :, None], shape)
    gains = np.empty(shape)
    bins = waveform.bands_in_bins()[:, :, None] + np.arange(waveform.num_bins)
    for own, echoes in zip(gains, taps, strict=True):
        power = np.square(np.abs(np.fft.fft(echoes, waveform.plateau_samples)))
        own[:] = np.sqrt(power[bins].mean(axis=2))
    return gains


def _gains_as_told(
    gains: Float64Array, error_db: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """The true ones, wrong by a Gaussian number of dB in all bands; E[(10^(x/10) - 1)^2]."""
    told = 10.0 ** (error_db * rng.standard_normal(len(gains)) / 20.0)
    variance = (error_db * math.log(10.0) / 10.0) ** 2
    square = math.exp(2.0 * variance) - 2.0 * math.exp(variance / 2.0) + 1.0
    return gains * told[:, None, None], np.full(gains.shape, math.sqrt(square))
