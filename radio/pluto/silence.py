"""The safe stop: a radio falls silent, and says so.

In this order: attenuation to 89.75 dB, which takes effect at once and needs nothing else to work;
the tones of the synthesizer; the local oscillator, whose leakage is a carrier of its own; the
buffer. Every step is tried, whatever became of the one before, unless the connection is cut: what
is left of it would answer the wrong question. What counts is what is read back in the end:
attenuator, oscillator, tones. A buffer that another program still has open stays there, behind
90 dB and without a carrier.

It needs a context of libiio and nothing else, so that it can be done by anybody who can open one:
the driver on the connection it has, the same program on a new one, a guardian when the program is
gone (`radio.pluto.guardian_process`), a person with ``pairzero-radio silence``.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass

from radio.errors import RadioNotSilentError, RadioUnavailableError
from radio.pluto.addresses import check_answers, check_uri, hint
from radio.pluto.context import PlutoContext, binding

MAX_ATTENUATION_DB = 89.75
AS_READ_BACK = f"{MAX_ATTENUATION_DB:g} dB, oscillator off, no tones"
"""Of a radio that is silent."""

POWER_UP = "local oscillator on at 2450000000 Hz, attenuation 10 dB"
_SILENT_DB = MAX_ATTENUATION_DB - 0.125
_SILENCE_TIMEOUT_S = 2.0
_ANSWER_S = 1.5
_CUT = {errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ENODEV}
_logger = logging.getLogger(__name__)


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


def silence(uri: str) -> SilenceReport:
    """Make a radio silent over a connection of its own, whoever made it loud.

    Returns:
        What was on the air; it is silent now, as read back.

    Raises:
        RadioConfigurationError: not a URI.
        RadioUnavailableError: the radio cannot be opened.
        RadioNotSilentError: it was opened, and is not known to be silent.
    """
    check_uri(uri)
    binding()
    try:
        check_answers(uri, _ANSWER_S)
    except OSError as error:
        why = "nobody answers" if isinstance(error, TimeoutError) else hint(error)
        raise RadioUnavailableError(f"{uri}: cannot be opened: {why}") from error
    pluto = PlutoContext(uri, _SILENCE_TIMEOUT_S)
    try:
        found = tuple(may_radiate(pluto))
    except Exception as error:  # whatever a radio says of itself: it is to be silent
        found = (f"its state cannot be read ({error!r})",)
    fall_silent(pluto)
    return SilenceReport(uri, found)


def may_radiate(pluto: PlutoContext) -> list[str]:
    """What of the transmitter's state can be on the air, in words.

    Raises:
        OSError, ValueError: the radio does not say, or not what can be understood.
    """
    oscillator = pluto.tx_oscillator
    is_off = oscillator["powerdown"].value.strip() == "1"
    attenuation_db = least_attenuation_db(pluto)
    if is_off or attenuation_db >= _SILENT_DB:
        return []
    found = [
        f"local oscillator on at {oscillator['frequency'].value} Hz, attenuation "
        f"{attenuation_db:g} dB: a carrier at least, perhaps a burst"
    ]
    if scales := _scales(pluto):
        found.append(f"tones of the synthesizer, scales {scales}")
    return found


def fall_silent(pluto: PlutoContext) -> None:
    """The safe stop; see the module.

    Raises:
        RadioNotSilentError: it is not known to be silent.
    """
    failures: list[str] = []
    for what, act in (
        ("attenuation", _attenuate_fully),
        ("tones", _end_tones),
        ("oscillator", _power_down),
        ("buffer", _end_buffers),
    ):
        try:
            act(pluto)
        except Exception as error:  # the next step must be tried, whatever this one met
            failures.append(f"{what}: {error or repr(error)}")
            if isinstance(error, OSError) and error.errno in _CUT:
                raise not_silent(pluto.uri, "; ".join(failures)) from error
    try:
        _check_silent(pluto)
    except Exception as error:
        failures.append(f"reading back: {error or repr(error)}")
        raise not_silent(pluto.uri, "; ".join(failures)) from error
    for failure in failures:
        _logger.warning("%s: silent, as read back, though this failed: %s", pluto.uri, failure)


def not_silent(uri: str, why: str) -> RadioNotSilentError:
    """The error of a radio that is not known to be silent, with what ends it."""
    return RadioNotSilentError(
        f"{uri}: not known to be silent ({why}). Unplug it, or run: pairzero-radio silence {uri}"
    )


def least_attenuation_db(pluto: PlutoContext) -> float:
    """The smallest attenuation that one of the chip's transmitters has.

    Raises:
        OSError, ValueError: the radio does not say, or no number.
    """
    return min(-float(gain.value.split()[0]) for gain in pluto.attenuators)


def attenuate(pluto: PlutoContext, attenuation_db: float) -> None:
    """Every transmitter of the chip.

    Raises:
        OSError: the radio refuses, or does not answer.
    """
    for gain in pluto.attenuators:
        gain.value = f"{-attenuation_db}"


def _attenuate_fully(pluto: PlutoContext) -> None:
    attenuate(pluto, MAX_ATTENUATION_DB)


def _end_tones(pluto: PlutoContext) -> None:
    for tone in pluto.tones:
        tone["scale"].value = "0.0"
        tone["raw"].value = "0"


def _power_down(pluto: PlutoContext) -> None:
    pluto.tx_oscillator["powerdown"].value = "1"


def _end_buffers(pluto: PlutoContext) -> None:
    pluto.let_go_of_buffers()
    # A burst that another program left behind ends when the next buffer is opened.
    for name in ("voltage0", "voltage1"):
        pluto.dac.find_channel(name, True).enabled = True
    opened = pluto.iio.Buffer(pluto.dac, 1024, False)
    del opened


def _check_silent(pluto: PlutoContext) -> None:
    attenuation_db = least_attenuation_db(pluto)
    if not attenuation_db >= _SILENT_DB:
        raise ValueError(f"{attenuation_db:g} dB of attenuation")
    if pluto.tx_oscillator["powerdown"].value.strip() != "1":
        raise ValueError("the local oscillator is on")
    if scales := _scales(pluto):
        raise ValueError(f"tones of scales {scales}")


def _scales(pluto: PlutoContext) -> list[float]:
    """The scales of the synthesizer's tones; empty if all are zero."""
    scales = [float(tone["scale"].value) for tone in pluto.tones]
    return scales if any(scales) else []


def as_not_silent(uri: str, error: Exception) -> RadioNotSilentError:
    """A radio that cannot be reached is not known to be silent, either."""
    if isinstance(error, RadioNotSilentError):
        return error
    why = str(error).removeprefix(f"{uri}: ")
    if not isinstance(error, RadioUnavailableError):
        why = repr(error)
    return not_silent(uri, why.rstrip("."))
