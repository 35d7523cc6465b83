"""Known numbers through the coherent waveform, over a software medium."""

from __future__ import annotations

import numpy as np

from radio.channel_models import ChannelModel
from radio.impairments import Crystals, Impairments
from radio.loopback import LoopbackTransceiver
from radio.measurement.result import (
    ALPHA,
    SAMPLE_RATE_HZ,
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
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import csi_covariance, receiver_noise_std

_IDEAL = Impairments()


def measure_coherent(
    *,
    waveform: CoherentWaveform,
    channel: ChannelModel,
    snr_db: float,
    num_trials: int,
    seed: int,
    min_gain: float = 0.1,
    impairments: Impairments = _IDEAL,
    impairments_name: str = "",
    carrier_hz: float = 915e6,
    alpha: float = ALPHA,
    signs: bool = False,
    on_trial: OnTrial = ignore,
    on_capture: OnCapture = ignore,
) -> Measurement:
    """Send known scalars through a software medium, num_trials times.

    Args:
        waveform: frame lengths; its num_devices is K, its num_scalars Q.
        channel: gains, drawn anew for each trial.
        snr_db: MIN_SNR_DB to MAX_SNR_DB; noise_power = 10^(-snr_db / 10).
        num_trials: >= 2.
        seed: >= 0; equal seeds give equal results.
        min_gain: abs(h_hat) below which a device stays silent, > 0.
        impairments: of the medium; what the prediction leaves out.
        impairments_name: for the source.
        carrier_hz: nominal, of which crystals take their parts.
        alpha: probability that a correct formula is reported as a disagreement.
        signs: devices say 1 or -1 instead of numbers.
        on_trial: told before each trial how many are done.
        on_capture: given every capture of a payload.

    Raises:
        RadioConfigurationError: an argument out of range, or all devices silent in all trials.
    """
    trials = check_request(num_trials, seed, min_gain, snr_db)
    gain_rng, noise_rng, scalar_rng, radio_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    num_devices = waveform.num_devices
    path_gains = impairments.path_gains(num_devices)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=SAMPLE_RATE_HZ,
        noise_power=power_ratio_from_db(-snr_db),
        noise_rng=noise_rng,
        channel_name=channel_name(channel, impairments_name),
        impairments=impairments,
    )
    devices = [LoopbackTransceiver(medium, index) for index in range(num_devices)]
    receiver = LoopbackTransceiver(medium, None)
    log = Log()
    for trial in range(trials):
        crystals = Crystals(impairments, carrier_hz, num_devices, radio_rng)
        medium.set_carrier_offsets_hz(crystals.offsets_hz(trial))
        medium.begin_round(noise_rng)
        medium.set_gains(channel.gains(gain_rng, num_devices) * path_gains)
        on_trial(trial)
        scalars = scalar_rng.uniform(-1.0, 1.0, (num_devices, waveform.num_scalars))
        if signs:
            scalars = np.sign(scalars)
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
        on_capture(payload)
        reception = waveform.demodulate(payload, receive_scale)
        # The prediction uses the true noise power: measured power would follow the simulation.
        noise_std = receiver_noise_std(medium.noise_power, waveform.payload_symbols, receive_scale)
        error_variance = medium.noise_power / waveform.pilot_symbols
        covariance = csi_covariance(scalars[speaking], gains[speaking], error_variance)
        log.add(
            estimates=reception.sum_estimates,
            truths=scalars[speaking].sum(axis=0),
            variances=noise_std**2 + np.linalg.eigvalsh(covariance),
            num_speaking=len(speaking),
        )
    for transceiver in [*devices, receiver]:
        transceiver.close()
    return log.measurement(
        source=receiver.source,
        waveform=WaveformName.COHERENT_VOTE if signs else WaveformName.COHERENT,
        signs=signs,
        num_devices=num_devices,
        num_scalars=waveform.num_scalars,
        snr_db=snr_db,
        num_trials=trials,
        min_gain=min_gain,
        alpha=alpha,
        airtime_s=waveform.airtime_s(SAMPLE_RATE_HZ),
    )
