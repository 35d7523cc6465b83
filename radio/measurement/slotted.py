"""Known numbers in digital packets, one device after another."""

from __future__ import annotations

import numpy as np

from radio.measurement.bench import Bench, Setting
from radio.measurement.result import Log, Measurement
from radio.waveforms import WaveformName
from radio.waveforms.slotted import SlottedWaveform


def measure_slotted(
    waveform: SlottedWaveform, setting: Setting, *, num_devices: int
) -> Measurement:
    """A packet from each device, at full scale; a sum is of those that could be read.

    What the sums are off by is rounding, of variance 1 / 12 of a step squared for each number; how
    many packets are erased is compared with the formula and is no part of the deviation, because
    the formula takes place and carrier for known.

    Args:
        waveform: packets; its num_scalars is Q.
        setting: of the measurement; its min_gain is not asked.
        num_devices: K.

    Raises:
        RadioConfigurationError: carriers out of reach, or nothing read in all trials.
    """
    waveform.check_offset(setting.largest_offset_hz)
    waveform.check_clock(setting.impairments.largest_ppm)
    bench = Bench(setting, num_devices=num_devices, sample_rate_hz=waveform.sample_rate_hz)
    rounding = 1.0 / (12.0 * waveform.largest_integer**2)
    log, num_erased, predicted = Log(), 0, 0.0
    with bench:
        for trial in bench.trials():
            numbers = bench.draw_numbers(waveform.num_scalars)
            read, sent = [], []
            for k, device in enumerate(bench.devices):
                own = numbers[k]
                device.hold(waveform.modulate(own.tolist(), 1.0, sender=k, round_index=trial.index))
                capture = bench.capture(waveform.capture_samples)
                device.fall_silent()
                setting.on_capture(capture)
                got = waveform.demodulate(capture, sender=k, round_index=trial.index)
                if got is not None:
                    read.append(got)
                    sent.append(own)
                power = float(abs(trial.gains[k])) ** 2 * waveform.samples_per_symbol
                predicted += waveform.erasure_probability(power / bench.noise_power)
            num_erased += num_devices - len(read)
            if read:
                log.add(
                    estimates=np.sum(read, axis=0),
                    truths=np.sum(sent, axis=0),
                    variances=np.full(waveform.num_scalars, len(read) * rounding),
                    num_speaking=len(read),
                )
    packets = setting.num_trials * num_devices
    return log.measurement(
        bench,
        waveform=WaveformName.SLOTTED,
        num_scalars=waveform.num_scalars,
        airtime_s=num_devices * waveform.airtime_s,
        erased_share=num_erased / packets,
        predicted_erased_share=predicted / packets,
    )
