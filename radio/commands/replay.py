"""``pairzero-radio replay``: what is on a recording, capture by capture."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from radio.commands.measure import check_takes_pictures, draw
from radio.recordings.sigmf import load_recording
from radio.units import db_from_power_ratio, mean_power_dbfs, peak_dbfs
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_offset import estimate_offset_hz


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "replay", help="go through a SigMF recording: levels, powers of both bands, pictures"
    )
    parser.add_argument("file", type=Path, help="NAME or NAME.sigmf-meta")
    parser.add_argument(
        "--numbers", type=int, default=1, help="that stand side by side in a capture (default 1)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="spectrum.png and constellation.png there"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show each capture."""
    check_takes_pictures(arguments.plot)
    recording = load_recording(arguments.file)
    print(f"source       replay of {recording.source}")
    print(
        f"captures     {len(recording.captures)}, {recording.sample_rate_hz:g} samples a second at "
        f"{recording.carrier_hz / 1e6:.3f} MHz"
    )
    first = next((moment for moment in recording.moments if moment is not None), None)
    gain_db = recording.rx_gain_db
    when = (
        "not told" if first is None else f"{first.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    )
    print(f"recorded     {when}, gain {'not told' if gain_db is None else f'{gain_db:g} dB'}")
    print(
        f"{'capture':32s}{'samples':>9s}{'level':>12s}{'peak':>12s}{'bands A':>12s}{'bands B':>12s}"
        f"{'offset':>11s}"
    )
    for label, capture in zip(recording.labels, recording.captures, strict=True):
        waveform = EnergyWaveform(
            sample_rate_hz=recording.sample_rate_hz,
            plateau_samples=len(capture),
            num_scalars=arguments.numbers,
        )
        a, b = (db_from_power_ratio(p) for p in waveform.energies(capture).sum(axis=0).tolist())
        print(
            f"{label[:31]:32s}{len(capture):9d}{mean_power_dbfs(capture):7.1f} dBFS"
            f"{peak_dbfs(capture):7.1f} dBFS{a:7.1f} dBFS{b:7.1f} dBFS"
            f"{estimate_offset_hz(waveform, capture):8.0f} Hz"
        )
    print("(the offset is that of a pilot; of other captures it says nothing)", file=sys.stderr)
    if arguments.plot:
        draw(arguments.plot, waveform, recording.captures, recording.sample_rate_hz)
    return 0
