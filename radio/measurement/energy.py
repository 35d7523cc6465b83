"""Known numbers through the energy waveform, over a software medium, radios drawn anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from radio.calibration import MAX_RELATIVE_ERROR, Moment, calibrate
from radio.channel_models import ChannelModel
from radio.checks import Float64Array, check_integer, check_not_negative
from radio.impairments import Crystals, Impairments
from radio.loopback import LoopbackTransceiver
from radio.measurement.result import (
    ALPHA,
    TIMEOUT_S,
    Log,
    Measurement,
    OnCapture,
    OnTrial,
    channel_name,
    check_request,
    ignore,
)
from radio.medium import SoftwareMedium
from radio.units import power_ratio_from_db
from radio.waveforms import WaveformName
from radio.waveforms.energy import BandEnergies, EnergyWaveform
from radio.waveforms.energy_error_model import sum_variance


def measure_energy(
    *,
    waveform: EnergyWaveform,
    impairments: Impairments,
    channel: ChannelModel,
    num_devices: int,
    snr_db: float,
    num_trials: int,
    seed: int,
    num_scalars: int = 1,
    carrier_hz: float = 915e6,
    min_gain: float = 0.1,
    calibration_error_db: float | None = None,
    impairments_name: str = "",
    alpha: float = ALPHA,
    signs: bool = False,
    on_trial: OnTrial = ignore,
    on_capture: OnCapture = ignore,
) -> Measurement:
    """Hold known numbers on a software medium, num_trials times, with radios drawn anew.

    Args:
        waveform: bands and plateau.
        impairments: of the medium.
        channel: gains, times the path gains of the impairments.
        num_devices: K.
        snr_db: of a device at full power, as `Measurement` says.
        num_trials: >= 2.
        seed: >= 0.
        num_scalars: Q, plateaus of a trial.
        carrier_hz: nominal.
        min_gain: abs(h_hat) below which a device stays silent, > 0.
        calibration_error_db: standard deviation of the power gains that devices are told, 0 for
            the true ones; None measures them from pilots.
        impairments_name: for the source.
        alpha: probability that a correct formula is reported as a disagreement.
        signs: devices say 1 or -1 instead of numbers.
        on_trial: told before each trial how many are done.
        on_capture: given every capture of a payload.

    Raises:
        RadioConfigurationError: an argument out of range, carriers beyond the guards, or all
            devices silent in all trials.
    """
    trials = check_request(num_trials, seed, min_gain, snr_db)
    check_integer("num_scalars", num_scalars, minimum=1)
    waveform.check_offset(impairments.largest_offset_hz(carrier_hz))
    if calibration_error_db is not None:
        check_not_negative("calibration_error_db", calibration_error_db)
    gain_rng, noise_rng, scalar_rng, radio_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    full_power = waveform.full_power_amplitude**2
    noise_power = full_power * power_ratio_from_db(-snr_db)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=waveform.sample_rate_hz,
        noise_power=noise_power,
        noise_rng=noise_rng,
        channel_name=channel_name(channel, impairments_name),
        impairments=impairments,
    )
    devices = [LoopbackTransceiver(medium, index) for index in range(num_devices)]
    receiver = LoopbackTransceiver(medium, None)

    def listen() -> BandEnergies:
        return waveform.energies(receiver.capture(waveform.plateau_samples, timeout_s=TIMEOUT_S))

    log = Log()
    for trial in range(trials):
        on_trial(trial)
        crystals = Crystals(impairments, carrier_hz, num_devices, radio_rng)
        offsets_hz = crystals.offsets_hz(trial)
        medium.set_carrier_offsets_hz(offsets_hz)
        medium.begin_round(noise_rng)
        gains = channel.gains(gain_rng, num_devices) * impairments.path_gains(num_devices)
        medium.set_gains(gains)
        if calibration_error_db is None:
            known, errors = _gains_from_pilots(waveform, devices, listen, radio_rng)
        else:
            known, errors = _gains_as_told(np.abs(gains), calibration_error_db, radio_rng)
        speaking = np.flatnonzero((known.min(axis=1) >= min_gain) & (errors <= MAX_RELATIVE_ERROR))
        if speaking.size == 0:
            continue
        level = known[speaking].min()
        arrival_power = level**2 * full_power
        silence = listen()
        estimates, truths, variances = [], [], []
        for _ in range(num_scalars):
            shares = scalar_rng.uniform(-1.0, 1.0, num_devices)
            if signs:
                shares = np.sign(shares)
            for k in speaking:
                a, b = np.minimum(level / known[k], 1.0).tolist()
                devices[k].hold(waveform.burst(float(shares[k]), (a, b), radio_rng))
            capture = receiver.capture(waveform.plateau_samples, timeout_s=TIMEOUT_S)
            on_capture(capture)
            estimates.append(
                waveform.estimate_sum(
                    waveform.energies(capture), silence, arrival_power, int(speaking.size)
                )
            )
            own = shares[speaking]
            truths.append(own.sum())
            variances.append(
                sum_variance(
                    waveform,
                    own,
                    offsets_hz[speaking],
                    noise_power=noise_power,
                    arrival_power=arrival_power,
                )
                + float(np.sum((own * errors[speaking]) ** 2))
            )
        for k in speaking:
            devices[k].fall_silent()
        log.add(
            estimates=estimates,
            truths=truths,
            variances=variances,
            num_speaking=int(speaking.size),
        )
    for transceiver in [*devices, receiver]:
        transceiver.close()
    captures = waveform.captures_of_round(num_scalars)
    if calibration_error_db is None:
        captures += waveform.captures_of_calibration(num_devices)
    return log.measurement(
        source=receiver.source,
        waveform=WaveformName.VOTE if signs else WaveformName.ENERGY,
        signs=signs,
        num_devices=num_devices,
        num_scalars=num_scalars,
        snr_db=snr_db,
        num_trials=trials,
        min_gain=min_gain,
        alpha=alpha,
        airtime_s=captures * waveform.plateau_s,
    )


def _gains_from_pilots(
    waveform: EnergyWaveform,
    devices: Sequence[LoopbackTransceiver],
    listen: Callable[[], BandEnergies],
    rng: np.random.Generator,
) -> tuple[Float64Array, Float64Array]:
    """Amplitude gains [K, 2] and relative errors of the power gains [K], the worse band's."""
    silence, pilots = listen(), {}
    for index, device in enumerate(devices):
        device.hold(waveform.pilot(1.0, rng))
        pilots[index] = listen()
        device.fall_silent()
    calibration = calibrate(
        waveform,
        num_devices=len(devices),
        silence=silence,
        pilots=pilots,
        amplitude=1.0,
        made=Moment(0, 0.0),
    )
    return np.sqrt(calibration.power_gains), calibration.relative_errors.max(axis=1)


def _gains_as_told(
    gains: Float64Array, error_db: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """The true ones, wrong by a Gaussian number of dB in both bands; E[(10^(x/10) - 1)^2]."""
    told = gains * 10.0 ** (error_db * rng.standard_normal(len(gains)) / 20.0)
    variance = (error_db * math.log(10.0) / 10.0) ** 2
    square = math.exp(2.0 * variance) - 2.0 * math.exp(variance / 2.0) + 1.0
    return np.stack([told, told], axis=1), np.full(len(gains), math.sqrt(square))
