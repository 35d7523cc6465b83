"""Power policy ``reversed``: the optimum of a run whose weights come in the opposite order.

The paper's baseline for planning in the wrong direction. As a run goes it is the policy ``optimal``
with omega_T ... omega_1 for omega_1 ... omega_T.

Source: theory.md, sections 6 and 7.
"""

from __future__ import annotations

import numpy as np

from radio.arrays import Float64Array


def own_noise_shares(weights: Float64Array, sensitivities: Float64Array) -> Float64Array:
    """b = Delta sqrt(omega_(T+1-t)): what each round gets of the budget, up to a factor [T]."""
    shares: Float64Array = sensitivities * np.sqrt(weights[::-1])
    return shares
