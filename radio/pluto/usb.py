"""Plutos at the USB ports of this Linux machine, and whether this user may talk to them.

From what the kernel says of its devices, without any library, so that it also helps where the
libraries are what is missing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_VENDOR, _PRODUCT = "0456", "b673"


@dataclass(frozen=True, slots=True)
class UsbPluto:
    """One of them.

    Attributes:
        serial: of the radio.
        bus: number of its bus.
        device: its number there.
        is_usable: whether this user may write to it.
    """

    serial: str
    bus: int
    device: int
    is_usable: bool


def usb_plutos(
    devices: Path = Path("/sys/bus/usb/devices"), nodes: Path = Path("/dev/bus/usb")
) -> list[UsbPluto]:
    """All that are plugged in.

    Args:
        devices: where the kernel describes them.
        nodes: where they are opened.
    """
    found = []
    for folder in sorted(devices.glob("*")):
        if (_text(folder, "idVendor"), _text(folder, "idProduct")) != (_VENDOR, _PRODUCT):
            continue
        bus, device = int(_text(folder, "busnum") or 0), int(_text(folder, "devnum") or 0)
        node = nodes / f"{bus:03d}" / f"{device:03d}"
        found.append(UsbPluto(_text(folder, "serial"), bus, device, os.access(node, os.W_OK)))
    return found


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text("utf-8").strip()
    except OSError:
        return ""
