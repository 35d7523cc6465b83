"""What can go wrong between a number and the antenna, one class per reason.

::

    RadioError
      +- RadioUnavailableError    the radio is not there, or is no longer there
      +- RadioConfigurationError  the request cannot be meant; nothing was transmitted
      +- RadioTimeoutError        the samples did not come in time
      +- RadioSaturationError     a sample is larger than the converter can carry
      +- RadioCalibrationError    a path is not known, or no longer known, well enough
      +- RadioNotSilentError      a transmitter may be on the air, and nothing ends it from here

No call transmits a part of a burst and then raises one of these for a reason it could have seen
beforehand: every check of the arguments is made before the first sample leaves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RadioError(Exception):
    """Base of every error this package raises on purpose; the message is meant for a person."""


class RadioUnavailableError(RadioError):
    """The radio cannot be used at all.

    Examples: an unknown backend; a driver that is not installed; a device unplugged between two
    calls; a call after ``close()``; a driver that hands over NaN.
    """


class RadioConfigurationError(RadioError):
    """The request is wrong.

    Examples: a burst of the wrong type or shape; a device index beyond the last device; two
    bursts of one device that overlap in time; a negative noise power; a scalar that is not finite;
    a capture that is not as long as the frame.
    """


class RadioTimeoutError(RadioError):
    """The samples did not come in time.

    Examples: the driver's own deadline passed; fewer samples arrived than were asked for, because
    the host was too slow and the radio dropped a buffer.
    """


class RadioSaturationError(RadioError):
    """A sample is beyond full scale, where a converter clips and amplitudes stop to add up.

    Examples: a transmit gain computed from a channel estimate that is too small; a scalar above
    the bound that the power plan assumed.
    """


class RadioCalibrationError(RadioError):
    """The loudness of a path is not known well enough to send over it.

    Examples: a device that sent no pilot, or was not heard; a calibration that is too old, or was
    made at another temperature; nobody who can be heard at this noise.
    """


class RadioNotSilentError(RadioError):
    """A transmitter was told to be silent and is not known to be: the worst that a radio can do.

    Whoever meets it stops, silences the others, and tells a person; it is never only logged.

    Examples: a connection that is cut while a burst is held, and no new one comes about; an
    attenuator that reads back otherwise than it was set.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For the end of a message: a question with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
