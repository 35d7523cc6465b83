"""Learning rate, bound and integer step."""

import itertools
import math
from fractions import Fraction

import pytest

from server.config import OptimizerSection
from server.optimizer import learning_rate, mean_of_sum, step_integer


def test_learning_rate_starts_at_the_first_rate_and_is_halfway_in_the_middle():
    optimizer = OptimizerSection(rounds=100, learning_rate=2e-4, final_learning_rate_fraction=0.1)
    assert learning_rate(optimizer, 0) == 2e-4
    assert learning_rate(optimizer, 50) == pytest.approx(2e-4 * 0.55, rel=1e-12)
    # The limit case of the schedule, one round after the last.
    assert learning_rate(optimizer, 100) == pytest.approx(2e-5, rel=1e-12)


def test_learning_rate_falls_and_stays_above_its_final_fraction():
    optimizer = OptimizerSection(rounds=37, learning_rate=1e-3, final_learning_rate_fraction=0.05)
    rates = [learning_rate(optimizer, t) for t in range(37)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] > 5e-5


def test_learning_rate_with_fraction_one_is_constant():
    optimizer = OptimizerSection(rounds=9, learning_rate=3e-4, final_learning_rate_fraction=1.0)
    assert {learning_rate(optimizer, t) for t in range(9)} == {3e-4}


def test_mean_of_sum_divides_by_those_who_spoke():
    assert mean_of_sum(12.0, 4, 50.0) == 3.0


@pytest.mark.parametrize("total", [1e3, -1e3, math.inf, -math.inf])
def test_mean_of_sum_guarantees_bound_exactly(total):
    assert abs(mean_of_sum(total, 3, 0.7)) == 0.7
    assert math.copysign(1.0, mean_of_sum(total, 3, 0.7)) == math.copysign(1.0, total)


def test_mean_of_sum_without_clip_is_the_mean():
    assert mean_of_sum(1e300, 2, math.inf) == 5e299


@pytest.mark.parametrize(("rate", "mean"), [(1e-4, 3.7), (1e-4, -49.9), (1.0, 1.0), (1e-6, 1e-3)])
def test_step_integer_is_the_nearest_multiple_of_the_quantum(rate, mean):
    exact = Fraction(rate * mean) * 2**40
    assert abs(Fraction(step_integer(rate, mean)) - exact) <= Fraction(1, 2)


def test_step_integer_is_odd_and_zero_at_zero():
    assert step_integer(1e-4, 0.0) == 0
    assert step_integer(1e-4, 7.3) == -step_integer(1e-4, -7.3) > 0
