"""Power policy ``constant_inversion``: one level for the whole run, everybody speaking always.

The level is what the weakest device reaches in its worst round, the noise the same in all of them.

Source: theory.md, section 6.
"""

from __future__ import annotations

import numpy as np

from server.power.policies.optimal import everybody
from server.power.policies.truncated_inversion import at_one_level
from server.power.schedule import PlanningProblem, Schedule

NAME = "constant_inversion"


def plan_constant_inversion(problem: PlanningProblem) -> Schedule:
    """One a and, up to the sensitivities, one s for all rounds."""
    return at_one_level(problem, everybody(problem), np.ones(problem.num_rounds), NAME)
