"""Losses composed, and their epsilons and deltas: dp_accounting's algorithms, against its own."""

import math

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf, privacy_loss_distribution

from server.privacy.composition import FFT_DELTA_PER_ROUND
from server.privacy.loss_distribution import TRUNCATED_MASS, LossDistribution, Losses
from server.privacy.subsampled_gaussian import one_round

PRICES = [
    (2.0, 0.05, 2.5e-4),
    (0.6, 0.016, 2e-3),  # so little noise that few losses are left out
    (4.0, 0.01, 2.4e-5),
    (0.5, 0.5, 2e-3),
    (9.0, 1.0, 2.5e-4),  # nothing subsampled: one way is as the other
    (50.0, 0.001, 1e-5),  # so few losses that the library keeps them one by one
]
DELTAS = [1e-12, 1e-9, 1e-5, 1e-2, 0.5]


def of_library(ours):
    """The library's distribution of the same losses."""
    pmfs = [
        pld_pmf.DensePLDPmf(way.width, way.lowest, way.masses, way.infinite, True)
        for way in (ours.removed, ours.added)
    ]
    return privacy_loss_distribution.PrivacyLossDistribution(
        *(pmfs[:1] if ours.added is ours.removed else pmfs)
    )


def ways(distribution):
    if isinstance(distribution, LossDistribution):
        return [distribution.removed, distribution.added]
    dense = [p.to_dense_pmf() for p in (distribution._pmf_remove, distribution._pmf_add)]
    return [Losses(d._discretization, d._lower_loss, d._probs, d._infinity_mass) for d in dense]


def are_alike(ours, theirs, rounding):
    """The same grid of losses, masses but for rounding, and the same infinite one."""
    for way, wanted in zip(ways(ours), ways(theirs), strict=True):
        assert (way.width, way.lowest, len(way.masses)) == (
            wanted.width, wanted.lowest, len(wanted.masses)
        )  # fmt: skip
        assert np.max(np.abs(way.masses - wanted.masses)) < rounding
        assert way.infinite == pytest.approx(wanted.infinite, rel=1e-9, abs=1e-18)
    return True


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("num_rounds", [2, 20, 700])
def test_rounds_of_one_price_are_what_the_library_makes_of_them(price, num_rounds):
    alone = one_round(*price)
    assert are_alike(
        alone.times(num_rounds), of_library(alone).self_compose(num_rounds),
        num_rounds * FFT_DELTA_PER_ROUND,
    )  # fmt: skip


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("other", PRICES)
def test_two_prices_are_what_the_library_makes_of_them(price, other):
    one, two = (one_round(*p[:2], 1e-3) for p in (price, other))
    assert are_alike(one.plus(two), of_library(one).compose(of_library(two)), 1e-15)


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("num_rounds", [1, 60])
def test_epsilons_and_deltas_are_the_librarys(price, num_rounds):
    ours = one_round(*price).times(num_rounds)
    theirs = of_library(ours)
    rounding = FFT_DELTA_PER_ROUND * num_rounds if num_rounds > 1 else 0.0
    for delta in (delta for delta in DELTAS if delta > 2.0 * rounding):
        epsilon = ours.epsilon_at(delta)
        most, least = (theirs.get_epsilon_for_delta(delta + r) for r in (-rounding, rounding))
        assert least * (1.0 - 1e-9) - 1e-12 <= epsilon <= most * (1.0 + 1e-9) + 1e-12
        if 0.0 < epsilon < math.inf:
            assert ours.delta_at(epsilon) == pytest.approx(delta, rel=1e-6, abs=1e-15 + rounding)
    for epsilon in (0.0, 1e-3, 0.4, 3.0, 1e3):
        wanted = theirs.get_delta_for_epsilon(epsilon)
        assert ours.delta_at(epsilon) == pytest.approx(wanted, rel=1e-12, abs=1e-18)


def losses(lowest, masses, infinite=0.0, width=0.5):
    return Losses(width, lowest, np.array(masses, dtype=np.float64), infinite)


@pytest.mark.parametrize(
    ("way", "delta", "epsilon"),
    [
        (losses(-3, [0.5, 0.5]), 0.1, 0.0),  # none is above 0
        (losses(-3, [0.5]), 0.1, 0.0),
        (losses(4, [1.0]), 0.1, 2.0 + math.log(0.9)),
        (losses(4, [1.0]), 0.95, 0.0),  # below every loss there is
        (losses(4, [1.0]), 1.0, 0.0),
        (losses(0, [0.5, 0.0, 0.0, 0.5]), 0.25, 1.5 - math.log(2)),
        (losses(0, [0.9], infinite=0.1), 0.05, math.inf),
        (losses(0, [0.9], infinite=0.1), 0.1, 0.0),
        (losses(4000, [0.5, 0.5]), 0.75, 2000.0 + math.log(0.25 / (0.5 + 0.5 * math.exp(-0.5)))),
    ],
)  # fmt: skip
def test_an_epsilon_lies_between_two_losses_or_at_an_end(way, delta, epsilon):
    assert way.epsilon_at(delta) == pytest.approx(epsilon, rel=1e-12)
    if 0.0 < epsilon < math.inf:
        assert way.delta_at(epsilon) == pytest.approx(delta, rel=1e-9)


def test_what_is_left_out_counts_as_an_infinite_loss_or_as_the_least_that_is_kept():
    alone = one_round(2.0, 0.05, 2.5e-4)
    for before, after in zip(ways(alone), ways(alone.times(300)), strict=True):
        beyond = 1.0 - (1.0 - before.infinite) ** 300
        assert after.infinite == pytest.approx(beyond + TRUNCATED_MASS, abs=1e-16)
        assert after.masses.sum() == pytest.approx(before.masses.sum() ** 300, abs=1e-9)
    tails = losses(-2, [1e-16, 1e-16, 0.6, 0.4, 1e-16, 1e-16])
    both = tails.plus(losses(0, [1.0]))
    assert (both.lowest, len(both.masses)) == (0, 2)
    assert both.masses[0] == pytest.approx(0.6, abs=1e-12) and both.infinite > 1e-16


def test_of_many_rounds_the_moments_are_computed_once_and_one_round_is_itself(monkeypatch):
    loss = one_round(2.0, 0.05, 2.5e-4)
    assert loss.times(1) is loss
    loss.times(5)
    monkeypatch.setattr("server.privacy.loss_distribution._MAX_ORDER", None)
    loss.times(6)
    with pytest.raises(TypeError):
        one_round(2.0, 0.05, 2.5e-4).times(6)
