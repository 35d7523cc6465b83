"""What a run's signals take of the air: symbols of a device, and time, by waveform."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.config.radio import RadioSection


@dataclass(frozen=True, slots=True)
class UplinkUse:
    """Averages over the rounds of a run.

    A symbol is a complex sample at the sample rate. What is held is sent for as long as a receiver
    takes to capture; counted are one period of it and the captures, without the pauses that real
    radios need between them.

    Attributes:
        payload_symbols: of one device and round, that carry numbers.
        pilot_symbols: of one device and round, that are known in advance.
        airtime_s: of a round: all frames or captures, silence included, in seconds.
        on_air_s: of one device and round: how long it is ordered to be on the air, pilots and the
            settling of every capture included. A real radio is so for longer, until the slowest
            device has answered.
    """

    payload_symbols: float
    pilot_symbols: float
    airtime_s: float
    on_air_s: float


def uplink_use(
    radio: RadioSection, num_devices: int, num_numbers: int, num_rounds: int, settling_s: float
) -> UplinkUse:
    """What a run takes, with one sounding or calibration for each fading block begun.

    Args:
        radio: waveform, backend and lengths.
        num_devices: K.
        num_numbers: Q, of each device and round.
        num_rounds: that were or will be carried out.
        settling_s: that real radios wait before every capture.
    """
    if radio.backend == "ideal":
        return UplinkUse(0.0, 0.0, 0.0, 0.0)
    rounds = max(num_rounds, 1)
    blocks_per_round = math.ceil(rounds / radio.coherence_rounds) / rounds
    settling_s = settling_s if radio.has_plutos else 0.0
    if radio.waveform.adds_powers:
        bands = radio.energy_waveform(num_numbers)
        period = bands.plateau_samples
        calibrations = bands.captures_of_calibration(num_devices) * blocks_per_round
        captures = bands.captures_of_round + calibrations
        return UplinkUse(
            payload_symbols=float(period),
            pilot_symbols=period * blocks_per_round,
            airtime_s=captures * bands.plateau_s,
            on_air_s=(1.0 + blocks_per_round) * (settling_s + bands.plateau_s),
        )
    if not radio.waveform.superposes:
        packets = radio.packets(num_devices, num_numbers)
        return UplinkUse(
            payload_symbols=float(packets.packet_samples),
            pilot_symbols=0.0,
            airtime_s=packets.airtime_of_round_s(num_devices),
            on_air_s=settling_s + packets.airtime_s,
        )
    frames = radio.coherent_waveform(num_devices, num_numbers)
    samples = frames.payload_samples + frames.sounding_samples * blocks_per_round
    payload_symbols = float(num_numbers * radio.payload_symbols)
    pilot_symbols = radio.pilot_symbols * blocks_per_round
    return UplinkUse(
        payload_symbols=payload_symbols,
        pilot_symbols=pilot_symbols,
        airtime_s=samples / radio.rate_hz,
        on_air_s=(payload_symbols + pilot_symbols) / radio.rate_hz,
    )
