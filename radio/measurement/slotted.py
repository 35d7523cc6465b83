"""Known numbers in digital packets, one device after another, over a software medium."""

from __future__ import annotations

import numpy as np

from radio.channel_models import ChannelModel
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
from radio.waveforms.slotted import SlottedWaveform


def measure_slotted(
    *,
    waveform: SlottedWaveform,
    impairments: Impairments,
    channel: ChannelModel,
    num_devices: int,
    snr_db: float,
    num_trials: int,
    seed: int,
    carrier_hz: float = 915e6,
    impairments_name: str = "",
    alpha: float = ALPHA,
    on_trial: OnTrial = ignore,
    on_capture: OnCapture = ignore,
) -> Measurement:
    """Send packets of known numbers, num_trials times; a sum is of those that could be read.

    What the sums are off by is rounding, of variance 1 / 12 of a step squared for each number; how
    many packets are erased is compared with the formula and is no part of the deviation, because
    the formula takes place and carrier for known.

    Args:
        waveform: packets; its num_scalars is Q.
        impairments: of the medium.
        channel: gains, times the path gains of the impairments.
        num_devices: K.
        snr_db: a full-scale sample of one device at unit gain over the noise.
        num_trials: >= 2.
        seed: >= 0.
        carrier_hz: nominal.
        impairments_name: for the source.
        alpha: probability that a correct formula is reported as a disagreement.
        on_trial: told before each trial how many are done.
        on_capture: given every capture of a payload.

    Raises:
        RadioConfigurationError: an argument out of range, carriers out of reach, or nothing read in
            all trials.
    """
    trials = check_request(num_trials, seed, 1.0, snr_db)
    waveform.check_offset(impairments.largest_offset_hz(carrier_hz))
    gain_rng, noise_rng, scalar_rng, radio_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    noise_power = power_ratio_from_db(-snr_db)
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
    rounding = 1.0 / (12.0 * waveform.largest_integer**2)
    log, num_erased, predicted_erased = Log(), 0, 0.0
    for trial in range(trials):
        on_trial(trial)
        crystals = Crystals(impairments, carrier_hz, num_devices, radio_rng)
        medium.set_carrier_offsets_hz(crystals.offsets_hz(trial))
        medium.begin_round(noise_rng)
        gains = channel.gains(gain_rng, num_devices) * impairments.path_gains(num_devices)
        medium.set_gains(gains)
        shares = scalar_rng.uniform(-1.0, 1.0, (num_devices, waveform.num_scalars))
        read, known = [], []
        for k, device in enumerate(devices):
            device.hold(waveform.modulate(shares[k].tolist(), 1.0, sender=k, round_index=trial))
            capture = receiver.capture(waveform.capture_samples, timeout_s=TIMEOUT_S)
            device.fall_silent()
            on_capture(capture)
            got = waveform.demodulate(capture, sender=k, round_index=trial)
            if got is not None:
                read.append(got)
                known.append(shares[k])
            symbol_to_noise = waveform.samples_per_symbol * float(abs(gains[k])) ** 2 / noise_power
            predicted_erased += waveform.erasure_probability(symbol_to_noise)
        num_erased += num_devices - len(read)
        if read:
            log.add(
                estimates=np.sum(read, axis=0),
                truths=np.sum(known, axis=0),
                variances=np.full(waveform.num_scalars, len(read) * rounding),
                num_speaking=len(read),
            )
    for transceiver in [*devices, receiver]:
        transceiver.close()
    packets = trials * num_devices
    return log.measurement(
        source=receiver.source,
        waveform=WaveformName.SLOTTED,
        num_devices=num_devices,
        num_scalars=waveform.num_scalars,
        snr_db=snr_db,
        num_trials=trials,
        min_gain=0.0,
        alpha=alpha,
        airtime_s=num_devices * waveform.airtime_s,
        erased_share=num_erased / packets,
        predicted_erased_share=predicted_erased / packets,
    )
