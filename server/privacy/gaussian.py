r"""Gaussian differential privacy, exactly: what rounds without subsampling cost, and add up to.

A Gaussian mechanism of sensitivity Delta and noise sigma is mu-GDP with mu = Delta / sigma; rounds
add up in squares, mu^2 = sum mu_t^2, also where a round is chosen by what earlier ones said, as
long as the sum is held. It is (epsilon, delta)-differentially private exactly if

    delta >= Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)

Budgets are counted in y = mu^2 / 2, the zCDP of the same mechanism. Every function rounds to the
safe side: an epsilon up, a mu down.

Source: Dong, Roth, Su, "Gaussian Differential Privacy" (JRSS B, 2022), corollary 2.13 and theorem
3.10; adaptive choices: Smith and Thakurta (2022).
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr

from radio.bisection import bisect
from server.errors import PrivacyError

_ROUNDING = 1e-9
"""Relative room for the rounding of the formula, far above what log_ndtr and exp lose."""

_MAX_MU, _MAX_EPSILON = 1e3, 1e6
_BISECTIONS = 200


def delta_of(epsilon: float, gdp_mu: float) -> float:
    """The least delta at which mu-GDP keeps epsilon, rounded up.

    Args:
        epsilon: >= 0.
        gdp_mu: mu > 0.

    Raises:
        PrivacyError: a value out of range.
    """
    _check("epsilon", epsilon, at_least=0.0)
    _check("gdp_mu", gdp_mu, at_least=0.0)
    if gdp_mu == 0.0:
        return 0.0
    upper = math.exp(float(log_ndtr(-epsilon / gdp_mu + gdp_mu / 2.0)))
    lower = math.exp(epsilon + float(log_ndtr(-epsilon / gdp_mu - gdp_mu / 2.0)))
    return min(1.0, max(0.0, upper - lower) + _ROUNDING * upper)


def epsilon_of(gdp_mu: float, delta: float) -> float:
    """The least epsilon that mu-GDP keeps at delta, rounded up.

    Raises:
        PrivacyError: a value out of range, or an epsilon beyond 1e6.
    """
    _check_delta(delta)
    if delta_of(0.0, gdp_mu) <= delta:
        return 0.0
    if delta_of(_MAX_EPSILON, gdp_mu) > delta:
        raise PrivacyError(f"gdp_mu: {gdp_mu:g} keeps no epsilon below {_MAX_EPSILON:g}.")
    _, kept = bisect(
        lambda epsilon: delta_of(epsilon, gdp_mu) > delta, 0.0, _MAX_EPSILON, _BISECTIONS
    )
    return kept


def gdp_mu_of(epsilon: float, delta: float) -> float:
    """The largest mu that keeps (epsilon, delta), rounded down.

    Raises:
        PrivacyError: a value out of range, or nothing may be said at all.
    """
    _check("epsilon", epsilon, at_least=0.0)
    _check_delta(delta)
    gdp_mu, _ = bisect(lambda mu: delta_of(epsilon, mu) <= delta, 0.0, _MAX_MU, _BISECTIONS)
    if gdp_mu <= 0.0:
        raise PrivacyError(f"({epsilon:g}, {delta:g}): no round at all keeps it.")
    return gdp_mu


def central_limit_multiplier(mu: float, sampling_probability: float, num_rounds: int) -> float:
    """The multiplier m at which subsampled rounds come to mu-GDP in the limit of many.

    q sqrt(T (exp(1/m^2) - 1)) = mu; the limit may lie on either side of what rounds cost, so it is
    good for a first look, and no promise (Dong, Roth and Su 2022).
    """
    return 1.0 / math.sqrt(math.log1p((mu / sampling_probability) ** 2 / num_rounds))


def budget_of(epsilon: float, delta: float) -> float:
    """R, the largest sum of y = mu^2 / 2 over all rounds that keeps (epsilon, delta)."""
    mu = gdp_mu_of(epsilon, delta)
    return math.nextafter(mu * mu / 2.0, 0.0)


def _check(name: str, value: float, *, at_least: float) -> None:
    if not (math.isfinite(value) and value >= at_least):
        raise PrivacyError(f"{name}: got {value}, wanted a finite number >= {at_least:g}.")


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise PrivacyError(f"delta: got {delta}, wanted between 0 and 1.")
