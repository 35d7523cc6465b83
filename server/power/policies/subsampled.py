r"""Power policy ``subsampled``: record level, Poisson batches.

Subsampling at rate q makes many rounds cheap; for budgets that are small a round,

    q^2 sum_t (exp(Delta_t^2 u_t) - 1) <= mu^2,      u_t = 1 / v_t

stands for the composition (a central limit of Dong, Roth, Su), and the least noise of the
means is at

    omega = zeta q^2 Delta^2 u^2 exp(Delta^2 u)
    =>   u = (2 / Delta^2) W( (Delta / 2 q) sqrt(omega / zeta) )

with Lambert's W, and at most what the level's trusted noise allows. It is a shape and no promise:
calibration (`server.privacy.calibration`) scales all noises by one factor until the composition by
privacy loss distributions, which is what the ledger pays, keeps epsilon.

Source: theory.md, section 5.6.
"""

from __future__ import annotations

import numpy as np
from scipy.special import lambertw

from radio.arrays import Float64Array
from server.power.water_filling import fill
from server.privacy.composition import (
    GRID_POINTS_PER_OCTAVE,
)

_CLASSES_PER_OCTAVE = 16
"""Of noise multipliers: rounds are priced in so many classes, rounded to the dear side."""


def subsampled_offsets(
    contraction: float, num_rounds: int, *, sampling_probability: float, mu: float
) -> tuple[int, ...]:
    """The shape of a run's noise multipliers where no receiver noise is trusted.

    Then levels and channels do not enter: the shape follows from the weights omega_t = A^-t alone.

    Args:
        contraction: A, what a round leaves of the noise of the one before.
        num_rounds: T.
        sampling_probability: q.
        mu: of the promise, as if it were Gaussian (`server.privacy.gaussian`).

    Returns:
        Steps of the multiplier grid above the round with the least noise, in few classes, rounded
        towards less noise: what is calibrated is what is used.
    """
    weights = contraction ** np.arange(num_rounds - 1, -1, -1.0)
    slopes = np.sqrt(weights / weights.max())
    limit = (mu / sampling_probability) ** 2

    def price(tau: float) -> Float64Array:
        return np.expm1(np.minimum(2.0 * np.real(lambertw(slopes * tau)), 700.0))

    filled = fill(price, limit, np.full(num_rounds, np.inf))
    octaves = -0.5 * np.log2(np.log1p(filled))
    steps = np.floor(_CLASSES_PER_OCTAVE * (octaves - octaves.min()) + 1e-9)
    width = GRID_POINTS_PER_OCTAVE // _CLASSES_PER_OCTAVE
    return tuple(int(step) * width for step in steps)
