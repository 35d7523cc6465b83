"""How far off the coherent sum is, further: what the tests hold the receiver against.

The model is that of `radio.waveforms.error_model`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def csi_bias(scalars: npt.ArrayLike, gains: npt.ArrayLike, error_variance: float) -> float:
    """Mean of the error that imperfect gain estimates add to the sum: -sum_k s_k exp(-abs(h)^2/v).

    Exact for fixed true gains. For abs(e) = r < abs(h) the mean of h / (h + e) over the phase of e
    is 1, and for r > abs(h) it is 0 (Cauchy), and P(r > abs(h)) = exp(-abs(h)^2 / v).

    Leaves out selection: a rule that silences abs(h_hat) < m lets a device whose abs(h) is close to
    m speak only when its error was favourable, and it then arrives weaker by about
    0.56 sqrt(v) / m on average. For abs(h) - m of several sqrt(v) that is exponentially small too.

    Args:
        scalars: s_k, real [num_devices].
        gains: true h_k, complex [num_devices], none zero.
        error_variance: v >= 0.
    """
    values = np.atleast_1d(np.asarray(scalars, dtype=np.float64))
    power = np.square(np.abs(np.atleast_1d(np.asarray(gains, dtype=np.complex128))))
    if error_variance == 0.0:
        return 0.0
    return -float(np.sum(values * np.exp(-power / error_variance)))


def csi_variance(scalars: npt.ArrayLike, gains: npt.ArrayLike, error_variance: float) -> float:
    """Variance that imperfect gain estimates add to the sum: sum_k s_k^2 v / (2 abs(h_k)^2).

    First order in v / abs(h)^2; the next term is about 2 v / abs(h)^2 relative. (The exact second
    moment is infinite, by a logarithm, unless small abs(h_hat) are silenced: nobody should invert
    a gain that was not heard.) Arguments as `csi_bias`; ``gains`` may be the estimates as well, to
    the same order.
    """
    values = np.atleast_1d(np.asarray(scalars, dtype=np.float64))
    power = np.square(np.abs(np.atleast_1d(np.asarray(gains, dtype=np.complex128))))
    return float(np.sum(np.square(values) * (error_variance / 2.0) / power))


def rounding_error_bound(scalars: npt.ArrayLike) -> float:
    """Largest error of the sum from rounding samples to complex64, without noise and CSI error.

    A burst sample and a captured sample each move by at most 2^-24 of their magnitude, so the
    estimate moves by at most 2^-23 sum_k abs(s_k); a factor 1 + 2^-20 covers second-order terms
    and float64. Holds while amplitudes stay far above 2^-126.
    """
    values = np.asarray(scalars, dtype=np.float64)
    return 2.0**-23 * (1.0 + 2.0**-20) * float(np.sum(np.abs(values)))
