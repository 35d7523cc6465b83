"""Lower bounds on epsilon from counts: hand-computed, never above what the counts allow."""

import math

import pytest
from scipy.stats import binom

from server.privacy.audit import chance_of_guesses, epsilon_from_guesses, epsilon_from_rates


def test_a_perfect_test_proves_what_so_many_trials_can():
    """0 of n and n of n: Clopper-Pearson limits are (alpha/2)^(1/n) in closed form."""
    n, alpha, delta = 1000, 1e-3, 1e-5
    least = (alpha / 2) ** (1 / n)
    wanted = math.log((least - delta) / (1 - least))
    assert epsilon_from_rates(n, 0, n, delta=delta, alpha=alpha) == pytest.approx(wanted, rel=1e-9)


def test_a_test_that_guesses_proves_nothing():
    assert epsilon_from_rates(500, 500, 1000, delta=0.0, alpha=1e-3) == 0.0
    assert epsilon_from_rates(0, 1000, 1000, delta=0.0, alpha=1e-3) == 0.0
    assert epsilon_from_rates(0, 0, 1000, delta=1e-5, alpha=1e-3) == 0.0


def test_delta_takes_from_the_hits():
    exact = epsilon_from_rates(900, 10, 1000, delta=0.0, alpha=1e-3)
    assert epsilon_from_rates(900, 10, 1000, delta=0.5, alpha=1e-3) < exact - 0.5


def test_pure_privacy_allows_as_many_right_guesses_as_randomised_response():
    """delta = 0: the chance is a binomial tail, 0.75 right at epsilon = ln 3."""
    chance = chance_of_guesses(90, 100, 200, epsilon=math.log(3), delta=0.0)
    assert chance == pytest.approx(binom.sf(89, 100, 0.75), rel=1e-12)
    bound = epsilon_from_guesses(90, 100, 200, delta=0.0, alpha=1e-3)
    assert chance_of_guesses(90, 100, 200, epsilon=bound, delta=0.0) == pytest.approx(1e-3)


def test_the_part_of_delta_is_that_of_the_source():
    """By its definition, term by term, for small numbers."""
    right, made, canaries, epsilon, delta = 7, 9, 20, 0.8, 1e-3
    p = 1 / (1 + math.exp(-epsilon))
    worst = max(
        sum(binom.pmf(k, made, p) for k in range(right - i, right)) / i for i in range(1, right + 1)
    )
    wanted = binom.sf(right - 1, made, p) + 2 * canaries * delta * worst
    found = chance_of_guesses(right, made, canaries, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_guesses_no_better_than_coins_prove_nothing_and_all_right_no_infinity():
    assert epsilon_from_guesses(50, 100, 100, delta=1e-5, alpha=1e-3) == 0.0
    assert 4.0 < epsilon_from_guesses(1000, 1000, 1000, delta=0.0, alpha=1e-3) < 6.0
    # What delta allows is bounded by m delta: with much of it nothing is proved.
    assert epsilon_from_guesses(1000, 1000, 1000, delta=1e-3, alpha=1e-3) == 0.0


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="right <= guesses <= canaries"):
        epsilon_from_guesses(5, 4, 10, delta=0.0, alpha=0.1)
