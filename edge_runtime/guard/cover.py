"""Whose noise covers whom: what may be certified of the noise on the air, device by device.

The server prices a round with it, and a device checks with it what it is told to say.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

from edge_runtime.protocol.errors import PromiseError
from edge_runtime.protocol.rounds import Access

ROUND_DOWN = 1.0 - 2.0**-49
"""Float64 operations on the way to a multiplier or a sum of squares each lose at most 2**-53."""


class ArtificialNoise(enum.StrEnum):
    """How a device's private noise lies in the complex plane before its tx gain turns it.

    IN_PHASE: one real number, tx_gain * (p + n).
    CIRCULAR: independent numbers of equal variance in both quadratures, tx_gain * (p + n + j m).
    """

    IN_PHASE = "in_phase"
    CIRCULAR = "circular"


def certified_noise_stds(
    *,
    access: Access,
    artificial_noise: ArtificialNoise,
    noise_stds: Mapping[int, float],
    num_missing: int = 0,
    receiver_noise_std: float = 0.0,
) -> dict[int, float]:
    """The noise that provably covers each transmitting device k, per real dimension.

    A device that sends Q numbers arrives with one complex gain on all of them and draws independent
    noise of one std for each; what follows then holds in Q times as many dimensions.

    SLOTTED: sigma_k alone, because the receiver meets the scalar by itself.
    SUPERPOSED, circular noise: sqrt(sum_j sigma_j^2 + r^2) over everybody who transmits, but for
    the q loudest noises of others: those q may have told the server theirs, or kept it to
    themselves. r is what is counted of the receiver's own noise, which no device can check.
    SUPERPOSED, in-phase noise: sigma_k alone. Device j arrives along u_j = (cos phi_j, sin phi_j)
    with its small residual phase error phi_j, so the noise covariance is S = sum_j sigma_j^2 u_j
    u_j', nearly flat, and device k's loss is shift^2 u_k' S^-1 u_k. That does not shrink with the
    phase errors: with equal noise it averages twice shift^2 / sum_j sigma_j^2 over the devices and
    can reach shift^2 / sigma_k^2 (with two devices it always does). A receiver that keeps both
    quadratures, and whose own noise is not counted, can tell the devices apart. Circular noise
    covers every direction alike.

    Left out: amplitude errors (`amplitude_error_bound` of the server's records) and anything but a
    complex gain that differs between the bursts (carrier frequency, timing); see
    `server/privacy/README.md`.

    Args:
        access: who meets the scalar.
        artificial_noise: how the devices draw their noise.
        noise_stds: sigma_j per real dimension in units of the scalar, of all that transmit.
        num_missing: q >= 0; nothing where access is slotted, because nobody's noise counts there.
        receiver_noise_std: r >= 0 in the same units; 0 where access is slotted.

    Guarantees: no result is above the real number (rounded down); a device that does not transmit
    has none, because nothing covers it.

    Raises:
        PromiseError: a std is not finite and >= 0, or receiver noise is to cover a device that the
            receiver can tell apart.
    """
    _require_std("receiver_noise_std", receiver_noise_std)
    for index, noise_std in noise_stds.items():
        _require_std(f"noise_stds[{index}]", noise_std)
    if access is Access.SLOTTED or artificial_noise is ArtificialNoise.IN_PHASE:
        if receiver_noise_std > 0.0:
            raise PromiseError(
                f"receiver_noise_std: got {receiver_noise_std} for devices that are covered by "
                "their own noise alone, wanted 0."
            )
        return dict(noise_stds)
    if access is Access.SUPERPOSED and artificial_noise is ArtificialNoise.CIRCULAR:
        return _covered_together(noise_stds, num_missing, receiver_noise_std)
    raise PromiseError(
        f"got access {access!r} and artificial_noise {artificial_noise!r}, wanted members of "
        "Access and ArtificialNoise."
    )


def _covered_together(
    noise_stds: Mapping[int, float], num_missing: int, receiver_noise_std: float
) -> dict[int, float]:
    """sqrt of the sum of squares, without the q loudest others."""
    by_loudness = sorted(noise_stds, key=lambda index: -noise_stds[index])
    loudest = by_loudness[: num_missing + 1]
    others = [noise_stds[index] for index in by_loudness[num_missing + 1 :]]
    # Who is none of the q + 1 loudest misses the first q of them; who is one misses the others.
    usual = math.hypot(receiver_noise_std, *others, *(noise_stds[i] for i in loudest[num_missing:]))
    certified = dict.fromkeys(noise_stds, usual)
    for index in loudest:
        certified[index] = math.hypot(receiver_noise_std, noise_stds[index], *others)
    return {index: max(own, certified[index] * ROUND_DOWN) for index, own in noise_stds.items()}


def _require_std(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise PromiseError(f"{name}: got {value}, wanted a finite number >= 0.")
