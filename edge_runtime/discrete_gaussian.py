r"""Discrete Gaussian noise, drawn exactly: P(k) proportional to exp(-k^2 / (2 sigma^2)), k integer.

No number in it is a float: coins of probability exp(-a/b) are tossed with integers alone, so no
rounding of a logarithm or of a 53-bit uniform shows in the low-order bits of what is said
(Mironov, CCS 2012).

    exp(-g), g <= 1:     K = 1, 2, ... while a coin of probability g / K shows heads; was K odd?
    discrete Laplace:    k = u + t v of P ~ exp(-|k| / t), u uniform below t and accepted with
                         exp(-u / t), v geometric
    discrete Gaussian:   k of that, accepted with exp(-(|k| - sigma^2 / t)^2 / (2 sigma^2))

t is a power of two near sigma; any t gives the same law.

Source: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020),
algorithms 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable

_WORD_BITS = 64


class RandomBits:
    """Uniform integers from a source of random bytes.

    Args:
        read: the next so many bytes.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def take(self, num_bits: int) -> int:
        """Uniform on 0 .. 2^num_bits - 1."""
        num_bytes = (num_bits + 7) // 8
        return int.from_bytes(self._read(num_bytes), "little") & ((1 << num_bits) - 1)

    def is_heads(self, numerator: int, denominator: int) -> bool:
        """A coin of probability numerator / denominator, 0 to 1, exactly.

        Its binary digits are compared with random ones, a word at a time, until they differ.
        """
        while True:
            if numerator == 0:
                return False
            if numerator >= denominator:
                return True
            digits, numerator = divmod(numerator << _WORD_BITS, denominator)
            drawn = self.take(_WORD_BITS)
            if drawn != digits:
                return drawn < digits

    def is_heads_exp(self, numerator: int, denominator: int) -> bool:
        """A coin of probability exp(-numerator / denominator), numerator >= 0."""
        while numerator > denominator:
            if not self._is_heads_small_exp(1, 1):
                return False
            numerator -= denominator
        return self._is_heads_small_exp(numerator, denominator)

    def _is_heads_small_exp(self, numerator: int, denominator: int) -> bool:
        count = 1
        while self.is_heads(numerator, denominator) and self.is_heads(1, count):
            count += 1
        return count % 2 == 1


def discrete_gaussian(sigma: int, bits: RandomBits) -> int:
    """One draw; 0 for sigma 0.

    Args:
        sigma: an integer >= 0.
        bits: where randomness comes from.
    """
    if sigma == 0:
        return 0
    log2_t = (sigma - 1).bit_length()
    square = sigma * sigma
    # (|k| - sigma^2 / t)^2 / (2 sigma^2) over one denominator.
    denominator = 2 * square << (2 * log2_t)
    while True:
        drawn = _discrete_laplace(log2_t, bits)
        numerator = ((abs(drawn) << log2_t) - square) ** 2
        if bits.is_heads_exp(numerator, denominator):
            return drawn


def _discrete_laplace(log2_t: int, bits: RandomBits) -> int:
    """P(k) proportional to exp(-|k| / 2^log2_t)."""
    while True:
        low = bits.take(log2_t)
        if not bits.is_heads_exp(low, 1 << log2_t):
            continue
        high = 0
        while bits.is_heads_exp(1, 1):
            high += 1
        magnitude = low + (high << log2_t)
        is_negative = bits.take(1) == 1
        if is_negative and magnitude == 0:
            continue  # 0 would be drawn twice as often
        return -magnitude if is_negative else magnitude
