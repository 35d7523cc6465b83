"""Power policy ``perfect``: as loud as can be and no noise of its own. It promises nothing.

The reference of the literature for what privacy costs; refused wherever somebody is promised
something.

Source: theory.md, section 7.
"""

from __future__ import annotations

import numpy as np

from radio.arrays import BoolArray
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule

NAME = "perfect"


def perfect_for(problem: PlanningProblem, speakers: BoolArray) -> Schedule:
    """a = a_min, s = 0 for given speakers [K, T]; its prices are 0 because none is paid."""
    rounds = RoundCosts.of(problem, speakers)
    return Schedule(
        problem=problem,
        policy=NAME,
        speakers=speakers,
        inverse_levels=np.where(speakers.any(axis=0), rounds.least, np.inf),
        noise_variances=np.zeros(speakers.shape),
        costs=np.zeros(problem.num_rounds),
    ).check(within_budget=False)
