"""Power policy ``static``: the same price for every round. The paper's baseline of that name.

Source: theory.md, sections 6 and 7.
"""

from __future__ import annotations

import numpy as np

from radio.arrays import Float64Array


def own_noise_shares(weights: Float64Array, sensitivities: Float64Array) -> Float64Array:
    """b = 1: what each round gets of the budget, up to a factor [T]."""
    return np.ones(len(weights))
