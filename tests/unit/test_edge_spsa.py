"""The estimates: values worked out by hand, and what is refused."""

import math

import numpy as np
import pytest

from edge_runtime.protocol.errors import NonFiniteScalarError
from edge_runtime.spsa import clip_to_ball, estimate_scalars, projected_gradients

MU = 2.0**-3


def estimate(plus, minus, *, clip=1.0, batch_size=2, perturbation_scale=MU):
    looks = (np.array(losses, dtype=np.float32) for losses in (plus, minus))
    gradients = projected_gradients(*looks, 2 * perturbation_scale)
    return estimate_scalars(gradients[:, None], clip=clip, batch_size=batch_size)


def estimate_vectors(rows, *, clip=5.0, batch_size=2, **options):
    gradients = np.array(rows, dtype=np.float64)
    return estimate_scalars(gradients, clip=clip, batch_size=batch_size, **options)


def test_each_example_is_clipped_by_itself_before_the_mean():
    # Differences 0.125, 2, -0.0625 over 2 mu = 0.25: gradients 0.5, 8 (cut to 1), -0.25.
    result = estimate([1.125, 3.0, 1.0], [1.0, 1.0, 1.0625])
    assert result.clipped_scalars == ((0.5 + 1.0 - 0.25) / 2,)
    assert (result.num_examples, result.num_clipped) == (3, 1)


def test_the_divisor_is_the_nominal_batch_size_whatever_came():
    assert estimate([1.125], [1.0], batch_size=4).clipped_scalars == (0.5 / 4,)


def test_an_empty_batch_is_zero():
    result = estimate([], [])
    assert (result.clipped_scalars, result.num_examples, result.num_clipped) == ((0.0,), 0, 0)


def test_the_outer_clip_binds_a_batch_much_larger_than_nominal():
    result = estimate([9.0] * 7, [1.0] * 7, batch_size=2)
    assert result.clipped_scalars == (1.0,)
    assert result.num_clipped == 7


def test_a_gradient_exactly_at_the_bound_is_not_counted_as_clipped():
    result = estimate([1.25, 1.0], [1.0, 1.25])
    assert (result.clipped_scalars, result.num_clipped) == ((0.0,), 0)


def test_an_infinite_clip_leaves_every_gradient_alone():
    assert estimate([3.0, 1.0], [1.0, 1.5], clip=math.inf).clipped_scalars == ((8.0 - 2.0) / 2,)


def test_the_order_of_the_examples_does_not_matter_to_the_last_bit():
    rng = np.random.default_rng(1)
    plus, minus = rng.normal(3, 1, (2, 501)).astype(np.float32)
    order = rng.permutation(501)
    wanted = estimate(plus, minus, clip=0.7, batch_size=500)
    assert estimate(plus[order], minus[order], clip=0.7, batch_size=500) == wanted


@pytest.mark.parametrize(
    ("plus", "minus"),
    [
        ([1.0, math.nan], [1.0, 1.0]),
        ([1.0, 1.0], [math.nan, 1.0]),
        ([math.inf, 1.0], [1.0, 1.0]),
        ([1.0, 1.0], [1.0, math.inf]),
        ([-math.inf, 1.0], [1.0, 1.0]),
        ([math.inf, 1.0], [math.inf, 1.0]),
        ([math.nan, math.nan], [math.nan, math.nan]),
    ],
)
def test_a_loss_that_is_no_number_stops_at_the_border(plus, minus):
    with pytest.raises(NonFiniteScalarError, match="losses that are NaN or infinite"):
        estimate(plus, minus)


def test_losses_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\) differ"):
        estimate([1.0, 2.0], [1.0])


def test_a_mean_that_is_no_number_is_refused():
    # Without a bound, and of a gradient that only a damaged model has.
    with pytest.raises(NonFiniteScalarError, match="wanted finite numbers"):
        estimate_vectors([[1.7e308], [1.7e308]], clip=math.inf, batch_size=1)


# ---------------------------------------------------------------- several directions


def test_the_norm_of_an_example_s_gradients_is_bound_not_each_of_them():
    # (2.4, 3.2) has norm 4 and stays; (6, 8) has norm 10 and is halved; (0, -4.5) stays.
    result = estimate_vectors([[2.4, 3.2], [6.0, 8.0], [0.0, -4.5]], batch_size=3)
    np.testing.assert_allclose(result.clipped_scalars, [1.8, 0.9], rtol=1e-12)
    assert (result.num_examples, result.num_clipped) == (3, 1)


def test_the_outer_ball_binds_the_vector_of_a_large_batch():
    result = estimate_vectors([[2.4, 3.2]] * 6, batch_size=2)
    np.testing.assert_allclose(result.clipped_scalars, [3.0, 4.0], rtol=1e-12)
    assert math.hypot(*result.clipped_scalars) <= 5.0
    assert result.num_clipped == 0


def test_one_number_that_is_none_takes_its_whole_example_away():
    rows = [[1.0, 2.0], [math.nan, 2.0], [1.0, -math.inf]]
    result = estimate_vectors(rows, batch_size=2, non_finite_counts_as_zero=True)
    assert result.clipped_scalars == (0.5, 1.0)
    assert (result.num_examples, result.num_clipped) == (3, 2)
    with pytest.raises(NonFiniteScalarError, match="2 of 3 examples"):
        estimate_vectors(rows)


def test_an_empty_batch_is_zero_in_every_direction():
    result = estimate_scalars(np.empty((0, 4)), clip=1.0, batch_size=2)
    assert (result.clipped_scalars, result.num_examples) == ((0.0,) * 4, 0)


def test_a_one_sided_difference_is_over_mu_and_not_over_two_mu():
    there, here = np.float32([1.125]), np.float32([1.0])
    assert projected_gradients(there, here, MU).tolist() == [1.0]
    assert projected_gradients(there, here, 2 * MU).tolist() == [0.5]


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.0])
def test_vectors_too_large_or_too_small_to_be_squared_are_clipped_like_others(scale):
    clipped = clip_to_ball(np.array([[3.0, -4.0, 0.0]]) * scale, 2.0 * scale)
    np.testing.assert_allclose(clipped, np.array([[1.2, -1.6, 0.0]]) * scale, rtol=1e-12)
