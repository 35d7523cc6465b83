"""`PlutoTransceiver`: an ADALM-PLUTO as a transceiver, held bursts and captures.

Amplitude 1.0 is 2^14 of the DAC, 6 dB below its full scale, because the interpolating filters
overshoot; a capture's 1.0 is 2^11, full scale of the ADC. The libraries are behind `radio.pluto`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading

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
from radio.pluto import CONTROL_TIMEOUT_S, POWER_UP, OpenPluto, describe_libraries
from radio.pluto_settings import MAX_ATTENUATION_DB, PlutoSettings, Role, hint
from radio.transceiver import Mode, Transceiver

_logger = logging.getLogger(__name__)

TX_FULL_SCALE = 1 << 14
RX_FULL_SCALE = 1 << 11
MAX_BUFFER_SAMPLES = 1 << 22
_CARRIER_TOLERANCE_HZ = 10.0
_UNDERFLOW, _OVERFLOW = 1, 4


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
        self._pluto = OpenPluto(settings.uri)
        self._is_transmitter = settings.role is Role.TRANSMITTER
        kind = "virtual-pluto" if self._pluto.is_virtual else "pluto"
        self._source = f"{kind}+{describe_libraries()}"
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
                level = logging.INFO if line.startswith(POWER_UP) else logging.WARNING
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
                self._pluto.set_timeout(CONTROL_TIMEOUT_S)
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
