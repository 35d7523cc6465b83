"""The border of the package: what counts as samples, as a position, as a positive number.

Everything that comes from outside passes one of these functions, so that the arithmetic behind
them never meets a NaN, a wrong type or a wrong shape. Array types are named here once.
"""

from __future__ import annotations

import math
import operator
import tempfile
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from radio.arrays import BurstArray, Complex64Array
from radio.errors import RadioConfigurationError


def check_integer(
    name: str, value: SupportsIndex, *, minimum: int, maximum: int | None = None
) -> int:
    """``value`` as an int, at least ``minimum`` and at most ``maximum``, if there is one.

    Raises:
        RadioConfigurationError: not an integer (a float is refused even if it is whole, because
            positions computed in floating point are off by one sooner or later), too small or
            too large.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise RadioConfigurationError(
            f"{name}: got {value!r}, wanted an integer >= {minimum}."
        ) from error
    if number < minimum:
        raise RadioConfigurationError(f"{name}: got {number}, wanted an integer >= {minimum}.")
    if maximum is not None and number > maximum:
        raise RadioConfigurationError(f"{name}: got {number}, wanted at most {maximum}.")
    return number


def check_positive(name: str, value: float) -> float:
    """``value`` as a float, finite and > 0, or RadioConfigurationError."""
    if not math.isfinite(value) or value <= 0:
        raise RadioConfigurationError(f"{name}: got {value}, wanted a finite number > 0.")
    return float(value)


def check_not_negative(name: str, value: float) -> float:
    """``value`` as a float, finite and >= 0, or RadioConfigurationError."""
    if not math.isfinite(value) or value < 0:
        raise RadioConfigurationError(f"{name}: got {value}, wanted a finite number >= 0.")
    return float(value)


def check_paired(names: str, first: npt.NDArray[Any], second: npt.NDArray[Any], axis: str) -> None:
    """Return if both have one axis of one length; ``names`` and ``axis`` are for the message.

    Raises:
        RadioConfigurationError: another shape.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise RadioConfigurationError(
            f"{names}: got shapes {first.shape} and {second.shape}, wanted [{axis}] for both."
        )


def check_probability(name: str, value: float) -> float:
    """``value`` as a float strictly between 0 and 1, or RadioConfigurationError."""
    if not 0.0 < value < 1.0:
        raise RadioConfigurationError(f"{name}: got {value}, wanted a number between 0 and 1.")
    return float(value)


def check_burst(name: str, samples: Any) -> Complex64Array:
    """``samples`` itself, if it is a burst: complex64, one axis, not empty, all finite.

    Other types are refused, not converted: a silent conversion of complex128 would round, and one
    of float would hide that somebody lost the imaginary part.

    Raises:
        RadioConfigurationError: says which of the four is wrong.
    """
    burst: Complex64Array = _check_samples(name, samples, np.complex64)
    return burst


def check_exact_burst(name: str, samples: Any) -> BurstArray:
    """As `check_burst`, of complex64 or complex128: what is rounded off is not lost to everybody.

    Over the air it may tell devices apart, so superposed numbers are sent in double precision
    (`radio.waveforms.coherent`).

    Raises:
        RadioConfigurationError: as `check_burst`.
    """
    burst: BurstArray = _check_samples(name, samples, np.complex64, np.complex128)
    return burst


def _check_samples(name: str, samples: Any, *types: type[np.complexfloating]) -> Any:
    if not isinstance(samples, np.ndarray) or samples.dtype not in types:
        kind = samples.dtype if isinstance(samples, np.ndarray) else type(samples).__name__
        wanted = " or ".join(np.dtype(each).name for each in types)
        raise RadioConfigurationError(
            f"{name}: got {kind}, wanted a {wanted} array. "
            "Convert with samples.astype(np.complex64) where the rounding is meant."
        )
    if samples.ndim != 1 or samples.size == 0:
        raise RadioConfigurationError(
            f"{name}: got shape {samples.shape}, wanted [num_samples] with at least one sample."
        )
    check_all_finite(name, samples)
    return samples


def check_all_finite(name: str, samples: npt.NDArray[Any]) -> None:
    """Return if no sample is NaN or infinite, and say where the first one is otherwise."""
    finite = np.isfinite(samples)
    if not finite.all():
        position = int(np.argmin(finite))
        raise RadioConfigurationError(
            f"{name}: sample {position} is {samples[position]}, wanted finite samples. "
            "Look upstream for an overflow or a division by a zero channel gain."
        )


def check_takes_files(folder: Path) -> None:
    """Return if files could be written into a folder, which need not be there; none is left.

    Raises:
        OSError: it takes none, or a file stands where it should be.
    """
    nearest = folder.absolute()
    while not nearest.exists():  # what is missing can be made where this takes files
        nearest = nearest.parent
    with tempfile.TemporaryFile(dir=nearest):
        pass
