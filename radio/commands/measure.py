"""``pairzero-radio measure``: known scalars through the software air, error beside the formula."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from radio.arrays import Complex64Array
from radio.checks import check_takes_files
from radio.commands.radios import RADIO_OPTIONS, add_radio_options, open_radios
from radio.errors import RadioConfigurationError
from radio.measurement import (
    Measurement,
    Setting,
    measure_coherent,
    measure_energy,
    measure_over_the_air,
    measure_slotted,
)
from radio.measurement.coherent import SAMPLE_RATE_HZ
from radio.progress import CountedWork
from radio.software_air.channel_models import CHANNEL_NAMES, AwgnChannel, channel_from_name
from radio.software_air.impairments import IMPAIRMENTS, impairments_from_name
from radio.waveforms import WaveformName
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import Packets, Slots, packets_of

MAX_DRAWN_CAPTURES = 200

_SOFTWARE_ONLY = (
    "waveform", "impairments", "calibration_error_db", "devices", "snr_db", "channel",
)  # fmt: skip
_ENERGY_ONLY = ("calibration_error_db", "plateau_samples")
_PACKETS_ONLY = ("slots",)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "measure",
        help="known scalars through the software air, or over radios: error beside the formula",
    )
    add_radio_options(parser, needs_devices=False)
    parser.add_argument(
        "--waveform",
        choices=[name.value for name in WaveformName],
        default=WaveformName.COHERENT.value,
    )
    parser.add_argument(
        "--impairments",
        choices=sorted(IMPAIRMENTS),
        default="ideal",
        help="what the radios do to their signals (default ideal)",
    )
    parser.add_argument(
        "--calibration-error-db",
        type=float,
        help="energy waveform: tell the devices their gains, wrong by this standard deviation; "
        "without it they are measured from pilots",
    )
    parser.add_argument(
        "--plateau-samples", type=int, default=1 << 16, help="energy waveform (default 65536)"
    )
    parser.add_argument(
        "--slots",
        choices=[slots.value for slots in Slots],
        default=Slots.TIME.value,
        help="packets: one device after another, or side by side in the band (default time)",
    )
    parser.add_argument("--devices", type=int, default=5, help="transmitters (default 5)")
    parser.add_argument(
        "--snr-db",
        type=float,
        default=10.0,
        help="one device at full power and unit gain over noise, per sample (default 10); full "
        "power is full scale, or with the energy waveform 12 dB below it",
    )
    parser.add_argument("--channel", choices=CHANNEL_NAMES, default=AwgnChannel.name)
    parser.add_argument(
        "--numbers",
        type=int,
        default=1,
        help="numbers of one payload, one after the other; of the energy waveform side by side",
    )
    parser.add_argument("--trials", type=int, default=500, help="rounds simulated (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="spectrum.png and constellation.png there"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=functools.partial(run, parser.get_default))


def run(default_of: Callable[[str], Any], arguments: argparse.Namespace) -> int:
    """Measure and show; 1 if formula and simulation differ by more than chance."""
    _check_is_read(default_of, arguments)
    check_takes_pictures(arguments.plot)
    measurement = _measurement(arguments)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(measurement)))
    else:
        print(
            f"source          {measurement.source}{_disclaimer(measurement)}\n"
            f"waveform        {measurement.waveform}\n"
            f"devices         {measurement.num_devices}, speaking on average "
            f"{measurement.mean_num_speaking:.2f}\n"
            f"SNR             {measurement.snr_db:.1f} dB per sample, one device at full power\n"
            f"payload         {_payload(measurement)}\n"
            f"trials          {measurement.num_trials}, all silent in "
            f"{measurement.num_silent_trials}\n"
            f"NMSE {_verb(measurement):9s}  {measurement.simulated_nmse_db:.2f} dB\n"
            f"NMSE predicted  {measurement.predicted_nmse_db:.2f} dB\n"
            f"difference      {measurement.deviation_std:+.1f} standard deviations of the "
            f"simulated error (limit {measurement.deviation_limit_std:.1f})\n"
            f"airtime         {measurement.airtime_s * 1e3:.2f} ms a round"
            + _of_signs_and_packets(measurement)
        )
    if abs(measurement.deviation_std) <= measurement.deviation_limit_std:
        return 0
    print(
        f"pairzero-radio: formula and {_verb(measurement)} error are "
        f"{measurement.deviation_std:+.1f} standard deviations apart, limit "
        f"{measurement.deviation_limit_std:.1f}. The formula leaves out rounding to complex64 "
        "(above about 120 dB), second-order terms (below about -10 dB), and "
        "every impairment but the energy waveform's carriers and path loss; over radios, that "
        "gains move between calibrations. Where none of these is at work, please report it.",
        file=sys.stderr,
    )
    return 1


def _check_is_read(default_of: Callable[[str], Any], arguments: argparse.Namespace) -> None:
    """Refuse what was asked for and changes nothing.

    Raises:
        RadioConfigurationError: an option that nothing reads beside the others.
    """
    over_radios = _are_named(arguments)
    name = WaveformName(arguments.waveform)
    adds_powers = over_radios or name.adds_powers
    sets_rate = adds_powers or not name.superposes
    unread: list[tuple[str, str]] = []
    if over_radios:
        unread += [(name, "over radios, whose energies are measured") for name in _SOFTWARE_ONLY]
    else:
        unread += [
            (option, "without --receiver and --device")
            for option in RADIO_OPTIONS
            if not (sets_rate and option == "sample_rate_hz")
        ]
    if not adds_powers:
        unread += [(option, f"with --waveform {name}") for option in _ENERGY_ONLY]
    if over_radios or name.superposes:
        unread += [(option, "without --waveform slotted") for option in _PACKETS_ONLY]
    for option, when in unread:
        got = getattr(arguments, option)
        is_energy = option == "waveform" and got == WaveformName.ENERGY
        if got != default_of(option) and not is_energy:
            raise RadioConfigurationError(
                f"--{option.replace('_', '-')}: got {got}, and nothing reads it {when}. "
                "Leave it out."
            )


def _are_named(arguments: argparse.Namespace) -> bool:
    """Whether there are radios to measure over."""
    return bool(arguments.receiver or arguments.transmitters)


def _payload(measurement: Measurement) -> str:
    if measurement.num_scalars == 1:
        return "1 number"
    how = "side by side" if measurement.waveform.adds_powers else "one after the other"
    return f"{measurement.num_scalars} numbers, {how}"


def _disclaimer(measurement: Measurement) -> str:
    return " (software; not a radio measurement)" if measurement.is_simulated else ""


def _verb(measurement: Measurement) -> str:
    return "simulated" if measurement.is_simulated else "measured"


def _measurement(arguments: argparse.Namespace) -> Measurement:
    captures: list[Complex64Array] = []

    def keep(capture: Complex64Array) -> None:
        if arguments.plot and len(captures) < MAX_DRAWN_CAPTURES:
            captures.append(capture)

    over_radios = _are_named(arguments)
    name = WaveformName.ENERGY if over_radios else WaveformName(arguments.waveform)
    waveform = _waveform(name, arguments)
    progress = CountedWork(arguments.trials, "trials", sys.stderr)
    setting = Setting(
        channel=channel_from_name(arguments.channel),
        snr_db=arguments.snr_db,
        num_trials=arguments.trials,
        seed=arguments.seed,
        impairments=impairments_from_name(arguments.impairments),
        # Nothing to be said of the ideal ones.
        impairments_name="" if arguments.impairments == "ideal" else arguments.impairments,
        on_trial=progress,
        on_capture=keep,
    )
    sample_rate_hz = SAMPLE_RATE_HZ
    if over_radios:
        assert isinstance(waveform, EnergyWaveform)
        sample_rate_hz = waveform.sample_rate_hz
        with open_radios(arguments) as (receiver, transmitters):
            measurement = measure_over_the_air(waveform, setting, receiver, transmitters)
    elif isinstance(waveform, CoherentWaveform):
        measurement = measure_coherent(waveform, setting, signs=name.carries_signs)
    elif isinstance(waveform, EnergyWaveform):
        sample_rate_hz = waveform.sample_rate_hz
        measurement = measure_energy(
            waveform,
            setting,
            num_devices=arguments.devices,
            calibration_error_db=arguments.calibration_error_db,
        )
    else:
        sample_rate_hz = waveform.sample_rate_hz
        measurement = measure_slotted(waveform, setting, num_devices=arguments.devices)
    progress.end()
    if captures:
        draw(arguments.plot, waveform, captures, sample_rate_hz)
    return measurement


def _of_signs_and_packets(measurement: Measurement) -> str:
    lines = ""
    if measurement.wrong_majorities is not None:
        lines += f"\nmajority        wrong in {measurement.wrong_majorities:.2%}, ties left out"
    if measurement.erased_share is not None:
        lines += (
            f"\nerasures        {measurement.erased_share:.2%} of the packets, predicted "
            f"{measurement.predicted_erased_share:.2%}"
        )
    return lines


def _waveform(
    name: WaveformName, arguments: argparse.Namespace
) -> CoherentWaveform | EnergyWaveform | Packets:
    if name.adds_powers:
        return EnergyWaveform(
            sample_rate_hz=arguments.sample_rate_hz,
            plateau_samples=arguments.plateau_samples,
            num_scalars=arguments.numbers,
            are_votes=name.carries_signs,
        )
    if name.needs_common_clock:
        return CoherentWaveform(num_devices=arguments.devices, num_scalars=arguments.numbers)
    return packets_of(
        Slots(arguments.slots),
        num_devices=arguments.devices,
        num_scalars=arguments.numbers,
        sample_rate_hz=arguments.sample_rate_hz,
    )


def check_takes_pictures(folder: Path | None) -> None:
    """Find out before anything is measured whether pictures have a place.

    Raises:
        RadioConfigurationError: a file is there, or no folder can be.
    """
    if folder is None:
        return
    try:
        check_takes_files(folder)
    except OSError as error:
        raise RadioConfigurationError(
            f"--plot: {folder}: {error.strerror}; wanted the name of a folder, new or there."
        ) from error


def draw(
    folder: Path,
    waveform: CoherentWaveform | EnergyWaveform | Packets,
    captures: Sequence[Complex64Array],
    sample_rate_hz: float,
) -> None:
    """Spectrum of the first capture, constellation of all, and where they are.

    Raises:
        RadioConfigurationError: pictures cannot be drawn here.
    """
    try:
        from radio.recordings.pictures import draw_measurement
    except ImportError as error:
        raise RadioConfigurationError(
            f"--plot: {error}. Pictures need matplotlib; the figures were measured without. "
            "Install it with: pip install matplotlib"
        ) from error
    for path in draw_measurement(folder, waveform, captures, sample_rate_hz):
        print(f"drew            {path}", file=sys.stderr)
