"""Learning rate, bound and integer step."""

import itertools
import math
from fractions import Fraction

import pytest

from server.config.learning import OptimizerSection
from server.run.optimizer import hold_within, learning_rate, step_integers


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


@pytest.mark.parametrize("total", [1e3, -1e3, math.inf, -math.inf])
def test_a_single_mean_is_held_within_the_clip_exactly(total):
    (mean,) = hold_within((total / 3,), 0.7)
    assert abs(mean) == 0.7
    assert math.copysign(1.0, mean) == math.copysign(1.0, total)


def test_the_means_are_held_within_the_ball_that_the_devices_keep_to():
    means = hold_within((150.0, 200.0), 5.0)
    assert means == (pytest.approx(3.0), pytest.approx(4.0))
    assert math.hypot(*means) <= 5.0


def test_without_a_clip_the_means_stay_as_they_are():
    assert hold_within((5e299, 0.5), math.inf) == (5e299, 0.5)


@pytest.mark.parametrize(("rate", "mean"), [(1e-4, 3.7), (1e-4, -49.9), (1.0, 1.0), (1e-6, 1e-3)])
def test_step_integer_is_the_nearest_multiple_of_the_quantum(rate, mean):
    exact = Fraction(rate * mean) * 2**40
    assert abs(Fraction(*step_integers(rate, (mean,))) - exact) <= Fraction(1, 2)


def test_step_integer_is_odd_and_zero_at_zero():
    assert step_integers(1e-4, (0.0,)) == (0,)
    up, down = step_integers(1e-4, (7.3, -7.3))
    assert up == -down > 0


def test_the_steps_of_many_directions_are_the_average_of_what_each_alone_would_be():
    alone = [step_integers(1e-4, (mean,))[0] for mean in (7.3, -2.0, 0.4, 100.0)]
    together = step_integers(1e-4, (7.3, -2.0, 0.4, 100.0))
    assert together == tuple(pytest.approx(one / 4, abs=1) for one in alone)
