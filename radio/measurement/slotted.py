"""Known numbers in digital packets, each device's in a slot of its own."""

from __future__ import annotations

import numpy as np

from radio.arrays import Float64Array
from radio.measurement.bench import Bench, Setting, Trial
from radio.measurement.result import Log, Measurement
from radio.waveforms import WaveformName
from radio.waveforms.side_by_side import Packets, PacketsSideBySide


def measure_slotted(waveform: Packets, setting: Setting, *, num_devices: int) -> Measurement:
    """A packet from each device, at full scale; a sum is of those that could be read.

    What the sums are off by is rounding, of variance 1 / 12 of a step squared for each number; how
    many packets are erased is compared with the formula and is no part of the deviation, because
    the formula takes place and carrier for known.

    Args:
        waveform: packets; its num_scalars is Q, and its places, if there are, are as many as K.
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
            packets = _packets(waveform, bench, trial, numbers)
            read = {k: packet for k, packet in enumerate(packets) if packet is not None}
            ratios = np.square(np.abs(trial.gains)) / bench.noise_power
            predicted += sum(waveform.erased_share(ratio) for ratio in ratios.tolist())
            num_erased += num_devices - len(read)
            if read:
                log.add(
                    estimates=np.sum(list(read.values()), axis=0),
                    truths=np.sum(numbers[list(read)], axis=0),
                    variances=np.full(waveform.num_scalars, len(read) * rounding),
                    num_speaking=len(read),
                )
    num_packets = setting.num_trials * num_devices
    return log.measurement(
        bench,
        waveform=WaveformName.SLOTTED,
        num_scalars=waveform.num_scalars,
        airtime_s=waveform.airtime_of_round_s(num_devices),
        erased_share=num_erased / num_packets,
        predicted_erased_share=predicted / num_packets,
    )


def _packets(
    waveform: Packets, bench: Bench, trial: Trial, numbers: Float64Array
) -> list[tuple[float, ...] | None]:
    """What is read of each device; None for an erasure."""
    bursts = [
        waveform.modulate(own.tolist(), 1.0, sender=k, round_index=trial.index)
        for k, own in enumerate(numbers)
    ]
    if isinstance(waveform, PacketsSideBySide):
        for device, burst in zip(bench.devices, bursts, strict=True):
            device.hold(burst)
        capture = bench.capture(waveform.capture_samples)
        for device in bench.devices:
            device.fall_silent()
        bench.setting.on_capture(capture)
        everybody = range(bench.num_devices)
        return waveform.demodulate(capture, everybody, round_index=trial.index)
    packets = []
    for k, (device, burst) in enumerate(zip(bench.devices, bursts, strict=True)):
        device.hold(burst)
        capture = bench.capture(waveform.capture_samples)
        device.fall_silent()
        bench.setting.on_capture(capture)
        packets.append(waveform.demodulate(capture, sender=k, round_index=trial.index))
    return packets
