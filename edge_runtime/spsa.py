"""The estimates: a few losses per example become a few numbers per device.

    g_iq = (l_i(w + mu z_q) - l_i(w - mu z_q)) / (2 mu)      projected gradient, two-sided
    g_iq = (l_i(w + mu z_q) - l_i(w)) / mu                   or one-sided
    p    = ball( (1/b) sum over the batch of ball(g_i) ),    ball(v) = v min(1, gamma / norm(v))

with g_i and p vectors of Q numbers and the Euclidean norm. For Q = 1 the ball is the interval
[-gamma, gamma].

b is the nominal batch size, not the number of examples a Poisson batch happens to hold: only then
does zeroing one record out move p by at most gamma/b. The outer ball binds the rare batch that is
much larger than b; it is 1-Lipschitz, so it never raises the sensitivity. A box instead of a ball
would let a whole device move the sum by sqrt(Q) gamma.

Sources: two-point estimate, Spall 1992 (SPSA); per-example clipping of the loss difference, DPZero
(Zhang et al., ICML 2024); a clipped vector of several directions, DP-AggZO (USENIX Security 2025);
one clean loss for all directions, FZOO (arXiv 2506.09034).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_runtime.protocol.errors import NonFiniteScalarError
from edge_runtime.protocol.rounds import Difference
from radio.arrays import Float32Array, Float64Array

_BALL_MARGIN = 2.0**-44
"""A norm of up to 256 numbers is known to 2**-45 of itself in float64."""


@dataclass(frozen=True, slots=True)
class ScalarEstimate:
    """A device's scalars before noise, and how much clipping they took.

    Attributes:
        clipped_scalars: p, Q finite numbers of norm <= clip.
        num_examples: examples in the batch, 0 for an empty Poisson batch (then p = 0).
        num_clipped: examples whose projected gradients were cut.
    """

    clipped_scalars: tuple[float, ...]
    num_examples: int
    num_clipped: int


def clip_to_ball(vectors: Float64Array, clip: float) -> Float64Array:
    """Each row v of [num_vectors, Q] times min(1, clip / norm(v)).

    Guarantees: for finite vectors the norm of each result is <= clip in real numbers, for up to
    MAX_DIRECTIONS columns (a vector within 2**-44 of the sphere is moved inside by as much); for
    one column it is exactly max(-clip, min(clip, v)); odd.
    """
    if vectors.shape[1] == 1:
        return np.clip(vectors, -clip, clip)
    largest = np.max(np.abs(vectors), axis=1, initial=0.0, keepdims=True)
    # In units of the largest number no square and no norm leaves the range of float64.
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    norms = np.sqrt(np.sum(np.square(scaled), axis=1, keepdims=True))
    with np.errstate(over="ignore", divide="ignore"):
        is_long = norms * (1.0 + _BALL_MARGIN) > clip / largest
    onto_sphere = np.divide(clip * (1.0 - _BALL_MARGIN), norms, out=norms, where=is_long)
    return np.multiply(scaled, onto_sphere, out=vectors.copy(), where=is_long)


def projected_gradients(
    losses_there: Float32Array, losses_here: Float32Array, distance: float
) -> Float64Array:
    """(l_there - l_here) / distance of each example [num_examples]; not finite where a loss is not.

    Args:
        losses_there: at w + mu z.
        losses_here: at w - mu z, or at w.
        distance: 2 mu, or mu.
    """
    if losses_there.shape != losses_here.shape:
        raise ValueError(f"losses: shapes {losses_there.shape} and {losses_here.shape} differ.")
    # inf - inf is met by the caller as what it is, a number that is not finite.
    with np.errstate(invalid="ignore", over="ignore"):
        return (losses_there.astype(np.float64) - losses_here.astype(np.float64)) / distance


class MovableWeights(Protocol):
    """Weights that go along a seeded direction and come back (`ParameterStore`)."""

    def moved(self, direction_seed: int, scale: float) -> AbstractContextManager[None]:
        """The weights at w + scale * z for a while, and at w again afterwards."""


def gradients_along(
    weights: MovableWeights,
    losses: Callable[[], Float32Array],
    seeds: Iterable[int],
    scale: float,
    difference: Difference,
) -> Float64Array:
    """Projected gradients of every example along every direction [num_examples, Q].

    Args:
        weights: at w before and afterwards, whatever happens.
        losses: of all examples, on the weights as they are when it is called [num_examples].
        seeds: of the directions z_q.
        scale: mu.
        difference: two-sided, 2 Q sweeps; or one-sided, Q + 1, the first at w.

    Raises:
        LatticeError: w + mu z or w - mu z lies beyond the exact range.
    """
    at_home = losses() if difference is Difference.ONE_SIDED else None
    columns = []
    for seed in seeds:
        with weights.moved(seed, scale):
            there = losses()
        if at_home is not None:
            columns.append(projected_gradients(there, at_home, scale))
            continue
        with weights.moved(seed, -scale):
            opposite = losses()
        columns.append(projected_gradients(there, opposite, 2.0 * scale))
    return np.stack(columns, axis=1)


def estimate_scalars(
    gradients: Float64Array,
    *,
    clip: float,
    batch_size: int,
    non_finite_counts_as_zero: bool = False,
) -> ScalarEstimate:
    """The clipped estimate of one device; see the module for the equation.

    Args:
        gradients: projected gradients [num_examples, Q].
        clip: gamma; infinity for the noiseless reference.
        batch_size: nominal b.
        non_finite_counts_as_zero: an example with a number that is not finite contributes 0 and
            counts as clipped. For private rounds: refusing to speak would be a signal that one
            record can set off, and 0 lies within the clip, so the sensitivity is the same.

    Raises:
        NonFiniteScalarError: a number is NaN or infinite, and that does not count as zero.
    """
    finite = np.asarray(np.isfinite(gradients).all(axis=1, keepdims=True))
    if not finite.all() and not non_finite_counts_as_zero:
        raise NonFiniteScalarError(
            f"{int((~finite).sum())} of {len(gradients)} examples have losses that are NaN or "
            "infinite. The model has diverged or its weights are damaged: lower the learning rate, "
            "or check the bundle."
        )
    counted = np.where(finite, gradients, 0.0)
    clipped = clip_to_ball(counted, clip)
    try:
        # fsum: the exactly rounded sum, whatever the order of the examples.
        mean = [math.fsum(column) / batch_size for column in clipped.T.tolist()]
    except OverflowError as error:  # without a bound only
        raise NonFiniteScalarError(f"scalars: wanted finite numbers ({error}).") from error
    was_cut = ~finite[:, 0] | np.any(clipped != counted, axis=1)
    return ScalarEstimate(
        clipped_scalars=tuple(clip_to_ball(np.array([mean]), clip)[0].tolist()),
        num_examples=len(gradients),
        num_clipped=int(np.count_nonzero(was_cut)),
    )
