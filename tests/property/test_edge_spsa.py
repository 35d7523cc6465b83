"""Guarantees of the clip, and the sensitivity that all privacy rests on."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.spsa import clip_scalar, estimate_projected_gradient

values = st.floats(allow_nan=False, allow_infinity=False)
clips = st.floats(1e-6, 1e6)
losses = st.floats(-100.0, 100.0, width=32)
pairs_of_losses = st.lists(st.tuples(losses, losses), max_size=40)


@given(values, clips)
def test_clip_scalar_guarantees_bound_exactly(value, clip):
    clipped = clip_scalar(value, clip)
    assert math.isfinite(clipped)
    assert abs(clipped) <= clip
    assert clipped == (value if abs(value) <= clip else math.copysign(clip, value))


@given(values, clips)
def test_clip_scalar_is_idempotent_and_odd(value, clip):
    clipped = clip_scalar(value, clip)
    assert clip_scalar(clipped, clip) == clipped
    assert clip_scalar(-value, clip) == -clipped


@given(values, values, clips)
def test_clip_scalar_is_monotone_and_1_lipschitz(first, second, clip):
    low, high = sorted((first, second))
    assert clip_scalar(low, clip) <= clip_scalar(high, clip)
    assert abs(clip_scalar(low, clip) - clip_scalar(high, clip)) <= high - low


@given(values)
def test_clip_scalar_without_a_bound_is_the_identity(value):
    assert clip_scalar(value, math.inf) == value


def scalar(pairs, *, clip, batch_size, scale=2.0**-10):
    plus, minus = np.array(pairs, dtype=np.float32).reshape(-1, 2).T
    return estimate_projected_gradient(
        plus, minus, perturbation_scale=scale, clip=clip, batch_size=batch_size
    ).clipped_scalar


@given(pairs_of_losses, clips, st.integers(1, 50))
def test_the_scalar_of_any_batch_is_finite_and_within_the_clip(pairs, clip, batch_size):
    assert abs(scalar(pairs, clip=clip, batch_size=batch_size)) <= clip


@given(pairs_of_losses, st.tuples(losses, losses), clips, st.integers(1, 50), st.data())
@example([], (1.0, 0.0), 1.0, 4, None)
@example([(1.0, 0.0)] * 40, (-1.0, 0.0), 1.0, 2, None)
def test_one_record_more_moves_the_scalar_by_clip_over_batch_size_at_most(
    pairs, record, clip, batch_size, data
):
    position = data.draw(st.integers(0, len(pairs))) if data else 0
    neighbour = [*pairs[:position], record, *pairs[position:]]
    moved = scalar(neighbour, clip=clip, batch_size=batch_size) - scalar(
        pairs, clip=clip, batch_size=batch_size
    )
    # Sums are exactly rounded: what is left is an ulp of the two scalars, not of the batch.
    rounding = 2.0 * np.finfo(np.float64).eps * clip
    assert abs(moved) <= clip / batch_size + rounding


@given(clips, st.integers(1, 50), st.integers(0, 10))
def test_the_sensitivity_is_attained(clip, batch_size, others):
    # The supremum of the test above: a record beyond the clip joins a batch that has room for it.
    others = min(others, batch_size - 1)
    pairs = [(0.0, 0.0)] * others
    far = (100.0 * max(clip, 1.0), 0.0) if clip < 1e4 else (3e8, 0.0)
    moved = scalar([*pairs, far], clip=clip, batch_size=batch_size, scale=2.0**-10)
    assert moved == pytest.approx(clip / batch_size, rel=1e-15)


@given(pairs_of_losses, clips, st.integers(1, 50))
def test_swapping_the_two_looks_turns_the_sign(pairs, clip, batch_size):
    swapped = [(minus, plus) for plus, minus in pairs]
    one = scalar(pairs, clip=clip, batch_size=batch_size)
    assert scalar(swapped, clip=clip, batch_size=batch_size) == -one


def test_negative_control_a_divisor_that_follows_the_batch_breaks_the_sensitivity():
    # With the realised batch size as divisor, one record would move the mean by far more.
    clip, batch_size = 1.0, 8
    alone = scalar([(1.0, 0.0)], clip=clip, batch_size=1)
    with_another = scalar([(1.0, 0.0), (0.0, 1.0)], clip=clip, batch_size=2)
    assert abs(alone - with_another) > clip / batch_size
