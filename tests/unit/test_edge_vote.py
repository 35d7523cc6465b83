"""Signs instead of numbers: what is said, and how far one record can move it."""

import itertools
import math

import numpy as np
import pytest

from edge_runtime.guard.sensitivity import vote_sensitivity
from edge_runtime.number_grid import NumberGrid
from edge_runtime.protocol.errors import PromiseError
from edge_runtime.protocol.rounds import Vote
from edge_runtime.vote import said_on_grid, said_plainly, sign
from server.run.optimizer import votes_decided

SCALARS = (0.5, -2.0, 0.0)
DRAWS = ((-7, 10), (1, -20), (3, 0))
EIGHTHS = NumberGrid(-3)
"""Multiples of an eighth: 0.5 is 4 steps, -2 is -16."""


def test_without_a_promise_numbers_or_signs_are_said_as_they_are():
    assert said_plainly(SCALARS, Vote.NONE) == (0.5, -2.0, 0.0)
    for vote in (Vote.NOISE_BEFORE, Vote.NOISE_AFTER):
        assert said_plainly(SCALARS, vote) == (1, -1, 0)


def test_without_a_vote_numbers_are_said_with_their_noise():
    wanted = ((4 - 7 + 10j) / 8, (-16 + 1 - 20j) / 8, (3 + 0j) / 8)
    assert said_on_grid(SCALARS, DRAWS, Vote.NONE, EIGHTHS) == wanted


def test_noise_before_the_sign_can_turn_it_and_is_gone_afterwards():
    assert said_on_grid(SCALARS, DRAWS, Vote.NOISE_BEFORE, EIGHTHS) == (-1, -1, 1)
    assert said_on_grid((0.0,), ((0, 5),), Vote.NOISE_BEFORE, EIGHTHS) == (0,)


def test_noise_after_the_sign_lies_on_it():
    wanted = ((8 - 7 + 10j) / 8, (-8 + 1 - 20j) / 8, (3 + 0j) / 8)
    assert said_on_grid(SCALARS, DRAWS, Vote.NOISE_AFTER, EIGHTHS) == wanted


def test_zero_abstains():
    assert [sign(v) for v in (3.0, -1e-300, 0.0, -0.0, math.inf)] == [1, -1, 0, 0, 1]


@pytest.mark.parametrize("num_votes", [1, 2, 3])
def test_no_two_ways_to_vote_are_further_apart_than_the_sensitivity(num_votes):
    ways = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=num_votes)))
    distances = np.linalg.norm(ways[:, None] - ways[None, :], axis=2)
    assert distances.max() == pytest.approx(vote_sensitivity(num_votes))
    assert distances.max() <= vote_sensitivity(num_votes)


@pytest.mark.parametrize("num_votes", range(1, 257))
def test_the_sensitivity_is_rounded_up(num_votes):
    from fractions import Fraction

    assert (Fraction(vote_sensitivity(num_votes)) / 2) ** 2 >= num_votes


@pytest.mark.parametrize("bad", [0, -1, 1.0, True])
def test_what_is_no_number_of_votes_is_refused(bad):
    with pytest.raises(PromiseError, match="num_votes: got"):
        vote_sensitivity(bad)


def test_a_majority_is_all_or_nothing_and_a_soft_vote_is_neither():
    means = (0.2, -0.6, 0.0, 1.7)
    assert votes_decided(means, "majority", 2.0) == (2.0, -2.0, 0.0, 2.0)
    assert votes_decided(means, "soft", 2.0) == (0.4, -1.2, 0.0, 2.0)
