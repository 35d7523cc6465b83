r"""Power policy ``optimal``: least noise of the means, in closed form.

Each round's price is constant or proportional to tau (`server.power.round_costs`), and grows with
it, so the tau at which the budget is spent is the root of a monotone piecewise linear function. If
all rounds at their largest price stay below the budget, they are that: the receiver's noise is
enough, and privacy costs nothing.

Source: theory.md, section 5.2; with rho = 1 the corrected form of the paper's theorem 3.
"""

from __future__ import annotations

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.power.causal_policy import CausalPolicy, Response
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)
from server.power.water_filling import fill

NAME = "optimal"


def optimal_for(problem: PlanningProblem, speakers: BoolArray, policy: str) -> Schedule:
    """The best schedule for given speakers [K, T], under the name of a policy.

    Guarantees: within the budget and the peak limits; no other schedule with these speakers has a
    smaller objective; of equally good ones it has the most artificial noise.

    Raises:
        ConfigurationError: see `PlanningProblem`.
    """
    rounds = RoundCosts.of(problem, speakers)
    costs = fill(rounds.at, problem.budget, rounds.largest)
    return with_most_artificial_noise(problem, policy, costs, speakers).check()


def _respond(problem: PlanningProblem, may_speak: BoolArray) -> Response:
    rounds = RoundCosts.of(problem, may_speak)
    return lambda x: (rounds.at(x), may_speak)


AS_IT_GOES = CausalPolicy(NAME, _respond)
"""Everybody who may speak does."""


def own_noise_shares(weights: Float64Array, sensitivities: Float64Array) -> Float64Array:
    """b = Delta sqrt(omega): what each round gets of the budget, up to a factor [T].

    The optimum where devices are covered by their own noise alone, and no price is the largest.
    """
    shares: Float64Array = sensitivities * np.sqrt(weights)
    return shares


def everybody(problem: PlanningProblem) -> BoolArray:
    """All devices in all rounds [K, T]."""
    return np.ones(problem.power_gains.shape, dtype=bool)
