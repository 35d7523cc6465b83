"""A Pluto as libiio shows it: a context with three devices, and their attributes by name.

The only file that knows `iio`; it is imported when the first context is opened. Neither numpy nor
pyadi-iio is needed, so that a process which only has to silence a radio is a small one
(`radio.pluto.guardian_process`).

Sources: pylibiio 0.25, and what libiio 0.24 does.
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from typing import Any

from radio.errors import RadioUnavailableError
from radio.pluto.addresses import check_uri, hint
from radio.pluto.libiio import findable_libiio

CONTROL_TIMEOUT_S = 5.0
"""Of an exchange while a radio is set up; a sample rate with its filter takes a while."""

INSTALL = "Install them with: pip install 'pairzero[pluto]', and sudo apt-get install libiio0"
_DEVICES = ("ad9361-phy", "cf-ad9361-dds-core-lpc", "cf-ad9361-lpc")
_MIN_VERSION, _FIRST_UNKNOWN_VERSION = (0, 24), (1, 0)
_SERIAL = re.compile(r"\bserial=([0-9A-Za-z-]+)")

_loaded: Any = None


def binding() -> Any:
    """The module `iio`, imported once and checked.

    Raises:
        RadioUnavailableError: it is missing, or of a version that does not work.
    """
    global _loaded  # noqa: PLW0603 - a module is loaded once
    if _loaded is None:
        try:
            with findable_libiio(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, about their own syntax
                import iio
        except (ImportError, OSError) as error:
            raise RadioUnavailableError(
                f"pluto: the radio's libraries cannot be loaded: {error}. {INSTALL}"
            ) from error
        _check_versions(iio)
        _loaded = iio
    return _loaded


def _check_versions(iio: Any) -> None:
    try:
        version_of_binding = importlib.metadata.version("pylibiio")
    except importlib.metadata.PackageNotFoundError:
        version_of_binding = "0"  # a distribution's package, whose library says the version below
    if int(version_of_binding.split(".", maxsplit=1)[0]) >= 1:
        raise RadioUnavailableError(
            f"pluto: got pylibiio {version_of_binding}, wanted below 1: pyadi-iio sends a quarter "
            "of a burst through it. Install it with: pip install 'pylibiio<1'"
        )
    version = tuple(iio.version[:2])
    if not _MIN_VERSION <= version < _FIRST_UNKNOWN_VERSION:
        raise RadioUnavailableError(
            f"pluto: got libiio {iio.version}, wanted 0.24 or later and below 1. {INSTALL}"
        )


def found_uris() -> dict[str, str]:
    """URIs of radios that libiio finds by itself, and what it says of them.

    Raises:
        RadioUnavailableError: the search itself failed; known addresses work all the same.
    """
    try:
        contexts: dict[str, str] = binding().scan_contexts()
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
    wanted = uri.removeprefix("serial:").lower()
    contexts = found_uris()
    # The whole of it: "1" is the end of many. One radio can be found at USB and on the network.
    matches = {
        found: match[1]
        for found, text in contexts.items()
        if (match := _SERIAL.search(text)) and match[1].lower() == wanted
    }
    if not matches:
        there = ", ".join(f"{found} ({text})" for found, text in contexts.items()) or "none"
        raise RadioUnavailableError(
            f"{uri}: no such radio; a serial number is compared as a whole. Found: {there}."
        )
    if len(matches) > 1:
        raise RadioUnavailableError(
            f"{uri}: found at {', '.join(sorted(matches))}, wanted one place. Name the radio by "
            "one of these instead."
        )
    return next(iter(matches))


class PlutoContext:
    """A context and its three devices, opened with the true cause of every error.

    Args:
        uri: see `check_uri`.
        timeout_s: of every exchange.

    Attributes:
        uri: as it was asked for.
        context: libiio's.
        phy: the transceiver chip.
        dac: the transmitter's converter, with its synthesizer.
        adc: the receiver's.
        serial: `hw_serial`, by which a radio is the same whatever its address is called; empty
            where the firmware has none.
        is_virtual: whether no hardware is behind it.

    Raises:
        RadioConfigurationError: not a URI.
        RadioUnavailableError: libraries or radio are not there, or it is no Pluto.
    """

    def __init__(self, uri: str, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        check_uri(uri)
        self.iio: Any = binding()
        self.uri = uri
        try:
            self.context: Any = self.iio.Context(_resolved(uri))
        except OSError as error:
            raise RadioUnavailableError(f"{uri}: cannot be opened: {hint(error)}") from error
        self.phy, self.dac, self.adc = (self.context.find_device(name) for name in _DEVICES)
        if None in (self.phy, self.dac, self.adc):
            names = sorted(filter(None, (device.name for device in self.context.devices)))
            raise RadioUnavailableError(
                f"{uri}: this is no Pluto: it has {names}, wanted {sorted(_DEVICES)}."
            )
        self.set_timeout(timeout_s)
        attributes = self.context.attrs
        self.serial = str(attributes.get("hw_serial", ""))
        self.is_virtual = "virtual" in attributes.get("hw_model", "").lower()

    def let_go_of_buffers(self) -> None:
        """Close what this connection has open; a bare context has nothing."""

    def set_timeout(self, timeout_s: float) -> None:
        """Set how long every exchange may take from here on."""
        self.context.set_timeout(max(1, round(1e3 * timeout_s)))

    @property
    def tx_oscillator(self) -> Any:
        """Attributes of the transmitter's local oscillator."""
        return self.phy.find_channel("altvoltage1", True).attrs

    @property
    def rx_oscillator(self) -> Any:
        """Attributes of the receiver's local oscillator."""
        return self.phy.find_channel("altvoltage0", True).attrs

    @property
    def attenuators(self) -> list[Any]:
        """The gains of every transmitter of the chip: one, or two where the second is unlocked."""
        return [
            channel.attrs["hardwaregain"]
            for channel in self.phy.channels
            if channel.output and "hardwaregain" in channel.attrs
        ]

    @property
    def tones(self) -> list[Any]:
        """Attributes of the synthesizer's tones."""
        return [channel.attrs for channel in self.dac.channels if "scale" in channel.attrs]
