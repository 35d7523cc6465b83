"""What a Pluto is asked to be: checked before any radio is touched, and without its libraries."""

from __future__ import annotations

import enum
import errno
import math
import re
from dataclasses import dataclass

from radio.checks import check_integer
from radio.errors import RadioConfigurationError

MAX_ATTENUATION_DB = 89.75
_URI = re.compile(
    r"ip:(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"|usb:[0-9]+\.[0-9]+(\.[0-9]+)?"
    r"|serial:[0-9A-Za-z-]+"
)
_RANGES: dict[str, tuple[float, float, str]] = {
    "sample_rate_hz": (521e3, 61.44e6, "Hz"),
    "carrier_hz": (325e6, 3.8e9, "Hz"),
    "rf_bandwidth_hz": (200e3, 40e6, "Hz"),
    "tx_attenuation_db": (0.0, MAX_ATTENUATION_DB, "dB"),
    "rx_gain_db": (-3.0, 71.0, "dB"),
    "settling_s": (0.0, 1.0, "s"),
}
XO_CORRECTION_RANGE = (39_992_000, 40_008_000)

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: is it plugged in, and is the port right?",
    errno.EHOSTUNREACH: "no way to that address: look at the network of the radio's USB adapter.",
    errno.ENETUNREACH: "no way to that network: look at the network of the radio's USB adapter.",
    errno.ETIMEDOUT: "nobody answers at that address.",
    errno.ENXIO: "no such host: use the radio's address instead of its name.",
    errno.ENODEV: "no such USB device: `pairzero-radio doctor` lists what is there.",
    errno.EACCES: "permission denied: install the udev rule that firmware_notes names, replug.",
    errno.EBUSY: "another program has it open.",
    errno.EIO: "input/output error: often too little USB power; use a powered hub.",
    errno.EPIPE: "it took the connection and said nothing: is this a Pluto? Unplug and replug it.",
    errno.EINVAL: "what answers there does not speak the protocol of libiio.",
    errno.ENOSYS: "this libiio was built without that kind of connection.",
}


class Role(enum.StrEnum):
    """What a radio does in a federation; it can do nothing else."""

    TRANSMITTER = "transmitter"
    RECEIVER = "receiver"


def check_uri(uri: str) -> str:
    """``uri`` itself, if it names one radio.

    Raises:
        RadioConfigurationError: it does not. A search for "some Pluto" is refused: with two of them
            on a desk it is the wrong one every other time.
    """
    match = _URI.fullmatch(uri)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise RadioConfigurationError(
            f"uri: got {uri!r}, wanted ip:ADDRESS, ip:ADDRESS:PORT, usb:BUS.DEVICE.INTERFACE or "
            "serial:SERIAL. `pairzero-radio doctor` lists the radios that are there."
        )
    return uri


def hint(error: OSError) -> str:
    """What to do about an error of a connection."""
    known = _HINTS.get(error.errno or 0, "see firmware_notes for errors by name.")
    return f"{error.strerror or error} (errno {error.errno}): {known}"


@dataclass(frozen=True, slots=True)
class PlutoSettings:
    """How a Pluto is to be set; every one is read back.

    Attributes:
        uri: ip:, usb: or serial:, see `check_uri`.
        role: transmitter or receiver.
        sample_rate_hz: of both converters.
        carrier_hz: of the local oscillator. Signals lie beside it, not on it: a mixer leaks there.
        rf_bandwidth_hz: of the analogue filters.
        tx_attenuation_db: of a transmitter while it sends; at all other times it is as large as
            can be.
        rx_gain_db: of a receiver, fixed: an automatic one would hide how loud a signal is.
        xo_correction: what the crystal is taken to be, Hz; None leaves it as the radio has it.
        settling_s: at the beginning of every capture, thrown away: what was in the pipes when its
            buffer opened, and the moment that transmitters take from saying so to being there.
    """

    uri: str
    role: Role
    sample_rate_hz: float = 1e6
    carrier_hz: float = 915e6
    rf_bandwidth_hz: float = 1e6
    tx_attenuation_db: float = 40.0
    rx_gain_db: float = 40.0
    xo_correction: int | None = None
    settling_s: float = 2e-3

    def __post_init__(self) -> None:
        check_uri(self.uri)
        Role(self.role)
        for name, (low, high, unit) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise RadioConfigurationError(
                    f"{name}: got {value}, wanted {low:g} to {high:g} {unit}, what a Pluto can."
                )
        if self.xo_correction is not None:
            value = check_integer("xo_correction", self.xo_correction, minimum=0)
            low_hz, high_hz = XO_CORRECTION_RANGE
            if not low_hz <= value <= high_hz:
                raise RadioConfigurationError(
                    f"xo_correction: got {value}, wanted {low_hz} to {high_hz} Hz."
                )


@dataclass(frozen=True, slots=True)
class SilenceReport:
    """What was found when a radio was told to be silent.

    Attributes:
        uri: of the radio.
        found: what was or may have been on the air, one line each; empty if nothing.
    """

    uri: str
    found: tuple[str, ...]

    @property
    def was_radiating(self) -> bool:
        """Whether anything was."""
        return bool(self.found)
