"""Directions look like fair coins. H0 of every test: all signs are independent and fair.

Two-sided false-alarm probability ALPHA per test, shared out among its statistics (Bonferroni).
Each statistic is a count of k "plus" among n products of signs; under H0 it is exactly
Binomial(n, 1/2), since products of distinct independent fair signs at one fixed lag are again
independent and fair. `check_fair` also computes, before looking, that a defect of the stated size
is missed with probability at most ALPHA, and every test shows that it rejects one such defect.
"""

import numpy as np
import pytest
from scipy import stats

from edge_runtime.protocol.direction import direction, sign_bytes

ALPHA = 1e-6
NUM_SIGNS = 2**21
DEFECT = 0.01
"""A share of the signs that is copied or set; it moves a mean product by as much."""


def is_fair(products, alpha):
    """Statistic: number of +1 among n products, Binomial(n, 1/2) under H0."""
    n, num_plus = products.size, int(np.count_nonzero(products > 0))
    return stats.binom.ppf(alpha / 2, n, 0.5) <= num_plus <= stats.binom.isf(alpha / 2, n, 0.5)


def check_power(n, alpha):
    """A mean product of DEFECT is missed with probability at most ALPHA."""
    limit = stats.binom.isf(alpha / 2, n, 0.5)
    assert stats.binom.cdf(limit, n, (1 + DEFECT) / 2) <= ALPHA, "n is too small for the defect"


@pytest.fixture(scope="module")
def signs():
    return direction(20240, 3, NUM_SIGNS)


def spoil(signs, source, rng):
    """A share of 1.2 DEFECT of the signs becomes ``source``: a defect no smaller than DEFECT."""
    return np.where(rng.random(signs.size) < 1.2 * DEFECT, source, signs)


def test_signs_have_no_bias(signs):
    check_power(signs.size, ALPHA)
    assert is_fair(signs, ALPHA)
    assert not is_fair(spoil(signs, 1.0, np.random.default_rng(1)), ALPHA)
    assert not is_fair(spoil(signs, -1.0, np.random.default_rng(2)), ALPHA)


LAGS = [1, 2, 3, 7, 8, 16, 31, 32, 63, 64, 65, 128, 192, 256, 257, 1024, 65536]


@pytest.mark.parametrize("lag", LAGS)
def test_pairs_at_any_lag_are_uncorrelated(signs, lag):
    # Lags of a bit, a byte, a lane (64), a block (256) and a chunk of the store (65536).
    alpha = ALPHA / len(LAGS)
    check_power(signs.size - lag, alpha)
    assert is_fair(signs[:-lag] * signs[lag:], alpha)
    spoiled = spoil(signs[lag:], signs[:-lag], np.random.default_rng(lag))
    assert not is_fair(signs[:-lag] * spoiled, alpha)


NEIGHBOURS = [((20240, 3), (20240, 4)), ((20240, 3), (20241, 3)), ((20240, 3), (3, 20240)),
              ((20240, 3), (20240 + 2**63, 3)), ((20240, 3), (20240, 3 + 2**32))]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_neighbouring_seeds_and_tensors_are_uncorrelated(signs, one, other):
    assert one == (20240, 3)
    alpha = ALPHA / len(NEIGHBOURS)
    second = direction(*other, NUM_SIGNS)
    check_power(second.size, alpha)
    assert is_fair(signs * second, alpha)
    assert not is_fair(signs * spoil(second, signs, np.random.default_rng(3)), alpha)


def test_runs_along_tensors_and_along_seeds_have_the_right_number():
    # The number of changes of sign from one tensor (one seed) to the next, at each position.
    along_tensors = np.stack([direction(7, index, 2048) for index in range(512)])
    along_seeds = np.stack([direction(seed, 0, 2048) for seed in range(512)])
    for signs in (along_tensors, along_seeds):
        products = signs[:-1] * signs[1:]
        check_power(products.size, ALPHA / 2)
        assert is_fair(products, ALPHA / 2)
        rng = np.random.default_rng(4)
        spoiled = spoil(signs[1:].ravel(), signs[:-1].ravel(), rng)
        assert not is_fair(signs[:-1].ravel() * spoiled, ALPHA / 2)


def test_every_byte_is_equally_frequent():
    # Statistic: Pearson's chi-square of 256 counts, chi-square(255) under H0 (4,096 a cell).
    values = sign_bytes(5, 0, 0, 2**17)
    limit = stats.chi2.isf(ALPHA, 255)

    def statistic(values):
        expected = values.size / 256
        return float(np.sum((np.bincount(values, minlength=256) - expected) ** 2) / expected)

    assert statistic(values) <= limit
    # Control: one even byte in ten becomes the odd one above it; non-centrality n 0.1^2.
    assert stats.ncx2.cdf(limit, 255, values.size * 0.1**2) <= ALPHA
    moved = np.random.default_rng(5).random(values.size) < 0.1
    assert statistic(np.where(moved, values | 1, values)) > limit
