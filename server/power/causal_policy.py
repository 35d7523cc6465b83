r"""How a policy answers a multiplier of the budget, round by round: what planning as it goes needs.

For rounds of weight omega and a multiplier zeta = 1/tau^2 of the budget, a policy says who speaks
in a round and what the round pays; the answer depends on x = sqrt(omega) tau alone, so it is asked
for rounds of weight 1 at x. What was decided is then carried out: levels and noises of that price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from radio.arrays import BoolArray, Float64Array
from server.power.schedule import (
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)

Response = Callable[[float], tuple[Float64Array, BoolArray]]
"""x -> prices y [T], none of them falling as x grows, and who speaks [K, T]."""


@dataclass(frozen=True, slots=True)
class CausalPolicy:
    """A policy that can plan one round at a time.

    Attributes:
        name: of it.
        respond: from a problem of rounds of weight 1, and who may speak in them [K, T].
        carry_out: a schedule of prices for speakers; left out, that of the most artificial noise.
        is_fixed: whether prices do not depend on the multiplier.
    """

    name: str
    respond: Callable[[PlanningProblem, BoolArray], Response]
    carry_out: Callable[[PlanningProblem, Float64Array, BoolArray], Schedule] | None = None
    is_fixed: bool = False

    def schedule(
        self, problem: PlanningProblem, costs: Float64Array, speakers: BoolArray
    ) -> Schedule:
        """Levels and noises of these prices, checked against every limit.

        Raises:
            InfeasiblePlanError: a limit is broken.
        """
        if self.carry_out is not None:
            return self.carry_out(problem, costs, speakers).check()
        return with_most_artificial_noise(problem, self.name, costs, speakers).check()
