r"""Planning as the run goes: each round knows the channels so far; the budget holds on any path.

Whatever a rule would like to pay, a round pays

    y_t = min{ candidate_t, Y_max,t, R - sum_{s<t} y_s }

so the budget is certain for every sequence of channels, also the worst, and whatever law the rule
assumes of them. A plan that follows the channel follows no data; one that followed earlier outputs
would be covered by the same filter (`server.privacy.gaussian`).

Rules, with b_t and y(tau) of `server.power.round_costs`:

    even       rem / (T - t)
    weighted   rem b_t / sum_{s>=t} b_s
    one_step   the optimum of the rest, were all its channels like the present one
    mpc        y_t(tau) with  y_t(tau) + sum_{s>t} E y_s(tau) = rem,  E over an assumed channel

The last takes any policy that can answer a multiplier (`server.power.causal_policy`).

Source: theory.md, section 5.7; one_step is the rule of Liu and Simeone (2021).
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable

import numpy as np

from radio.arrays import BoolArray, Float64Array
from radio.bisection import bisect
from server.errors import ConfigurationError
from server.power.causal_policy import CausalPolicy, Response
from server.power.policies import optimal
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import PlanningProblem, Schedule
from server.power.water_filling import fill

_GRID_POINTS = 800
_BISECTIONS = 60
_LOG_RANGE = (math.log(1e-9), math.log(1e9))
_LEAST_SHARE = 1e-6
"""Of the budget a round that is on the table's low end, times their number."""


class Rule(enum.StrEnum):
    """What a round would like to pay; see the module."""

    EVEN = "even"
    WEIGHTED = "weighted"
    ONE_STEP = "one_step"
    MPC = "mpc"


class OnlinePlanner:
    """Plans one round after the other.

    Args:
        assumed: the problem of the whole run, but for its gains: weights, bounds, sensitivities,
            noise and budget. Its gains, with their sensitivities, are draws of the channel that
            `Rule.MPC` reckons with, [K, any number]; other rules do not look at them.
        weights: omega of every round [T].
        rule: see the module.
        policy: who speaks, and at what price; only `Rule.MPC` knows another than everybody.
        assumed_speakers: who can be asked to, of the draws; everybody if left out.

    Raises:
        ConfigurationError: sensitivities that differ, where the rule cannot weigh them, or a policy
            that it cannot follow.
    """

    def __init__(
        self,
        assumed: PlanningProblem,
        weights: Float64Array,
        rule: Rule,
        policy: CausalPolicy = optimal.AS_IT_GOES,
        assumed_speakers: BoolArray | None = None,
    ) -> None:
        if rule is not Rule.MPC and np.ptp(assumed.sensitivities) != 0.0:
            raise ConfigurationError(
                "sensitivities: wanted the same in all rounds for planning as the run goes."
            )
        if rule is not Rule.MPC and policy is not optimal.AS_IT_GOES:
            raise ConfigurationError(
                f"rule {rule!r}: plans rounds in which everybody speaks; wanted 'mpc' for policy "
                f"{policy.name!r}."
            )
        self._assumed = assumed
        self._weights = np.asarray(weights, dtype=np.float64)
        self._rule = rule
        self._policy = policy
        self._spent: list[float] = []
        self._slopes = float(assumed.sensitivities[0]) * np.sqrt(self._weights / 2.0)
        self._slopes /= assumed.num_devices
        self._expected = None
        if rule is Rule.MPC:
            speakers = everybody(assumed) if assumed_speakers is None else assumed_speakers
            self._expected = _ExpectedCost(assumed, policy, len(self._weights), speakers)

    @property
    def remaining(self) -> float:
        """What is left of the budget by `plan_round`, rounded down."""
        left = self._assumed.budget - math.fsum(self._spent)
        return max(0.0, math.nextafter(left, -math.inf))

    @property
    def rounds_left(self) -> int:
        """Rounds of the run that `plan_round` has not planned."""
        return len(self._weights) - len(self._spent)

    def plan_round(self, power_gains: Float64Array) -> Schedule:
        """The next round, on its channel; what it pays is remembered.

        Args:
            power_gains: H of every device [K].

        Returns:
            A schedule of one round; silent if nothing is left.

        Raises:
            ConfigurationError: no round is left, or gains out of range.
        """
        if self.rounds_left == 0:
            raise ConfigurationError(f"round {len(self._spent)}: the run was planned for as many.")
        schedule = self.plan(len(self._spent), power_gains, self.remaining)
        self._spent.append(math.fsum(schedule.costs))
        return schedule

    def plan(
        self,
        position: int,
        power_gains: Float64Array,
        remaining: float,
        *,
        may_speak: BoolArray | None = None,
        sensitivity: float | None = None,
    ) -> Schedule:
        """One round, whatever was planned before; the same arguments give the same schedule.

        Args:
            position: of the round, 0 to T - 1.
            power_gains: H of every device [K].
            remaining: of the budget.
            may_speak: who can be asked to [K]; everybody if left out.
            sensitivity: Delta of this round, if it is not that of the others.

        Returns:
            A schedule of one round; silent if nothing is left.

        Raises:
            ConfigurationError: gains out of range.
        """
        usual = self._assumed.sensitivities[:1]
        present = dataclasses.replace(
            self._assumed,
            power_gains=np.asarray(power_gains, dtype=np.float64)[:, None],
            sensitivities=usual if sensitivity is None else np.array([sensitivity]),
            weights=self._weights[position : position + 1],
        )
        may = everybody(present) if may_speak is None else np.asarray(may_speak)[:, None]
        cost, speakers = np.zeros(1), np.zeros_like(may)
        if remaining > 0.0:
            cost, speakers = self._decide(present, may, position, remaining)
        return self._policy.schedule(present, np.minimum(cost, remaining), speakers)

    def _decide(
        self, present: PlanningProblem, may_speak: BoolArray, position: int, remaining: float
    ) -> tuple[Float64Array, BoolArray]:
        if self._rule is Rule.MPC:
            respond = self._policy.respond(present.with_weights(np.ones(1)), may_speak)
            return self._by_expectation(respond, position, remaining)
        rounds = RoundCosts.of(present, may_speak)
        tail = self._slopes[position:]
        match self._rule:
            case Rule.EVEN:
                wanted = remaining / len(tail)
            case Rule.WEIGHTED:
                wanted = remaining * float(tail[0] / math.fsum(tail))
            case Rule.ONE_STEP:
                wanted = _as_if_all_alike(rounds, tail, remaining)
        return np.minimum(wanted, rounds.largest), may_speak

    def _by_expectation(
        self, respond: Response, position: int, remaining: float
    ) -> tuple[Float64Array, BoolArray]:
        assert self._expected is not None
        roots = np.sqrt(self._weights[position:])
        log_tail = np.log(roots[1:])
        low, high = self._expected.log_range
        low, high = low - math.log(roots.max()), high - math.log(roots.min())
        expected = self._expected

        def fits(log_multiplier: float) -> bool:
            now = float(respond(roots[0] * math.exp(log_multiplier))[0][0])
            return now + expected.total(log_tail + log_multiplier) <= remaining

        log_multiplier, _ = bisect(fits, low, high, _BISECTIONS)
        return respond(roots[0] * math.exp(log_multiplier))


def _as_if_all_alike(rounds: RoundCosts, tail: Float64Array, remaining: float) -> float:
    """The present round's price, if all that come had its channel."""
    count = len(tail)
    largest = np.full(count, rounds.largest[0])

    def at(tau: float) -> Float64Array:
        inner = np.minimum(rounds.fitting[0], math.sqrt(rounds.steepness[0]) * tail * tau)
        costs: Float64Array = np.minimum(largest, np.maximum(tail * tau, inner))
        return costs

    return float(fill(at, remaining, largest)[0])


class _ExpectedCost:
    """E y of a round of weight 1 over the assumed channel, as a function of x, from a table."""

    def __init__(
        self,
        assumed: PlanningProblem,
        policy: CausalPolicy,
        num_rounds: int,
        speakers: BoolArray,
    ) -> None:
        problem = assumed.with_weights(np.ones(assumed.num_rounds))
        respond = policy.respond(problem, speakers)

        def mean_cost(log_x: float) -> float:
            return float(respond(math.exp(log_x))[0].mean())

        least = _LEAST_SHARE * assumed.budget / num_rounds
        start = _first(lambda x: mean_cost(x) >= least)
        # To where one round would take it all, or where nothing grows any more.
        end = _first(
            lambda x: mean_cost(x) >= assumed.budget or mean_cost(x) >= mean_cost(_LOG_RANGE[1]),
        )
        self.log_range = start, max(end, start + 1.0)
        self._log_x = np.linspace(*self.log_range, _GRID_POINTS)
        self._costs = np.array([mean_cost(x) for x in self._log_x])

    def total(self, log_x: Float64Array) -> float:
        """Sum over rounds; nothing below the table, its end above."""
        return float(np.interp(log_x, self._log_x, self._costs, left=0.0).sum())


def _first(holds: Callable[[float], bool]) -> float:
    """Where a condition that stays true begins, among log x; the largest, if it never does."""
    low, high = _LOG_RANGE
    if holds(low):
        return low
    return bisect(lambda log_x: not holds(log_x), low, high, _BISECTIONS)[1]
