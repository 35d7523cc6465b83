"""``pairzero-radio doctor``: which radios can be used here, and what is missing."""

from __future__ import annotations

import argparse
import platform

import numpy as np

from radio.backends import BACKENDS, resolve_backend
from radio.channel_models import AwgnChannel
from radio.errors import RadioUnavailableError
from radio.measurement import Setting, measure_coherent
from radio.waveforms.coherent import CoherentWaveform

SELF_CHECK_SNR_DB = 200.0
"""So little noise that only the rounding of samples to complex64 is left, below -120 dB."""

SELF_CHECK_NMSE_DB = -120.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "doctor", help="which radios can be used here, and what is missing"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; 1 if something is missing."""
    print(f"Python {platform.python_version()} on {platform.machine()}, numpy {np.__version__}")
    num_missing = 0
    for name in sorted(BACKENDS):
        try:
            resolve_backend(name)
        except RadioUnavailableError as error:
            num_missing += 1
            print(f"  {name}: not available. {error}")
        else:
            print(f"  {name}: available")
    measurement = measure_coherent(
        CoherentWaveform(num_devices=3),
        Setting(channel=AwgnChannel(), snr_db=SELF_CHECK_SNR_DB, num_trials=5, seed=0),
    )
    is_exact = measurement.simulated_nmse_db < SELF_CHECK_NMSE_DB
    print(
        f"  self-check, 3 devices, next to no noise: NMSE {measurement.simulated_nmse_db:.1f} dB, "
        f"wanted below {SELF_CHECK_NMSE_DB:.0f} dB: {'passed' if is_exact else 'FAILED'}"
    )
    return 0 if is_exact and num_missing == 0 else 1
