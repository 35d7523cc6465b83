"""An ADALM-PLUTO through libiio and pyadi-iio, and its safe stop.

The only file that knows `adi` and `iio`; both are imported when a radio is opened.

**Safe stop.** A transmitter goes silent in this order: attenuation to 89.75 dB, which takes effect
at once and needs nothing else to work; the buffer, while its context still lives (libiio crashes
otherwise); the tones of the synthesizer; the local oscillator, whose leakage is a carrier of its
own. Every step is tried, even if one before it failed, and everything is read back. It happens on
`PlutoTransceiver.close`, at the end of a ``with`` block whatever ends it, when the process ends
(`radio.safe_stop`), and first of all when a radio is opened: what an earlier program left on the
air is found, told, and ended. Nothing helps against SIGKILL or a cable that is pulled; then
`silence` does, from any process.

Sources: the code of pyadi-iio 0.0.21 and pylibiio 0.25, and what libiio 0.24 does.
"""

from __future__ import annotations

import errno
import importlib.metadata
import warnings
from typing import Any

from radio.errors import RadioUnavailableError
from radio.libiio import findable_libiio
from radio.pluto_settings import MAX_ATTENUATION_DB, SilenceReport, check_uri, hint

_DEVICES = ("ad9361-phy", "cf-ad9361-dds-core-lpc", "cf-ad9361-lpc")
_SILENT_DB = MAX_ATTENUATION_DB - 0.125
POWER_UP = "local oscillator on at 2450000000 Hz, attenuation 10 dB"
CONTROL_TIMEOUT_S = 5.0
_STATUS_REGISTER = 0x80000088
_NO_REGISTER = {errno.ENOENT, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES}
_MIN_VERSION, _FIRST_UNKNOWN_VERSION = (0, 24), (1, 0)
_INSTALL = "Install them with: pip install 'pairzero[pluto]', and sudo apt-get install libiio0"


class _Libraries:
    """The vendor's modules, imported once and checked."""

    def __init__(self) -> None:
        try:
            with findable_libiio(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, about their own syntax
                import iio

                self._check_versions(iio)
                import adi
        except (ImportError, OSError) as error:
            raise RadioUnavailableError(
                f"pluto: the radio's libraries cannot be loaded: {error}. {_INSTALL}"
            ) from error
        self.iio: Any = iio
        self.adi: Any = adi

    def _check_versions(self, iio: Any) -> None:
        try:
            binding = importlib.metadata.version("pylibiio")
        except importlib.metadata.PackageNotFoundError:
            binding = "0"  # a distribution's package, whose library says the version below
        if int(binding.split(".", maxsplit=1)[0]) >= 1:
            raise RadioUnavailableError(
                f"pluto: got pylibiio {binding}, wanted below 1: pyadi-iio sends a quarter of a "
                "burst through it. Install it with: pip install 'pylibiio<1'"
            )
        version = tuple(iio.version[:2])
        if not _MIN_VERSION <= version < _FIRST_UNKNOWN_VERSION:
            raise RadioUnavailableError(
                f"pluto: got libiio {iio.version}, wanted 0.24 or later and below 1. {_INSTALL}"
            )

    def describe(self) -> str:
        """For `source`: what every sample passed through."""
        pyadi = importlib.metadata.version("pyadi-iio")
        major, minor = self.iio.version[:2]
        return f"pyadi-iio {pyadi}+libiio {major}.{minor}"


_libraries: _Libraries | None = None


def _vendor() -> _Libraries:
    global _libraries  # noqa: PLW0603 - a module is loaded once
    if _libraries is None:
        _libraries = _Libraries()
    return _libraries


def describe_libraries() -> str:
    """What is installed, with versions.

    Raises:
        RadioUnavailableError: something is missing or of a version that does not work.
    """
    return _vendor().describe()


def found_uris() -> dict[str, str]:
    """URIs of radios that libiio finds by itself, and what it says of them.

    Raises:
        RadioUnavailableError: the search itself failed; known addresses work all the same.
    """
    try:
        contexts: dict[str, str] = _vendor().iio.scan_contexts()
    except OSError as error:
        raise RadioUnavailableError(
            f"pluto: the search for radios failed: {error}. On a network it needs avahi-daemon: "
            "sudo apt-get install avahi-daemon; an address like ip:192.168.2.1 needs no search."
        ) from error
    return contexts


def _resolved(uri: str) -> str:
    """The URI of the radio with a serial number, or what was asked for."""
    if not uri.startswith("serial:"):
        return uri
    serial = uri.removeprefix("serial:")
    contexts = found_uris()
    matches = [found for found, text in contexts.items() if f"serial={serial}" in text]
    if not matches:
        there = ", ".join(f"{found} ({text})" for found, text in contexts.items()) or "none"
        raise RadioUnavailableError(f"{uri}: no such radio. Found: {there}.")
    return matches[0]


class OpenPluto:
    """A context, its three devices and pyadi's radio: opened with the true cause of every error.

    Args:
        uri: see `check_uri`.

    Raises:
        RadioConfigurationError: not a URI.
        RadioUnavailableError: libraries or radio are not there, or it is no Pluto.
    """

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        libraries = _vendor()
        self.uri = uri
        self._iio = libraries.iio
        try:
            # pyadi says "No device found" whatever the reason, so it gets an open context.
            self.context: Any = libraries.iio.Context(_resolved(uri))
        except OSError as error:
            raise RadioUnavailableError(f"{uri}: cannot be opened: {hint(error)}") from error
        self.phy, self.dac, self.adc = (self.context.find_device(name) for name in _DEVICES)
        if None in (self.phy, self.dac, self.adc):
            names = sorted(filter(None, (device.name for device in self.context.devices)))
            raise RadioUnavailableError(
                f"{uri}: this is no Pluto: it has {names}, wanted {sorted(_DEVICES)}."
            )
        self.set_timeout(CONTROL_TIMEOUT_S)
        self.radio: Any = libraries.adi.Pluto(uri_ctx=self.context)
        self.is_virtual = "virtual" in self.context.attrs.get("hw_model", "").lower()

    def set_timeout(self, timeout_s: float) -> None:
        """Of every exchange from here on."""
        self.context.set_timeout(max(1, round(1e3 * timeout_s)))

    @property
    def tx_oscillator(self) -> Any:
        """Attributes of the transmitter's local oscillator."""
        return self.phy.find_channel("altvoltage1", True).attrs

    @property
    def attenuation_db(self) -> float:
        """Of the transmitter."""
        return -float(self.radio.tx_hardwaregain_chan0)

    @property
    def temperature_c(self) -> float:
        """Of the chip, not calibrated."""
        return float(self.phy.find_channel("temp0").attrs["input"].value) / 1e3

    def take_status(self, converter: Any, bit: int) -> bool:
        """Whether the converter's status bit was set; it is cleared. No, where there is none."""
        try:
            is_set = bool(converter.reg_read(_STATUS_REGISTER) & bit)
            if is_set:
                converter.reg_write(_STATUS_REGISTER, bit)
        except OSError as error:
            if error.errno not in _NO_REGISTER:
                raise
            return False
        return is_set

    def may_radiate(self) -> list[str]:
        """What of the transmitter's state can be on the air, in words."""
        oscillator = self.tx_oscillator
        is_off = oscillator["powerdown"].value.strip() == "1"
        if is_off or self.attenuation_db >= _SILENT_DB:
            return []
        found = [
            f"local oscillator on at {oscillator['frequency'].value} Hz, attenuation "
            f"{self.attenuation_db:g} dB: a carrier at least, perhaps a burst"
        ]
        if self._tones():
            found.append(f"tones of the synthesizer, scales {self._tones()}")
        return found

    def fall_silent(self) -> None:
        """The safe stop; see the module.

        Raises:
            RadioUnavailableError: it is not known to be silent.
        """
        failures: list[str] = []
        for what, act in (
            ("attenuation", self._attenuate_fully),
            ("buffer", self._end_buffers),
            ("tones", self._end_tones),
            ("oscillator", self._power_down),
            ("reading back", self._check_silent),
        ):
            try:
                act()
            except (OSError, ValueError, KeyError) as error:
                failures.append(f"{what}: {error}")
        if failures:
            raise RadioUnavailableError(
                f"{self.uri}: not known to be silent ({'; '.join(failures)}). Unplug it, or run: "
                f"pairzero-radio silence {self.uri}"
            )

    def _attenuate_fully(self) -> None:
        self.radio.tx_hardwaregain_chan0 = -MAX_ATTENUATION_DB

    def _end_buffers(self) -> None:
        self.radio.tx_destroy_buffer()
        # A burst that another program left behind ends when the next buffer is opened.
        for name in ("voltage0", "voltage1"):
            self.dac.find_channel(name, True).enabled = True
        opened = self._iio.Buffer(self.dac, 1024, False)
        del opened

    def _end_tones(self) -> None:
        self.radio.dds_scales = [0.0] * 4
        self.radio.disable_dds()

    def _power_down(self) -> None:
        self.tx_oscillator["powerdown"].value = "1"

    def _check_silent(self) -> None:
        if self.attenuation_db < _SILENT_DB:
            raise ValueError(f"{self.attenuation_db:g} dB of attenuation")
        if self.tx_oscillator["powerdown"].value.strip() != "1":
            raise ValueError("the local oscillator is on")
        if self._tones():
            raise ValueError(f"tones of scales {self._tones()}")

    def _tones(self) -> list[float]:
        """Scales of the synthesizer's tones; empty if all are zero."""
        scales = [float(scale) for scale in self.radio.dds_scales]
        return scales if any(scales) else []


def silence(uri: str) -> SilenceReport:
    """Make a radio silent, whoever made it loud, and say what was on the air.

    Raises:
        RadioConfigurationError: not a URI.
        RadioUnavailableError: the radio cannot be opened, or is not known to be silent.
    """
    pluto = OpenPluto(uri)
    try:
        found = tuple(pluto.may_radiate())
    except OSError as error:
        raise RadioUnavailableError(f"{uri}: {hint(error)}") from error
    pluto.fall_silent()
    return SilenceReport(uri, found)
