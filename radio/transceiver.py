"""`Transceiver`: the one interface through which samples meet a radio, real or simulated.

There are two ways to be on the air, and a backend says which it can (`Mode`):

POSITIONED: all radios share a time axis, and a burst arrives at the position it was sent for::

    transmit(burst, start_sample)                receive(num_samples, start_sample)

HELD: no two clocks agree. A radio repeats its burst without end, from a moment that nobody knows,
until it is told to stop; whoever listens does so anywhere inside::

    hold(burst) ... fall_silent()                capture(num_samples)

The public half is here and final: it checks, it translates a driver's errors, it knows whether it
is closed. The protected half (``_transmit`` and ``_receive``, or ``_hold``, ``_fall_silent`` and
``_capture``; ``_close``) is a backend's to write and can trust its arguments. Every backend passes
`tests/conformance`.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Self, final

import numpy as np

from radio.arrays import BurstArray, Complex64Array
from radio.checks import check_burst, check_exact_burst, check_integer, check_positive
from radio.errors import (
    RadioConfigurationError,
    RadioSaturationError,
    RadioTimeoutError,
    RadioUnavailableError,
)
from radio.health import RadioHealth

logger = logging.getLogger(__name__)

FULL_SCALE_TOLERANCE = 2.0**-23
"""A sample of amplitude exactly at the limit may grow by this when it is rounded to complex64."""


class Mode(enum.StrEnum):
    """A way to be on the air; see the module."""

    POSITIONED = "positioned"
    HELD = "held"


class Transceiver(abc.ABC):
    """Sends and hears complex baseband samples.

    Model, positioned: the radio turns burst x into the band around its carrier so that sample x[i]
    is on air at position start_sample + i, and hands over what it heard at the positions asked for.
    Positions count from the origin of the frame (the moment that all radios of a round agree on);
    how a backend finds that moment is its own matter. Model, held: sample x[(n - d) mod N] is on
    air at moment n, with a delay d that nobody knows, from before ``hold`` returns until before
    ``fall_silent`` returns. Amplitude 1.0 is full scale of the transmit converter.

    Guarantees:
        * A burst is checked as a whole before its first sample leaves: it is complex64
          (at positions complex128 as well), [num_samples], not empty, finite, and no sample is
          above ``max_amplitude``.
        * The caller may change the array after ``transmit`` or ``hold`` returns.
        * ``receive`` and ``capture`` return exactly ``num_samples`` finite samples or raise; those
          of ``capture`` follow one another, and the first was on air after the call.
        * A ``hold`` replaces the one before; ``fall_silent`` and ``close`` end it.
        * What belongs to another mode than the backend has is refused, and nothing is transmitted.
        * ``close`` can be called again; after it, every other call and entering the context raise
          RadioUnavailableError. The properties stay readable, for reports.

    A backend's TimeoutError comes out as RadioTimeoutError and its OSError (device unplugged,
    connection lost) as RadioUnavailableError, with the cause chained.
    """

    _is_closed: bool = False

    @property
    @abc.abstractmethod
    def sample_rate_hz(self) -> float:
        """Samples per second, as the radio itself reports it."""

    @property
    @abc.abstractmethod
    def max_amplitude(self) -> float:
        """Largest abs(sample) that may be transmitted; 1.0 is full scale."""

    @property
    @abc.abstractmethod
    def source(self) -> str:
        """Where the samples come from, for eyes only: every report prints it, nothing reads it."""

    @property
    @abc.abstractmethod
    def is_simulated(self) -> bool:
        """Whether a program makes what is received: nothing in it was measured on hardware."""

    @property
    def name(self) -> str:
        """Which of several radios this is, for messages; its ``source`` where there is but one."""
        return self.source

    @property
    def repeats_bit_for_bit(self) -> bool:
        """Whether the same transmissions, made again by another process, sound the same to the bit.

        True of a simulation whose channel and noise are functions of the round. No radio can, and
        a backend that does not say so is taken for a radio.
        """
        return False

    @property
    def temperature_c(self) -> float | None:
        """The chip's temperature in degrees Celsius; None where there is no thermometer."""
        return None

    @property
    def rx_gain_db(self) -> float | None:
        """The receiver's gain, as it reads back; None where there is none."""
        return None

    def take_health(self) -> RadioHealth | None:
        """What happened since this was asked last; None where nothing can happen.

        Raises:
            RadioUnavailableError: the radio does not answer.
        """
        return None

    def take_ended_early(self) -> bool:
        """Whether, since this was asked last, a burst ended before it was to; most never do."""
        return False

    @property
    @abc.abstractmethod
    def modes(self) -> frozenset[Mode]:
        """The ways to be on the air that this backend can."""

    def _transmit(self, burst: BurstArray, start_sample: int) -> None:
        """Put a checked burst on air. Must copy what it keeps."""
        raise NotImplementedError

    def _receive(self, num_samples: int, start_sample: int, timeout_s: float) -> Complex64Array:
        """Samples heard at [start_sample, start_sample + num_samples), within timeout_s."""
        raise NotImplementedError

    def _hold(self, burst: Complex64Array) -> None:
        """Repeat a checked burst until `_fall_silent`. Must copy what it keeps."""
        raise NotImplementedError

    def _fall_silent(self) -> None:
        """Stop repeating; return when nothing is on air."""
        raise NotImplementedError

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        """The next samples, within timeout_s; none that were buffered before the call."""
        raise NotImplementedError

    @abc.abstractmethod
    def _close(self) -> None:
        """Go silent and release everything. Called once."""

    @final
    def transmit(self, burst: BurstArray, *, start_sample: int) -> None:
        """Send one burst.

        Args:
            burst: complex64 or complex128 [num_samples], amplitude 1.0 = full scale.
            start_sample: position of its first sample, >= 0.

        Raises:
            RadioConfigurationError: the burst or the position is not what is described above.
            RadioSaturationError: a sample is above ``max_amplitude``.
            RadioUnavailableError, RadioTimeoutError: see the class.
        """
        self._check_can(Mode.POSITIONED, "transmit")
        check_exact_burst("burst", burst)
        start = check_integer("start_sample", start_sample, minimum=0)
        self._check_amplitude(burst)
        with self._translated("transmit", f"transmit of {burst.size} samples"):
            self._transmit(burst, start)

    @final
    def receive(self, num_samples: int, *, start_sample: int, timeout_s: float) -> Complex64Array:
        """Hear ``num_samples`` samples from ``start_sample`` on.

        Args:
            num_samples: how many, >= 1.
            start_sample: position of the first, >= 0.
            timeout_s: how long to wait at most, in seconds, > 0.

        Returns:
            complex64 [num_samples], all finite, owned by the caller.

        Raises:
            RadioConfigurationError: an argument is out of range.
            RadioTimeoutError: the samples did not come in time, or fewer came than were asked for.
            RadioUnavailableError: closed, unplugged, or the driver delivered NaN.
        """
        self._check_can(Mode.POSITIONED, "receive")
        count = check_integer("num_samples", num_samples, minimum=1)
        start = check_integer("start_sample", start_sample, minimum=0)
        check_positive("timeout_s", timeout_s)
        with self._translated("receive", f"{count} samples did not arrive within {timeout_s} s"):
            samples = self._receive(count, start, timeout_s)
        return self._checked(samples, count)

    @final
    def hold(self, burst: Complex64Array) -> None:
        """Repeat one burst without end, until `fall_silent`, another `hold` or `close`.

        Args:
            burst: complex64 [num_samples], amplitude 1.0 = full scale.

        Raises:
            RadioConfigurationError: not a burst, or the backend cannot hold.
            RadioSaturationError: a sample is above ``max_amplitude``.
            RadioUnavailableError, RadioTimeoutError: see the class. Whether the burst is on air is
                then unknown; `fall_silent` or `close` before anything else.
        """
        self._check_can(Mode.HELD, "hold")
        check_burst("burst", burst)
        self._check_amplitude(burst)
        with self._translated("hold", f"hold of {burst.size} samples"):
            self._hold(burst)

    @final
    def fall_silent(self) -> None:
        """Stop what `hold` began; nothing happens if nothing is held.

        Raises:
            RadioConfigurationError: the backend cannot hold.
            RadioUnavailableError, RadioTimeoutError: see the class.
        """
        self._check_can(Mode.HELD, "fall_silent")
        with self._translated("fall_silent", "the end of a burst was not confirmed"):
            self._fall_silent()

    @final
    def capture(self, num_samples: int, *, timeout_s: float) -> Complex64Array:
        """Hear the next ``num_samples`` samples, wherever the others' bursts are.

        Args:
            num_samples: how many, >= 1.
            timeout_s: how long to wait at most, in seconds, > 0.

        Returns:
            complex64 [num_samples], all finite, owned by the caller.

        Raises:
            RadioConfigurationError: an argument is out of range, or the backend cannot hold.
            RadioTimeoutError, RadioUnavailableError: as `receive`.
        """
        self._check_can(Mode.HELD, "capture")
        count = check_integer("num_samples", num_samples, minimum=1)
        check_positive("timeout_s", timeout_s)
        with self._translated("capture", f"{count} samples did not arrive within {timeout_s} s"):
            samples = self._capture(count, timeout_s)
        return self._checked(samples, count)

    @final
    def close(self) -> None:
        """Go silent and release the radio. Further calls do nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._close()
            logger.debug("%s: closed", self.name)

    @final
    def __enter__(self) -> Self:
        self._check_open("with")
        return self

    @final
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self, what: str) -> None:
        if self._is_closed:
            raise RadioUnavailableError(
                f"{self.name}: {what} after close(). Open a new transceiver."
            )

    def _check_can(self, mode: Mode, what: str) -> None:
        self._check_open(what)
        if mode not in self.modes:
            able = " and ".join(sorted(self.modes))
            raise RadioConfigurationError(
                f"{self.name}: {what} needs a radio with bursts {mode}, this one has them "
                f"{able}. Choose a waveform that it can carry, or another backend. Nothing was "
                "transmitted."
            )

    @contextlib.contextmanager
    def _translated(self, what: str, in_time: str) -> Iterator[None]:
        """A driver's errors as ours; ``in_time`` says what a timeout means."""
        try:
            yield
        except TimeoutError as error:
            raise RadioTimeoutError(f"{self.name}: {in_time}: {error}.") from error
        except OSError as error:
            raise RadioUnavailableError(
                f"{self.name}: the radio failed during {what}: {error}. Check cable and power, "
                "then open it again."
            ) from error

    def _checked(self, samples: Complex64Array, count: int) -> Complex64Array:
        """What a driver delivered, if it is what was asked for."""
        if samples.shape != (count,):
            raise RadioTimeoutError(
                f"{self.name}: got samples of shape {samples.shape}, wanted ({count},). The host "
                "lost a buffer: use a lower sample rate or more kernel buffers."
            )
        try:
            return check_burst("capture", samples)
        except RadioConfigurationError as error:
            # Here the driver is at fault, not the caller.
            raise RadioUnavailableError(f"{self.name}: {error}") from error

    def _check_amplitude(self, burst: BurstArray) -> None:
        parts = np.square(burst.astype(np.complex128).view(np.float64))
        squared = parts[0::2] + parts[1::2]
        position = int(squared.argmax())
        peak = float(squared[position]) ** 0.5
        if peak > self.max_amplitude * (1.0 + FULL_SCALE_TOLERANCE):
            raise RadioSaturationError(
                f"{self.name}: sample {position} of {burst.size} has amplitude {peak:.6g}, "
                f"wanted at most {self.max_amplitude:.6g}. Nothing was transmitted. Plan with a "
                "lower receive_scale, or leave a device with so weak a channel silent."
            )
