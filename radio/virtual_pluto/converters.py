"""The FPGA's ends of a virtual Pluto: `cf-ad9361-dds-core-lpc` and `cf-ad9361-lpc`."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable

from radio.virtual_pluto.air import Tone
from radio.virtual_pluto.attributes import (
    Attribute,
    Attributes,
    Channel,
    Device,
    anything,
    fixed,
    flag,
    refused,
    whole,
    within,
)
from radio.virtual_pluto.chip import MAX_RATE_HZ

UNDERFLOW, OVERFLOW = 1, 4
_STATUS_REGISTER = 0x80000088
_TONES = ("TX1_I_F1", "TX1_I_F2", "TX1_Q_F1", "TX1_Q_F2")
_PATTERN_ERRORS = "CH0 : PN9 : Out of Sync : PN Error\nCH1 : PN9 : Out of Sync : PN Error"


class StatusRegister:
    """The bits that GNU Radio and others poll: underflow and overflow; written ones clear."""

    def __init__(self) -> None:
        self._bits = 0
        self._address = 0

    def note(self, bit: int) -> None:
        """It happened."""
        self._bits |= bit

    def attribute(self) -> Attribute:
        """`direct_reg_access`: an address that is read next, or an address and what is written."""

        def accept(value: str) -> str:
            words = [int(word, 0) for word in value.split()]
            if not 1 <= len(words) <= 2:
                raise ValueError(value)
            self._address = words[0]
            if len(words) == 2 and words[0] == _STATUS_REGISTER:
                self._bits &= ~words[1]
            return value

        def compute() -> str:
            return f"0x{self._bits if self._address == _STATUS_REGISTER else 0:X}"

        return Attribute("0", accept, compute)


class Dac:
    """The transmit converter's end: two channels of samples, four tones.

    Args:
        rate: attribute that it shares with the chip.
        on_change: called after a tone was set.
    """

    def __init__(self, rate: Attribute, on_change: Callable[[], None]) -> None:
        self.status = StatusRegister()
        self._tones = {name: _tone(on_change) for name in _TONES}
        tones = [
            Channel(f"altvoltage{index}", True, own, name=name, shared={"sampling_frequency": rate})
            for index, (name, own) in enumerate(self._tones.items())
        ]
        self.device = Device(
            "iio:device2",
            "cf-ad9361-dds-core-lpc",
            [*_scanned(True, "le:S16/16>>0", rate), *tones],
            debug={"direct_reg_access": self.status.attribute()},
            buffer=_buffer_attributes(),
        )

    def tones(self) -> tuple[Tone, ...]:
        """What the converter gets while it has no samples."""
        return tuple(
            Tone(
                frequency_hz=own["frequency"].number(),
                amplitude=own["scale"].number(),
                phase_rad=math.radians(own["phase"].number() / 1e3),
                is_quadrature="_Q_" in name,
            )
            for name, own in self._tones.items()
            if own["raw"].read() == "1" and own["scale"].number() > 0.0
        )


class Adc:
    """The receive converter's end."""

    def __init__(self, rate: Attribute) -> None:
        self.status = StatusRegister()
        self.device = Device(
            "iio:device3",
            "cf-ad9361-lpc",
            _scanned(False, "le:S12/16>>0", rate),
            debug={
                "direct_reg_access": self.status.attribute(),
                "pseudorandom_err_check": anything(_PATTERN_ERRORS),
            },
            buffer=_buffer_attributes(),
        )


def _tone(on_change: Callable[[], None]) -> Attributes:
    return {
        "frequency": within("1000000", 0, MAX_RATE_HZ, show=whole, on_change=on_change),
        "phase": within("0", 0, 360_000, show=whole, on_change=on_change),
        "raw": flag("1", on_change),
        "scale": within("0.000000", 0.0, 1.0, show=_decimal, on_change=on_change),
    }


def _scanned(is_output: bool, scan_format: str, rate: Attribute) -> list[Channel]:
    shared = {
        "sampling_frequency": rate,
        "sampling_frequency_available": Attribute(
            compute=lambda: f"{rate.read()} {int(rate.number()) // 8} "
        ),
    }
    if not is_output:
        shared["samples_pps"] = refused(errno.ENODEV)  # there is no second's pulse
    return [
        Channel(
            f"voltage{index}",
            is_output,
            {
                "calibphase": within("0.000000", -1.0, 1.0, show=_decimal),
                "calibscale": within("1.000000", 0.0, 2.0, show=_decimal),
                **({} if is_output else {"calibbias": within("0", -32768, 32767, show=whole)}),
            },
            shared=shared,
            scan_index=index,
            scan_format=scan_format,
        )
        for index in (0, 1)
    ]


def _buffer_attributes() -> Attributes:
    return {
        "data_available": fixed("0"),
        "length_align_bytes": fixed("8"),
        "watermark": within("2048", 1, 1 << 24, show=whole),
    }


def _decimal(number: float) -> str:
    return f"{number:.6f}"
