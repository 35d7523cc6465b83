"""Guarantees of the clip, and the sensitivity that all privacy rests on."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.spsa import clip_to_ball, estimate_scalars, projected_gradients

numbers = st.floats(allow_nan=False, allow_infinity=False)
clips = st.floats(1e-6, 1e6)
losses = st.floats(-100.0, 100.0, width=32)
pairs_of_losses = st.lists(st.tuples(losses, losses), max_size=40)


def vectors(width, entries=numbers):
    return st.lists(entries, min_size=width, max_size=width)


def clip_one(vector, clip):
    return clip_to_ball(np.array([vector], dtype=np.float64), clip)[0]


def exact_square(vector):
    return sum(Fraction(float(value)) ** 2 for value in vector)


@given(numbers, clips)
def test_a_ball_of_one_number_is_the_interval_exactly(value, clip):
    (clipped,) = clip_one([value], clip)
    assert clipped == (value if abs(value) <= clip else math.copysign(clip, value))


@given(st.integers(2, 40).flatmap(vectors), clips)
@example([0.6, 0.8], 1.0)
@example([3.0, 4.0], 5.0)
@example([5e-324, 5e-324], 1e-6)
@example([1.7e308] * 40, 1.0)
def test_a_clipped_vector_lies_in_the_ball_in_real_numbers(vector, clip):
    clipped = clip_one(vector, clip)
    assert np.all(np.isfinite(clipped))
    assert exact_square(clipped) <= Fraction(clip) ** 2


@given(st.integers(2, 12).flatmap(vectors), clips)
def test_clipping_keeps_the_direction_and_what_is_short_and_is_odd(vector, clip):
    clipped = clip_one(vector, clip)
    if exact_square(vector) <= Fraction(clip) ** 2 * (1 - Fraction(2) ** -40):
        assert clipped.tolist() == vector
    assert clip_one([-value for value in vector], clip).tolist() == (-clipped).tolist()
    largest = max(map(abs, vector))
    if largest > 0:
        ratio = np.max(np.abs(clipped)) / largest
        np.testing.assert_allclose(clipped, np.array(vector) * ratio, rtol=1e-9, atol=1e-300)


@given(st.integers(2, 6), st.data(), clips)
def test_clipping_is_1_lipschitz(width, data, clip):
    ordinary = vectors(width, st.floats(-1e6, 1e6))
    first, second = data.draw(ordinary), data.draw(ordinary)
    moved = np.linalg.norm(clip_one(first, clip) - clip_one(second, clip))
    distance = np.linalg.norm(np.subtract(first, second))
    assert moved <= distance * (1 + 2.0**-40) + 2.0**-40 * clip


@given(st.integers(1, 5).flatmap(vectors))
def test_without_a_bound_clipping_is_the_identity(vector):
    assert clip_one(vector, math.inf).tolist() == vector


def scalar(pairs, *, clip, batch_size, scale=2.0**-10):
    plus, minus = np.array(pairs, dtype=np.float32).reshape(-1, 2).T
    gradients = projected_gradients(plus, minus, 2 * scale)[:, None]
    return estimate_scalars(gradients, clip=clip, batch_size=batch_size).clipped_scalars[0]


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


@given(st.integers(2, 8), st.data(), clips, st.integers(1, 20))
def test_one_record_more_moves_the_vector_by_clip_over_batch_size_at_most(
    width, data, clip, batch_size
):
    rows = data.draw(st.lists(vectors(width, st.floats(-1e9, 1e9)), max_size=12))
    position = data.draw(st.integers(0, len(rows)))
    record = data.draw(vectors(width, st.floats(-1e9, 1e9)))

    def vector(some):
        gradients = np.array(some, dtype=np.float64).reshape(-1, width)
        estimate = estimate_scalars(gradients, clip=clip, batch_size=batch_size)
        return np.array(estimate.clipped_scalars)

    moved = vector([*rows[:position], record, *rows[position:]]) - vector(rows)
    assert np.linalg.norm(moved) <= clip / batch_size + 2.0**-40 * clip


def test_negative_control_a_box_instead_of_a_ball_lets_a_record_move_the_vector_further():
    clip, num_directions = 1.0, 16
    record = np.full((1, num_directions), 10.0)
    in_a_box = np.clip(record, -clip, clip)
    assert np.linalg.norm(in_a_box) == pytest.approx(math.sqrt(num_directions) * clip)
    assert np.linalg.norm(clip_to_ball(record, clip)) <= clip
