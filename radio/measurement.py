"""Formula beside simulation: known scalars through the loopback, error held against prediction.

Model of one trial, K devices, full scale 1, unit mean power gain:

    gains h from the channel model; sounding at full scale; silent if abs(h_hat) < min_gain
    s_kq ~ U[-1, 1], Q numbers, receive_scale c = min abs(h_hat) over those who speak
    truth = sums of s_k over those who speak, estimate = demodulated sums

The prediction for a trial is the covariance N0 / (2 L c^2) I + `csi_covariance` of its Q errors,
with eigenvalues var_i: the numbers of a trial share its gain errors. Over all trials they give an
NMSE and, as errors are nearly Gaussian, the standard deviation sqrt(2 sum var_i^2) of the simulated
squared error. How far the two may be apart follows from Laurent and Massart (2000, Ann. Statist.
28(5), lemma 1): with a = [var_i] and x = ln(2 / ALPHA), the squared error exceeds its mean by more
than 2 norm(a) sqrt(x) + 2 max(a) x, or falls short by more than 2 norm(a) sqrt(x), with probability
at most ALPHA in all.

Left out of the prediction: rounding to complex64, which shows above an SNR of about 120 dB; terms
of second order in the gain error, which show below about -10 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from radio.channel_models import ChannelModel
from radio.checks import check_integer, check_positive
from radio.errors import RadioConfigurationError
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from radio.metrics import nmse_db
from radio.units import db_from_power_ratio, power_ratio_from_db
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import csi_covariance, receiver_noise_std

SAMPLE_RATE_HZ = 1e6
"""Of the simulated radios. One sample is one symbol, so only the airtime depends on it."""

TIMEOUT_S = 1.0

MIN_SNR_DB, MAX_SNR_DB = -100.0, 250.0

ALPHA = 1e-6
"""Probability that a correct formula is reported as a disagreement."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Result of `measure_loopback`. Every dB is a power ratio.

    Attributes:
        source: of the transceivers; says that this is a simulation.
        num_devices: K.
        num_scalars: Q, numbers of one payload.
        snr_db: full-scale sample of one device at unit gain over the noise power, per sample.
        num_trials: trials asked for.
        num_silent_trials: trials in which every device was below min_gain; not part of the rest.
        mean_num_speaking: devices that spoke, averaged over the other trials.
        simulated_nmse_db: of the sum estimate over all trials.
        predicted_nmse_db: from the formulas.
        relative_spread: standard deviation of the simulated squared error over its mean, predicted.
        deviation_std: simulated minus predicted squared error, in these standard deviations.
        deviation_limit_std: abs(deviation_std) beyond this means that formula and program disagree,
            with false-alarm probability at most ALPHA.
        airtime_s: both frames of one round.
    """

    source: str
    num_devices: int
    num_scalars: int
    snr_db: float
    num_trials: int
    num_silent_trials: int
    mean_num_speaking: float
    simulated_nmse_db: float
    predicted_nmse_db: float
    relative_spread: float
    deviation_std: float
    deviation_limit_std: float
    airtime_s: float


def measure_loopback(
    *,
    waveform: CoherentWaveform,
    channel: ChannelModel,
    snr_db: float,
    num_trials: int,
    seed: int,
    min_gain: float = 0.1,
) -> Measurement:
    """Send known scalars through a software medium, num_trials times.

    Args:
        waveform: frame lengths; its num_devices is K, its num_scalars Q.
        channel: gains, drawn anew for each trial.
        snr_db: MIN_SNR_DB to MAX_SNR_DB; noise_power = 10^(-snr_db / 10).
        num_trials: >= 2.
        seed: >= 0; equal seeds give equal results.
        min_gain: abs(h_hat) below which a device stays silent, > 0.

    Raises:
        RadioConfigurationError: an argument out of range, or all devices silent in all trials.
    """
    trials = check_integer("num_trials", num_trials, minimum=2)
    check_integer("seed", seed, minimum=0)
    check_positive("min_gain", min_gain)
    if not MIN_SNR_DB <= snr_db <= MAX_SNR_DB:
        raise RadioConfigurationError(
            f"snr_db: got {snr_db}, wanted {MIN_SNR_DB:g} to {MAX_SNR_DB:g} dB: beyond that the "
            "numbers leave what float64 can tell from silence."
        )
    gain_rng, noise_rng, scalar_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3)
    )
    num_devices = waveform.num_devices
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=SAMPLE_RATE_HZ,
        noise_power=power_ratio_from_db(-snr_db),
        noise_rng=noise_rng,
        channel_name=channel.name,
    )
    devices = [LoopbackTransceiver(medium, index) for index in range(num_devices)]
    receiver = LoopbackTransceiver(medium, None)
    estimates, truths, variances, num_speaking = [], [], [], []
    for _ in range(trials):
        medium.begin_round(noise_rng)
        medium.set_gains(channel.gains(gain_rng, num_devices))
        scalars = scalar_rng.uniform(-1.0, 1.0, (num_devices, waveform.num_scalars))
        for index, device in enumerate(devices):
            pilot, offset = waveform.sounding_burst(index, device.max_amplitude)
            device.transmit(pilot, start_sample=offset)
        sounding = receiver.receive(waveform.sounding_samples, start_sample=0, timeout_s=TIMEOUT_S)
        channel_estimate = waveform.estimate_gains(sounding, devices[0].max_amplitude)
        gains = channel_estimate.gains
        speaking = [index for index in range(num_devices) if abs(gains[index]) >= min_gain]
        if not speaking:
            continue
        receive_scale = float(np.abs(gains[speaking]).min())
        payload_start = waveform.sounding_samples
        for index in speaking:
            tx_gain = receive_scale / complex(gains[index])
            burst = waveform.modulate(scalars[index], tx_gain)
            devices[index].transmit(
                burst, start_sample=payload_start + waveform.payload_offset_samples
            )
        payload = receiver.receive(
            waveform.payload_samples, start_sample=payload_start, timeout_s=TIMEOUT_S
        )
        reception = waveform.demodulate(payload, receive_scale)
        # The prediction uses the true noise power: measured power would follow the simulation.
        noise_std = receiver_noise_std(medium.noise_power, waveform.payload_symbols, receive_scale)
        error_variance = medium.noise_power / waveform.pilot_symbols
        estimates.append(reception.sum_estimates)
        truths.append(scalars[speaking].sum(axis=0))
        covariance = csi_covariance(scalars[speaking], gains[speaking], error_variance)
        variances += (noise_std**2 + np.linalg.eigvalsh(covariance)).tolist()
        num_speaking.append(len(speaking))
    for transceiver in [*devices, receiver]:
        transceiver.close()
    if not estimates:
        raise RadioConfigurationError(
            f"min_gain: at {min_gain} every device was silent in all {trials} trials. Lower it."
        )
    total_variance = sum(variances)
    total_error = float(np.sum(np.square(np.subtract(estimates, truths))))
    norm = math.sqrt(sum(variance**2 for variance in variances))
    spread = math.sqrt(2.0) * norm
    exponent = math.log(2.0 / ALPHA)
    upper_limit = 2.0 * norm * math.sqrt(exponent) + 2.0 * max(variances) * exponent
    return Measurement(
        source=receiver.source,
        num_devices=num_devices,
        num_scalars=waveform.num_scalars,
        snr_db=float(snr_db),
        num_trials=trials,
        num_silent_trials=trials - len(estimates),
        mean_num_speaking=float(np.mean(num_speaking)),
        simulated_nmse_db=nmse_db(np.ravel(estimates), np.ravel(truths)),
        predicted_nmse_db=db_from_power_ratio(total_variance / float(np.sum(np.square(truths)))),
        relative_spread=spread / total_variance,
        deviation_std=(total_error - total_variance) / spread,
        deviation_limit_std=upper_limit / spread,
        airtime_s=waveform.airtime_s(SAMPLE_RATE_HZ),
    )
