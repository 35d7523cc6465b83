"""A run's rounds, planned as it goes: a policy on the channels that pilots tell, within its budget.

Superposed rounds without subsampling. The policy sees one channel at a time and a law of those to
come, the configuration's own; what a round may pay is what the ledger says is left, so the budget
holds whatever the channel does, and however many devices fall silent after they were paid for.

Everything is planned in units of the largest number that is said (the clip, or a vote's 1), which
keeps the numbers of the problem near one whatever the clip is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.rounds import Access
from radio.arrays import BoolArray, Float64Array
from radio.software_air.channel_models import channel_from_name
from server.config.plan_config import PlanConfig
from server.planning.gain_error import MAX_AMPLITUDE_ERROR, gain_error_bound, sensitivity_growth
from server.planning.privacy_terms import PrivacyTerms, expected_dropouts, round_weights
from server.power.causal_policy import CausalPolicy
from server.power.channel_inversion import SAMPLE_HEADROOM, PowerPlan
from server.power.online import OnlinePlanner, Rule
from server.power.policies import equal_split, optimal, selection, sign, truncated_inversion
from server.power.policies.constant_inversion import plan_constant_inversion
from server.power.policies.truncated_inversion import plan_truncated_inversion
from server.power.receding_horizon import PowerUsed, RecedingHorizonPlanner
from server.power.reserve import budget_to_plan_with
from server.power.schedule import PlanningProblem, Schedule
from server.privacy.calibration import multiplier_above
from server.privacy.composition import MIN_NOISE_MULTIPLIER
from server.seeds import simulation_rng

_DRAWS = 400
"""Of the channel, that a policy reckons with."""

_MOST_OF_ONE_ROUND = 0.4 / MIN_NOISE_MULTIPLIER**2
"""y beyond which the ledger takes no round, with some room: 1/2 m^-2 for multiplier m."""

_LEAST_SHARE = 1e-9
"""Of the budget: what is smaller is the rounding of what was paid."""


class RunPlanner:
    """Levels, noises and speakers of superposed rounds; the same for the same ledger and channel.

    Args:
        config: of the run.
        terms: its privacy, with a budget.
        noise_symbols: silent samples from which a channel estimate's noise power is measured.

    Raises:
        ConfigurationError: the policy cannot plan the run.
    """

    def __init__(self, config: PlanConfig, terms: PrivacyTerms, noise_symbols: int) -> None:
        num_rounds = len(terms.noise_multipliers)
        weights = policy_weights(config, num_rounds)
        self._largest = config.largest_number
        self._dropouts = expected_dropouts(config)
        self._shares = np.sqrt(weights)  # of the budget, roughly, on channels that are all alike
        self._peak = config.radio.max_amplitude**2
        self._terms = terms
        self._min_speakers = config.federation.min_speakers
        assumed, may_speak = assumed_problem(config, terms, noise_symbols, num_draws=_DRAWS)
        self._used = PowerUsed.nothing(config.federation.num_devices)
        self._planner: OnlinePlanner | None = None
        self._within_limits: RecedingHorizonPlanner | None = None
        if config.power_policy == "limited":
            limits = config.power.limits.over(
                config.federation.num_devices, config.optimizer.rounds, self._peak
            )
            self._within_limits = RecedingHorizonPlanner(
                assumed, weights, limits, may_speak, rounds_before=terms.first_round
            )
            return
        self._planner = OnlinePlanner(
            assumed,
            weights,
            Rule.MPC,
            causal_policy(config, assumed, num_rounds),
            assumed_speakers=may_speak,
        )

    def note(self, energies: Sequence[float]) -> None:
        """A round of the run is over.

        Args:
            energies: what each device was to send in it [K]; nothing where that is not known, and
                as much as a peak allows is taken for it.
        """
        self._used = self._used.and_round(
            np.array(energies) if energies else np.full_like(self._used.energy, self._peak)
        )

    def plan(
        self,
        round_index: int,
        gains: npt.NDArray[np.complex128],
        may_speak: BoolArray,
        amplitude_error: float,
        spent: Float64Array,
    ) -> PowerPlan:
        """One round, after those that were noted.

        Args:
            round_index: of it.
            gains: as estimated [K].
            may_speak: whose are known well enough [K].
            amplitude_error: eta, of those.
            spent: sum of y on every account before this round [K].

        Returns:
            A plan without speakers where nothing is left, or nobody is worth it.
        """
        position = round_index - self._terms.first_round
        left = self._terms.budget - spent
        left = np.where(left < _LEAST_SHARE * self._terms.budget, 0.0, left)
        left *= budget_to_plan_with(1.0, self._shares[position:], self._dropouts)
        schedule = self._schedule(
            position,
            np.square(np.where(may_speak, np.abs(gains), 1.0)),
            np.minimum(left, _MOST_OF_ONE_ROUND),
            may_speak,
            self._terms.sensitivity / self._largest * sensitivity_growth(amplitude_error),
        )
        if schedule.speakers.sum() < max(1, self._min_speakers):
            return PowerPlan((), tuple(range(len(gains))), 0.0, {}, {})
        return self._carried_out(schedule, gains)

    def _schedule(
        self,
        position: int,
        power_gains: Float64Array,
        left: Float64Array,
        may_speak: BoolArray,
        sensitivity: float,
    ) -> Schedule:
        if self._planner is not None:
            # Everybody's account is taken for the dearest one.
            remaining = float(left.min())
            return self._planner.plan(
                position, power_gains, remaining, may_speak=may_speak, sensitivity=sensitivity
            )
        assert self._within_limits is not None
        return self._within_limits.plan(
            position,
            power_gains,
            left,
            self._used,
            may_speak=may_speak,
            sensitivity=sensitivity,
        )

    def _carried_out(self, schedule: Schedule, gains: npt.NDArray[np.complex128]) -> PowerPlan:
        """The schedule on real gains, its noise raised to what the ledger prices it at."""
        cost = float(schedule.costs[0])
        planned = 1.0 / np.sqrt(2.0 * cost)
        raised = multiplier_above(float(planned)) / planned
        level = self._largest * np.sqrt(float(schedule.inverse_levels[0])) * raised
        scale = float(SAMPLE_HEADROOM / level)
        speakers = tuple(int(k) for k in np.flatnonzero(schedule.speakers[:, 0]))
        stds = self._largest * np.sqrt(schedule.noise_variances[:, 0]) * raised
        return PowerPlan(
            participants=speakers,
            silent=tuple(k for k in range(len(gains)) if k not in speakers),
            receive_scale=scale,
            tx_gains={k: scale / complex(gains[k]) for k in speakers},
            artificial_noise_std={k: float(stds[k]) for k in speakers},
        )


def policy_weights(config: PlanConfig, num_rounds: int) -> Float64Array:
    """omega as the policy takes it: its opposite order for ``reversed`` [T]."""
    weights = round_weights(config.power.contraction, num_rounds)
    return weights[::-1].copy() if config.power_policy == "reversed" else weights


def plans_as_it_goes(config: PlanConfig) -> bool:
    """Whether the policy follows the channel: superposed rounds that are paid in full."""
    is_paid_in_full = config.privacy.enabled and not config.is_subsampled
    is_superposed = config.access is Access.SUPERPOSED
    return is_paid_in_full and is_superposed and config.power_policy != "static"


def assumed_problem(
    config: PlanConfig,
    terms: PrivacyTerms,
    noise_symbols: int,
    *,
    num_draws: int,
    purpose: str = "assumed gains",
) -> tuple[PlanningProblem, BoolArray]:
    """Draws of the configuration's channel, as a problem of so many rounds of weight 1.

    Args:
        config: of the run.
        terms: its privacy.
        noise_symbols: silent samples from which a channel estimate's noise power is measured.
        num_draws: rounds of the problem.
        purpose: of the draws; others are independent.

    Returns:
        The problem, in units of the largest number that is said, each round with the sensitivity
        that its weakest device's error leaves; and who is loud enough to speak [K, draws].
    """
    radio, num_devices = config.radio, config.federation.num_devices
    channel = channel_from_name(radio.channel, rician_k_db=radio.rician_k_db)
    rng = simulation_rng(config.run.seed, purpose, 0)
    draws = np.stack([channel.gains(rng, num_devices) for _ in range(num_draws)], axis=1)
    paths = config.impaired_by.path_gains(num_devices)[:, None]
    magnitudes = np.maximum(np.abs(draws) * paths, 1e-9)
    error = gain_error_bound(
        config.radio, radio.noise_power, noise_symbols, terms.csi_failure_probability
    )
    may_speak = magnitudes >= max(radio.min_gain, error / MAX_AMPLITUDE_ERROR)
    weakest = np.where(may_speak, magnitudes, np.inf).min(axis=0)
    problem = PlanningProblem(
        power_gains=np.square(magnitudes),
        bounds=np.ones(num_devices),
        sensitivities=(
            terms.sensitivity / config.largest_number * sensitivity_growth(error / weakest)
        ),
        weights=np.ones(num_draws),
        noise_power=radio.noise_power / (2.0 * radio.payload_symbols),
        budget=terms.budget_left or 1.0,  # subsampled rounds have none of this kind
        trusted_noise_fraction=config.privacy.counted_noise_fraction,
        max_power=radio.max_amplitude**2,
    )
    return problem, may_speak


def causal_policy(config: PlanConfig, assumed: PlanningProblem, num_rounds: int) -> CausalPolicy:
    """The configuration's policy.

    Args:
        config: of the run.
        assumed: draws of its channel, whose budget is that of all rounds.
        num_rounds: of the run.
    """
    power = config.power
    match config.power_policy:
        case "selection":
            return selection.as_it_goes(assumed, power.min_participation)
        case "equal_split":
            return equal_split.as_it_goes(assumed, config.privacy.missing_devices)
        case "sign":
            return sign.as_it_goes(power.wrong_sign_probability)
        case "constant_inversion" | "truncated_inversion":
            budget = assumed.budget * assumed.num_rounds / num_rounds
            # Who is silent in a fade has no say in the level of a whole run.
            audible = np.maximum(assumed.power_gains, config.radio.min_gain**2)
            share = dataclasses.replace(assumed, budget=budget, power_gains=audible)
            is_constant = config.power_policy == "constant_inversion"
            plan = plan_constant_inversion if is_constant else plan_truncated_inversion
            return truncated_inversion.as_it_goes(plan(share))
        case _:
            return optimal.AS_IT_GOES
