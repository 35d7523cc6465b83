"""How far off the coherent sum is: predictions, each held against simulation in the tests.

Model, for devices k that arrive with receive scale c and sequences of unit amplitude:

    estimate    h_hat_k = h_k + e_k,   e_k ~ CN(0, v),   v = N0 / (pilot_symbols amplitude^2)
    inversion   device k sends c / h_hat_k times its scalar s_k
    reception   sum_estimate = sum_k Re(h_k / h_hat_k) s_k + n,
                n ~ N(0, N0 / (2 payload_symbols c^2))

so, without approximation, h_k / h_hat_k = 1 - e_k / h_hat_k. Pure functions, numpy and math only.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from radio.arrays import Float64Array
from radio.bisection import bisect
from radio.checks import (
    check_all_finite,
    check_integer,
    check_not_negative,
    check_paired,
    check_positive,
    check_probability,
)
from radio.errors import RadioConfigurationError

_BISECTIONS = 100


def gain_error_variance(noise_power: float, pilot_symbols: int, amplitude: float) -> float:
    """Variance v = N0 / (L A^2) of a gain estimate from L pilots of amplitude A; E[abs(e)^2].

    Reaches the Cramer-Rao bound of a complex amplitude in white noise.
    """
    check_not_negative("noise_power", noise_power)
    check_integer("pilot_symbols", pilot_symbols, minimum=1)
    check_positive("amplitude", amplitude)
    return noise_power / (pilot_symbols * amplitude * amplitude)


def receiver_noise_std(noise_power: float, payload_symbols: int, receive_scale: float) -> float:
    """Standard deviation sqrt(N0 / (2 L)) / c of the receiver noise on the sum, in scalar units.

    Half of N0, because the scalar is real and the quadrature part is thrown away.
    """
    check_not_negative("noise_power", noise_power)
    check_integer("payload_symbols", payload_symbols, minimum=1)
    check_positive("receive_scale", receive_scale)
    return math.sqrt(noise_power / (2.0 * payload_symbols)) / receive_scale


def csi_covariance(
    scalars: npt.ArrayLike, gains: npt.ArrayLike, error_variance: float
) -> Float64Array:
    """Covariance of what imperfect gains add to Q sums: sum_k s_k s_k' v / (2 abs(h_k)^2).

    The Q numbers of one payload share each device's gain error. First order in
    v / abs(h)^2; the next term is about 2 v / abs(h)^2 relative. (The exact second moment is
    infinite, by a logarithm, unless small abs(h_hat) are silenced: nobody should invert a gain that
    was not heard.)

    Args:
        scalars: s_k, real [num_devices, Q].
        gains: h_k or their estimates, complex [num_devices], none zero.
        error_variance: v >= 0.
    """
    values = np.asarray(scalars, dtype=np.float64)
    _, power = _scalars_and_power(values[:, 0], gains)
    check_not_negative("error_variance", error_variance)
    check_all_finite("scalars", values.reshape(-1))
    covariance: Float64Array = (values.T * ((error_variance / 2.0) / power)) @ values
    return covariance


def amplitude_error_bound(
    error_variance: float, min_gain: float, failure_probability: float
) -> float:
    """Bound eta on the amplitude error of one device's arrival: sqrt(v ln(1/p)) / min_gain.

    h / h_hat = 1 - e / h_hat with e ~ CN(0, v), and P(abs(e) > x) = exp(-x^2 / v). A device with
    abs(h_hat) >= min_gain (the others are silent) therefore arrives with an amplitude in
    [1 - eta, 1 + eta] times receive_scale, except with probability ``failure_probability``, in
    that round and for that device; for K devices and T rounds add the probabilities up.

    **This number must reach the privacy side**: what a record can move, and what the other devices'
    noise hides, both scale with arrival amplitudes, by up to 1 + eta and down to 1 - eta; and the
    failure probability is part of delta. eta >= 1 promises nothing: refuse to transmit.

    v must not be under-estimated: pass a v computed from `noise_power_upper_bound`, not from the
    noise power as measured. Rounding to complex64 (below 2^-23) is not counted.

    Args:
        error_variance: v >= 0, in force when h_hat was measured.
        min_gain: smallest abs(h_hat) that transmits, > 0.
        failure_probability: p, between 0 and 1.

    Raises:
        RadioConfigurationError: an argument out of range.
    """
    check_not_negative("error_variance", error_variance)
    check_positive("min_gain", min_gain)
    check_probability("failure_probability", failure_probability)
    return math.sqrt(error_variance * -math.log(failure_probability)) / min_gain


def noise_power_upper_bound(
    noise_power: float, num_samples: int, failure_probability: float
) -> float:
    """Upper confidence limit for N0 from the mean power of M noise samples.

    M measured / N0 is Gamma(M); Chernoff: P(measured < r N0) <= exp(-M (r - 1 - ln r)) for r < 1.
    With r the root of M (r - 1 - ln r) = ln(1/p) the limit is measured / r, and it is below the
    true N0 with probability at most p. For 256 samples: 1.2 dB at p = 1e-4, 1.9 dB at 1e-9.

    Guarantees: the returned limit satisfies the inequality (the root is taken from the safe side).

    Args:
        noise_power: mean abs(y)^2 over the silent samples, >= 0.
        num_samples: M >= 1, complex, independent.
        failure_probability: p, between 0 and 1.
    """
    check_not_negative("noise_power", noise_power)
    count = check_integer("num_samples", num_samples, minimum=1)
    check_probability("failure_probability", failure_probability)
    # The margin is more than float64 loses in f(r) below.
    exponent = -math.log(failure_probability) / count * (1.0 + 1e-12) + 1e-15
    # f(r) = r - 1 - ln r falls from infinity to 0 on (0, 1]; f(exp(-1 - exponent)) > exponent.
    low = math.exp(-1.0 - exponent)
    if low == 0.0:
        return math.inf
    root, _ = bisect(lambda r: r - 1.0 - math.log(r) >= exponent, low, 1.0, _BISECTIONS)
    return noise_power / root


def noise_power_limits(
    noise_power: float, num_samples: int, failure_probability: float
) -> tuple[float, float]:
    """Lower and upper confidence limit for N0, each missed with probability p at most.

    The upper one is `noise_power_upper_bound`. For the lower, P(measured > r N0) obeys the same
    inequality for r > 1. Arguments as there.
    """
    upper = noise_power_upper_bound(noise_power, num_samples, failure_probability)
    exponent = -math.log(failure_probability) / num_samples * (1.0 + 1e-12) + 1e-15
    # f(r) = r - 1 - ln r grows on r > 1, and f(2 + 2 exponent) > exponent.
    _, root = bisect(
        lambda r: r - 1.0 - math.log(r) < exponent, 1.0, 2.0 + 2.0 * exponent, _BISECTIONS
    )
    return noise_power / root, upper


def _scalars_and_power(
    scalars: npt.ArrayLike, gains: npt.ArrayLike
) -> tuple[Float64Array, Float64Array]:
    values = np.atleast_1d(np.asarray(scalars, dtype=np.float64))
    complex_gains = np.atleast_1d(np.asarray(gains, dtype=np.complex128))
    check_paired("scalars and gains", values, complex_gains, "num_devices")
    check_all_finite("scalars", values)
    check_all_finite("gains", complex_gains)
    power = np.square(complex_gains.real) + np.square(complex_gains.imag)
    if not (power > 0).all():
        raise RadioConfigurationError(
            "gains: one is zero, so nothing of that device arrives and there is nothing to invert."
        )
    return values, power
