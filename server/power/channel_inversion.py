"""Static power plan: truncated channel inversion with an equal split of the artificial noise.

Every participant arrives at one common level; a device in a deep fade stays silent instead of
pulling everybody down to its own level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.rounds import TransmitOrder
from radio.bisection import bisect
from server.errors import ConfigurationError
from server.numeric import check_not_negative, check_positive

DEFAULT_PEAK_FACTOR = 8.0

# Samples are complex64: building, scaling and storing one may raise its magnitude by a few units
# of 2**-24, and a sample above full scale is an error, not a rounding.
SAMPLE_HEADROOM = 1.0 - 2.0**-20

_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """Who speaks, how loud, and with how much noise: device k sends tx_gain_k (p_k + n_k).

    Attributes:
        participants: devices that speak, ascending.
        silent: devices whose channel is too weak, ascending.
        receive_scale: common level c at which a scalar of 1 arrives; 0 if nobody speaks.
        tx_gains: c / h_k of each participant, complex amplitude.
        artificial_noise_std: sigma_k of each participant in units of the scalar, per real
            dimension.
    """

    participants: tuple[int, ...]
    silent: tuple[int, ...]
    receive_scale: float
    tx_gains: Mapping[int, complex]
    artificial_noise_std: Mapping[int, float]

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        for name in ("tx_gains", "artificial_noise_std"):
            mapping = getattr(self, name)
            if tuple(sorted(mapping)) != self.participants:
                raise ConfigurationError(
                    f"{name}: got devices {sorted(mapping)}, wanted {list(self.participants)}."
                )
            object.__setattr__(self, name, MappingProxyType(dict(mapping)))

    @property
    def weights(self) -> Mapping[int, float]:
        """Everybody arrives at the common level."""
        return dict.fromkeys(self.participants, 1.0)

    def orders(self) -> tuple[TransmitOrder, ...]:
        """What each participant is told."""
        return tuple(
            TransmitOrder(
                device_index=k,
                tx_gain_real=self.tx_gains[k].real,
                tx_gain_imag=self.tx_gains[k].imag,
                artificial_noise_std=self.artificial_noise_std[k],
            )
            for k in self.participants
        )

    def energies(self, scalar_bound: float, num_devices: int) -> tuple[float, ...]:
        """Mean square of what each device sends, its number at its bound, over full scale [K]."""
        return tuple(
            abs(self.tx_gains[k]) ** 2 * (scalar_bound**2 + self.artificial_noise_std[k] ** 2)
            if k in self.tx_gains
            else 0.0
            for k in range(num_devices)
        )

    @property
    def sum_noise_std(self) -> float:
        """Standard deviation of the sum of all artificial noises, in units of the scalar."""
        return math.hypot(*self.artificial_noise_std.values())


def plan_static(
    *,
    gain_estimates: npt.NDArray[np.complex128],
    max_amplitude: float,
    scalar_bound: float,
    required_noise_std: float,
    min_gain: float,
    min_participants: int = 1,
    peak_factor: float = DEFAULT_PEAK_FACTOR,
    num_missing: int = 0,
    trusted_noise_power: float = 0.0,
) -> PowerPlan:
    r"""Truncated inversion: tx_gain_k = c / h_k if abs(h_k) >= min_gain, else silent.

    With n participants and an equal split of the noise, of which q shares do not count::

        (n - q) sigma_k^2 + rho N0 / c^2 = required_noise_std^2
        c = min_k max_amplitude abs(h_k) / (G + peak_factor sigma_k)

    (sigma_k = 0 where receiver noise is more than that already), so that every sample stays below
    max_amplitude unless the noise exceeds peak_factor standard deviations. For the default 8 that
    happens with probability erfc(8 / sqrt 2) = 1.3e-15 a device and round if the noise is real, and
    exp(-32) = 1.3e-14 if it has two quadratures of sigma_k.

    Assumes block fading over sounding and payload, and takes the estimates at their word: the
    estimation error belongs to the privacy record (amplitude_error_bound), not here.

    Args:
        gain_estimates: complex [num_devices], transmitted to received amplitude.
        max_amplitude: largest magnitude of a transmitted sample (1.0 = full scale).
        scalar_bound: G, the bound on abs(p_k).
        required_noise_std: standard deviation of what counts of the noise of the sum, in units of
            the scalar; 0 in ideal mode.
        min_gain: truncation threshold on abs(h_k).
        min_participants: with fewer devices that can reach the level nobody speaks at all: a sum
            that would not be used is not worth its price.
        peak_factor: how many noise standard deviations must fit below max_amplitude.
        num_missing: q, whose noise does not count; with as many participants or fewer nobody
            speaks.
        trusted_noise_power: rho N0, what counts of the receiver noise on an arriving sum.

    Guarantees:
        * abs(tx_gain_k) (G + peak_factor sigma_k) <= max_amplitude, with room for float32;
        * what counts is at least required_noise_std^2 (rounded up);
        * silent devices are exactly those below min_gain, or all of them;
        * more required noise never raises c; permuting the devices permutes the plan;
        * if everybody is silent the plan has no participants: skip the round, charge nothing.

    Raises:
        ConfigurationError: a value out of range or a gain that is not finite.

    Source: theory.md, sections 1 and 5.3.
    """
    gains = _check_gains(gain_estimates)
    check_positive("max_amplitude", max_amplitude)
    check_positive("scalar_bound", scalar_bound)
    check_positive("min_gain", min_gain)
    check_positive("peak_factor", peak_factor)
    check_not_negative("required_noise_std", required_noise_std)
    check_not_negative("num_missing", num_missing)
    check_not_negative("trusted_noise_power", trusted_noise_power)
    magnitudes = {k: abs(gain) for k, gain in enumerate(gains)}
    participants = tuple(k for k, magnitude in magnitudes.items() if magnitude >= min_gain)
    silent = tuple(k for k, magnitude in magnitudes.items() if magnitude < min_gain)
    num_counted = len(participants) - num_missing
    if len(participants) < max(1, min_participants) or num_counted < 1:
        return PowerPlan((), tuple(magnitudes), 0.0, {}, {})

    weakest = min(magnitudes[k] for k in participants)
    noise_std = _split_equally(required_noise_std, num_counted)
    if trusted_noise_power > 0.0:
        noise_per_scalar = math.sqrt(trusted_noise_power) / (max_amplitude * weakest)
        noise_std = _less_by_receiver(
            noise_std, num_counted, required_noise_std, scalar_bound, peak_factor, noise_per_scalar
        )
    peak_scalar = scalar_bound + peak_factor * noise_std
    receive_scale = max_amplitude * weakest / peak_scalar * SAMPLE_HEADROOM
    if not (math.isfinite(receive_scale) and receive_scale > 0):
        raise ConfigurationError(
            f"receive_scale: got {receive_scale} for gain {weakest} and peak scalar {peak_scalar}. "
            "The numbers leave the range of float64; check their units."
        )
    return PowerPlan(
        participants=participants,
        silent=silent,
        receive_scale=receive_scale,
        tx_gains={k: receive_scale / gains[k] for k in participants},
        artificial_noise_std=dict.fromkeys(participants, noise_std),
    )


def _check_gains(gain_estimates: npt.NDArray[np.complex128]) -> list[complex]:
    array = np.asarray(gain_estimates)
    if array.ndim != 1 or array.size == 0:
        raise ConfigurationError(
            f"gain_estimates: got shape {array.shape}, wanted [num_devices] with a device or more."
        )
    gains = [complex(gain) for gain in array]
    for device_index, gain in enumerate(gains):
        if not math.isfinite(abs(gain)):
            raise ConfigurationError(
                f"gain_estimates[{device_index}]: got {gain}, wanted a finite number. The channel "
                "estimate failed; sound the channel again."
            )
    return gains


def _split_equally(required_noise_std: float, num_participants: int) -> float:
    """sigma_k with n sigma_k^2 >= required^2, also in floating point."""
    noise_std = required_noise_std / math.sqrt(num_participants)
    while math.hypot(*[noise_std] * num_participants) < required_noise_std:
        noise_std = math.nextafter(noise_std, math.inf)
    return noise_std


def _less_by_receiver(
    most: float,
    num_counted: int,
    required_noise_std: float,
    scalar_bound: float,
    peak_factor: float,
    noise_per_scalar: float,
) -> float:
    """The least sigma that is enough beside the receiver's noise at the level it leaves.

    The level falls as sigma grows, so what counts grows with it on both sides; the upper end of the
    bisection always is enough.
    """

    def is_too_little(noise_std: float) -> bool:
        receiver = noise_per_scalar * (scalar_bound + peak_factor * noise_std)
        return math.hypot(receiver, math.sqrt(num_counted) * noise_std) < required_noise_std

    if not is_too_little(0.0):
        return 0.0
    _, enough = bisect(is_too_little, 0.0, most, _BISECTIONS)
    return enough
