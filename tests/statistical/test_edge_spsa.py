"""The two-point estimate is unbiased on a quadratic, and its bias is of second order elsewhere.

Directions are the project's own. alpha as stated per test; thresholds are computed from it.
"""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from edge_runtime.protocol.direction import direction
from edge_runtime.spsa import estimate_scalars, projected_gradients

ALPHA = 1e-6
NUM_WEIGHTS = 6
NUM_DIRECTIONS = 8000


def projected_gradient(loss, weights, signs, scale):
    gradients = projected_gradients(
        np.array([loss(weights + scale * signs)]),
        np.array([loss(weights - scale * signs)]),
        2 * scale,
    )
    (scalar,) = estimate_scalars(gradients[:, None], clip=math.inf, batch_size=1).clipped_scalars
    return scalar


@pytest.fixture(scope="module")
def quadratic():
    rng = np.random.default_rng(11)
    root = rng.normal(size=(NUM_WEIGHTS, NUM_WEIGHTS))
    curvature, slope = root @ root.T, rng.normal(1.0, 0.2, size=NUM_WEIGHTS)
    weights = rng.normal(size=NUM_WEIGHTS)

    def loss(w):
        return 0.5 * w @ curvature @ w + slope @ w

    return loss, weights, curvature @ weights + slope


@pytest.fixture(scope="module")
def products(quadratic):
    """g z for many public directions [NUM_DIRECTIONS, NUM_WEIGHTS]."""
    loss, weights, _ = quadratic
    return np.stack([
        projected_gradient(loss, weights, signs, 2.0**-4) * signs
        for signs in (
            direction(seed, 0, NUM_WEIGHTS).astype(np.float64) for seed in range(NUM_DIRECTIONS)
        )
    ])  # fmt: skip


def is_unbiased(products, gradient):
    """Statistic: (mean - gradient) sqrt(n) / std per weight, about N(0, 1); Bonferroni over them.

    g z is bounded and n large, so the normal tail is exact enough at this distance for an alarm
    rate of the order of ALPHA; the defects of the controls are tens of standard errors away.
    """
    n, num_weights = products.shape
    z = NormalDist().inv_cdf(1 - ALPHA / (2 * num_weights))
    error = np.abs(products.mean(axis=0) - gradient)
    return bool(np.all(error * math.sqrt(n) <= z * products.std(axis=0)))


def test_the_estimate_is_unbiased_on_a_quadratic(products, quadratic):
    _, _, gradient = quadratic
    assert is_unbiased(products, gradient)


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.5])
def test_negative_control_a_wrong_sign_or_factor_is_seen(products, quadratic, factor):
    _, _, gradient = quadratic
    assert not is_unbiased(factor * products, gradient)


def test_along_each_direction_the_estimate_is_the_slope_of_a_quadratic(quadratic):
    # Exactly, whatever the scale: a central difference has no third-order term to miss here.
    loss, weights, gradient = quadratic
    for seed in range(20):
        signs = direction(seed, 0, NUM_WEIGHTS).astype(np.float64)
        for scale in (1.0, 2.0**-5, 2.0**-10):
            got = projected_gradient(loss, weights, signs, scale)
            assert got == pytest.approx(gradient @ signs, rel=1e-9, abs=1e-9)


def smooth_loss(w):
    """A sum of exponentials: every derivative exists and none vanishes."""
    coefficients = np.linspace(0.3, 1.1, NUM_WEIGHTS)
    return float(np.sum(np.exp(coefficients * w)) + 0.1 * np.sum(w) ** 3)


def slope_of_bias(estimate):
    """Slope of log bias over log scale; the bias is the exact mean over all 2^d directions."""
    weights = np.linspace(-0.4, 0.7, NUM_WEIGHTS)
    coefficients = np.linspace(0.3, 1.1, NUM_WEIGHTS)
    gradient = coefficients * np.exp(coefficients * weights) + 0.3 * np.sum(weights) ** 2
    cube = np.array(list(itertools.product([-1.0, 1.0], repeat=NUM_WEIGHTS)))
    scales = [2.0**-e for e in range(2, 8)]
    biases = [
        np.linalg.norm(
            np.mean([estimate(weights, signs, scale) * signs for signs in cube], axis=0) - gradient
        )
        for scale in scales
    ]
    return np.polyfit(np.log(scales), np.log(biases), 1)[0]


def test_the_bias_is_of_second_order_in_the_scale():
    def central(weights, signs, scale):
        return projected_gradient(smooth_loss, weights, signs, scale)

    assert abs(slope_of_bias(central) - 2.0) <= 0.1


def test_negative_control_a_one_sided_difference_is_along_each_direction_of_first_order():
    # Averaged over the whole cube even a one-sided difference loses its first-order term, as the
    # cube is symmetric; along a direction, where a device measures, it does not.
    weights = np.linspace(-0.4, 0.7, NUM_WEIGHTS)
    signs = direction(3, 0, NUM_WEIGHTS).astype(np.float64)
    coefficients = np.linspace(0.3, 1.1, NUM_WEIGHTS)
    gradient = coefficients * np.exp(coefficients * weights) + 0.3 * np.sum(weights) ** 2
    scales = np.array([2.0**-e for e in range(2, 8)])

    def one_sided(scale):
        return (smooth_loss(weights + scale * signs) - smooth_loss(weights)) / scale

    def central(scale):
        return projected_gradient(smooth_loss, weights, signs, scale)

    def slope(estimate):
        errors = [abs(estimate(scale) - gradient @ signs) for scale in scales]
        return np.polyfit(np.log(scales), np.log(errors), 1)[0]

    assert abs(slope(central) - 2.0) <= 0.1
    assert abs(slope(one_sided) - 2.0) > 0.5
