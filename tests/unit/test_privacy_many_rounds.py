"""Rounds composed with themselves: the library's composition, held against the library's own."""

import numpy as np
import pytest

from server.privacy.composition import FFT_DELTA_PER_ROUND
from server.privacy.many_rounds import TRUNCATED_MASS, RoundLoss
from server.privacy.subsampled_gaussian import one_round

PRICES = [
    (2.0, 0.05, 2.5e-4),
    (0.6, 0.016, 2e-3),  # so little noise that few losses are left out
    (4.0, 0.01, 2.4e-5),
    (0.5, 0.5, 2e-3),
    (9.0, 1.0, 2.5e-4),  # nothing subsampled: one side is as the other
    (50.0, 0.001, 1e-5),  # so few losses that the library keeps them one by one
]


def sides(distribution):
    return [
        (pmf._lower_loss, pmf.size, pmf._infinity_mass)
        for pmf in (distribution._pmf_remove, distribution._pmf_add)
    ]


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("num_rounds", [2, 20, 700])
def test_they_are_what_the_library_makes_of_them(price, num_rounds):
    alone = one_round(*price)
    ours, wanted = RoundLoss(alone).composed(num_rounds), alone.self_compose(num_rounds)
    if hasattr(wanted._pmf_remove, "_probs"):
        assert sides(ours) == sides(wanted)
    # They differ by less than what is set aside for rounding in the composition.
    reserve = num_rounds * FFT_DELTA_PER_ROUND
    for delta in (1e-9, 1e-5, 1e-2):
        found = ours.get_epsilon_for_delta(delta)
        assert found <= wanted.get_epsilon_for_delta(delta - reserve) * (1.0 + 1e-9)
        assert found >= wanted.get_epsilon_for_delta(delta + reserve) * (1.0 - 1e-9)


def test_the_mass_that_is_left_out_counts_as_an_infinite_loss():
    alone = one_round(2.0, 0.05, 2.5e-4)
    composed = RoundLoss(alone).composed(300)
    for before, pmf in zip(
        (alone._pmf_remove, alone._pmf_add), (composed._pmf_remove, composed._pmf_add), strict=True
    ):
        beyond = 1.0 - (1.0 - before._infinity_mass) ** 300
        assert pmf._infinity_mass == pytest.approx(beyond + TRUNCATED_MASS, abs=1e-16)
        assert np.sum(pmf._probs) == pytest.approx(np.sum(before._probs) ** 300, abs=1e-9)


def test_of_many_rounds_the_moments_are_computed_once_and_one_round_is_itself(monkeypatch):
    loss = RoundLoss(one_round(2.0, 0.05, 2.5e-4))
    assert loss.composed(1) is loss.distribution
    loss.composed(5)
    monkeypatch.setattr("server.privacy.many_rounds._MAX_ORDER", None)
    loss.composed(6)
    with pytest.raises(TypeError):
        RoundLoss(loss.distribution).composed(6)
