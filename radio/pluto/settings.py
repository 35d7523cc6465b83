"""What a Pluto is asked to be: checked before any radio is touched, and without its libraries."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from radio.checks import check_integer
from radio.errors import RadioConfigurationError
from radio.pluto.addresses import check_uri
from radio.pluto.silence import MAX_ATTENUATION_DB

_RANGES: dict[str, tuple[float, float, str]] = {
    "sample_rate_hz": (521e3, 61.44e6, "Hz"),
    "carrier_hz": (325e6, 3.8e9, "Hz"),
    "rf_bandwidth_hz": (200e3, 40e6, "Hz"),
    "tx_attenuation_db": (0.0, MAX_ATTENUATION_DB, "dB"),
    "rx_gain_db": (-3.0, 71.0, "dB"),
    "settling_s": (0.0, 1.0, "s"),
    "max_hold_s": (1.0, 3600.0, "s"),
}
XO_CORRECTION_RANGE = (39_992_000, 40_008_000)


class Role(enum.StrEnum):
    """What a radio does in a federation; it can do nothing else."""

    TRANSMITTER = "transmitter"
    RECEIVER = "receiver"


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
        settling_s: waited for before every capture: the moment that transmitters take from saying
            so to being there.
        max_hold_s: longest that a burst is held. A program that holds one longer is taken for hung:
            the guardian ends it and silences its radios (`radio.pluto.guardian`).
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
    max_hold_s: float = 10.0

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
