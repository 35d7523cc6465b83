"""Power policy ``static``: the same price for every round, or what it costs without own noise.

What rounds at their largest price leave over of their share is not given to others. The paper's
baseline of that name.

Source: theory.md, sections 6 and 7.
"""

from __future__ import annotations

import numpy as np

from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule, with_most_artificial_noise

NAME = "static"


def plan_static_prices(problem: PlanningProblem) -> Schedule:
    """y_t = min(R / T, Y_max)."""
    speakers = everybody(problem)
    share = problem.budget / problem.num_rounds
    costs = np.minimum(share, RoundCosts.of(problem, speakers).largest)
    return with_most_artificial_noise(problem, NAME, costs, speakers).check()
