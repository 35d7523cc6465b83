"""`PlutoTransceiver`: an ADALM-PLUTO as a transceiver, held bursts and captures.

Amplitude 1.0 is 2^14 of the DAC, 6 dB below its full scale, because the interpolating filters
overshoot; a capture's 1.0 is 2^11, full scale of the ADC. The libraries are behind
`radio.pluto.driver`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from radio.arrays import Complex64Array
from radio.checks import check_positive
from radio.errors import (
    RadioConfigurationError,
    RadioError,
    RadioSaturationError,
    RadioUnavailableError,
)
from radio.health import RadioHealth
from radio.pluto import safe_stop
from radio.pluto.addresses import hint
from radio.pluto.driver import OpenPluto, describe_libraries
from radio.pluto.relied_on import put_in_order
from radio.pluto.safe_stop import Silenceable
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.silence import (
    MAX_ATTENUATION_DB,
    POWER_UP,
    as_not_silent,
    attenuate,
    fall_silent,
    least_attenuation_db,
    may_radiate,
    silence,
)
from radio.transceiver import Mode, Transceiver

_logger = logging.getLogger(__name__)

TX_FULL_SCALE = 1 << 14
RX_FULL_SCALE = 1 << 11
MAX_BUFFER_SAMPLES = 1 << 22
PIPE_SAMPLES = 1024
"""What filters and converters may still hold when a buffer is opened; a few hundred."""
_CARRIER_TOLERANCE_HZ = 10.0
_UNDERFLOW, _OVERFLOW = 1, 4
_OPERATING_TIMEOUT_S = 2.0
"""Of an exchange once everything is set: a link that takes longer is taken for cut."""

_BUSY_S = 1.0
"""How long a safe stop waits for another thread to be done with the radio."""

_READ_S, _MIN_BLOCKS, _MAX_BLOCKS = 1.0, 4, 64


class PlutoTransceiver(Transceiver, Silenceable):
    """One end of a link over Plutos: a transmitter that holds bursts, or a receiver that captures.

    A transmitter is at full attenuation except from `hold` to `fall_silent`; a receiver's
    transmitter is silent throughout. A capture waits ``settling_s`` and opens a buffer of its own;
    the first `PIPE_SAMPLES` of it are thrown away, so that it holds nothing from before.

    Guarantees:
        * `fall_silent` and `close` return when the radio is silent as read back, if need be over a
          new connection; otherwise they raise RadioNotSilentError, whatever the radio or its
          libraries did. A radio that was never loud since it was last read back silent is not
          asked again.
        * After a lost connection, `hold` opens the radio anew and sets it up again.
        * Nothing is held that this process's guardian does not know of (`radio.pluto.guardian`).
        * A radio is open once in a process, whatever its address is called.

    Args:
        settings: how it is to be set; see `PlutoSettings`.
        max_amplitude: largest amplitude of a burst, at most 1.
        wait: lets so many seconds pass.

    Raises:
        RadioConfigurationError: a setting out of range, one that the radio reads back otherwise, or
            a radio that is open already.
        RadioUnavailableError: libraries or radio are not there; the message has the cause.
        RadioNotSilentError: it is there, and cannot be silenced.
    """

    def __init__(
        self,
        settings: PlutoSettings,
        *,
        max_amplitude: float = 1.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._max_amplitude = check_positive("max_amplitude", max_amplitude)
        if self._max_amplitude > 1.0:
            raise RadioConfigurationError(f"max_amplitude: got {max_amplitude}, wanted at most 1.")
        self._settings = settings
        self._wait = wait
        self._health = RadioHealth()
        self._guard = threading.RLock()
        self._holder: int | None = None  # thread that has the guard
        self._is_loud = False
        self._is_off = False  # its transmitter's oscillator, as read back
        self._is_lost = False  # its connection is
        self._rx_gain_db: float | None = None
        self._is_transmitter = settings.role is Role.TRANSMITTER
        self._pluto = OpenPluto(settings.uri)
        self._serial = self._pluto.serial
        kind = "virtual-pluto" if self._pluto.is_virtual else "pluto"
        self._source = f"{kind}+{describe_libraries()}"
        safe_stop.watch(self)  # before anything is changed: it may be somebody else's
        self.found_radiating = self._take_over()

    def _take_over(self) -> tuple[str, ...]:
        """Make the radio silent, then what it is to be; what was on the air before."""
        uri = self.uri
        try:
            found = tuple(may_radiate(self._pluto))
            fall_silent(self._pluto)
            self._is_off = True
            for line in found:
                # Every Pluto that is switched on sends a carrier; that is nobody's fault.
                level = logging.INFO if line.startswith(POWER_UP) else logging.WARNING
                _logger.log(level, "%s: was on the air and is silent now: %s", uri, line)
            self._set_up()
        except BaseException as error:  # nobody will close what was never opened
            self.close()
            if isinstance(error, RadioError) or not isinstance(error, Exception):
                raise
            why = hint(error) if isinstance(error, OSError) else f"it answers nonsense ({error!r})"
            raise RadioUnavailableError(f"{uri}: cannot be set up: {why}") from error
        return found

    def _set_up(self) -> None:
        settings, pluto = self._settings, self._pluto
        radio = pluto.radio
        put_in_order(pluto)
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
            self._is_off = False
            pluto.tx_oscillator["powerdown"].value = "0"
        else:
            radio.rx_rf_bandwidth = round(settings.rf_bandwidth_hz)
            radio.rx_lo = round(settings.carrier_hz)
            self._check("carrier_hz", settings.carrier_hz, radio.rx_lo, _CARRIER_TOLERANCE_HZ)
            radio.gain_control_mode_chan0 = "manual"
            radio.rx_hardwaregain_chan0 = settings.rx_gain_db
            mode = radio.gain_control_mode_chan0
            self._rx_gain_db = self._check(
                "rx_gain_db",
                settings.rx_gain_db,
                radio.rx_hardwaregain_chan0,
                0.5,
                f" gain_control_mode is {mode!r}; rounds need 'manual'.",
            )
        pluto.set_timeout(_OPERATING_TIMEOUT_S)

    def _check(
        self, name: str, asked: float, reported: float, tolerance: float, more: str = ""
    ) -> float:
        """What the radio reports, if it is what it was asked for."""
        if not abs(reported - asked) <= tolerance:
            raise RadioConfigurationError(
                f"{self.uri}: {name}: asked {asked:g}, the radio reports {reported:g}."
                f"{more} Ask for a value that it can have, or see firmware_notes."
            )
        return reported

    def _attenuate(self, attenuation_db: float) -> None:
        attenuate(self._pluto, attenuation_db)
        self._check("tx_attenuation_db", attenuation_db, least_attenuation_db(self._pluto), 0.126)

    @property
    def uri(self) -> str:
        """As it was asked for."""
        return self._settings.uri

    @property
    def name(self) -> str:
        """Its URI: there are several, and one of them failed."""
        return self.uri

    @property
    def serial(self) -> str:
        """The radio's serial number, as it says itself."""
        return self._serial

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, silent or not."""
        return self._is_closed

    @property
    def sample_rate_hz(self) -> float:
        """As the radio reports it."""
        return self._sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """The largest amplitude of a burst; 1.0 is 2^14 of the converter."""
        return self._max_amplitude

    @property
    def source(self) -> str:
        """Pluto or virtual pluto, and the versions of what every sample passed through."""
        return self._source

    @property
    def is_simulated(self) -> bool:
        """Whether the radio says that no hardware is behind it."""
        return self._pluto.is_virtual

    @property
    def modes(self) -> frozenset[Mode]:
        """Held alone: stock firmware starts a burst whenever it comes to it."""
        return frozenset({Mode.HELD})

    @property
    def rx_gain_db(self) -> float | None:
        """As the radio read it back when it was set; None of a transmitter."""
        return self._rx_gain_db

    @property
    def temperature_c(self) -> float | None:
        """The transceiver chip's temperature; not calibrated, so good for differences."""
        if self._is_closed:
            return None
        with self._alone():
            try:
                with self._understood():
                    return self._pluto.temperature_c
            except OSError as error:
                raise RadioUnavailableError(f"{self.uri}: {hint(error)}") from error

    @property
    def xo_correction(self) -> int:
        """What the radio takes its crystal to be, Hz."""
        with self._alone():
            try:
                with self._understood():
                    return int(self._pluto.phy.attrs["xo_correction"].value)
            except OSError as error:
                raise RadioUnavailableError(f"{self.uri}: {hint(error)}") from error

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
                f"{self.name}: a part of a sample is beyond {TX_FULL_SCALE}. Nothing was sent."
            )
        with self._alone(), self._understood():
            if self._is_lost:
                self._open_again()
            radio, guardian = self._pluto.radio, safe_stop.guardian()
            guardian.arm(self.uri, self._settings.max_hold_s)
            try:
                least_attenuation_db(self._pluto)  # a connection that is cut is found out here
                radio.tx_destroy_buffer()
                radio.tx_cyclic_buffer = True
                radio.tx(codes.view(np.complex128))
                self._is_loud = True
                self._attenuate(self._settings.tx_attenuation_db)
                if self._pluto.take_status(self._pluto.dac, _UNDERFLOW):
                    self._health.num_underflows += 1
            except BaseException:
                self._is_lost = True
                if not self._is_loud:  # behind full attenuation since it was last read back
                    with contextlib.suppress(RadioError):
                        guardian.disarm(self.uri)
                raise

    def _fall_silent(self) -> None:
        self._check_role(Role.TRANSMITTER, "fall_silent")
        with self._alone():
            if self._is_loud:
                try:
                    self._check_connection()
                    self._attenuate(MAX_ATTENUATION_DB)
                except Exception as error:  # of whatever kind: it may be on the air
                    with contextlib.suppress(RadioError):  # it does not hang; it may take a while
                        safe_stop.guardian().arm(self.uri, self._settings.max_hold_s)
                    self._silence_anew(error)
                self._is_loud = False
            with contextlib.suppress(RadioError):  # it is silent, whoever hears of it
                safe_stop.guardian().disarm(self.uri)
            if not self._is_lost:
                try:
                    self._pluto.radio.tx_destroy_buffer()
                except Exception as error:  # behind full attenuation; the next hold will see
                    self._is_lost = True
                    _logger.warning("%s: the connection is lost (%r)", self.uri, error)

    def _silence_anew(self, cause: Exception) -> None:
        """Over a new connection, because the one that there was failed.

        Raises:
            RadioNotSilentError: that failed, too.
        """
        self._is_lost = True
        if not self.uri.startswith("ip:"):  # USB has one owner
            self._pluto.abandon()
        try:
            silence(self.uri)
        except Exception as error:
            raise as_not_silent(self.uri, error) from cause
        _logger.warning(
            "%s: the connection failed (%r); silent, as read back over a new one", self.uri, cause
        )

    def _check_connection(self) -> None:
        if self._is_lost:
            raise RadioUnavailableError(f"{self.uri}: the connection was lost before.")

    def _open_again(self) -> None:
        """After the connection was lost; the radio may have been switched off in between."""
        self._pluto.abandon()
        self._pluto = OpenPluto(self.uri)
        if self._pluto.serial != self._serial:
            raise RadioUnavailableError(
                f"{self.uri}: radio {self._pluto.serial} is there now, wanted {self._serial}."
            )
        fall_silent(self._pluto)
        self._is_off = True
        self._set_up()
        self._is_lost = False
        _logger.warning("%s: open again, and set up as before", self.uri)

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        self._check_role(Role.RECEIVER, "capture")
        total = num_samples + PIPE_SAMPLES
        if total > MAX_BUFFER_SAMPLES:
            raise RadioConfigurationError(
                f"{self.name}: a capture of {num_samples} samples, wanted at most "
                f"{MAX_BUFFER_SAMPLES - PIPE_SAMPLES}: it has to fit one buffer of the radio."
            )
        # In time, and not as samples: at 20 MS/s they would be a million, over USB or a network.
        self._wait(self._settings.settling_s)
        radio = self._pluto.radio
        with self._alone(), self._understood():
            self._pluto.adc.set_kernel_buffers_count(self._blocks_behind(total))
            self._pluto.take_status(self._pluto.adc, _OVERFLOW)
            self._pluto.set_timeout(timeout_s)
            radio.rx_buffer_size = total
            try:
                samples = radio.rx()[PIPE_SAMPLES:]
                # At once: when the blocks behind this one are full the bit is set all the same.
                has_overflowed = self._pluto.take_status(self._pluto.adc, _OVERFLOW)
            finally:
                radio.rx_destroy_buffer()
                self._pluto.set_timeout(_OPERATING_TIMEOUT_S)
            self._health.note_capture(samples, RX_FULL_SCALE, has_overflowed=has_overflowed)
        capture: Complex64Array = (samples / RX_FULL_SCALE).astype(np.complex64)
        return capture

    def _blocks_behind(self, num_samples: int) -> int:
        """How many blocks a buffer has that is opened for a capture and read once.

        The radio goes on filling the others. When all are full it reports lost samples, though the
        first block is whole; so there are enough that it is read, and the report with it, before.
        """
        duration_s = num_samples / self._sample_rate_hz
        return min(max(math.ceil(_READ_S / duration_s), _MIN_BLOCKS), _MAX_BLOCKS)

    def _close(self) -> None:
        with self._alone():
            self._go_silent(on_this_connection=True)

    def close_for(self, thread: int) -> None:
        """Close it, though ``thread`` may have been stopped in the middle of a call to it.

        Raises:
            RadioNotSilentError: it is not known to be silent.
        """
        self._is_closed = True
        is_ours = self._holder == thread or self._guard.acquire(timeout=_BUSY_S)
        try:
            self._go_silent(on_this_connection=is_ours)
        finally:
            if is_ours and self._holder != thread:
                self._guard.release()

    def _go_silent(self, *, on_this_connection: bool) -> None:
        # Whoever closes it hears what becomes of it: a program that does not hang. It is watched
        # until it is silent all the same.
        with contextlib.suppress(RadioError):
            safe_stop.guardian().disarm(self.uri)
        try:
            self._check_connection()
            if not on_this_connection:
                raise RadioUnavailableError(f"{self.uri}: the connection is in use.")
            fall_silent(self._pluto)
        except Exception as error:
            is_cut = self._is_lost or isinstance(error.__cause__, OSError)
            if self._is_off and is_cut:  # since it was opened; nothing here ever switches it on
                _logger.warning("%s: its connection is lost; it is a receiver", self.uri)
            else:
                self._silence_anew(error)
            if on_this_connection:  # nobody else is in the middle of a call
                self._pluto.abandon()
        self._is_loud = False
        safe_stop.forget(self)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time, and who it is."""
        with self._guard:
            before, self._holder = self._holder, threading.get_ident()
            try:
                yield
            finally:
                self._holder = before

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """What a radio says that is no answer, as an error of the radio."""
        try:
            yield
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise OSError(errno.EPROTO, f"it answers nonsense ({error!r})") from error

    def _check_role(self, role: Role, what: str) -> None:
        if self._settings.role is not role:
            raise RadioConfigurationError(
                f"{self.name}: {what} at a {self._settings.role}. Open it as a {role}."
            )
