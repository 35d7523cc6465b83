r"""Power policy ``truncated_inversion``: one level for the whole run; the weak are silent.

A device speaks while its gain is above a quantile of its own gains, so each speaks in the same
share of the rounds. The level is the highest that all who speak reach with their noise::

    v_t = Delta_t^2 T' / (2 R)  for T' rounds with speakers,      a = max_t a_t(v_t)
    s_t = max(v_t - rho N0 a, 0)

Source: theory.md, section 6; truncation is that of Zhu, Wang, Huang (2020).
"""

from __future__ import annotations

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.errors import ConfigurationError
from server.power.causal_policy import CausalPolicy, Response
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)

NAME = "truncated_inversion"
PARTICIPATION = 0.9


def plan_truncated_inversion(
    problem: PlanningProblem, participation: float = PARTICIPATION
) -> Schedule:
    """Each device in its best rounds.

    Args:
        problem: to be solved.
        participation: share of the rounds in which a device speaks, 0 to 1.

    Raises:
        ConfigurationError: a share out of range.
    """
    if not 0.0 < participation <= 1.0:
        raise ConfigurationError(f"participation: got {participation}, wanted above 0, at most 1.")
    thresholds = np.quantile(problem.power_gains, 1.0 - participation, axis=1, keepdims=True)
    speakers = problem.power_gains >= thresholds
    return at_one_level(problem, speakers, np.ones(problem.num_rounds), NAME)


def as_it_goes(planned: Schedule) -> CausalPolicy:
    """The level of a schedule over assumed channels, kept up by those who reach it.

    Who does not is silent; with too few to carry the noise the round is, at no price.

    Args:
        planned: over draws of the channel; its level and its share of silent rounds are used.
    """
    level = float(planned.inverse_levels[~planned.is_silent].min())
    share = planned.problem.budget / max(1, int(np.sum(~planned.is_silent)))

    def respond(problem: PlanningProblem, may_speak: BoolArray) -> Response:
        room = problem.reaches * level - problem.needs[:, None]
        speakers: BoolArray = may_speak & (room >= 0.0)
        costs = np.minimum(share, RoundCosts.of(problem, speakers).largest)
        wanted = problem.noise_of_costs(np.maximum(costs, 1e-300)) - problem.trusted_noise * level
        is_carried = np.where(speakers, room, 0.0).sum(axis=0) >= wanted
        speakers = speakers & is_carried[None, :]
        costs = np.where(speakers.any(axis=0), costs, 0.0)
        return lambda x: (costs, speakers)

    def carry_out(problem: PlanningProblem, costs: Float64Array, speakers: BoolArray) -> Schedule:
        speakers = speakers & (costs > 0.0)[None, :]
        return _levelled(problem, speakers, costs, level, planned.policy)

    return CausalPolicy(planned.policy, respond, carry_out, is_fixed=True)


def at_one_level(
    problem: PlanningProblem, speakers: BoolArray, shares: Float64Array, policy: str
) -> Schedule:
    """Prices in given proportions, one level for all rounds.

    Args:
        problem: to be solved.
        speakers: who speaks [K, T].
        shares: of the budget [T], in proportion.
        policy: name of the schedule.
    """
    spoken: BoolArray = np.any(speakers, axis=0)
    shares = np.where(spoken, shares, 0.0)
    costs = np.minimum(
        problem.budget * shares / shares.sum(), RoundCosts.of(problem, speakers).largest
    )
    own_levels = with_most_artificial_noise(problem, policy, costs, speakers)
    level = float(np.max(np.where(spoken, own_levels.inverse_levels, 0.0)))
    return _levelled(problem, speakers, costs, level, policy).check()


def _levelled(
    problem: PlanningProblem,
    speakers: BoolArray,
    costs: Float64Array,
    level: float,
    policy: str,
) -> Schedule:
    """These prices at one level, the noise dealt out by room."""
    spoken: BoolArray = np.any(speakers, axis=0)
    counted = problem.noise_of_costs(np.where(spoken, costs, 1.0))
    artificial = np.where(spoken, np.maximum(counted - problem.trusted_noise * level, 0.0), 0.0)
    room = np.where(speakers, problem.reaches * level - problem.needs[:, None], 0.0)
    room = np.maximum(room, 0.0)
    total = room.sum(axis=0)
    dealt = np.divide(room, total, out=np.zeros_like(room), where=total > 0.0)
    return Schedule(
        problem=problem,
        policy=policy,
        speakers=speakers,
        inverse_levels=np.where(spoken, level, np.inf),
        noise_variances=dealt * artificial,
        costs=np.where(spoken, costs, 0.0),
    )
