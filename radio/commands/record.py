"""``pairzero-radio record``: what a receiver hears, as a SigMF recording."""

from __future__ import annotations

import argparse
from pathlib import Path

from radio.commands.radios import add_radio_options, open_radios
from radio.recordings.replay import RecordingTransceiver
from radio.units import mean_power_dbfs


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser("record", help="write what a receiver hears as SigMF")
    add_radio_options(parser, needs_devices=False)
    parser.add_argument("file", type=Path, help="NAME or NAME.sigmf-meta; must be new")
    parser.add_argument("--samples", type=int, default=1 << 16, help="of a capture (default 65536)")
    parser.add_argument("--captures", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--label", default="capture", help='of each (default "capture")')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Capture and write."""
    with open_radios(arguments) as (receiver, _):
        tape = RecordingTransceiver(receiver, carrier_hz=arguments.carrier_hz)
        levels = []
        duration_s = arguments.samples / arguments.sample_rate_hz
        for _ in range(arguments.captures):
            capture = tape.capture(arguments.samples, timeout_s=duration_s + 5.0)
            levels.append(f"{mean_power_dbfs(capture):.1f}")
        labels = [f"{arguments.label} {index}" for index in range(arguments.captures)]
        meta = tape.save(arguments.file, labels)
        health = receiver.take_health()
        print(f"source       {receiver.source}")
        print(f"wrote        {meta}")
        print(f"level        {', '.join(levels)} dBFS, {health.overloaded_share:.2%} overloaded")
    return 0
