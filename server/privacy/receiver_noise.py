r"""How much noise of its own a receiver needs for devices to cover one another.

What arrives of a number is y = sum_k c (1 + e_k) s_k z + R(s_1 .. s_K) + w over the L samples of
its sequence z: each s_k lies on a grid (`edge_runtime.number_grid`) that its gain error e_k
stretches, and R is what double precision rounds off on the way. Both tell devices apart for
somebody who hears without noise. Of the receiver's noise, r = std(w) / (c sqrt(L)) on each number
and quadrature, three independent parts are thought of:

    r^2 = rho r^2 + r_grid^2 + r_rounding^2      (or more)

rho r^2, what is counted (`privacy.trusted_noise_fraction`), covers with the devices' own noise. It
may be all but `KEPT_BACK`.

r_grid, four steps of the coarsest grid. Under that much Gaussian noise a sum of discrete Gaussians
is a continuous one but for a factor of 1 + 2 exp(-2 pi^2 4^2) < 1 + 1e-136 (Micciancio and Regev
2007, lemma 4.1, for the smoothing of a lattice), whatever the gains are.

r_rounding. Level, sample and way through the medium are a product each, of relative error at most
sqrt(5) u in complex arithmetic, u = 2^-53 (Brent, Percival, Zimmermann 2007), the number itself is
rounded once, and the sum of K devices adds (K - 1) u. Every device arrives within c (1 + 1/2), or
is silent (`server.planning.gain_error`). 1.5 (3 sqrt(5) + 1 + K - 1) is below 2 (5 + K), so

    norm(R) <= B = 2 (5 + K) u c sqrt(L) sum_k max abs(s_k)

(What adding the noise rounds off is a function of what is covered by then.) Given the noisy sum Z,
the rest is N(R, v^2), v = r_rounding c sqrt(L), with R distributed in some way that may depend on
the data. Two such mixtures are no easier to tell apart than N(0, v^2) and N(2 B, v^2), by the joint
convexity of hockey-stick divergences, so Z and the rest compose to

    mu^2 = 1 / m^2 + Q (2 B / v)^2

in Gaussian differential privacy, m the round's noise multiplier, Q its numbers, subsampled or not.
r_rounding is what keeps the second term below 2^-19 of the first, which
`edge_runtime.guard.sensitivity.SUM_SHIFT_GROWTH` charges.

Numbers are taken for at most their bound and 40 standard deviations of noise in each quadrature.

Left out: the conversion to fewer bits of a radio that transmits: with 12 of them instead of 53 that
much more noise is needed. (`radio.software_air.impairments` has such a converter, and is refused
under superposed access with it.)
"""

from __future__ import annotations

import math

from edge_runtime.number_grid import FINENESS_LOG2

KEPT_BACK = 2.0**-10
"""Share of the receiver's noise power that is never counted."""

_GRID = 4.0 * 2.0**-FINENESS_LOG2
_UNIT_ROUNDOFF = 2.0**-53
_PRODUCTS = 5
_SHARE_OF_LOSS = 2.0**-19
_REACH = 40.0 * math.sqrt(2.0)


def receiver_noise_needed(
    *,
    step: float,
    bound: float,
    sensitivity: float,
    sum_noise_std: float,
    num_devices: int,
    num_scalars: int,
    counted_fraction: float = 0.0,
) -> float:
    """Standard deviation r on each number and quadrature, in units of the scalar.

    Args:
        step: clip / b, or what the grid is measured by; its steps are at most 2^-34 of it.
        bound: the largest number of a device before noise.
        sensitivity: of all numbers of a device to one record.
        sum_noise_std: sqrt of the sum of squares of everybody's noise and of what is counted of the
            receiver's.
        num_devices: K, that may speak.
        num_scalars: Q.
        counted_fraction: rho, 0 to 1 - `KEPT_BACK`.

    Guarantees: rises with each of them but for sensitivity, and falls with that.
    """
    grid = _GRID * step
    # sum_k sigma_k <= sqrt(K) sqrt(sum_k sigma_k^2), however noise is dealt out.
    largest_sum = num_devices * bound + _REACH * math.sqrt(num_devices) * sum_noise_std
    rounding = 2.0 * (_PRODUCTS + num_devices) * _UNIT_ROUNDOFF * largest_sum
    per_loss = math.sqrt(num_scalars / _SHARE_OF_LOSS) * sum_noise_std / sensitivity
    return math.hypot(grid, 2.0 * rounding * per_loss) / math.sqrt(1.0 - counted_fraction)
