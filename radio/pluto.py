"""`PlutoTransceiver`: an ADALM-PLUTO through libiio and pyadi-iio, held bursts and captures.

The only file that knows `adi` and `iio`; both are imported when a radio is opened. Amplitude 1.0 is
2^14 of the DAC, 6 dB below its full scale, because the interpolating filters overshoot; a capture's
1.0 is 2^11, full scale of the ADC.

**Safe stop.** A transmitter goes silent in this order: attenuation to 89.75 dB, which takes effect
at once and needs nothing else to work; the buffer, while its context still lives (libiio crashes
otherwise); the tones of the synthesizer; the local oscillator, whose leakage is a carrier of its
own. Every step is tried, even if one before it failed, and everything is read back. It happens on
`close`, at the end of a ``with`` block whatever ends it, when the process ends (`radio.safe_stop`),
and first of all when a radio is opened: what an earlier program left on the air is found, told, and
ended. Nothing helps against SIGKILL or a cable that is pulled; then `silence` does, from any
process.

Sources: the code of pyadi-iio 0.0.21 and pylibiio 0.25, and what libiio 0.24 does.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import logging
import math
import threading
import warnings
from typing import Any

import numpy as np

from radio import safe_stop
from radio.checks import Complex64Array, check_positive
from radio.errors import (
    RadioConfigurationError,
    RadioError,
    RadioSaturationError,
    RadioUnavailableError,
)
from radio.health import RadioHealth
from radio.libiio import findable_libiio
from radio.pluto_settings import (
    MAX_ATTENUATION_DB,
    PlutoSettings,
    Role,
    SilenceReport,
    check_uri,
    hint,
)
from radio.transceiver import Mode, Transceiver

_logger = logging.getLogger(__name__)

TX_FULL_SCALE = 1 << 14
RX_FULL_SCALE = 1 << 11
MAX_BUFFER_SAMPLES = 1 << 22
_DEVICES = ("ad9361-phy", "cf-ad9361-dds-core-lpc", "cf-ad9361-lpc")
_SILENT_DB = MAX_ATTENUATION_DB - 0.125
_POWER_UP = "local oscillator on at 2450000000 Hz, attenuation 10 dB"
_CONTROL_TIMEOUT_S = 5.0
_CARRIER_TOLERANCE_HZ = 10.0
_STATUS_REGISTER = 0x80000088
_UNDERFLOW, _OVERFLOW = 1, 4
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


class _Pluto:
    """A context, its three devices and pyadi's radio: opened with the true cause of every error."""

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
        self.set_timeout(_CONTROL_TIMEOUT_S)
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
    pluto = _Pluto(uri)
    try:
        found = tuple(pluto.may_radiate())
    except OSError as error:
        raise RadioUnavailableError(f"{uri}: {hint(error)}") from error
    pluto.fall_silent()
    return SilenceReport(uri, found)


class PlutoTransceiver(Transceiver):
    """One end of a link over Plutos: a transmitter that holds bursts, or a receiver that captures.

    A transmitter is at full attenuation except between `hold` and `fall_silent`; a receiver's
    transmitter is silent throughout. A capture opens a buffer of its own, so that it holds nothing
    from before; its first ``settling_s`` are thrown away.

    Args:
        settings: how it is to be set; see `PlutoSettings`.
        max_amplitude: largest amplitude of a burst, at most 1.

    Raises:
        RadioConfigurationError: a setting out of range, or one that the radio reads back otherwise.
        RadioUnavailableError: libraries or radio are not there; the message has the cause.
    """

    def __init__(self, settings: PlutoSettings, *, max_amplitude: float = 1.0) -> None:
        self._max_amplitude = check_positive("max_amplitude", max_amplitude)
        if self._max_amplitude > 1.0:
            raise RadioConfigurationError(f"max_amplitude: got {max_amplitude}, wanted at most 1.")
        self._settings = settings
        self._health = RadioHealth()
        self._guard = threading.RLock()
        self._pluto = _Pluto(settings.uri)
        self._is_transmitter = settings.role is Role.TRANSMITTER
        kind = "virtual-pluto" if self._pluto.is_virtual else "pluto"
        self._source = f"{kind}+{_vendor().describe()}"
        self.found_radiating = self._take_over()
        safe_stop.watch(self)

    def _take_over(self) -> tuple[str, ...]:
        """Make the radio silent, then what it is to be; what was on the air before."""
        uri = self._settings.uri
        try:
            found = tuple(self._pluto.may_radiate())
            self._pluto.fall_silent()
            for line in found:
                # Every Pluto that is switched on sends a carrier; that is nobody's fault.
                level = logging.INFO if line.startswith(_POWER_UP) else logging.WARNING
                _logger.log(level, "%s: was on the air and is silent now: %s", uri, line)
            self._set_up()
        except BaseException as error:  # nobody will close what was never opened
            with contextlib.suppress(RadioError):
                self._pluto.fall_silent()
            if isinstance(error, OSError):
                raise RadioUnavailableError(f"{uri}: cannot be set up: {hint(error)}") from error
            raise
        return found

    def _set_up(self) -> None:
        settings, pluto = self._settings, self._pluto
        radio = pluto.radio
        if settings.xo_correction is not None:
            trim = pluto.phy.attrs["xo_correction"]
            trim.value = str(settings.xo_correction)
            self._check("xo_correction", settings.xo_correction, float(trim.value), 0.0)
        radio.sample_rate = round(settings.sample_rate_hz)
        self._sample_rate_hz = self._check(
            "sample_rate_hz", settings.sample_rate_hz, float(radio.sample_rate), 2.0
        )
        if self._is_transmitter:
            radio.tx_rf_bandwidth = round(settings.rf_bandwidth_hz)
            radio.tx_lo = round(settings.carrier_hz)
            self._check("carrier_hz", settings.carrier_hz, radio.tx_lo, _CARRIER_TOLERANCE_HZ)
            self._attenuate(MAX_ATTENUATION_DB)
            pluto.tx_oscillator["powerdown"].value = "0"
        else:
            radio.rx_rf_bandwidth = round(settings.rf_bandwidth_hz)
            radio.rx_lo = round(settings.carrier_hz)
            self._check("carrier_hz", settings.carrier_hz, radio.rx_lo, _CARRIER_TOLERANCE_HZ)
            radio.gain_control_mode_chan0 = "manual"
            radio.rx_hardwaregain_chan0 = settings.rx_gain_db
            mode = radio.gain_control_mode_chan0
            self._check(
                "rx_gain_db",
                settings.rx_gain_db,
                radio.rx_hardwaregain_chan0,
                0.5,
                f" gain_control_mode is {mode!r}; rounds need 'manual'.",
            )
            # One block, opened for each capture: no second one can fill up with old samples.
            pluto.adc.set_kernel_buffers_count(1)

    def _check(
        self, name: str, asked: float, reported: float, tolerance: float, more: str = ""
    ) -> float:
        """What the radio reports, if it is what it was asked for."""
        if not abs(reported - asked) <= tolerance:
            raise RadioConfigurationError(
                f"{self._settings.uri}: {name}: asked {asked:g}, the radio reports {reported:g}."
                f"{more} Ask for a value that it can have, or see firmware_notes."
            )
        return reported

    def _attenuate(self, attenuation_db: float) -> None:
        radio = self._pluto.radio
        radio.tx_hardwaregain_chan0 = -attenuation_db
        self._check("tx_attenuation_db", attenuation_db, -radio.tx_hardwaregain_chan0, 0.126)

    @property
    def sample_rate_hz(self) -> float:
        """As the radio reports it."""
        return self._sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """Of a burst; 1.0 is 2^14 of the converter."""
        return self._max_amplitude

    @property
    def source(self) -> str:
        """Pluto or virtual pluto, and the versions of what every sample passed through."""
        return self._source

    @property
    def modes(self) -> frozenset[Mode]:
        """Held alone: stock firmware starts a burst whenever it comes to it."""
        return frozenset({Mode.HELD})

    @property
    def temperature_c(self) -> float | None:
        """Of the transceiver chip; not calibrated, so good for differences."""
        if self._is_closed:
            return None
        with self._guard:
            try:
                return self._pluto.temperature_c
            except OSError as error:
                raise RadioUnavailableError(f"{self._settings.uri}: {hint(error)}") from error

    @property
    def xo_correction(self) -> int:
        """What the radio takes its crystal to be, Hz."""
        with self._guard:
            try:
                return int(self._pluto.phy.attrs["xo_correction"].value)
            except OSError as error:
                raise RadioUnavailableError(f"{self._settings.uri}: {hint(error)}") from error

    def take_health(self) -> RadioHealth:
        """What happened since this was asked last."""
        health, self._health = self._health, RadioHealth()
        health.temperature_c = self.temperature_c
        return health

    def _hold(self, burst: Complex64Array) -> None:
        self._check_role(Role.TRANSMITTER, "hold")
        codes = np.rint(burst.astype(np.complex128).view(np.float64) * TX_FULL_SCALE)
        if np.abs(codes).max() > TX_FULL_SCALE:
            raise RadioSaturationError(
                f"{self.source}: a part of a sample is beyond {TX_FULL_SCALE}. Nothing was sent."
            )
        radio = self._pluto.radio
        with self._guard:
            radio.tx_destroy_buffer()
            radio.tx_cyclic_buffer = True
            radio.tx(codes.view(np.complex128))
            self._attenuate(self._settings.tx_attenuation_db)
            if self._pluto.take_status(self._pluto.dac, _UNDERFLOW):
                self._health.num_underflows += 1

    def _fall_silent(self) -> None:
        self._check_role(Role.TRANSMITTER, "fall_silent")
        with self._guard:
            try:
                self._attenuate(MAX_ATTENUATION_DB)
            finally:
                self._pluto.radio.tx_destroy_buffer()

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        self._check_role(Role.RECEIVER, "capture")
        settling = math.ceil(self._settings.settling_s * self._sample_rate_hz)
        total = num_samples + settling
        if total > MAX_BUFFER_SAMPLES:
            raise RadioConfigurationError(
                f"{self.source}: a capture of {num_samples} samples, wanted at most "
                f"{MAX_BUFFER_SAMPLES - settling}: it has to fit one buffer of the radio."
            )
        radio = self._pluto.radio
        with self._guard:
            self._pluto.take_status(self._pluto.adc, _OVERFLOW)
            self._pluto.set_timeout(timeout_s)
            radio.rx_buffer_size = total
            try:
                samples = radio.rx()[settling:]
            finally:
                radio.rx_destroy_buffer()
                self._pluto.set_timeout(_CONTROL_TIMEOUT_S)
            self._note(samples, self._pluto.take_status(self._pluto.adc, _OVERFLOW))
        capture: Complex64Array = (samples / RX_FULL_SCALE).astype(np.complex64)
        return capture

    def _note(self, samples: np.ndarray, has_overflowed: bool) -> None:
        parts = samples.view(np.float64).reshape(-1, 2)
        is_overloaded = (parts >= RX_FULL_SCALE - 1) | (parts <= -RX_FULL_SCALE)
        self._health.num_captures += 1
        self._health.num_samples += len(samples)
        self._health.num_overloaded += int(is_overloaded.any(axis=1).sum())
        self._health.num_overflows += has_overflowed

    def _close(self) -> None:
        safe_stop.forget(self)
        with self._guard:
            with contextlib.suppress(OSError):
                self._pluto.radio.rx_destroy_buffer()
            self._pluto.fall_silent()

    def _check_role(self, role: Role, what: str) -> None:
        if self._settings.role is not role:
            raise RadioConfigurationError(
                f"{self.source}: {what} at {self._settings.uri}, which is a {self._settings.role}. "
                f"Open it as a {role}."
            )
