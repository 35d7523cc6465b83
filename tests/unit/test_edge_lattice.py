"""The exact lattice: quanta, ranges, rounding."""

import math

import numpy as np
import pytest

from edge_runtime.lattice import (
    FLOOR,
    HEADROOM_BITS,
    MAX_QUANTUM_EXPONENT,
    choose_quantum_exponent,
    is_multiple_of_quantum,
    range_limit,
    round_to_lattice,
)
from edge_runtime.protocol.errors import LatticeError


@pytest.mark.parametrize(
    ("max_abs", "exponent"),
    [(0.0, -22), (1e-9, -22), (1.0, -22), (1.0001, -21), (2.0, -21), (3.0, -20), (65504.0, -6)],
)
def test_the_quantum_follows_the_largest_weight(max_abs, exponent):
    assert choose_quantum_exponent(max_abs) == exponent


def test_weights_whose_step_could_not_be_rounded_fairly_have_no_quantum():
    """64 random bits decide over 2^(exponent + 40) steps of a quantum."""
    assert choose_quantum_exponent(2.0**46) == MAX_QUANTUM_EXPONENT == 64 - 40
    with pytest.raises(LatticeError, match=r"wanted at most 2\^46"):
        choose_quantum_exponent(2.0**46 * 1.001)


@pytest.mark.parametrize("max_abs", [0.0, 0.3, 1.0, 1.5, 7.99, 8.0, 1234.5])
def test_a_tensor_may_grow_as_promised_before_its_range_ends(max_abs):
    limit = range_limit(choose_quantum_exponent(max_abs))
    assert limit >= 2 ** (HEADROOM_BITS + 1) * max(max_abs, FLOOR)


@pytest.mark.parametrize("max_abs", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_no_numbers_have_no_quantum(max_abs):
    with pytest.raises(LatticeError, match="wanted a finite number"):
        choose_quantum_exponent(max_abs)


@pytest.mark.parametrize("exponent", [-22, -10, 0])
def test_rounding_goes_to_the_nearest_multiple_and_ties_to_even(exponent):
    quantum = 2.0**exponent
    weights = np.array([0.4, 0.5, 0.6, 1.5, 2.5, -0.6, -1.5, -2.5, 7.0]) * quantum
    wanted = np.array([0, 0, 1, 2, 2, -1, -2, -2, 7]) * quantum
    rounded = round_to_lattice(weights.astype(np.float32), exponent)
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, wanted.astype(np.float32))


def test_rounding_again_changes_nothing_and_costs_half_a_quantum_at_most():
    weights = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    once = round_to_lattice(weights, -12)
    assert np.array_equal(round_to_lattice(once, -12), once)
    assert np.max(np.abs(once - weights)) <= 2.0**-13
    assert all(is_multiple_of_quantum(float(w), -12) for w in once)


def test_there_is_one_zero():
    # -0 + s - s is +0: a lattice with two zeros would not restore every bit.
    weights = np.array([-0.0, -1e-9, 0.0, 1e-9], dtype=np.float32)
    assert not np.any(np.signbit(round_to_lattice(weights, -22)))


@pytest.mark.parametrize(
    ("value", "exponent", "wanted"),
    [(2.0**-10, -22, True), (2.0**-22, -22, True), (2.0**-23, -22, False), (3.0, 0, True),
     (0.1, -22, False), (0.0, -22, True), (float("nan"), -22, False), (math.inf, -22, False)],
)  # fmt: skip
def test_multiples_are_told_from_other_numbers(value, exponent, wanted):
    assert is_multiple_of_quantum(value, exponent) is wanted
