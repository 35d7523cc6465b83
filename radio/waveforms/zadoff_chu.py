"""Zadoff-Chu sequences of any length.

    z[n] = exp(-j pi u n (n + L mod 2) / L),  n = 0..L-1,  root u coprime with the length L

Constant envelope, so every sample uses the same share of the converter's range; flat spectrum, so
no line of the band and no DC offset weighs more than another; periodic autocorrelation exactly zero
at every shift but 0 (Chu 1972, IEEE Trans. Inf. Theory 18(4)). L need not be prime.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from radio.arrays import Complex128Array
from radio.checks import check_integer
from radio.errors import RadioConfigurationError


@functools.lru_cache(maxsize=64)
def zadoff_chu(length: int, root: int = 1) -> Complex128Array:
    """The sequence of one length and root, complex128 [length], read-only (it is shared).

    Guarantees: abs(z[n]) = 1 within 2^-52. The phase is reduced in integers before it meets
    floating point, so precision does not fade with the length.

    Raises:
        RadioConfigurationError: length < 1, or root not coprime with it.
    """
    check_integer("length", length, minimum=1)
    check_integer("root", root, minimum=1)
    if math.gcd(length, root) != 1:
        raise RadioConfigurationError(
            f"root: got {root}, wanted one coprime with the length {length} (gcd is "
            f"{math.gcd(length, root)}). Root 1 always is."
        )
    n = np.arange(length, dtype=np.int64)
    # Phase in units of pi / L, a whole number below 2 L.
    phase_index = (n * (n + length % 2) % (2 * length)) * (root % (2 * length)) % (2 * length)
    sequence: Complex128Array = np.exp(-1j * (math.pi / length) * phase_index)
    sequence.flags.writeable = False
    return sequence
