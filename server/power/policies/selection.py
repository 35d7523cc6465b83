r"""Power policy ``selection``: in each round only those whose channels are worth it.

Full inversion is ruined by the weakest device where power is short. With the n best devices the
mean has noise x_n / n^2, and the level is that of the n-th best. For a multiplier zeta = 1/tau^2 of
the budget each round takes

    n = argmin over n of  omega x_n(y_n) / n^2 + zeta y_n,      y_n the price of n at tau

with x_n and y_n of `server.power.round_costs`. What is integer in it, who speaks, is decided by the
last tau that keeps the budget; the prices are then the optimum for those speakers. Who speaks is a
function of the channel and not of data, so it costs no privacy.

Systematically weak devices would never be heard, and the model would be one of the others' data. A
fairness floor f has every device speak in at least f T rounds, in its own best ones.

Source: theory.md, section 5.5; the floor is ours.
"""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import BoolArray, Float64Array
from radio.bisection import bisect
from server.errors import ConfigurationError
from server.power.causal_policy import CausalPolicy, Response
from server.power.policies.optimal import everybody, optimal_for
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule

NAME = "selection"
_BISECTIONS = 60


def plan_selection(problem: PlanningProblem, min_participation: float = 0.0) -> Schedule:
    """The best n devices of each round, n chosen for the whole run at once.

    Args:
        problem: to be solved.
        min_participation: f, the least share of rounds that each device speaks in, 0 to 1.

    Raises:
        ConfigurationError: a share out of range.
    """
    if not 0.0 <= min_participation <= 1.0:
        raise ConfigurationError(f"min_participation: got {min_participation}, wanted 0 to 1.")
    choose = _best_at(problem, everybody(problem))

    def fits(log_multiplier: float) -> bool:
        return math.fsum(choose(math.exp(log_multiplier))[0]) <= problem.budget

    log_multiplier, _ = bisect(fits, math.log(1e-60), math.log(1e60), _BISECTIONS * 2)
    _, speakers = choose(math.exp(log_multiplier))
    return optimal_for(problem, _with_floor(problem, speakers, min_participation), NAME)


def _best_at(problem: PlanningProblem, may_speak: BoolArray) -> Response:
    """The best n of those who may speak at a multiplier, and what they pay."""
    levels = np.where(may_speak, problem.least_inverse_levels, np.inf)
    order = np.argsort(levels, axis=0, kind="stable")
    ranks = np.argsort(order, axis=0, kind="stable")
    counts = [
        RoundCosts.of(problem, may_speak & (ranks < n)) for n in range(1, problem.num_devices + 1)
    ]

    def at(tau: float) -> tuple[Float64Array, BoolArray]:
        costs = np.stack([rounds.at(tau) for rounds in counts])
        noise = np.stack([r.mean_noise(own) for r, own in zip(counts, costs, strict=True)])
        worth = problem.weights * noise + costs / tau**2
        best = np.argmin(worth, axis=0)
        chosen = np.take_along_axis(costs, best[None, :], axis=0)[0]
        return chosen, may_speak & (ranks <= best[None, :])

    return at


def as_it_goes(assumed: PlanningProblem, min_participation: float = 0.0) -> CausalPolicy:
    """Selection that knows no round to come.

    Args:
        assumed: draws of the channel, from which a device's best rounds are known.
        min_participation: f; a device speaks whenever its channel is among the best f of those.
    """
    floor = np.quantile(assumed.power_gains, 1.0 - min_participation, axis=1, keepdims=True)

    def respond(problem: PlanningProblem, may_speak: BoolArray) -> Response:
        choose = _best_at(problem, may_speak)
        if min_participation == 0.0:
            return choose
        owed = may_speak & (problem.power_gains >= floor)

        def at(x: float) -> tuple[Float64Array, BoolArray]:
            speakers = choose(x)[1] | owed
            return RoundCosts.of(problem, speakers).at(x), speakers

        return at

    return CausalPolicy(NAME, respond)


def _with_floor(
    problem: PlanningProblem, speakers: BoolArray, min_participation: float
) -> BoolArray:
    """Speakers, and who speaks too seldom in the best of the rounds that they were left out of."""
    wanted = math.ceil(min_participation * problem.num_rounds - 1e-9)
    result = speakers.copy()
    for device in range(problem.num_devices):
        missing = wanted - int(result[device].sum())
        if missing > 0:
            gains = np.where(result[device], -np.inf, problem.power_gains[device])
            result[device, np.argsort(-gains, kind="stable")[:missing]] = True
    return result
