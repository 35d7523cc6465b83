r"""What an attack proves about epsilon: lower bounds that hold with a stated probability.

Distinguishing. Under (epsilon, delta) no test of two neighbouring data sets has a hit rate h and a
false alarm rate f with h > e^epsilon f + delta. From counts, with Clopper-Pearson bounds on both,

    epsilon  >=  ln( (h_low - delta) / f_high )            with probability 1 - alpha

Whole profiles. A mechanism that was charged as a composition of subsampled Gaussian ones allows
every epsilon e its own delta(e), so no test has h > e^e f + delta(e) for any e, nor, called the
other way round, 1 - f > e^e (1 - h) + delta(e). A test that has one refutes the charge, though its
epsilon at the promised delta may be far off: such tests see smaller faults.

One run with many canaries. Each of m examples is in or out by a coin of its own, the attacker looks
at all that was released and guesses r of the coins, v rightly. Under (epsilon, delta) the number of
right guesses is, but for what delta allows, at most as large as one of Binomial(r, p) with
p = 1 / (1 + e^-epsilon), so that

    P(v or more)  <=  P(Binomial >= v) + 2 m delta max_i P(v > Binomial >= v - i) / i

and the epsilon at which this is alpha is a lower bound with probability 1 - alpha.

Sources: Kairouz, Oh and Viswanath 2015 for the first; Steinke, Nasr and Jagielski, "Privacy
Auditing with One (1) Training Run" (NeurIPS 2023), theorem 5.2 and appendix D, for the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta, binom

from radio.bisection import bisect

_LARGEST_EPSILON = 50.0
_BISECTIONS = 60


def epsilon_from_rates(
    hits: int, false_alarms: int, num_trials: int, *, delta: float, alpha: float
) -> float:
    """What a test of two neighbouring data sets proves.

    Args:
        hits: of the trials with the record, those it called so.
        false_alarms: of the trials without, those it called with.
        num_trials: of each kind, >= 1.
        delta: of the statement.
        alpha: probability that the bound is above the true epsilon.

    Returns:
        The bound, 0 where nothing is proved.
    """
    least_hit_rate = _clopper_pearson_low(hits, num_trials, alpha / 2.0)
    most_alarms = 1.0 - _clopper_pearson_low(num_trials - false_alarms, num_trials, alpha / 2.0)
    if least_hit_rate <= delta:
        return 0.0
    return max(0.0, math.log((least_hit_rate - delta) / most_alarms))


Profile = Sequence[tuple[float, float]]
"""Pairs of epsilon and the delta that a mechanism allows it."""


def is_refuted(
    profile: Profile, hits: int, false_alarms: int, num_trials: int, *, alpha: float
) -> bool:
    """Whether a test of two neighbouring data sets is better than a mechanism allows.

    Args:
        profile: of the mechanism that was charged, for neighbours either way round.
        hits: of the trials with the record, those it called so.
        false_alarms: of the trials without, those it called with.
        num_trials: of each kind, >= 1.
        alpha: probability that a sound mechanism is refuted.
    """
    least_hits = _clopper_pearson_low(hits, num_trials, alpha / 2.0)
    least_rejections = _clopper_pearson_low(num_trials - false_alarms, num_trials, alpha / 2.0)
    return any(
        least_hits > math.exp(epsilon) * (1.0 - least_rejections) + delta
        or least_rejections > math.exp(epsilon) * (1.0 - least_hits) + delta
        for epsilon, delta in profile
    )


def epsilon_from_guesses(
    num_right: int, num_guesses: int, num_canaries: int, *, delta: float, alpha: float
) -> float:
    """What guesses about one run's canaries prove.

    Args:
        num_right: v.
        num_guesses: r >= v.
        num_canaries: m >= r, each in or out by a fair coin that the run alone knows.
        delta: of the statement.
        alpha: probability that the bound is above the true epsilon.

    Returns:
        The bound, 0 where nothing is proved.
    """
    if not 0 <= num_right <= num_guesses <= num_canaries:
        raise ValueError(
            f"num_right, num_guesses, num_canaries: got {num_right}, {num_guesses}, "
            f"{num_canaries}; wanted 0 <= right <= guesses <= canaries."
        )

    def is_refuted(epsilon: float) -> bool:
        return (
            chance_of_guesses(num_right, num_guesses, num_canaries, epsilon=epsilon, delta=delta)
            < alpha
        )

    if not is_refuted(0.0):
        return 0.0
    return bisect(is_refuted, 0.0, _LARGEST_EPSILON, _BISECTIONS)[0]


def chance_of_guesses(
    num_right: int, num_guesses: int, num_canaries: int, *, epsilon: float, delta: float
) -> float:
    """The most that (epsilon, delta) lets so many right guesses, or more, be likely."""
    probability = 1.0 / (1.0 + math.exp(-epsilon))
    at_least = float(binom.sf(num_right - 1, num_guesses, probability))
    fewer = np.arange(1, num_right + 1)
    just_below = np.cumsum(binom.pmf(num_right - fewer, num_guesses, probability)) / fewer
    by_delta = 2.0 * num_canaries * delta * float(just_below.max(initial=0.0))
    return min(1.0, at_least + by_delta)


def _clopper_pearson_low(successes: int, num_trials: int, alpha: float) -> float:
    if successes == 0:
        return 0.0
    return float(beta.ppf(alpha, successes, num_trials - successes + 1))
