"""Power policy ``reversed``: the optimum of a run whose weights come in the opposite order.

The paper's baseline for planning in the wrong direction.

Source: theory.md, sections 6 and 7.
"""

from __future__ import annotations

import dataclasses

from server.power.policies.optimal import everybody, optimal_for
from server.power.schedule import PlanningProblem, Schedule

NAME = "reversed"


def plan_reversed(problem: PlanningProblem) -> Schedule:
    """As `plan_optimal` for omega_T ... omega_1, judged by the weights there are."""
    mirrored = dataclasses.replace(problem, weights=problem.weights[::-1].copy())
    schedule = optimal_for(mirrored, everybody(problem), NAME)
    return dataclasses.replace(schedule, problem=problem).check()
