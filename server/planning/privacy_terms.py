"""What a run promises for its rounds: the noise that all of them can afford, found once.

The noise multiplier is the ratio of a release's noise to its sensitivity; every round of a stretch
has at least its own. `server.planning.round_plan` says what that makes of the devices' noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.guard.sensitivity import PrivacyUnit, release_sensitivity
from edge_runtime.protocol.rounds import Access
from radio.arrays import Float64Array
from server.config.plan_config import PlanConfig
from server.errors import PrivacyError
from server.power.catalogue import OWN_NOISE_POLICIES, own_noise_costs
from server.power.policies.subsampled import subsampled_offsets
from server.power.reserve import Dropouts, budget_to_plan_with, multiplier_to_plan_with
from server.privacy.calibration import (
    calibrate_noise_multiplier,
    calibrate_noise_schedule,
    check_delta,
    multiplier_above,
)
from server.privacy.composition import History, gdp_mu_of_squares, sum_of_squares
from server.privacy.gaussian import budget_of, central_limit_multiplier, gdp_mu_of

_ROUNDING = 1e-9
"""Of a budget, kept back: the ledger's sums round the other way."""


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """What was agreed for the whole run.

    Attributes:
        noise_multipliers: of the rounds of the stretch, in their order.
        first_round: of the stretch.
        sensitivity: of the sum of scalars to one record.
        sampling_probabilities: of the records of each device.
        commitments: public name of each device's private key.
        csi_failure_probability: allowed per statement about the channel.
        budget: R, what a device's rounds without subsampling may cost in all (sum of y =
            1 / (2 multiplier^2)); 0 where they are subsampled.
        budget_left: of it, at the beginning of the stretch.
        spent: what the devices' accounts held before the stretch.
    """

    noise_multipliers: tuple[float, ...]
    sensitivity: float
    sampling_probabilities: tuple[float, ...]
    commitments: tuple[str, ...]
    csi_failure_probability: float
    first_round: int = 0
    budget: float = 0.0
    budget_left: float = 0.0
    spent: tuple[History, ...] = ()

    @property
    def least_noise_multiplier(self) -> float:
        """The multiplier of the rounds with the least noise."""
        return min(self.noise_multipliers)

    def noise_multiplier(self, round_index: int) -> float:
        """The multiplier of a round of the stretch; beyond its end, the last."""
        position = min(round_index - self.first_round, len(self.noise_multipliers) - 1)
        return self.noise_multipliers[position]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rounds that are planned at once: all of a run's, or those it goes on for.

    Attributes:
        first_round: where they begin; they end with the configuration's last round.
        number: 1 for the rounds a run was started with, 2 for those it went on for, and so on. Each
            stretch makes its own statements about the channel, and has its own part of delta.
        spent: what the devices' accounts held before it.
    """

    first_round: int = 0
    number: int = 1
    spent: tuple[History, ...] = ()


WHOLE_RUN = Stretch()


def csi_delta(config: PlanConfig, num_stretches: int) -> float:
    """The part of delta that all statements about the channel in so many stretches may use.

    None where access is slotted: a device's noise arrives as loud as its number, however loud.
    """
    if config.access is Access.SLOTTED:
        return 0.0
    return config.privacy.delta * config.privacy.csi_failure_fraction * num_stretches


def plan_privacy_terms(
    config: PlanConfig,
    num_records: Sequence[int],
    commitments: Sequence[str],
    stretch: Stretch = WHOLE_RUN,
    *,
    roughly: bool = False,
) -> PrivacyTerms:
    """Find the least noise that keeps the whole run within its budget, for a stretch of it.

    Without subsampling everybody is in every round, and pays the same. With it the device with the
    fewest records samples each of them most often, and sets the price for all. How many records a
    device holds is public: the sampling rate b/n is fixed from it once, and neighbouring data sets
    are drawn from at the same rate.

    Args:
        config: of the run.
        num_records: of each device.
        commitments: to each device's key.
        stretch: of the run.
        roughly: noise of subsampled rounds by their central limit, in no time: for a search among
            runs, and for no run.

    Raises:
        ConfigurationError: delta is not below 1/n.
        PrivacyError: no amount of noise meets the budget.
    """
    optimizer, privacy = config.optimizer, config.privacy
    probabilities = tuple(
        min(1.0, optimizer.batch_size / n) if config.is_subsampled else 1.0 for n in num_records
    )
    num_units = len(num_records) if privacy.unit is PrivacyUnit.DEVICE else sum(num_records)
    budget, left = (0.0, 0.0) if config.is_subsampled else _budget(config, num_units, stretch)
    coherence = config.radio.coherence_rounds
    num_rounds = optimizer.rounds - stretch.first_round
    num_blocks = math.ceil(optimizer.rounds / coherence) - stretch.first_round // coherence
    # One statement per device and block about its gain, one per block about the noise power.
    num_statements = (len(num_records) + 1) * num_blocks
    return PrivacyTerms(
        noise_multipliers=_noise_multipliers(
            config, max(probabilities), num_rounds, num_units, stretch, left, roughly
        ),
        # The clipped terms of the other records are the same bits with one record and without it:
        # edge_runtime.pass_shapes sees to that.
        sensitivity=sensitivity_of(config),
        sampling_probabilities=probabilities,
        commitments=tuple(commitments),
        csi_failure_probability=privacy.delta * privacy.csi_failure_fraction / num_statements,
        first_round=stretch.first_round,
        budget=budget,
        budget_left=left,
        spent=stretch.spent,
    )


def _noise_multipliers(
    config: PlanConfig,
    sampling_probability: float,
    num_rounds: int,
    num_units: int,
    stretch: Stretch,
    budget_left: float,
    roughly: bool,
) -> tuple[float, ...]:
    """The multiplier of every round of the stretch, by the configuration's policy."""
    privacy, power = config.privacy, config.power
    if not config.is_subsampled:
        return _gaussian_multipliers(config, num_rounds, budget_left)
    if roughly:
        mu = gdp_mu_of(privacy.epsilon, privacy.delta)
        multiplier = central_limit_multiplier(mu, sampling_probability, num_rounds)
        return (multiplier,) * num_rounds
    if config.power_policy == "static" or power.contraction == 1.0:
        multiplier = calibrate_noise_multiplier(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            csi_delta=csi_delta(config, stretch.number),
            sampling_probability=sampling_probability,
            num_rounds=num_rounds,
            num_records=num_units,
            spent=stretch.spent,
        )
        dropouts = expected_dropouts(config)
        return (multiplier_to_plan_with(multiplier, num_rounds, dropouts),) * num_rounds
    multipliers = calibrate_noise_schedule(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        csi_delta=csi_delta(config, stretch.number),
        sampling_probability=sampling_probability,
        offsets=subsampled_offsets(
            power.contraction,
            num_rounds,
            sampling_probability=sampling_probability,
            mu=gdp_mu_of(privacy.epsilon, privacy.delta),
        ),
        num_records=num_units,
        spent=stretch.spent,
    )
    dropouts = expected_dropouts(config)
    return tuple(multiplier_to_plan_with(m, num_rounds, dropouts) for m in multipliers)


def expected_dropouts(config: PlanConfig) -> Dropouts:
    """Dropouts of devices whose noise covers others; none where nobody's does."""
    is_superposed = config.access is Access.SUPERPOSED
    return Dropouts(
        config.federation.num_devices,
        config.federation.dropout_probability if is_superposed else 0.0,
        config.privacy.missing_devices if is_superposed else 0,
    )


def _gaussian_multipliers(
    config: PlanConfig, num_rounds: int, budget_left: float
) -> tuple[float, ...]:
    """Multipliers of rounds without subsampling: what is left of the budget, dealt out by weights.

    Where rounds are planned as the run goes, what they come to on channels that are all alike.
    """
    named = config.power_policy
    costs = own_noise_costs(
        named if named in OWN_NOISE_POLICIES else "optimal",
        weights=round_weights(config.power.contraction, num_rounds),
        sensitivities=np.ones(num_rounds),
        budget=budget_left,
    )
    costs *= budget_to_plan_with(1.0, costs, expected_dropouts(config))
    return tuple(multiplier_above(1.0 / math.sqrt(2.0 * cost)) for cost in costs)


def round_weights(contraction: float, num_rounds: int) -> Float64Array:
    """omega of the last rounds of a run: what is left of each one's noise at the end."""
    weights: Float64Array = contraction ** np.arange(num_rounds - 1, -1, -1.0)
    return weights


def _budget(config: PlanConfig, num_units: int, stretch: Stretch) -> tuple[float, float]:
    """R of a run without subsampling, and what the dearest account has left of it.

    Raises:
        ConfigurationError: delta is not below 1/n.
        PrivacyError: nothing is left.
    """
    privacy = config.privacy
    check_delta(privacy.delta, num_units)
    delta = math.nextafter(privacy.delta - csi_delta(config, stretch.number), 0.0)
    budget = budget_of(privacy.epsilon, delta) * (1.0 - _ROUNDING)
    spent = max((sum_of_squares(account) or 0 for account in stretch.spent), default=0)
    left = math.nextafter(budget - gdp_mu_of_squares(spent) ** 2 / 2.0, 0.0)
    if left <= 0.0:
        raise PrivacyError(
            f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}: the accounts have spent it. "
            "Allow a larger epsilon."
        )
    return budget, left


def sensitivity_of(config: PlanConfig) -> float:
    """Delta of what the noise is added to: a device's numbers on their grid, or its signs."""
    return release_sensitivity(
        access=config.access,
        vote=config.vote,
        directions=config.optimizer.directions,
        clip=config.optimizer.clip,
        batch_size=config.optimizer.batch_size,
        unit=config.privacy.unit,
        relation=config.privacy.relation,
    )
