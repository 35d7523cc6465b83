"""Noise is Gaussian and circular, batches are Poisson, everything is independent.

Every test states its H0 and statistic; ALPHA is its two-sided false-alarm probability, shared out
among its statistics, and every threshold is computed from it. Keys are fixed, so a failure is a
defect and not luck. Every test has a negative control.
"""

import math

import numpy as np
import pytest
from scipy import stats

from edge_runtime.private_random import PrivateRandom

ALPHA = 1e-6
NUM_ROUNDS = 50_000
STD = 0.37
SIGMA = 3**22  # no power of two
PRIVATE = PrivateRandom(PrivateRandom.simulated_key(2024, 1))


def draws_of(private, rounds=range(NUM_ROUNDS)):
    """One pair a round, as a complex number of standard deviation STD."""
    pairs = [private.circular_draws(t, SIGMA, 1)[0] for t in rounds]
    return np.array([complex(n, m) for n, m in pairs]) * (STD / SIGMA)


@pytest.fixture(scope="module")
def noise():
    """One complex draw per round [NUM_ROUNDS]."""
    return draws_of(PRIVATE)


@pytest.fixture(scope="module")
def reals(noise):
    """All quadratures [2 NUM_ROUNDS]: independent N(0, STD^2) under H0."""
    return np.concatenate([noise.real, noise.imag])


def is_mean_zero(values, std):
    """Statistic: mean sqrt(n) / std ~ N(0, 1)."""
    return abs(np.mean(values)) * math.sqrt(values.size) <= stats.norm.isf(ALPHA / 2) * std


def is_variance(values, std):
    """Statistic: sum of squares / variance ~ chi-square(n)."""
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], values.size)
    return low <= np.sum(values**2) / std**2 <= high


def is_law(values, cdf, alpha=ALPHA):
    """Statistic: KS distance; P(> sqrt(ln(2/alpha) / 2n)) <= alpha (Dvoretzky-Kiefer-Wolfowitz)."""
    bound = math.sqrt(math.log(2 / alpha) / (2 * values.size))
    return stats.kstest(values, cdf).statistic <= bound


def are_signs_fair(products):
    """Statistic: positives among n products of independent symmetric values, Binomial(n, 1/2)."""
    low, high = (stats.binom.ppf(p, products.size, 0.5) for p in (ALPHA / 2, 1 - ALPHA / 2))
    return low <= np.count_nonzero(products > 0) <= high


def test_noise_has_mean_zero(reals):
    assert is_mean_zero(reals, STD)
    # Caught: twice the threshold is missed with probability ALPHA / 2.
    threshold = stats.norm.isf(ALPHA / 2) * STD / math.sqrt(reals.size)
    assert not is_mean_zero(reals + 2 * threshold, STD)


def test_noise_has_its_variance(reals):
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], reals.size)
    defect = 1.03  # of the standard deviation
    assert stats.chi2.cdf(high / defect**2, reals.size) <= ALPHA, "n is too small for the defect"
    assert stats.chi2.sf(low * defect**2, reals.size) <= ALPHA, "n is too small for the defect"
    assert is_variance(reals, STD)
    assert not is_variance(reals * defect, STD)
    assert not is_variance(reals / defect, STD)


def test_noise_is_gaussian_on_either_quadrature(noise):
    cdf = stats.norm(scale=STD).cdf
    for part in (noise.real, noise.imag):
        assert is_law(part, cdf, ALPHA / 2)
        # Controls: half and double variance; a uniform of the same variance.
        assert not is_law(part / math.sqrt(2), cdf, ALPHA / 2)
        assert not is_law(part * math.sqrt(2), cdf, ALPHA / 2)
        uniform = (cdf(part) - 0.5) * STD * math.sqrt(12)
        assert not is_law(uniform, cdf, ALPHA / 2)


def test_noise_is_circular(noise):
    # H0: the phase is uniform and independent of the radius, whose square is exponential.
    def is_circular(values):
        phase = np.angle(values) / (2 * np.pi) + 0.5
        radius = np.exp(-(np.abs(values) ** 2) / (2 * STD**2))
        return (
            is_law(phase, "uniform", ALPHA / 4)
            and is_law(radius, "uniform", ALPHA / 4)
            and are_signs_fair(values.real * values.imag)
            and are_signs_fair((phase - 0.5) * (radius - 0.5))
        )

    assert is_circular(noise)
    # Controls: half the variance on the other axis; a share of it common to both; a real noise.
    assert not is_circular(noise.real + 1j * noise.imag / math.sqrt(2))
    common = math.sqrt(0.9) * noise.imag + math.sqrt(0.1) * noise.real
    assert not is_circular(noise.real + 1j * common)
    assert not is_circular(noise.real + 0j)


def test_noise_of_rounds_and_devices_is_independent(noise):
    other = PrivateRandom(PrivateRandom.simulated_key(2024, 2))
    neighbour = draws_of(other)
    for lag in (1, 2, 10):
        assert are_signs_fair(noise.real[:-lag] * noise.real[lag:])
        assert are_signs_fair(noise.real[:-lag] * noise.imag[lag:])
    assert are_signs_fair(noise.real * neighbour.real)
    assert are_signs_fair(noise.imag * neighbour.real)
    # Control: a tenth of the neighbour leaks in.
    assert not are_signs_fair((noise.real + 0.1 * neighbour.real) * neighbour.real)


NUM_RECORDS = 4000
NUM_BATCHES = 500
RATE = 0.05


@pytest.fixture(scope="module")
def membership():
    """Which record joins which round [NUM_BATCHES, NUM_RECORDS]."""
    joined = np.zeros((NUM_BATCHES, NUM_RECORDS), dtype=bool)
    for t in range(NUM_BATCHES):
        joined[t, PRIVATE.poisson_batch(t, NUM_RECORDS, RATE)] = True
    return joined


def is_count(count, n, probability, alpha=ALPHA):
    """Statistic: count ~ Binomial(n, probability), exactly."""
    low = stats.binom.ppf(alpha / 2, n, probability)
    return low <= count <= stats.binom.isf(alpha / 2, n, probability)


def test_batches_have_their_rate(membership):
    n, count = membership.size, int(membership.sum())
    high = stats.binom.isf(ALPHA / 2, n, RATE)
    assert stats.binom.cdf(high, n, 1.05 * RATE) <= ALPHA, "n is too small for the defect"
    assert is_count(count, n, RATE)
    assert not is_count(count, n, RATE / 1.05)
    assert not is_count(count, n, RATE * 1.05)


def test_no_record_and_no_round_is_favoured(membership):
    # H0: every line and column has Binomial(n, RATE) members; Bonferroni over all of them.
    def are_all_right(joined):
        alpha = ALPHA / sum(joined.shape)
        lines = [(joined.sum(axis=1), joined.shape[1]), (joined.sum(axis=0), joined.shape[0])]
        return all(is_count(int(count), n, RATE, alpha) for counts, n in lines for count in counts)

    assert are_all_right(membership)
    favoured = membership.copy()
    favoured[:, 17] |= np.arange(NUM_BATCHES) % 4 == 0
    assert not are_all_right(favoured)


def test_batches_of_neighbouring_rounds_and_records_are_independent(membership):
    # H0: a record joins two given rounds with probability RATE^2. Disjoint pairs are independent.
    def is_overlap_right(first, second):
        return is_count(int(np.sum(first & second)), first.size, RATE**2, ALPHA / 2)

    even, odd = membership[0::2], membership[1::2]
    assert is_overlap_right(even, odd)
    assert is_overlap_right(membership[:, 0::2], membership[:, 1::2])
    # Control: a tenth of a round's members come again in the next one.
    again = odd | (even & (np.random.default_rng(1).random(even.shape) < 0.1))
    assert not is_overlap_right(even, again)


def test_noise_and_batch_of_one_round_are_independent():
    # H0: whether record 0 joins says nothing about the sign of the noise: a fair product.
    rounds = range(20_000)
    joined = np.array([PRIVATE.poisson_batch(t, 1, 0.5).size for t in rounds]) * 2 - 1
    drawn = draws_of(PRIVATE, rounds) / STD
    assert are_signs_fair(joined * drawn.real)
    assert are_signs_fair(joined * drawn.imag)
    # Control: the membership leaks into the noise a little.
    assert not are_signs_fair(joined * (drawn.real + 0.1 * joined))
