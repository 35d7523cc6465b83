"""What is said with every epsilon: of what, to whom, what is taken for granted, what is left."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.rounds import Access, Vote
from server.config.plan_config import PlanConfig
from server.config.privacy import PrivacySection
from server.errors import PrivacyError
from server.planning.privacy_terms import PrivacyTerms, sensitivity_of
from server.privacy.receiver_noise import receiver_noise_needed

HOW_TO_KNOW = (
    "how large numbers are before noise is not known without public data. Set "
    "optimizer.typical_number: `pairzero plan` shows it for public data of the same kind "
    "(task.validation_is_public)"
)
"""Where a typical number is only bounded."""


def promise(privacy: PrivacySection, access: Access) -> str:
    """The promise of a configuration that makes one."""
    besides = ""
    if access is Access.SUPERPOSED and privacy.missing_devices > 0:
        besides += f", without the noise of any {privacy.missing_devices} others"
    if privacy.trusted_noise_fraction > 0.0:
        besides += f", {receiver_noise_counted(privacy)}"
    return (
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, "
        f"{privacy.relation.replace('_', ' ')} {privacy.unit}, {access} access{besides}"
    )


def receiver_noise_counted(privacy: PrivacySection) -> str:
    """How much of it is."""
    fraction = privacy.trusted_noise_fraction
    part = f"{fraction:.0%} of the" if fraction else "no"
    return f"{part} receiver noise counted"


def assumed_receiver_noise(config: PlanConfig, sum_noise_std: float) -> float | None:
    """Standard deviation, in units of the scalar, that a receiver is assumed to have at least.

    So little that no receiver is without, but without any, devices whose signals add up could be
    told apart (`server.privacy.receiver_noise`). None where devices are covered by their own noise
    alone, or nothing is promised: then nothing is assumed.

    Args:
        config: of the run.
        sum_noise_std: of all noise on a sum that devices and the promise put there, in the round
            with most of it.
    """
    if not config.privacy.enabled or config.access is Access.SLOTTED:
        return None
    optimizer = config.optimizer
    is_vote = config.vote is Vote.NOISE_AFTER
    return receiver_noise_needed(
        step=1.0 if is_vote else optimizer.clip / optimizer.batch_size,
        bound=config.largest_number,
        sensitivity=sensitivity_of(config),
        sum_noise_std=sum_noise_std,
        num_devices=config.federation.num_devices,
        num_scalars=optimizer.directions,
        counted_fraction=config.privacy.counted_noise_fraction,
    )


def assumed_as_planned(config: PlanConfig, terms: PrivacyTerms) -> float | None:
    """`assumed_receiver_noise` of a run, as far as it is known before.

    Channels decide about the rest: each round is held against what is planned for it.
    """
    num_devices, num_missing = config.federation.num_devices, config.privacy.missing_devices
    required = max(terms.noise_multipliers) * terms.sensitivity
    return assumed_receiver_noise(
        config, required * math.sqrt(num_devices / (num_devices - num_missing))
    )


def largest_sum_noise_std(
    counted_fraction: float, own: npt.ArrayLike, radio: npt.ArrayLike, num_speakers: npt.ArrayLike
) -> float:
    """What devices and the promise put on a sum in the round with most of it; 0 of no rounds.

    Args:
        counted_fraction: what is counted of the receiver's noise power.
        own: standard deviations of artificial noise on means, in units of the scalar [T].
        radio: of channel and receiver on them [T].
        num_speakers: n [T]; rounds without are no rounds.
    """
    counted = math.sqrt(counted_fraction) * np.asarray(radio)
    count = np.asarray(num_speakers)
    return float(np.max(count * np.hypot(own, counted), where=count > 0, initial=0.0))


def check_assumption(config: PlanConfig, sum_noise_std: float, receiver_noise_std: float) -> None:
    """Return if a receiver is as noisy as the promise takes it to be.

    Args:
        config: of the run.
        sum_noise_std: as for `assumed_receiver_noise`, of this round.
        receiver_noise_std: on each sum, measured, in units of the scalar.

    Raises:
        PrivacyError: it is not; nothing may be transmitted.
    """
    assumed = assumed_receiver_noise(config, sum_noise_std)
    if assumed is not None and not receiver_noise_std >= assumed:
        raise PrivacyError(
            f"receiver noise: measured {receiver_noise_std:.3g} on each number, and the promise of "
            f"superposed access assumes at least {assumed:.3g}: without it devices could be told "
            "apart by their grids and by what is rounded off. Nothing was transmitted. A receiver "
            "that measures none is faulty, or no receiver; radio.snr_db of a software radio may be "
            "lowered."
        )


def assumption(largest_number: float, assumed: float | None) -> str | None:
    """What a receiver is assumed to have, for a person; None where nothing is assumed.

    Args:
        largest_number: G.
        assumed: standard deviation of its noise, in units of the scalar.
    """
    if assumed is None:
        return None
    below_db = 20.0 * math.log10(largest_number / assumed)
    return (
        f"assumes a receiver noise of at least {assumed:.1e} on each number, {below_db:.0f} dB "
        "below the largest: without any, devices could be told apart by their grids and by what is "
        "rounded off"
    )


def worth_in_words(effective_rounds: float, *, is_bound: bool) -> str:
    """What noise leaves of a run's rounds (`server.planning.learnability`).

    Args:
        effective_rounds: so many without noise.
        is_bound: whether that is only known not to be more.
    """
    bound = "unknown, at most " if is_bound else ""
    return f"{bound}{effective_rounds:.3g}"
