"""Decibel and linear, in one place, with the reference in the name.

A power ratio r is 10 log10(r) dB, an amplitude ratio a is 20 log10(a) dB. Full scale (0 dBFS) is
a complex tone of amplitude 1.0, E[abs(x)^2] = 1, in the normalised IQ of this package.

Zero is a legal ratio and is -inf dB in both directions (a silent slot has no power). Negative
ratios, NaN, and values too large for a float raise RadioConfigurationError.
"""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Complex64Array
from radio.checks import check_burst, check_not_negative
from radio.errors import RadioConfigurationError


def db_from_power_ratio(power_ratio: float) -> float:
    """10 log10(power_ratio), in dB; -inf for 0."""
    check_not_negative("power_ratio", power_ratio)
    return 10.0 * math.log10(power_ratio) if power_ratio > 0 else -math.inf


def power_ratio_from_db(ratio_db: float) -> float:
    """10^(ratio_db / 10); 0 for -inf. Inverse of `db_from_power_ratio`."""
    return _linear("ratio_db", ratio_db, 10.0)


def db_from_amplitude_ratio(amplitude_ratio: float) -> float:
    """20 log10(amplitude_ratio), in dB; -inf for 0."""
    check_not_negative("amplitude_ratio", amplitude_ratio)
    return 20.0 * math.log10(amplitude_ratio) if amplitude_ratio > 0 else -math.inf


def amplitude_ratio_from_db(ratio_db: float) -> float:
    """10^(ratio_db / 20); 0 for -inf. Inverse of `db_from_amplitude_ratio`."""
    return _linear("ratio_db", ratio_db, 20.0)


def mean_power(samples: Complex64Array) -> float:
    """Mean of abs(x)^2 over the samples, summed in float64. [num_samples] -> linear power."""
    check_burst("samples", samples)
    return _sum_of_squares(samples) / samples.size


def mean_power_dbfs(samples: Complex64Array) -> float:
    """Mean power relative to full scale, in dBFS; -inf for silence."""
    return db_from_power_ratio(mean_power(samples))


def peak_dbfs(samples: Complex64Array) -> float:
    """Largest abs(x) relative to full scale, in dBFS; above 0 a converter clips."""
    check_burst("samples", samples)
    return db_from_amplitude_ratio(float(np.abs(samples.astype(np.complex128)).max()))


def _sum_of_squares(samples: Complex64Array) -> float:
    parts = samples.astype(np.complex128).view(np.float64)
    return float(np.square(parts).sum())


def _linear(name: str, ratio_db: float, db_per_decade: float) -> float:
    if math.isnan(ratio_db) or ratio_db == math.inf:
        raise RadioConfigurationError(f"{name}: got {ratio_db}, wanted a finite number of dB.")
    try:
        return math.pow(10.0, ratio_db / db_per_decade)
    except OverflowError as error:
        raise RadioConfigurationError(
            f"{name}: got {ratio_db} dB, which is beyond the range of a float. Is it linear?"
        ) from error
