"""How good an estimate or a constellation is, in the units radio people quote."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from radio.arrays import Float64Array
from radio.checks import check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.units import db_from_power_ratio


def nmse_db(estimates: npt.ArrayLike, truths: npt.ArrayLike) -> float:
    """Normalised mean squared error, 10 log10(sum abs(est - true)^2 / sum abs(true)^2), in dB.

    Real or complex, any equal shape. -inf if every estimate is exact. The normalisation is over
    the whole set: a truth of zero is welcome as long as not all are.

    Raises:
        RadioConfigurationError: shapes differ, an entry is not finite, or all truths are zero.
    """
    error_power, true_power = _error_and_reference_power(estimates, truths)
    return db_from_power_ratio(error_power / true_power)


def snr_db(signal_power: float, noise_power: float) -> float:
    """10 log10(signal_power / noise_power), in dB; both linear, at the same point of the chain.

    Raises:
        RadioConfigurationError: noise power not > 0, signal power not >= 0.
    """
    check_not_negative("signal_power", signal_power)
    check_positive("noise_power", noise_power)
    return db_from_power_ratio(signal_power / noise_power)


def _error_and_reference_power(
    estimates: npt.ArrayLike, truths: npt.ArrayLike
) -> tuple[float, float]:
    estimated, true = np.asarray(estimates), np.asarray(truths)
    if estimated.shape != true.shape or true.size == 0:
        raise RadioConfigurationError(
            f"estimates and truths: got shapes {estimated.shape} and {true.shape}, wanted the same "
            "with at least one entry."
        )
    if not (np.isfinite(estimated).all() and np.isfinite(true).all()):
        raise RadioConfigurationError("estimates and truths: wanted finite numbers, got NaN or inf")
    true_power = float(np.sum(_squared(true)))
    if true_power == 0.0:
        raise RadioConfigurationError(
            "truths: all are zero, so an error relative to them is undefined. Report it absolutely."
        )
    return float(np.sum(_squared(estimated - true))), true_power


def _squared(values: npt.NDArray[Any]) -> Float64Array:
    return np.square(np.abs(values), dtype=np.float64)
