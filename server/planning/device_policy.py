"""What an owner of data agrees to who takes part in a run as it is planned, and in nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from edge_runtime.guard.ledger import Release
from edge_runtime.guard.policy import POLICY_VERSION, AllowedRounds, Cover, DevicePolicy
from edge_runtime.protocol.rounds import Access
from server.config.plan_config import PlanConfig
from server.errors import PrivacyError
from server.planning.privacy_terms import PrivacyTerms
from server.privacy.calibration import RECORD_SLACK
from server.privacy.composition import (
    Composer,
    History,
    PriceClass,
    grid_index_below,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import epsilon_of

_ROUNDING = 1e-9
"""Relative: more than float64 does to the noise of a single round that pays the whole budget."""


def policy_of(config: PlanConfig, terms: PrivacyTerms, num_records: int) -> DevicePolicy:
    """The rounds of a run as they were proved, those before the stretch among them.

    Args:
        config: of the run.
        terms: what was found for its rounds.
        num_records: of the device.

    Raises:
        PromiseError: no promise follows from it.
    """
    is_superposed = config.access is Access.SUPERPOSED
    num_others = config.federation.num_devices - 1
    num_missing = config.privacy.missing_devices if is_superposed else 0
    is_own = not is_superposed or num_missing >= num_others
    return DevicePolicy(
        version=POLICY_VERSION,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        unit=config.privacy.unit,
        relation=config.privacy.relation,
        access=config.access,
        waveform=config.radio.waveform,
        vote=config.vote,
        cover=Cover.OWN if is_own else Cover.FEDERATION,
        num_missing=0 if is_own else num_missing,
        counts_receiver_noise=config.privacy.trusted_noise_fraction > 0.0,
        max_clip=config.optimizer.clip,
        min_batch=config.optimizer.batch_size,
        max_directions=config.optimizer.directions,
        max_amplitude=config.radio.max_amplitude,
        max_hold_s=config.radio.max_hold_s,
        carrier_hz=config.radio.carrier_hz,
        max_sampling_rate=min(1.0, config.optimizer.batch_size / num_records)
        if config.is_subsampled
        else 1.0,
        budget=0.0 if config.is_subsampled else terms.budget,
        rounds=_allowed_rounds(config, terms),
    )


def _allowed_rounds(config: PlanConfig, terms: PrivacyTerms) -> tuple[AllowedRounds, ...]:
    if not config.is_subsampled:
        num_before = max((sum(n for _, n in account) for account in terms.spent), default=0)
        # One round may pay what all of them may: 1 / (2 m^2) is the budget then.
        least = (2.0 * terms.budget) ** -0.5 * (1.0 - _ROUNDING)
        number = num_before + len(terms.noise_multipliers)
        return (AllowedRounds(number=number, min_noise_multiplier=least),)
    allowed = Counter(m * (1.0 - RECORD_SLACK) for m in terms.noise_multipliers)
    before: Counter[float] = Counter()
    for account in terms.spent:
        before |= Counter({price.noise_multiplier: n for price, n in account})
    return tuple(
        AllowedRounds(number=number, min_noise_multiplier=multiplier)
        for multiplier, number in sorted((allowed + before).items(), reverse=True)
    )


def proved_epsilon(policy: DevicePolicy, csi_delta: float = 0.0) -> float:
    """What a policy's rounds come to in all, at its delta, by exact composition.

    Args:
        policy: any, also one that somebody has changed by hand.
        csi_delta: the part of delta that is set aside for channel estimates.

    Raises:
        TooLittleNoiseError: rounds with so little noise that no finite epsilon is computed for it.
    """
    delta = math.nextafter(policy.delta - csi_delta, 0.0) if csi_delta else policy.delta
    if not policy.is_subsampled:
        return epsilon_of(math.sqrt(2.0 * policy.budget) * (1.0 + 2.0**-50), delta)
    counts: Counter[PriceClass] = Counter()
    for allowed in policy.rounds:
        grid_index = grid_index_below(allowed.min_noise_multiplier)
        counts[PriceClass(policy.max_sampling_rate, grid_index)] += allowed.number
    composer = Composer(loss_interval=loss_interval_for(policy.epsilon), delta=delta)
    return composer.epsilon(make_history(counts))


def released_before(releases: Sequence[Release], sampling_rate: float) -> History:
    """The account of a device, from its own ledger, as if all had been drawn at one rate at least.

    Raises:
        PrivacyError: some were drawn at a higher rate.
        TooLittleNoiseError: see `proved_epsilon`.
    """
    highest = max((release.sampling_rate for release in releases), default=0.0)
    if highest > sampling_rate:
        raise PrivacyError(
            f"records were drawn at a rate of {highest:.6g} before, the new rounds would at "
            f"{sampling_rate:.6g}: a policy has one rate for all of its rounds. Use a batch that "
            "is no smaller than before, for as many records."
        )
    return make_history(
        Counter(PriceClass(sampling_rate, grid_index_below(r.noise_multiplier)) for r in releases)
    )
