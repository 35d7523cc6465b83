r"""What every power policy would make of a run, side by side, before anything is sent.

Channels are draws of the configuration's law, one for each fading block, and known in hindsight: a
run, which sees one at a time, comes within a percent of that (`benchmarks/online_planning.py`).
Devices below ``radio.min_gain`` are silent, and gains are as badly known as pilots will leave them,
so that prices are those that the ledger will see. Where every device is covered by its own noise,
there is no level to plan, and the radio's part is that of unit gains.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge_runtime.protocol.rounds import Access, Vote
from radio.arrays import BoolArray, Float64Array
from server.config.plan_config import PlanConfig
from server.errors import ConfigurationError, ServerError
from server.planning.expected_noise import radio_sum_std
from server.planning.online_run import assumed_problem, causal_policy, policy_weights
from server.planning.privacy_terms import (
    PrivacyTerms,
    csi_delta,
    expected_dropouts,
    plan_privacy_terms,
)
from server.power.catalogue import (
    POLICIES,
    policy_named,
)
from server.power.causal_policy import CausalPolicy
from server.power.limits import mean_squares
from server.power.policies import equal_split
from server.power.policies.limited import plan_limited
from server.power.policies.paper import plan_paper
from server.power.policies.perfect import perfect_for
from server.power.policies.selection import plan_selection
from server.power.reserve import budget_to_plan_with
from server.power.schedule import PlanningProblem, Schedule
from server.power.water_filling import fill
from server.privacy.composition import (
    Composer,
    History,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import epsilon_of

_CHECKPOINTS = 20
_MOST_PARTS = 60


@dataclass(frozen=True, slots=True)
class PolicyPreview:
    """One policy over the rounds of a run.

    Attributes:
        name: of it.
        refusal: why it does not plan this run; empty if it does. Then what follows is empty.
        own_noise_std: of privacy noise on each round's means, in units of the scalar [T].
        radio_noise_std: of channel and receiver on them [T].
        num_speakers: n [T].
        power_db: mean square of what a device sends while it speaks, its numbers at their bound,
            over full scale; NaN where no level is planned.
        checkpoints: numbers of rounds.
        epsilon: spent after so many, by a device that speaks in all of them; empty where nothing is
            promised.
    """

    name: str
    refusal: str = ""
    own_noise_std: Float64Array = dataclasses.field(default_factory=lambda: np.empty(0))
    radio_noise_std: Float64Array = dataclasses.field(default_factory=lambda: np.empty(0))
    num_speakers: Float64Array = dataclasses.field(default_factory=lambda: np.empty(0))
    power_db: float = math.nan
    checkpoints: tuple[int, ...] = ()
    epsilon: tuple[float, ...] = ()

    @property
    def mean_noise_std(self) -> Float64Array:
        """Standard deviation of all noise on a round's means [T]; infinite where nobody speaks."""
        total: Float64Array = np.hypot(self.own_noise_std, self.radio_noise_std)
        return np.where(self.num_speakers > 0, total, math.inf)


def preview_policies(config: PlanConfig, num_records: Sequence[int]) -> list[PolicyPreview]:
    """Every policy of the catalogue, in its order.

    Args:
        config: of the run.
        num_records: of each device.

    Raises:
        ConfigurationError, PrivacyError: the run itself cannot be planned at all.
    """
    if config.radio.backend == "ideal":
        raise ConfigurationError('radio.backend = "ideal": there is no power to plan.')
    previews = []
    for name in POLICIES:
        try:
            previews.append(preview_policy(config, name, num_records))
        except ServerError as error:
            previews.append(PolicyPreview(name, refusal=str(error)))
    return previews


def preview_policy(
    config: PlanConfig,
    name: str,
    num_records: Sequence[int],
    terms: PrivacyTerms | None = None,
    *,
    spending: bool = True,
) -> PolicyPreview:
    """One policy.

    Args:
        config: of the run.
        name: of the policy.
        num_records: of each device.
        terms: of the run under this policy, if they are known.
        spending: whether epsilon over the rounds is wanted too.

    Raises:
        ConfigurationError, PrivacyError: it cannot plan the run.
        InfeasiblePlanError: it could not keep a limit.
    """
    if not POLICIES[name].promises:
        return _without_a_promise(config, name, num_records)
    if not config.privacy.enabled:
        raise ConfigurationError("privacy.enabled = false: there is no promise to plan for.")
    config.check_policy(name)
    own = msgspec.structs.replace(config, power=msgspec.structs.replace(config.power, policy=name))
    if terms is None:
        terms = plan_privacy_terms(own, num_records, _nameless(config))
    if config.access is Access.SLOTTED:
        return _covered_alone(own, terms, spending)
    return _superposed(own, terms, spending)


def _nameless(config: PlanConfig) -> list[str]:
    """Commitments of devices whose keys nobody has drawn."""
    return [f"{k:08x}" for k in range(config.federation.num_devices)]


def _superposed(config: PlanConfig, terms: PrivacyTerms, spending: bool) -> PolicyPreview:
    problem, may_speak = _whole_run(config, terms)
    costs = 1.0 / (2.0 * np.square(np.array(terms.noise_multipliers)))
    if config.is_subsampled or config.power_policy == "static":
        rich = dataclasses.replace(problem, budget=math.fsum(costs) * (1.0 + 1e-9))
        schedule = equal_split.with_equal_noises(
            rich, costs, may_speak, config.privacy.missing_devices
        ).check()
    elif config.power_policy == "limited":
        schedule = _within_limits(config, problem, may_speak)
        costs = schedule.costs * _dearest(schedule)
    else:
        policy = causal_policy(config, problem, problem.num_rounds)
        schedule = planned_in_hindsight(policy, problem, may_speak)
        costs = schedule.costs
    return _of_schedule(config, terms, schedule, costs if spending else np.zeros_like(costs))


def _within_limits(config: PlanConfig, problem: PlanningProblem, may_speak: BoolArray) -> Schedule:
    """By a solver, on so many parts of the run as it takes a second for, each of one channel."""
    num_rounds = problem.num_rounds
    parts = np.array_split(np.arange(num_rounds), min(_MOST_PARTS, num_rounds))
    first = np.array([part[0] for part in parts])
    repeats = np.array([float(len(part)) for part in parts])
    whole = dataclasses.replace(
        problem,
        power_gains=problem.power_gains[:, first],
        sensitivities=problem.sensitivities[first] * np.sqrt(repeats),
        weights=np.array([problem.weights[part].sum() for part in parts]),
    )
    limits = config.power.limits.over(problem.num_devices, num_rounds, problem.max_power)
    preferred = plan_selection(whole).speakers & may_speak[:, first]
    speakers = limits.choose_speakers(whole, preferred) & may_speak[:, first]
    chosen = dataclasses.replace(limits, min_duty=0.0, max_duty=1.0)
    accounts = np.full(problem.num_devices, problem.budget)
    planned = plan_limited(whole, chosen, speakers=speakers, repeats=repeats, accounts=accounts)
    of_part = np.repeat(np.arange(len(parts)), repeats.astype(int))
    return dataclasses.replace(
        planned,
        problem=dataclasses.replace(problem, power_gains=whole.power_gains[:, of_part]),
        speakers=planned.speakers[:, of_part],
        inverse_levels=planned.inverse_levels[of_part],
        noise_variances=planned.noise_variances[:, of_part],
        costs=(planned.costs / repeats)[of_part],
    )


def _dearest(schedule: Schedule) -> BoolArray:
    """The rounds of the device that pays most [T]."""
    dearest: BoolArray = schedule.speakers[int(np.argmax(schedule.speakers @ schedule.costs))]
    return dearest


def _whole_run(config: PlanConfig, terms: PrivacyTerms) -> tuple[PlanningProblem, BoolArray]:
    """Every round's channel, and who is loud enough on it."""
    num_rounds, coherence = config.optimizer.rounds, config.radio.coherence_rounds
    frames = config.coherent_waveform
    drawn, loud = assumed_problem(
        config,
        terms,
        frames.noise_symbols,
        num_draws=math.ceil(num_rounds / coherence),
        purpose="preview gains",
    )
    blocks = np.arange(num_rounds) // coherence
    weights = policy_weights(config, num_rounds)
    whole = dataclasses.replace(
        drawn,
        power_gains=drawn.power_gains[:, blocks],
        sensitivities=drawn.sensitivities[blocks],
        weights=weights,
    )
    if not config.is_subsampled:
        kept_back = budget_to_plan_with(1.0, np.sqrt(weights), expected_dropouts(config))
        whole = dataclasses.replace(whole, budget=whole.budget * kept_back)
    return whole, loud[:, blocks]


def planned_in_hindsight(
    policy: CausalPolicy, problem: PlanningProblem, may_speak: BoolArray
) -> Schedule:
    """The best that a policy can do with all channels known."""
    respond = policy.respond(problem, may_speak)
    dearest, speakers = respond(1e12)
    if policy.is_fixed:
        return policy.schedule(problem, dearest, speakers)
    never = np.full(problem.num_rounds, math.inf)
    multiplier = 1.0

    def costs_at(tau: float) -> Float64Array:
        nonlocal multiplier
        multiplier = tau
        return respond(tau)[0]

    costs = fill(costs_at, problem.budget, never)
    return policy.schedule(problem, costs, respond(multiplier)[1])


def _of_schedule(
    config: PlanConfig, terms: PrivacyTerms, schedule: Schedule, costs: Float64Array
) -> PolicyPreview:
    largest = config.largest_number
    spoken = ~schedule.is_silent
    inverse = np.where(spoken, schedule.inverse_levels, 0.0)
    count = np.maximum(schedule.num_speakers, 1.0)
    checkpoints, epsilon = _epsilon_over_rounds(config, terms, np.where(spoken, costs, 0.0))
    return PolicyPreview(
        name=config.power_policy,
        own_noise_std=largest * np.sqrt(schedule.artificial_noise) / count,
        radio_noise_std=largest * np.sqrt(schedule.problem.noise_power * inverse) / count,
        num_speakers=schedule.num_speakers,
        power_db=_mean_power_db(schedule),
        checkpoints=checkpoints,
        epsilon=epsilon,
    )


def _mean_power_db(schedule: Schedule) -> float:
    squares = mean_squares(schedule)[schedule.speakers]
    if squares.size == 0:
        return -math.inf
    return 10.0 * math.log10(float(squares.mean()) / schedule.problem.max_power)


def _covered_alone(config: PlanConfig, terms: PrivacyTerms, spending: bool) -> PolicyPreview:
    """Slotted access: nobody's noise covers another."""
    num_devices, num_rounds = config.federation.num_devices, config.optimizer.rounds
    own = np.array(terms.noise_multipliers) * terms.sensitivity
    radio = {std: radio_sum_std(config, std) for std in set(own.tolist())}
    costs = 1.0 / (2.0 * np.square(np.array(terms.noise_multipliers)))
    checkpoints, epsilon = _epsilon_over_rounds(config, terms, costs if spending else 0.0 * costs)
    return PolicyPreview(
        name=config.power_policy,
        own_noise_std=own / math.sqrt(num_devices),
        radio_noise_std=np.array([radio[std] for std in own.tolist()]) / num_devices,
        num_speakers=np.full(num_rounds, float(num_devices)),
        checkpoints=checkpoints,
        epsilon=epsilon,
    )


def _without_a_promise(config: PlanConfig, name: str, num_records: Sequence[int]) -> PolicyPreview:
    """``perfect`` and ``paper``: for comparison, where levels mean something."""
    if config.power.limits.limits_anything:
        raise ConfigurationError("it does not keep [power.limits].")
    if config.access is Access.SLOTTED and config.privacy.enabled:
        policy_named(name, access=config.access, has_promise=False)
    if not config.radio.waveform.needs_common_clock or config.vote is Vote.NOISE_BEFORE:
        raise ConfigurationError("it plans a level that is common to all, and there is none here.")
    terms = None
    if config.privacy.enabled:
        terms = plan_privacy_terms(
            msgspec.structs.replace(
                config, power=msgspec.structs.replace(config.power, policy="static")
            ),
            num_records,
            _nameless(config),
        )
    if name == "paper" and (terms is None or config.is_subsampled):
        raise ConfigurationError("it plans a promise to whole devices, in rounds paid in full.")
    problem, _ = _whole_run(config, terms or _no_terms(config))
    if name == "perfect":
        # What a gain is known to matters to a promise alone.
        schedule = perfect_for(problem, np.sqrt(problem.power_gains) >= config.radio.min_gain)
    else:
        schedule = plan_paper(problem, epsilon=config.privacy.epsilon, delta=config.privacy.delta)
    unpaid = np.zeros(problem.num_rounds)
    preview = _of_schedule(config, terms or _no_terms(config), schedule, unpaid)
    return dataclasses.replace(preview, name=name, checkpoints=(), epsilon=())


def _no_terms(config: PlanConfig) -> PrivacyTerms:
    """Terms for a run that promises nothing: a sensitivity and a budget that nobody uses."""
    return PrivacyTerms(
        noise_multipliers=(1.0,) * config.optimizer.rounds,
        sensitivity=config.largest_number,
        sampling_probabilities=(1.0,) * config.federation.num_devices,
        commitments=(),
        csi_failure_probability=1e-9,
        budget=1.0,
        budget_left=1.0,
    )


def _epsilon_over_rounds(
    config: PlanConfig, terms: PrivacyTerms, costs: Float64Array
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Spent at some rounds, with prices y of all of them."""
    delta = config.privacy.delta - csi_delta(config, 1) if config.privacy.enabled else 0.0
    rounds = len(costs)
    checkpoints = sorted({math.ceil(rounds * i / _CHECKPOINTS) for i in range(1, _CHECKPOINTS + 1)})
    if delta <= 0.0 or not np.any(costs):
        return (), ()
    if not config.is_subsampled:
        sums = np.sqrt(2.0 * np.cumsum(costs))
        spent = [epsilon_of(float(sums[n - 1]), delta) if sums[n - 1] else 0.0 for n in checkpoints]
        return tuple(checkpoints), tuple(spent)
    rate = max(terms.sampling_probabilities)
    prices = [
        PriceClass(rate, grid_index_below(1.0 / math.sqrt(2.0 * cost) * (1.0 - 1e-6)))
        if cost > 0.0
        else None
        for cost in costs
    ]
    histories = tuple(
        make_history(Counter(price for price in prices[:n] if price is not None))
        for n in checkpoints
    )
    interval = loss_interval_for(config.privacy.epsilon)
    return tuple(checkpoints), _epsilons(interval, delta, histories)


@functools.lru_cache(maxsize=64)
def _epsilons(
    loss_interval: float, delta: float, histories: tuple[History, ...]
) -> tuple[float, ...]:
    """Epsilon after each of some histories; kept, because policies with equal rounds share them."""
    composer = Composer(loss_interval=loss_interval, delta=delta)
    return tuple(composer.epsilon(history) for history in histories)
