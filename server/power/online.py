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

Source: theory.md, section 5.7; one_step is the rule of Liu and Simeone (2021).
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np

from server.errors import ConfigurationError
from server.power.policies.optimal import everybody
from server.power.round_costs import RoundCosts
from server.power.schedule import (
    FloatArray,
    PlanningProblem,
    Schedule,
    with_most_artificial_noise,
)
from server.power.water_filling import fill

_GRID_POINTS = 400
_BISECTIONS = 60
_LOG_RANGE = (math.log(1e-9), math.log(1e9))


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
            noise and budget. Its gains are draws of the channel that `Rule.MPC` reckons with,
            [K, any number]; other rules do not look at them.
        weights: omega of every round [T].
        rule: see the module.

    Raises:
        ConfigurationError: sensitivities that differ, which no rule here can weigh.
    """

    def __init__(self, assumed: PlanningProblem, weights: FloatArray, rule: Rule) -> None:
        if np.ptp(assumed.sensitivities) != 0.0:
            raise ConfigurationError(
                "sensitivities: wanted the same in all rounds for planning as the run goes."
            )
        self._assumed = assumed
        self._weights = np.asarray(weights, dtype=np.float64)
        self._rule = rule
        self._spent: list[float] = []
        self._slopes = float(assumed.sensitivities[0]) * np.sqrt(self._weights / 2.0)
        self._slopes /= assumed.num_devices
        self._expected = _ExpectedCost(assumed) if rule is Rule.MPC else None

    @property
    def remaining(self) -> float:
        """What is left of the budget, rounded down."""
        left = self._assumed.budget - math.fsum(self._spent)
        return max(0.0, math.nextafter(left, -math.inf))

    @property
    def rounds_left(self) -> int:
        """Of the run."""
        return len(self._weights) - len(self._spent)

    def plan_round(self, power_gains: FloatArray) -> Schedule:
        """The next round, on its channel.

        Args:
            power_gains: H of every device [K].

        Returns:
            A schedule of one round; silent if nothing is left.

        Raises:
            ConfigurationError: no round is left, or gains out of range.
        """
        if self.rounds_left == 0:
            raise ConfigurationError(f"round {len(self._spent)}: the run was planned for as many.")
        present = dataclasses.replace(
            self._assumed,
            power_gains=np.asarray(power_gains, dtype=np.float64)[:, None],
            sensitivities=self._assumed.sensitivities[:1],
            weights=self._weights[len(self._spent) : len(self._spent) + 1],
        )
        speakers = everybody(present)
        rounds = RoundCosts.of(present, speakers)
        remaining = self.remaining
        wanted = self._candidate(rounds, remaining) if remaining > 0.0 else 0.0
        cost = min(wanted, float(rounds.largest[0]), remaining)
        schedule = with_most_artificial_noise(
            present, str(self._rule), np.array([cost]), speakers
        ).check()
        self._spent.append(math.fsum(schedule.costs))
        return schedule

    def _candidate(self, rounds: RoundCosts, remaining: float) -> float:
        tail = self._slopes[len(self._spent) :]
        match self._rule:
            case Rule.EVEN:
                return remaining / len(tail)
            case Rule.WEIGHTED:
                return remaining * float(tail[0] / math.fsum(tail))
            case Rule.ONE_STEP:
                return _as_if_all_alike(rounds, tail, remaining)
            case Rule.MPC:
                return self._by_expectation(rounds, tail, remaining)

    def _by_expectation(self, rounds: RoundCosts, tail: FloatArray, remaining: float) -> float:
        assert self._expected is not None
        low, high = _LOG_RANGE
        unit = remaining / math.fsum(tail)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            tau = unit * math.exp(middle)
            planned = float(rounds.at(tau)[0]) + self._expected.total(tail[1:] * tau)
            low, high = (middle, high) if planned <= remaining else (low, middle)
        return float(rounds.at(unit * math.exp(low))[0])


def _as_if_all_alike(rounds: RoundCosts, tail: FloatArray, remaining: float) -> float:
    """The present round's price, if all that come had its channel."""
    count = len(tail)
    largest = np.full(count, rounds.largest[0])

    def at(tau: float) -> FloatArray:
        inner = np.minimum(rounds.fitting[0], math.sqrt(rounds.steepness[0]) * tail * tau)
        costs: FloatArray = np.minimum(largest, np.maximum(tail * tau, inner))
        return costs

    return float(fill(at, remaining, largest)[0])


class _ExpectedCost:
    """E y over the assumed channel, as a function of b tau, from a table."""

    def __init__(self, assumed: PlanningProblem) -> None:
        draws = assumed.power_gains.shape[1]
        problem = dataclasses.replace(
            assumed,
            sensitivities=np.full(draws, assumed.sensitivities[0]),
            weights=np.ones(draws),
        )
        rounds = RoundCosts.of(problem, everybody(problem))
        finite = np.concatenate(
            [rounds.largest[np.isfinite(rounds.largest)], rounds.fitting, [assumed.budget]]
        )
        ends = math.log(float(finite.min()) * 1e-6), math.log(float(finite.max()) * 1e3)
        self._arguments = np.linspace(*ends, _GRID_POINTS)
        slopes = np.exp(self._arguments)[:, None]
        inner = np.minimum(rounds.fitting, np.sqrt(rounds.steepness) * slopes)
        costs = np.minimum(rounds.largest, np.maximum(slopes, inner))
        self._log_costs = np.log(costs.mean(axis=1))

    def total(self, slopes: FloatArray) -> float:
        """Sum over rounds of b tau."""
        if len(slopes) == 0:
            return 0.0
        logs = np.interp(np.log(slopes), self._arguments, self._log_costs)
        # Below the table prices are proportional to their slope.
        below = np.log(slopes) < self._arguments[0]
        shift = np.where(below, np.log(slopes) - self._arguments[0], 0.0)
        return float(np.exp(logs + shift).sum())
