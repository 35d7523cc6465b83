r"""Power policy ``paper``: what is printed in arXiv 2604.12401, for comparison.

Receiver noise is all the noise there is and is counted in full; the peak is one of a mean square;
the budget is the paper's equation 17,

    R = (sqrt(epsilon + q^2) - q)^2,    sqrt(pi) q e^(q^2) = 1 / delta

which is smaller than the exact one; and the test for "privacy for free" compares with a K too many:

    K (2 P / N0) sum_t min_k H_kt  <  R,    instead of without the K

Where the printed test fails and the corrected one holds, the bisection of theorem 3 comes to full
power all the same, so the schedule is that of the corrected test at the printed budget. It is
refused wherever somebody is promised something: it rests on the receiver's noise.

Source: theory.md, sections 3, 5.2 and 7.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from radio.bisection import bisect
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule
from server.power.water_filling import fill

NAME = "paper"
_BISECTIONS = 60


def printed_budget(epsilon: float, delta: float) -> float:
    """R of the paper's equation 17."""
    target = math.log(1.0 / delta)
    q, _ = bisect(
        lambda x: 0.5 * math.log(math.pi) + math.log(x) + x * x <= target, 1e-12, 60.0, _BISECTIONS
    )
    return (math.sqrt(epsilon + q * q) - q) ** 2


def plan_paper(problem: PlanningProblem, *, epsilon: float, delta: float) -> Schedule:
    """Theorem 3 as printed: no artificial noise, levels alone.

    Args:
        problem: of which gains, bounds, sensitivities, weights and noise are used.
        epsilon: of the promise that the paper would make.
        delta: likewise.
    """
    printed = dataclasses.replace(
        problem,
        budget=printed_budget(epsilon, delta),
        trusted_noise_fraction=1.0,
        peak_factor=0.0,
    )
    speakers = everybody(printed)
    rounds = RoundCosts.of(printed, speakers)
    costs = fill(lambda tau: np.minimum(rounds.largest, rounds.slopes * tau), printed.budget,
                 rounds.largest)  # fmt: skip
    return Schedule(
        problem=printed,
        policy=NAME,
        speakers=speakers,
        inverse_levels=np.maximum(printed.noise_of_costs(costs) / printed.noise_power,
                                  rounds.least),
        noise_variances=np.zeros(speakers.shape),
        costs=costs,
    ).check()  # fmt: skip
