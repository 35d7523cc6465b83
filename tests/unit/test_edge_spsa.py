"""The two-point estimate: values worked out by hand, and what is refused."""

import math

import numpy as np
import pytest

from edge_runtime.protocol.errors import NonFiniteScalarError
from edge_runtime.spsa import clip_scalar, estimate_projected_gradient

MU = 2.0**-3


def estimate(plus, minus, *, clip=1.0, batch_size=2, perturbation_scale=MU):
    return estimate_projected_gradient(
        np.array(plus, dtype=np.float32),
        np.array(minus, dtype=np.float32),
        perturbation_scale=perturbation_scale,
        clip=clip,
        batch_size=batch_size,
    )


def test_each_example_is_clipped_by_itself_before_the_mean():
    # Differences 0.125, 2, -0.0625 over 2 mu = 0.25: gradients 0.5, 8 (cut to 1), -0.25.
    result = estimate([1.125, 3.0, 1.0], [1.0, 1.0, 1.0625])
    assert result.clipped_scalar == (0.5 + 1.0 - 0.25) / 2
    assert (result.num_examples, result.num_clipped) == (3, 1)


def test_the_divisor_is_the_nominal_batch_size_whatever_came():
    assert estimate([1.125], [1.0], batch_size=4).clipped_scalar == 0.5 / 4


def test_an_empty_batch_is_zero():
    result = estimate([], [])
    assert (result.clipped_scalar, result.num_examples, result.num_clipped) == (0.0, 0, 0)


def test_the_outer_clip_binds_a_batch_much_larger_than_nominal():
    result = estimate([9.0] * 7, [1.0] * 7, batch_size=2)
    assert result.clipped_scalar == 1.0
    assert result.num_clipped == 7


def test_a_gradient_exactly_at_the_bound_is_not_counted_as_clipped():
    result = estimate([1.25, 1.0], [1.0, 1.25])
    assert (result.clipped_scalar, result.num_clipped) == (0.0, 0)


def test_an_infinite_clip_leaves_every_gradient_alone():
    assert estimate([3.0, 1.0], [1.0, 1.5], clip=math.inf).clipped_scalar == (8.0 - 2.0) / 2


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
    with pytest.raises(NonFiniteScalarError, match="losses are NaN or infinite"):
        estimate(plus, minus)


def test_losses_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\) differ"):
        estimate([1.0, 2.0], [1.0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_scalar_that_is_no_number_is_refused(value):
    with pytest.raises(NonFiniteScalarError, match="wanted a finite number"):
        clip_scalar(value, 1.0)
