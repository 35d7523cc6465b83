"""The two-point estimate: two losses per example become one number per device.

    g_i = (l_i(w + mu z) - l_i(w - mu z)) / (2 mu)          projected gradient of example i
    p   = clip( (1/b) * sum over the batch of clip(g_i, -gamma, gamma), -gamma, gamma )

b is the nominal batch size, not the number of examples a Poisson batch happens to hold: only then
does zeroing one record out move p by at most gamma/b. The outer clip binds the rare batch
that is much larger than b; it is 1-Lipschitz, so it never raises the sensitivity.

Sources: two-point estimate, Spall 1992 (SPSA); per-example clipping of the loss difference, DPZero
(Zhang et al., ICML 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.errors import NonFiniteScalarError


@dataclass(frozen=True, slots=True)
class ScalarEstimate:
    """A device's scalar before noise, and how much clipping it took.

    Attributes:
        clipped_scalar: p, finite, abs(p) <= clip.
        num_examples: examples in the batch, 0 for an empty Poisson batch (then p = 0).
        num_clipped: examples whose projected gradient was cut.
    """

    clipped_scalar: float
    num_examples: int
    num_clipped: int


def clip_scalar(value: float, clip: float) -> float:
    """max(-clip, min(clip, value)).

    Guarantees: result finite for a finite clip; abs(result) <= clip, exactly; odd; 1-Lipschitz.

    Raises:
        NonFiniteScalarError: value is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NonFiniteScalarError(f"scalar: got {value}, wanted a finite number.")
    return max(-clip, min(clip, value))


def estimate_projected_gradient(
    losses_plus: npt.NDArray[np.float32],
    losses_minus: npt.NDArray[np.float32],
    *,
    perturbation_scale: float,
    clip: float,
    batch_size: int,
    non_finite_counts_as_zero: bool = False,
) -> ScalarEstimate:
    """The clipped two-point estimate of one device; see the module for the equation.

    Args:
        losses_plus: loss per example at w + mu z [num_examples].
        losses_minus: loss per example at w - mu z [num_examples].
        perturbation_scale: mu.
        clip: gamma; infinity for the noiseless reference.
        batch_size: nominal b.
        non_finite_counts_as_zero: an example whose loss is not finite contributes 0 and counts as
            clipped. For private rounds: refusing to speak would be a signal that one record can
            set off, and 0 lies within the clip, so the sensitivity is the same.

    Raises:
        NonFiniteScalarError: a loss is NaN or infinite, and that does not count as zero.
    """
    if losses_plus.shape != losses_minus.shape:
        raise ValueError(f"losses: shapes {losses_plus.shape} and {losses_minus.shape} differ.")
    # inf - inf is caught below as what it is, an estimate that is not finite.
    with np.errstate(invalid="ignore", over="ignore"):
        difference = losses_plus.astype(np.float64) - losses_minus.astype(np.float64)
        gradients = difference / (2.0 * perturbation_scale)
    finite = np.isfinite(gradients)
    if not finite.all() and not non_finite_counts_as_zero:
        raise NonFiniteScalarError(
            f"{int((~finite).sum())} of {gradients.size} losses are NaN or infinite. The model has "
            "diverged or its weights are damaged: lower the learning rate, or check the bundle."
        )
    clipped = np.clip(np.where(finite, gradients, 0.0), -clip, clip)
    # fsum: the exactly rounded sum, whatever the order of the examples.
    mean = math.fsum(clipped.tolist()) / batch_size
    return ScalarEstimate(
        clipped_scalar=clip_scalar(mean, clip),
        num_examples=int(gradients.size),
        num_clipped=int(np.count_nonzero(~finite | (np.abs(gradients) > clip))),
    )
