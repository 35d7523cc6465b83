"""The discrete Gaussian's law, integer by integer, and its coins.

Each test states H0 and statistic; thresholds follow from ALPHA, the false-alarm probability, and
negative controls are caught by the same statistic.
"""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edge_runtime.discrete_gaussian import RandomBits, discrete_gaussian
from edge_runtime.number_grid import (
    SHIFT_GROWTH,
    NumberGrid,
)

ALPHA = 1e-6
NUM_DRAWS = 40_000


def bits_of(seed):
    """Repeatable bits; a hash, as in the product."""
    state = {"block": 0, "held": b""}

    def read(num_bytes):
        while len(state["held"]) < num_bytes:
            text = f"{seed}/{state['block']}".encode()
            state["held"] += hashlib.shake_256(text).digest(1 << 14)
            state["block"] += 1
        found, state["held"] = state["held"][:num_bytes], state["held"][num_bytes:]
        return found

    return RandomBits(read)


def fits(draws, probabilities):
    """Statistic: chi-square of the counts of 0 .. n-1 against their probabilities."""
    counts = np.bincount(draws, minlength=len(probabilities)).astype(float)
    wanted = probabilities * counts.sum()
    kept = wanted >= 5.0
    counts = np.append(counts[kept], counts[~kept].sum())
    wanted = np.append(wanted[kept], wanted[~kept].sum())
    if wanted[-1] < 5.0:
        counts, wanted = counts[:-1], wanted[:-1] * counts[:-1].sum() / wanted[:-1].sum()
    statistic = float(np.sum((counts - wanted) ** 2 / wanted))
    return statistic <= stats.chi2.isf(ALPHA, len(wanted) - 1)


def law(sigma, reach):
    points = np.arange(-reach, reach + 1)
    weights = np.exp(-(points.astype(float) ** 2) / (2.0 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("sigma", [1, 2, 3, 5, 12])
def test_every_integer_comes_as_often_as_it_should(sigma):
    """H0: counts of each integer are multinomial with the discrete Gaussian's probabilities."""
    reach, bits = 12 * sigma, bits_of(sigma)
    drawn = np.array([discrete_gaussian(sigma, bits) for _ in range(NUM_DRAWS)])
    assert fits(drawn + reach, law(sigma, reach))
    # Caught: a parameter 10 % off, and a continuous Gaussian rounded down (half a step off).
    assert not fits(drawn + reach, law(1.1 * sigma, reach))
    rounded_down = np.floor(np.random.default_rng(0).normal(scale=sigma, size=NUM_DRAWS))
    assert sigma > 5 or not fits(rounded_down.astype(int) + reach, law(sigma, reach))


def test_large_parameters_have_the_variance_and_the_shape():
    """H0: sum of squares / sigma^2 ~ chi-square(n); KS distance within its DKW bound."""
    sigma, bits = 3**30, bits_of("large")
    drawn = np.array([discrete_gaussian(sigma, bits) / sigma for _ in range(NUM_DRAWS)])
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], NUM_DRAWS)
    assert low <= np.sum(drawn**2) <= high
    bound = math.sqrt(math.log(2 / ALPHA) / (2 * NUM_DRAWS))
    assert stats.kstest(drawn, "norm").statistic <= bound
    assert stats.kstest(1.1 * drawn, "norm").statistic > bound


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 3), (2, 1), (7, 2), (1, 1)])
def test_a_coin_of_an_exponential_is_fair_to_it(numerator, denominator):
    """H0: heads ~ Binomial(n, exp(-a/b))."""
    bits = bits_of(f"{numerator}/{denominator}")
    heads = sum(bits.is_heads_exp(numerator, denominator) for _ in range(NUM_DRAWS))
    chance = math.exp(-numerator / denominator)
    low, high = stats.binom.ppf([ALPHA / 2, 1 - ALPHA / 2], NUM_DRAWS, chance)
    assert low <= heads <= high


def test_a_coin_looks_at_further_digits_where_the_first_agree():
    """1/3 in binary is 0101...: the coin must go on exactly where the random word is that."""
    words = iter([0x5555_5555_5555_5555, 0])
    bits = RandomBits(lambda n: next(words).to_bytes(n, "little"))
    assert bits.is_heads(1, 3)
    words = iter([0x5555_5555_5555_5556])
    assert not bits.is_heads(1, 3)


def test_the_same_bits_give_the_same_draws_and_zero_is_zero():
    assert discrete_gaussian(0, bits_of("none")) == 0
    draws = [[discrete_gaussian(2**34, bits) for _ in range(5)] for bits in map(bits_of, "aab")]
    assert draws[0] == draws[1] != draws[2]
    # Frozen: another sampler would make an interrupted run say something new in a paid round.
    assert draws[0] == FROZEN


FROZEN = [-31101062256, 4635264619, -15850367494, -20105010505, -26480051666]


@given(
    clip=st.floats(1e-6, 1e6),
    batch_size=st.integers(1, 10_000),
    number=st.floats(-1e6, 1e6),
)
def test_the_grid_is_as_fine_as_it_says_and_rounds_to_its_nearest_point(clip, batch_size, number):
    grid = NumberGrid.of_numbers(clip, batch_size)
    step = math.ldexp(1.0, grid.exponent)
    share = step / (clip / batch_size)
    assert 2.0**-36 < share <= 2.0**-34
    scaled = max(-clip, min(clip, number))
    assert abs(grid.number(grid.nearest(scaled)) - scaled) <= step / 2
    steps = grid.steps_above(abs(scaled))
    assert steps * step >= abs(scaled) > (steps - 1) * step or scaled == 0


@pytest.mark.parametrize("num_scalars", [1, 8, 256])
def test_rounding_grows_a_shift_by_no_more_than_is_charged(num_scalars):
    """The worst case: every coordinate of both vectors is rounded away from the other's."""
    grid = NumberGrid.of_numbers(20.0, 16)
    shift = 20.0 / 16
    grown = shift + math.sqrt(num_scalars) * grid.number(1)
    assert grown <= SHIFT_GROWTH * shift
    # And it is no larger than it need be by more than a factor of some.
    assert SHIFT_GROWTH * shift <= shift + 64 * math.sqrt(256) * grid.number(1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.77, 1.31)])
def test_that_much_noise_hides_the_grids_of_unequal_devices(spacing):
    """A sum of discrete Gaussians on three grids under four steps of noise: density, exactly.

    Held against the continuous Gaussian of the same variance; without the receiver's noise the sum
    lives on points, and its density is nowhere near.
    """
    sigma, reach = 3.0, 40
    points = np.arange(-reach, reach + 1)
    weights = law(sigma, reach)
    at = np.linspace(-6.0, 6.0, 41)

    def density(noise_std):
        total = np.zeros_like(at)
        inner = (
            spacing[0] * points[:, None, None]
            + spacing[1] * points[None, :, None]
            + spacing[2] * points[None, None, :]
        )
        chance = weights[:, None, None] * weights[None, :, None] * weights[None, None, :]
        keep = chance > 1e-14
        for index, x in enumerate(at):
            total[index] = np.sum(chance[keep] * stats.norm.pdf(x, inner[keep], noise_std))
        return total

    def worst_ratio(noise_std):
        variance = sigma**2 * sum(s * s for s in spacing) + noise_std**2
        ratio = density(noise_std) / stats.norm.pdf(at, scale=math.sqrt(variance))
        return np.max(np.abs(ratio - 1.0))

    assert worst_ratio(1.5) < 1e-6
    if spacing == (1.0, 1.0, 1.0):
        assert worst_ratio(0.1) > 0.5
