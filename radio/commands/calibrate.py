"""``pairzero-radio calibrate``: how each transmitter arrives, and what to change about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math

from radio.commands.radios import add_radio_options, open_radios
from radio.measurement import Survey, survey
from radio.measurement.over_the_air import DeviceReading
from radio.units import db_from_power_ratio, power_ratio_from_db
from radio.waveforms.energy import EnergyWaveform

_WANTED_SNR_DB = 10.0
"""Of a pilot over its capture: below that the receiver's noise weighs in every sum."""

_CONVERTER_DBFS = -74.0
"""What rounding to twelve bits adds to complex samples: 2 / (12 * 2048^2)."""

_MAX_RX_GAIN_DB = 71.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "calibrate", help="listen to each transmitter alone: gains, carrier offsets, their spread"
    )
    add_radio_options(parser, needs_devices=True)
    parser.add_argument("--pilots", type=int, default=5, help="of each device (default 5)")
    parser.add_argument(
        "--plateau-samples", type=int, default=1 << 16, help="of a capture (default 65536)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pilots' phases")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Listen and tell; 1 if a device cannot take part as it is."""
    waveform = EnergyWaveform(
        sample_rate_hz=arguments.sample_rate_hz, plateau_samples=arguments.plateau_samples
    )
    with open_radios(arguments) as (receiver, transmitters):
        result = survey(
            waveform, receiver, transmitters, num_pilots=arguments.pilots, seed=arguments.seed
        )
        trims = [
            round(radio.xo_correction * (1.0 + device.offset_hz / arguments.carrier_hz))
            for radio, device in zip(transmitters, result.devices, strict=True)
        ]
        temperature_c = receiver.temperature_c
    levels = Levels(result.silence_dbfs, arguments.rx_gain_db, arguments.tx_attenuation_db)
    advice = [_advice(device, waveform, levels) for device in result.devices]
    if arguments.json:
        described = dataclasses.asdict(result)
        for device, uri, trim, lines in zip(
            described["devices"], arguments.transmitters, trims, advice, strict=True
        ):
            device |= {"uri": uri, "xo_correction": trim, "advice": lines}
        print(json.dumps(described | {"temperature_c": temperature_c}))
    else:
        _print(arguments, result, trims, advice, temperature_c)
    return 1 if any(advice) else 0


def _print(
    arguments: argparse.Namespace,
    result: Survey,
    trims: list[int],
    advice: list[list[str]],
    temperature_c: float | None,
) -> None:
    print(f"source       {result.source}")
    print(
        f"receiver     {arguments.receiver}, silence {result.silence_dbfs:.1f} dBFS, "
        f"{temperature_c:.1f} degrees Celsius"
    )
    print(f"pilots       {result.num_pilots} of each device, at full power")
    print(
        f"{'device':30s}{'gain A':>9s}{'gain B':>9s}{'spread':>8s}{'offset':>11s}{'+-':>7s}"
        f"{'ppm':>8s}{'level':>12s}  xo_correction"
    )
    for uri, device, trim in zip(arguments.transmitters, result.devices, trims, strict=True):
        carrier = f"{'-':>11s}{'-':>7s}{'-':>8s}"  # of what is not heard nothing is known
        if device.is_heard:
            ppm = 1e6 * device.offset_hz / arguments.carrier_hz
            carrier = f"{device.offset_hz:8.0f} Hz{device.offset_spread_hz:7.0f}{ppm:8.2f}"
        print(
            f"{uri:30s}{device.gain_a_db:6.1f} dB{device.gain_b_db:6.1f} dB"
            f"{device.spread_db:5.2f} dB{carrier}{device.level_dbfs:7.1f} dBFS  "
            f"{trim if device.is_heard else '-'}"
        )
    for uri, lines in zip(arguments.transmitters, advice, strict=True):
        for line in lines:
            print(f"{uri}: {line}")


@dataclasses.dataclass(frozen=True, slots=True)
class Levels:
    """How loud everything is.

    Attributes:
        silence_dbfs: what the receiver hears while nobody sends.
        rx_gain_db: at which it does.
        tx_attenuation_db: of the transmitters.
    """

    silence_dbfs: float
    rx_gain_db: float
    tx_attenuation_db: float

    @property
    def gain_helps(self) -> bool:
        """Whether the noise is the converter's own: what the antenna adds grows with the gain."""
        antenna = power_ratio_from_db(self.silence_dbfs) - power_ratio_from_db(_CONVERTER_DBFS)
        is_converters = antenna < power_ratio_from_db(_CONVERTER_DBFS)
        return is_converters and self.rx_gain_db < _MAX_RX_GAIN_DB

    def snr_db(self, level_dbfs: float) -> float:
        """The SNR of a signal that makes the receiver's samples so loud."""
        noise = power_ratio_from_db(max(self.silence_dbfs, _CONVERTER_DBFS))
        signal = power_ratio_from_db(level_dbfs) - noise
        return db_from_power_ratio(signal / noise) if signal > 0.0 else -math.inf

    @property
    def what_helps(self) -> str:
        """Against too little of a signal."""
        if self.gain_helps:
            return (
                "The noise is the converter's own: raise --rx-gain-db until the silence is some "
                f"3 dB above {_CONVERTER_DBFS:g} dBFS."
            )
        if self.tx_attenuation_db > 0.0:
            return (
                "The noise comes with the signal and grows with the gain: lower "
                "--tx-attenuation-db, or take attenuators out of the cable."
            )
        return (
            "The noise comes with the signal, and the transmitter is at full power: take "
            "attenuators out of the cable."
        )


def _advice(device: DeviceReading, waveform: EnergyWaveform, levels: Levels) -> list[str]:
    """What keeps a device from taking part, and what to do; nothing if it can."""
    if not device.is_heard:
        return [
            f"not heard ({device.level_dbfs:.1f} dBFS). Look at cable and attenuators. "
            f"{levels.what_helps}"
        ]
    lines = []
    if device.is_overloaded:
        lines.append("overloads the receiver. Lower --rx-gain-db or raise --tx-attenuation-db.")
    elif levels.snr_db(device.level_dbfs) < _WANTED_SNR_DB:
        lines.append(
            f"arrives {levels.snr_db(device.level_dbfs):.1f} dB above the noise, wanted "
            f"{_WANTED_SNR_DB:g} dB. {levels.what_helps}"
        )
    if abs(device.offset_hz) > waveform.max_offset_hz:
        lines.append(
            f"its carrier is {device.offset_hz / 1e3:.1f} kHz off, the bands have room for "
            f"{waveform.max_offset_hz / 1e3:g} kHz. Set the xo_correction above."
        )
    return lines
