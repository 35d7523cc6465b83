"""Does the mechanism keep the promise, and the noise the plan? With stated alarm probability."""

import math

import dp_accounting
import numpy as np
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.pld import privacy_loss_distribution as pld
from privacy_records import make_record
from scipy.stats import binom, chi2

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit, sum_sensitivity
from edge_runtime.spsa import clip_to_ball, estimate_scalars
from server.power.channel_inversion import plan_static
from server.privacy.accountant import Accountant
from server.privacy.audit import epsilon_from_rates, is_refuted
from server.privacy.calibration import calibrate_noise_multiplier

ALPHA = 1e-6
DELTA = 1e-5
NUM_TRIALS = 200_000
NUM_ROUNDS = 4
RATE = 0.5


def claimed_epsilon(multiplier):
    record = make_record(rate=RATE, certified_noise_std=multiplier)
    accountant = Accountant(epsilon=8.0, delta=DELTA)
    accountant.compose_all([record] * NUM_ROUNDS)
    return accountant.spent(0)


def audited_epsilon(true_multiplier, threshold, seed):
    """A lower bound on epsilon by guessing, from transcripts, whether a canary took part.

    The guess is the optimal one (likelihood ratio above a fixed threshold).
    """
    rng = np.random.default_rng(seed)
    shape = (NUM_TRIALS, NUM_ROUNDS)

    def guesses(with_canary):
        sums = true_multiplier * rng.standard_normal(shape)
        if with_canary:
            sums += rng.random(shape) < RATE
        ratio = np.exp((2 * sums - 1) / (2 * true_multiplier**2))
        return int(np.sum(np.log1p(RATE * (ratio - 1)).sum(axis=1) > threshold))

    return epsilon_from_rates(guesses(True), guesses(False), NUM_TRIALS, delta=DELTA, alpha=ALPHA)


def test_no_audit_refutes_the_claim_and_half_the_noise_is_caught():
    """H0: epsilon is at most the claim. n = 2 x 200,000 runs; false alarm 1e-6.

    Negative control: noise halved, the smallest defect this must catch.
    """
    multiplier = calibrate_noise_multiplier(
        epsilon=1.5, delta=DELTA, sampling_probability=RATE, num_rounds=NUM_ROUNDS, num_records=100
    )
    claim = claimed_epsilon(multiplier)
    assert 1.49 < claim <= 1.5
    threshold = 1.1 * claim
    assert audited_epsilon(multiplier, 0.3 * claim, seed=1) <= claim
    assert audited_epsilon(multiplier, 0.6 * claim, seed=2) <= claim
    assert audited_epsilon(multiplier / 2, threshold, seed=3) > claim


def test_a_whole_profile_refutes_what_one_epsilon_does_not():
    """H0: the noise is what was charged. n = 2 x 200,000; false alarm 1e-6.

    Negative control: 5 % less noise, which the epsilon at the promised delta does not see.
    """
    std, thresholds = 0.6, (-1.0, 0.0, 1.0, 2.0)
    mechanism = pld.from_gaussian_mechanism(std, value_discretization_interval=1e-3)
    epsilons = [0.25 * step for step in range(40)]
    profile = list(zip(epsilons, mechanism.get_delta_for_epsilon(epsilons), strict=True))
    claim = mechanism.get_epsilon_for_delta(DELTA)

    def judged(share, seed):
        rng = np.random.default_rng(seed)
        scores = [
            ((with_canary + share * std * rng.standard_normal(NUM_TRIALS)) - 0.5) / std**2
            for with_canary in (1.0, 0.0)
        ]
        counts = [[int(np.count_nonzero(s > t)) for s in scores] for t in thresholds]
        each = ALPHA / len(thresholds)
        refuted = any(is_refuted(profile, *both, NUM_TRIALS, alpha=each) for both in counts)
        proved = max(
            epsilon_from_rates(*both, NUM_TRIALS, delta=DELTA, alpha=each) for both in counts
        )
        return refuted, proved

    refuted, proved = judged(1.0, seed=11)
    assert not refuted
    assert proved <= claim
    refuted, proved = judged(0.95, seed=12)
    assert refuted
    assert proved <= claim


def audited_epsilon_of_vectors(true_multiplier, canary, threshold, seed):
    """The same for rounds of Q numbers: the canary is a vector, every number has its own noise."""
    rng = np.random.default_rng(seed)
    num_trials, num_directions = NUM_TRIALS // 4, len(canary)

    def guesses(with_canary):
        score = np.zeros(num_trials)
        for _ in range(NUM_ROUNDS):
            sums = true_multiplier * rng.standard_normal((num_trials, num_directions))
            if with_canary:
                sums += (rng.random(num_trials) < RATE)[:, None] * canary
            # The likelihood ratio knows the canary's vector: the noise is isotropic.
            exponent = (2 * sums @ canary - canary @ canary) / (2 * true_multiplier**2)
            score += np.log1p(RATE * (np.exp(exponent) - 1))
        return int(np.sum(score > threshold))

    return epsilon_from_rates(guesses(True), guesses(False), num_trials, delta=DELTA, alpha=ALPHA)


def test_a_vector_of_numbers_costs_what_one_costs_and_a_box_clip_is_caught():
    """H0: epsilon is at most the claim for one number. n = 2 x 50,000 runs; false alarm 1e-6.

    The canary's gradients are far beyond the clip in each of 16 directions. Clipped to the ball it
    is a shift of norm 1. Negative control: clipped to a box, number by number, it is one of 4.
    """
    num_directions = 16
    multiplier = calibrate_noise_multiplier(
        epsilon=1.5, delta=DELTA, sampling_probability=RATE, num_rounds=NUM_ROUNDS, num_records=100
    )
    claim = claimed_epsilon(multiplier)
    gradients = np.where(np.arange(num_directions) % 2, 7.0, -7.0)[None, :]
    (in_ball,), (in_box,) = clip_to_ball(gradients, 1.0), np.clip(gradients, -1.0, 1.0)
    for part in (0.3, 0.6):
        assert audited_epsilon_of_vectors(multiplier, in_ball, part * claim, seed=7) <= claim
    assert audited_epsilon_of_vectors(multiplier, in_box, 1.1 * claim, seed=8) > claim


def test_the_price_of_a_vector_is_that_of_dp_accounting_for_the_norm():
    """A Gaussian mechanism on a vector has the loss of one number that moves by the vector's norm.

    The same composition by dp-accounting's own accountant, from sensitivity and noise.
    """
    clip, batch_size, num_directions = 20.0, 16, 8
    sensitivity = sum_sensitivity(
        clip=clip,
        batch_size=batch_size,
        unit=PrivacyUnit.EXAMPLE,
        relation=NeighbouringRelation.ZERO_OUT_ONE,
    )
    record = np.random.default_rng(9).normal(0, 100, (1, num_directions))
    with_record = estimate_scalars(record, clip=clip, batch_size=batch_size).clipped_scalars
    assert math.hypot(*with_record) <= sensitivity
    multiplier = 1.2
    event = dp_accounting.PoissonSampledDpEvent(RATE, dp_accounting.GaussianDpEvent(multiplier))
    accountant = pld_privacy_accountant.PLDAccountant()
    reference = accountant.compose(event, NUM_ROUNDS).get_epsilon(DELTA)
    # Our multiplier is rounded down to a grid of 0.07 %, and our loss grid is another one.
    assert reference <= claimed_epsilon(multiplier) <= reference * 1.01


def test_the_sum_of_the_planned_noises_has_the_required_variance():
    """H0: variance of the sum = required^2. n = 100,000, alpha 1e-6 two-sided (chi squared).

    Must catch a standard deviation that is 5 % too small (negative control).
    """
    required, num_draws = 3.0, 100_000
    rng = np.random.default_rng(4)
    gains = rng.standard_normal(7) + 1j * rng.standard_normal(7)
    plan = plan_static(
        gain_estimates=gains,
        max_amplitude=1.0,
        scalar_bound=1.0,
        required_noise_std=required,
        min_gain=0.3,
    )
    stds = np.array(list(plan.artificial_noise_std.values()))
    total = (rng.standard_normal((num_draws, len(stds))) * stds).sum(axis=1)
    low, high = chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], num_draws)

    def is_alarm(draws):
        return not low <= np.sum(np.square(draws)) / required**2 <= high

    assert not is_alarm(total)
    assert is_alarm(0.95 * total)


def test_the_peak_is_exceeded_no_more_often_than_the_stated_tail():
    """H0: P(abs(p + n) > limit) <= exp(-f^2 / 2) for circular noise, here with f = 3.

    n = 1,000,000; alarm above the exact binomial point with alpha 1e-6. Control: 10 % more noise.
    """
    num_draws, factor = 1_000_000, 3.0
    rng = np.random.default_rng(6)
    plan = plan_static(
        gain_estimates=np.array([1.0 + 0j]),
        max_amplitude=1.0,
        scalar_bound=1.0,
        required_noise_std=2.0,
        min_gain=0.5,
        peak_factor=factor,
    )
    noise = rng.standard_normal((2, num_draws)) * plan.artificial_noise_std[0]
    worst = binom.ppf(1 - ALPHA, num_draws, math.exp(-(factor**2) / 2))

    def exceedances(scale, scalar):
        samples = plan.tx_gains[0] * (scalar + scale * (noise[0] + 1j * noise[1]))
        return np.count_nonzero(np.abs(samples) > 1.0)

    assert exceedances(1.0, 1.0) <= worst
    # Without a scalar the limit leaves G / sigma = 0.5 more: the control takes that away too.
    assert exceedances(1.1 * (1.0 + factor * 2.0) / (factor * 2.0), 0.0) > worst
