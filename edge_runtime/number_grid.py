r"""The grid that private numbers are said on, declared by clip and batch size.

A device rounds each number to a multiple of

    g = 2^e,     2^-36 clip / b  <  g  <=  2^-34 clip / b     (2^-34 for votes, which are 1)

adds discrete Gaussian noise on the same grid (`edge_runtime.discrete_gaussian`), and says the sum.
Everything behind that, the rounding to a float among it, is post-processing of an integer.

What it does to the promise, for Q numbers:

* rounding adds sqrt(Q) g to the norm of a shift, at most 2^-30 of clip / b for Q <= 256
  (`SHIFT_GROWTH`);
* with sigma grid steps, probabilities of noise within 40 sigma differ from those of a continuous
  Gaussian rounded to the grid by a factor of at most 1 + 1600 / (24 sigma^2); beyond there is less
  than 1e-340. From multipliers of 0.1 on, sigma is above 2^30, and a round of 256 numbers adds less
  than 1e-13 to epsilon (`server.privacy.composition`).

That is a statement about one device. Devices that arrive with different gains add up on different
grids, and a receiver without any noise could tell them apart; `server.privacy.receiver_noise` says
how little is enough that it cannot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FINENESS_LOG2 = 34

SHIFT_GROWTH = 1.0 + 2.0**-29
"""What rounding to the grid may do to a sensitivity, with room for its own rounding."""


@dataclass(frozen=True, slots=True)
class NumberGrid:
    """Multiples of 2^exponent."""

    exponent: int

    @classmethod
    def of_numbers(cls, clip: float, batch_size: int) -> NumberGrid:
        """Declared by a clip and a nominal batch size.

        Raises:
            ValueError: a clip that is not finite and positive.
        """
        if not (math.isfinite(clip) and clip > 0):
            raise ValueError(f"clip: got {clip}, wanted a finite number > 0.")
        # 2^(E-1) <= clip and b < 2^B, so 2^(E-1-B) < clip / b, by less than a factor of four.
        return cls(math.frexp(clip)[1] - 1 - batch_size.bit_length() - FINENESS_LOG2)

    @classmethod
    def of_votes(cls) -> NumberGrid:
        """For signs: 1 is 2^34 steps."""
        return cls(-FINENESS_LOG2)

    def nearest(self, number: float) -> int:
        """Steps of the nearest point, ties to even; exact."""
        return round(math.ldexp(number, -self.exponent))

    def steps_above(self, std: float) -> int:
        """The fewest whole steps that are at least a standard deviation."""
        return math.ceil(math.ldexp(std, -self.exponent))

    def number(self, steps: int) -> float:
        """What so many steps are, rounded to nearest."""
        return math.ldexp(float(steps), self.exponent)
