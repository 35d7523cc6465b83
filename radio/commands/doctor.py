"""``pairzero-radio doctor``: which radios can be used here, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import numpy as np

from radio.backends import BACKENDS, resolve_backend
from radio.errors import RadioUnavailableError
from radio.measurement import Setting, measure_coherent
from radio.pluto.context import found_uris
from radio.pluto.driver import describe_libraries
from radio.pluto.usb import usb_plutos
from radio.software_air.channel_models import AwgnChannel
from radio.waveforms.coherent import CoherentWaveform

SELF_CHECK_SNR_DB = 200.0
"""So little noise that only the rounding of samples to complex64 is left, below -120 dB."""

SELF_CHECK_NMSE_DB = -120.0

_UDEV_RULE = (
    'SUBSYSTEM=="usb", ATTRS{idVendor}=="0456", ATTRS{idProduct}=="b673", MODE="0660", '
    'GROUP="plugdev"'
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    commands.add_parser(
        "doctor", help="which radios can be used here, and what is missing"
    ).set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report; 1 if something is missing."""
    print(f"Python {platform.python_version()} on {platform.machine()}, numpy {np.__version__}")
    problems = [_backends(), _libraries(), _radios(), _self_check()]
    return 1 if any(problems) else 0


def _backends() -> bool:
    """Whether one of them cannot be loaded."""
    is_missing = False
    for name in sorted(BACKENDS):
        try:
            resolve_backend(name)
        except RadioUnavailableError as error:
            is_missing = True
            print(f"  {name}: not available. {error}")
        else:
            print(f"  {name}: available")
    return is_missing


def _libraries() -> bool:
    """Whether a Pluto's libraries do not work."""
    versions = []
    for name in ("pyadi-iio", "pylibiio", "sigmf"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    print(f"  libraries: {', '.join(versions)}")
    try:
        print(f"  a Pluto is driven by {describe_libraries()}")
    except RadioUnavailableError as error:
        print(f"  no Pluto can be driven: {error}")
        return True
    return False


def _radios() -> bool:
    """Whether one is plugged in that cannot be used."""
    has_problem = False
    plugged = usb_plutos()
    for radio in plugged:
        uri = f"usb:{radio.bus}.{radio.device}.5"
        print(f"  USB: {uri}, serial:{radio.serial}")
        if not radio.is_usable:
            has_problem = True
            print(
                "    this user may not write to it. As root, put this line into "
                f"/etc/udev/rules.d/53-adi-plutosdr-usb.rules, then replug:\n    {_UDEV_RULE}\n"
                '    and: sudo usermod -aG plugdev "$USER", then log in again.'
            )
    try:
        found = found_uris()
    except RadioUnavailableError as error:
        # No radio need be there, and one at a known address needs no search.
        print(f"  search: {error}")
        found = {}
    for uri, text in found.items():
        print(f"  found: {uri}  {text}")
    if not plugged and not found:
        print(
            "  no radio found. One on the network has an address like ip:192.168.2.1; without any "
            "there is: pairzero-radio virtual-pluto"
        )
    return has_problem


def _self_check() -> bool:
    """Whether the software air does not add up."""
    measurement = measure_coherent(
        CoherentWaveform(num_devices=3),
        Setting(channel=AwgnChannel(), snr_db=SELF_CHECK_SNR_DB, num_trials=5, seed=0),
    )
    is_exact = measurement.simulated_nmse_db < SELF_CHECK_NMSE_DB
    print(
        f"  self-check, 3 devices, next to no noise: NMSE {measurement.simulated_nmse_db:.1f} dB, "
        f"wanted below {SELF_CHECK_NMSE_DB:.0f} dB: {'passed' if is_exact else 'FAILED'}"
    )
    return not is_exact
