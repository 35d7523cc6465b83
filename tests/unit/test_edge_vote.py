"""Signs instead of numbers: what is said, and how far one record can move it."""

import itertools
import math

import numpy as np
import pytest

from edge_runtime.protocol.rounds import Vote
from edge_runtime.vote import sign, spoken
from server.errors import ConfigurationError
from server.optimizer import votes_decided
from server.privacy.units import vote_sensitivity

SCALARS = (0.5, -2.0, 0.0)
NOISE = (-0.7 + 1j, 0.1 - 2j, 0.3 + 0j)


def test_without_a_vote_numbers_are_said_with_their_noise():
    assert spoken(SCALARS, NOISE, Vote.NONE) == (0.5 - 0.7 + 1j, -2.0 + 0.1 - 2j, 0.3 + 0j)


def test_noise_before_the_sign_can_turn_it_and_is_gone_afterwards():
    assert spoken(SCALARS, NOISE, Vote.NOISE_BEFORE) == (-1, -1, 1)
    assert spoken((0.0,), (0j,), Vote.NOISE_BEFORE) == (0,)


def test_noise_after_the_sign_lies_on_it():
    assert spoken(SCALARS, NOISE, Vote.NOISE_AFTER) == (1 - 0.7 + 1j, -1 + 0.1 - 2j, 0.3 + 0j)


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
    with pytest.raises(ConfigurationError, match="num_votes: got"):
        vote_sensitivity(bad)


def test_a_majority_is_all_or_nothing_and_a_soft_vote_is_neither():
    means = (0.2, -0.6, 0.0, 1.7)
    assert votes_decided(means, "majority", 2.0) == (2.0, -2.0, 0.0, 2.0)
    assert votes_decided(means, "soft", 2.0) == (0.4, -1.2, 0.0, 2.0)
