r"""Power policy ``sign``: coherent votes, sums of signs with noise after them.

Noise turns a majority with a probability that Cantelli's inequality bounds, e0 being that of one
device's sign to be wrong and x the noise variance of the received sum, in votes:

    e_t <= (V + x_t) / (V + x_t + B2),     V = 4 K e0 (1 - e0),   B2 = K^2 (1 - 2 e0)^2

    minimise  sum_t omega_t e_t      subject to  sum_t Delta^2 / (2 v_t) <= R

With u = 1/v, and x a linear function of v on either side of v_fit (`server.power.round_costs`),

    x = kappa v + d,      u(tau) = ( sqrt(omega B2 kappa) tau - kappa ) / (V + B2 + d)

between 0 and its largest value. Rounds with u = 0 are **silent**: a vote drowned in its noise moves
the model as a coin would, and would cost privacy on top. (The paper's printed root is negative
there, and its rule then sends at full power.)

Source: theory.md, section 5.4, corrected there; the general rho is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.errors import ConfigurationError
from server.power.causal_policy import CausalPolicy, Response
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    PlanningProblem,
)

NAME = "sign"


def as_it_goes(wrong_sign_probability: float) -> CausalPolicy:
    """The policy ``sign``, one round at a time.

    Args:
        wrong_sign_probability: e0, below one half.
    """

    def respond(problem: PlanningProblem, may_speak: BoolArray) -> Response:
        check_votes(problem, wrong_sign_probability)
        rounds = RoundCosts.of(problem, may_speak)
        costs_at = prices(problem, rounds, wrong_sign_probability)
        return lambda x: (costs_at(x), may_speak)

    return CausalPolicy(NAME, respond)


def prices(
    problem: PlanningProblem, rounds: RoundCosts, wrong_sign_probability: float
) -> Callable[[float], Float64Array]:
    """y(tau) of votes."""
    spread, margin = vote_moments(rounds.num_speakers, wrong_sign_probability)
    squared = np.square(problem.sensitivities)
    untrusted = problem.noise_power - problem.trusted_noise
    below = untrusted / (rounds.total_reach + problem.trusted_noise)

    def candidate(tau: float, kappa: Float64Array, shift: Float64Array) -> Float64Array:
        """Price at which the derivative of the bound is 1 / tau^2 a unit of y."""
        u = (np.sqrt(problem.weights * margin * kappa / squared * 2.0) * tau - kappa) / (
            np.maximum(spread + margin + shift, 1e-300)
        )
        return np.maximum(u, 0.0) * squared / 2.0

    def at(tau: float) -> Float64Array:
        loud = candidate(tau, np.ones_like(below), untrusted * rounds.least)
        quiet = candidate(tau, 1.0 + below, below * rounds.total_need)
        beyond = np.maximum(rounds.fitting, loud)
        costs: Float64Array = np.minimum(
            rounds.largest, np.where(quiet <= rounds.fitting, quiet, beyond)
        )
        return costs

    return at


def vote_moments(
    num_voters: Float64Array, wrong_sign_probability: float
) -> tuple[Float64Array, Float64Array]:
    """V and B2 of so many voters."""
    e0 = wrong_sign_probability
    return 4.0 * num_voters * e0 * (1.0 - e0), (num_voters * (1.0 - 2.0 * e0)) ** 2


def check_votes(problem: PlanningProblem, wrong_sign_probability: float) -> None:
    """Return if the problem is one of votes.

    Raises:
        ConfigurationError: it is not.
    """
    if not 0.0 <= wrong_sign_probability < 0.5:
        raise ConfigurationError(
            f"wrong_sign_probability: got {wrong_sign_probability}, wanted 0 to below 0.5: signs "
            "that are right no more often than a coin carry nothing."
        )
    if not np.all(problem.bounds == 1.0):
        raise ConfigurationError("bounds: wanted 1 for every device, the amplitude of a vote.")
