"""Known numbers through the coherent waveform."""

from __future__ import annotations

import numpy as np

from radio.measurement.bench import TIMEOUT_S, Bench, Setting
from radio.measurement.result import Log, Measurement
from radio.waveforms import WaveformName
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import csi_covariance, receiver_noise_std

SAMPLE_RATE_HZ = 1e6
"""Of the simulated radios. One sample is one symbol, so only the airtime depends on it."""


def measure_coherent(
    waveform: CoherentWaveform, setting: Setting, *, signs: bool = False
) -> Measurement:
    """Pilots, and then a payload frame; full power is full scale.

    Args:
        waveform: frame lengths; its num_devices is K, its num_scalars Q.
        setting: of the measurement; what its impairments do is left out of the prediction.
        signs: devices say 1 or -1 instead of numbers.

    Raises:
        RadioConfigurationError: all devices silent in all trials.
    """
    bench = Bench(setting, num_devices=waveform.num_devices, sample_rate_hz=SAMPLE_RATE_HZ)
    log = Log()
    with bench:
        for _ in bench.trials():
            scalars = bench.draw_numbers(waveform.num_scalars, signs=signs)
            for index, device in enumerate(bench.devices):
                pilot, offset = waveform.sounding_burst(index, 1.0)
                device.transmit(pilot, start_sample=offset)
            sounding = bench.receiver.receive(
                waveform.sounding_samples, start_sample=0, timeout_s=TIMEOUT_S
            )
            gains = waveform.estimate_gains(sounding, 1.0).gains
            speaking = np.flatnonzero(np.abs(gains) >= setting.min_gain)
            if speaking.size == 0:
                continue
            receive_scale = float(np.abs(gains[speaking]).min())
            payload_start = waveform.sounding_samples
            for k in speaking.tolist():
                burst = waveform.modulate(scalars[k], receive_scale / complex(gains[k]))
                bench.devices[k].transmit(
                    burst, start_sample=payload_start + waveform.payload_offset_samples
                )
            payload = bench.receiver.receive(
                waveform.payload_samples, start_sample=payload_start, timeout_s=TIMEOUT_S
            )
            setting.on_capture(payload)
            # The prediction uses the true noise power: a measured one would follow the simulation.
            noise_std = receiver_noise_std(
                bench.noise_power, waveform.payload_symbols, receive_scale
            )
            error_variance = bench.noise_power / waveform.pilot_symbols
            covariance = csi_covariance(scalars[speaking], gains[speaking], error_variance)
            log.add(
                estimates=waveform.demodulate(payload, receive_scale).sum_estimates,
                truths=scalars[speaking].sum(axis=0),
                variances=noise_std**2 + np.linalg.eigvalsh(covariance),
                num_speaking=int(speaking.size),
            )
    return log.measurement(
        bench,
        waveform=WaveformName.COHERENT_VOTE if signs else WaveformName.COHERENT,
        num_scalars=waveform.num_scalars,
        airtime_s=waveform.airtime_s(SAMPLE_RATE_HZ),
    )
