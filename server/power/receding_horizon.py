r"""Batteries and duty cycles of a whole run, kept as it goes: no later channel can break them.

A round is planned together with some draws of the assumed channel that stand for those to come: of
T - t - 1 rounds each draw stands for its part, weight omega summed over them, price and energy as
often. What is left on every account, of each battery and of each duty limits them all together
(`policies.limited`), and only the first round is carried out; so whatever follows, nothing was
spent that was not there. A device pays for the rounds that it speaks in and for no others, so that
rounds of a few are not paid by all.

Who speaks is chosen first. Devices that selection would ask for do, but

* with s rounds left in which a device may speak, of n, in its best ones only: where its gain is in
  the upper s / n of what is assumed of it; and likewise it has to, where fairness wants that many;
* a device whose battery would not last at the common level either lowers the level for all or
  speaks in its best rounds only, whichever is estimated to leave less noise.

Fairness is kept as far as pilots let a device be heard. Source: ours; receding horizons are what
theory.md, section 5.7, calls MPC.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import BoolArray, Float64Array
from server.power.limits import PowerLimits, energies
from server.power.policies.limited import NAME, plan_limited
from server.power.policies.optimal import optimal_for
from server.power.policies.selection import plan_selection
from server.power.schedule import PlanningProblem, Schedule

HORIZON = 24
"""Draws that stand for the rounds to come; fewer where fewer come."""

_EMPTY = 1e-6
"""Of what a battery or an account held at first: with less it is empty."""


@dataclass(frozen=True, slots=True)
class PowerUsed:
    """By each device, in the rounds so far.

    Attributes:
        energy: sum of e_kt [K]; see `server.power.limits`.
        rounds: in which it was asked to speak [K].
    """

    energy: Float64Array
    rounds: Float64Array

    @classmethod
    def nothing(cls, num_devices: int) -> PowerUsed:
        """At the start of a run."""
        return cls(np.zeros(num_devices), np.zeros(num_devices))

    def and_round(self, energy: Float64Array) -> PowerUsed:
        """After one more round, with what each device sent in it [K]."""
        return PowerUsed(self.energy + energy, self.rounds + (energy > 0.0))


class RecedingHorizonPlanner:
    """Plans one round after the other; the same for the same channel and the same past.

    Args:
        assumed: draws of the channel that come into question [K, any number], with budget and noise
            of the run.
        weights: omega of every round that is to be planned [T].
        limits: over these and the rounds before them.
        assumed_speakers: who can be asked to, of the draws.
        rounds_before: that the run had when these were planned.
    """

    def __init__(
        self,
        assumed: PlanningProblem,
        weights: Float64Array,
        limits: PowerLimits,
        assumed_speakers: BoolArray,
        rounds_before: int = 0,
    ) -> None:
        self._assumed = assumed
        self._weights = np.asarray(weights, dtype=np.float64)
        self._limits = limits
        self._rounds_before = rounds_before
        self._assumed_speakers = assumed_speakers
        self._caps = limits.powers_allowed(assumed)
        # The part of the draws in which a device is louder, and can be asked to speak.
        self._ranked = np.sort(np.where(assumed_speakers, assumed.power_gains, 0.0), axis=1)

    def plan(
        self,
        position: int,
        power_gains: Float64Array,
        accounts: Float64Array,
        used: PowerUsed,
        *,
        may_speak: BoolArray,
        sensitivity: float,
    ) -> Schedule:
        """One round.

        Args:
            position: of the round, 0 to T - 1.
            power_gains: H of every device [K].
            accounts: what each device has left of the budget, 0 for nothing [K].
            used: before this round.
            may_speak: who can be asked to [K].
            sensitivity: Delta of this round.

        Returns:
            A schedule of one round; silent if nothing is left, or nobody may speak.

        Raises:
            InfeasiblePlanError: the solver did not find the optimum.
        """
        problem, loud, repeats = self._horizon(position, power_gains, may_speak, sensitivity)
        wished = self._within_duties(problem, loud, position, used)
        held = self._limits.energies_allowed(len(power_gains))
        left = held - used.energy
        is_empty = ~np.isinf(held) & (left <= _EMPTY * held)
        can_pay = accounts > _EMPTY * self._assumed.budget
        wished = wished & (~is_empty & can_pay)[:, None]
        present = dataclasses.replace(
            problem,
            power_gains=problem.power_gains[:, :1],
            sensitivities=problem.sensitivities[:1],
            weights=problem.weights[:1],
        )
        if not wished[:, 0].any():
            return _silent(present)
        # A device pays for the rounds that it speaks in: together they may cost more than any has.
        problem = dataclasses.replace(problem, budget=float(accounts.max()))
        limits = PowerLimits(max_energy=np.where(is_empty, math.inf, left), peak_caps=self._caps)
        speakers = self._within_batteries(problem, wished, limits, repeats)
        if not speakers[:, 0].any():
            return _silent(present)
        whole = plan_limited(problem, limits, speakers=speakers, repeats=repeats, accounts=accounts)
        return _first_of(whole, dataclasses.replace(present, budget=problem.budget))

    def _horizon(
        self, position: int, power_gains: Float64Array, may_speak: BoolArray, sensitivity: float
    ) -> tuple[PlanningProblem, BoolArray, Float64Array]:
        """The present round and those that stand for the others; who is loud enough; how many."""
        to_come = self._weights[position + 1 :]
        num_draws = min(HORIZON, len(to_come), self._assumed.num_rounds)
        parts = np.array_split(to_come, num_draws) if num_draws else []
        repeats = np.array([1.0, *(float(len(part)) for part in parts)])
        draws = slice(0, num_draws)
        problem = dataclasses.replace(
            self._assumed,
            power_gains=np.hstack([power_gains[:, None], self._assumed.power_gains[:, draws]]),
            sensitivities=np.sqrt(repeats)
            * np.array([sensitivity, *self._assumed.sensitivities[draws]]),
            weights=np.array([self._weights[position], *(math.fsum(part) for part in parts)]),
        )
        loud = np.hstack([may_speak[:, None], self._assumed_speakers[:, draws]])
        return problem, loud, repeats

    def _within_duties(
        self, problem: PlanningProblem, loud: BoolArray, position: int, used: PowerUsed
    ) -> BoolArray:
        """Who selection would ask, those who have to and not those who may not [K, rounds]."""
        num_devices, rounds_left = problem.num_devices, len(self._weights) - position
        num_rounds = self._rounds_before + len(self._weights)
        duties = self._limits.duties(num_devices)
        most = np.floor(duties[1] * num_rounds + 1e-9) - used.rounds
        least = np.ceil(duties[0] * num_rounds - 1e-9) - used.rounds
        # A cap makes a device's channel worse, as far as who is worth it goes.
        felt = problem.power_gains * (self._caps / problem.max_power)[:, None]
        chosen = plan_selection(dataclasses.replace(problem, power_gains=felt)).speakers & loud
        has_to = self._in_best(problem.power_gains, np.clip(least / rounds_left, 0.0, 1.0))
        allowed = self._in_best(problem.power_gains, np.clip(most / rounds_left, 0.0, 1.0))
        wished: BoolArray = (chosen | has_to) & allowed & loud
        return wished

    def _in_best(self, power_gains: Float64Array, shares: Float64Array) -> BoolArray:
        """Whether gains [K, any] are in the upper shares [K] of what is assumed."""
        count = self._ranked.shape[1]
        num_above = np.stack(
            [
                count - np.searchsorted(ranked, gains, side="right")
                for ranked, gains in zip(self._ranked, power_gains, strict=True)
            ]
        )
        found: BoolArray = (num_above < shares[:, None] * count) | (shares >= 1.0)[:, None]
        return found

    def _within_batteries(
        self,
        problem: PlanningProblem,
        wished: BoolArray,
        limits: PowerLimits,
        repeats: Float64Array,
    ) -> BoolArray:
        """Devices whose batteries would not last are put into their best rounds, one by one."""
        allowed = limits.energies_allowed(problem.num_devices)
        speakers, best, least_noise = wished, wished, math.inf
        is_spared = np.zeros(problem.num_devices, dtype=bool)
        for _ in range(problem.num_devices + 1):
            start = optimal_for(problem, speakers, NAME)
            excess = energies(start, repeats) / allowed
            noise = _noise_at_lower_level(start, max(1.0, float(excess.max())))
            if noise < least_noise:
                best, least_noise = speakers, noise
            short = np.where(is_spared, 0.0, excess)
            worst = int(np.argmax(short))
            if short[worst] <= 1.0:
                break
            is_spared[worst] = True
            share = wished[worst].mean() / short[worst]
            spared = speakers.copy()
            shares = np.ones(problem.num_devices)
            shares[worst] = share
            spared &= self._in_best(problem.power_gains, shares)
            if np.any(wished.any(axis=0) & ~spared.any(axis=0)):
                break  # a round in which nobody speaks teaches nothing
            speakers = spared
        return best


def _noise_at_lower_level(schedule: Schedule, factor: float) -> float:
    """The objective of a schedule, were all levels lower by a factor in power."""
    spoken = ~schedule.is_silent
    heard = schedule.problem.noise_power * schedule.inverse_levels[spoken] * factor
    noise = (schedule.artificial_noise[spoken] + heard) / np.square(schedule.num_speakers[spoken])
    return math.fsum(schedule.problem.weights[spoken] * noise)


def _first_of(schedule: Schedule, present: PlanningProblem) -> Schedule:
    """The first round of a schedule, as a schedule of its own."""
    return dataclasses.replace(
        schedule,
        problem=dataclasses.replace(present, max_power=schedule.problem.max_power),
        speakers=schedule.speakers[:, :1],
        inverse_levels=schedule.inverse_levels[:1],
        noise_variances=schedule.noise_variances[:, :1],
        costs=schedule.costs[:1],
    ).check()


def _silent(present: PlanningProblem) -> Schedule:
    nobody = np.zeros(present.power_gains.shape, dtype=bool)
    return Schedule(
        problem=present,
        policy=NAME,
        speakers=nobody,
        inverse_levels=np.array([math.inf]),
        noise_variances=np.zeros(nobody.shape),
        costs=np.zeros(1),
    )
