"""What is said with every epsilon: of what, to whom, what is taken for granted, what is left."""

from __future__ import annotations

import math

from edge_runtime.number_grid import ASSUMED_RECEIVER_NOISE
from edge_runtime.protocol.rounds import Access, Vote
from server.config import RunConfig
from server.errors import PrivacyError

HOW_TO_KNOW = (
    "how large numbers are before noise is not known without public data. Set "
    "optimizer.typical_number: `pairzero plan` shows it for public data of the same kind "
    "(task.validation_is_public)"
)
"""Where a typical number is only bounded."""


def promise(config: RunConfig) -> str:
    """The promise of a configuration that makes one."""
    privacy = config.privacy
    besides = ""
    if config.access is Access.SUPERPOSED and privacy.missing_devices > 0:
        besides += f", without the noise of any {privacy.missing_devices} others"
    if privacy.trusted_noise_fraction > 0.0:
        besides += f", {receiver_noise_counted(config)}"
    return (
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, "
        f"{privacy.relation.replace('_', ' ')} {privacy.unit}, {config.access} access{besides}"
    )


def receiver_noise_counted(config: RunConfig) -> str:
    """How much of it is."""
    fraction = config.privacy.trusted_noise_fraction
    part = f"{fraction:.0%} of the" if fraction else "no"
    return f"{part} receiver noise counted"


def assumed_receiver_noise(config: RunConfig) -> float | None:
    """Standard deviation, in units of the scalar, that a receiver is assumed to have at least.

    So little that no receiver is without, but without any the grids of devices with unequal gains
    would tell them apart (`edge_runtime.number_grid`). None where devices are covered by their own
    noise alone, or nothing is promised: then nothing is assumed.
    """
    if not config.privacy.enabled or config.access is Access.SLOTTED:
        return None
    if config.vote is Vote.NOISE_AFTER:
        return ASSUMED_RECEIVER_NOISE
    return ASSUMED_RECEIVER_NOISE * config.optimizer.clip / config.optimizer.batch_size


def check_assumption(config: RunConfig, receiver_noise_std: float) -> None:
    """Return if a receiver is as noisy as the promise takes it to be.

    Args:
        config: of the run.
        receiver_noise_std: on each sum, measured, in units of the scalar.

    Raises:
        PrivacyError: it is not; nothing may be transmitted.
    """
    assumed = assumed_receiver_noise(config)
    if assumed is not None and not receiver_noise_std >= assumed:
        raise PrivacyError(
            f"receiver noise: measured {receiver_noise_std:.3g} on each number, and the promise of "
            f"superposed access assumes at least {assumed:.3g}: without it devices could be told "
            "apart by their grids. Nothing was transmitted. A receiver that measures none is "
            "faulty, or no receiver."
        )


def assumption(config: RunConfig) -> str | None:
    """The same for a person; None where nothing is assumed."""
    noise = assumed_receiver_noise(config)
    if noise is None:
        return None
    below_db = 20.0 * math.log10(config.largest_number / noise)
    return (
        f"assumes a receiver noise of at least {noise:.1e} on each number, {below_db:.0f} dB below "
        "the largest: devices are on grids of their own, and a noiseless receiver could tell them "
        "apart"
    )


def worth_in_words(effective_rounds: float, *, is_bound: bool) -> str:
    """What noise leaves of a run's rounds (`server.learnability`).

    Args:
        effective_rounds: so many without noise.
        is_bound: whether that is only known not to be more.
    """
    bound = "unknown, at most " if is_bound else ""
    return f"{bound}{effective_rounds:.3g}"
