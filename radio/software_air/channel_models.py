"""What happens to a signal between two antennas: one complex gain per device and coherence block.

Flat block fading: over one block (sounding frame and payload frame of a round) device k is heard
as h_k x_k[n], with a complex amplitude h_k that does not change. h_k takes a full-scale transmit
sample to the receiver's scale. Left out: frequency selectivity, Doppler inside a block, carrier
and clock offsets, correlation between devices or between blocks.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from radio.arrays import Complex128Array
from radio.checks import check_integer, check_not_negative
from radio.errors import RadioConfigurationError
from radio.units import power_ratio_from_db


class ChannelModel(abc.ABC):
    """Draws the gains of one coherence block.

    Guarantees of every model: finite gains; independent over devices and calls; randomness comes
    from ``rng`` alone; device k's gain does not depend on how many devices come after it.
    """

    name: ClassVar[str]
    """Short name, part of a simulated radio's ``source``."""

    @abc.abstractmethod
    def gains(self, rng: np.random.Generator, num_devices: int) -> Complex128Array:
        """One gain per device, complex128 [num_devices]."""


@dataclass(frozen=True, slots=True)
class AwgnChannel(ChannelModel):
    """A line of sight: h_k = path_gain exp(j theta_k), theta_k uniform on [0, 2 pi).

    The magnitude is the same for all devices and always; the phase is not, because no two
    oscillators start together. Noise is the medium's business, not the channel's.

    Attributes:
        path_gain: abs(h_k), an amplitude ratio >= 0.
    """

    name: ClassVar[str] = "awgn"
    path_gain: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("path_gain", self.path_gain)

    def gains(self, rng: np.random.Generator, num_devices: int) -> Complex128Array:
        """See `ChannelModel.gains`; abs of each is ``path_gain`` within rounding."""
        count = check_integer("num_devices", num_devices, minimum=1)
        phase_rad = 2.0 * math.pi * rng.random(count)
        gains: Complex128Array = self.path_gain * np.exp(1j * phase_rad)
        return gains


@dataclass(frozen=True, slots=True)
class RayleighBlockFading(ChannelModel):
    """No line of sight, many echoes: h_k ~ CN(0, mean_power_gain), drawn anew for each block.

    abs(h)^2 is exponential: P(abs(h) < a) = 1 - exp(-a^2 / mean_power_gain), so a truncation
    threshold a silences this share of the devices.

    Attributes:
        mean_power_gain: E[abs(h)^2], a power ratio >= 0.
    """

    name: ClassVar[str] = "rayleigh"
    mean_power_gain: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("mean_power_gain", self.mean_power_gain)

    def gains(self, rng: np.random.Generator, num_devices: int) -> Complex128Array:
        """See `ChannelModel.gains`; real and imaginary parts N(0, mean_power_gain / 2)."""
        count = check_integer("num_devices", num_devices, minimum=1)
        parts = rng.standard_normal(2 * count)
        parts *= math.sqrt(self.mean_power_gain / 2.0)
        return parts.view(np.complex128)


@dataclass(frozen=True, slots=True)
class RicianBlockFading(ChannelModel):
    """A line of sight among echoes: h_k = sqrt(p) (sqrt(K/(K+1)) exp(j theta_k) + CN(0, 1/(K+1))).

    theta_k is uniform, drawn anew for each block. K = 0 is Rayleigh fading, a large K AWGN.

    Attributes:
        k_factor_db: K, power of the line of sight over that of the echoes, dB.
        mean_power_gain: p = E[abs(h)^2], a power ratio >= 0.
    """

    name: ClassVar[str] = "rician"
    k_factor_db: float = 6.0
    mean_power_gain: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("mean_power_gain", self.mean_power_gain)
        power_ratio_from_db(self.k_factor_db)

    def gains(self, rng: np.random.Generator, num_devices: int) -> Complex128Array:
        """See `ChannelModel.gains`."""
        count = check_integer("num_devices", num_devices, minimum=1)
        ratio = power_ratio_from_db(self.k_factor_db)
        parts = rng.standard_normal((count, 4))  # a device's row: echoes, and a direction
        angle = np.arctan2(parts[:, 3], parts[:, 2])
        echoes = (parts[:, 0] + 1j * parts[:, 1]) * math.sqrt(0.5 / (ratio + 1.0))
        direct = np.exp(1j * angle) * math.sqrt(ratio / (ratio + 1.0))
        amplitude = np.complex128(math.sqrt(self.mean_power_gain))
        gains: Complex128Array = (direct + echoes) * amplitude
        return gains


CHANNEL_NAMES: tuple[str, ...] = (
    AwgnChannel.name,
    RayleighBlockFading.name,
    RicianBlockFading.name,
)


def channel_from_name(name: str, *, rician_k_db: float = 6.0) -> ChannelModel:
    """The model called ``name``, with unit mean power gain.

    Raises:
        RadioConfigurationError: there is none; the message lists the names.
    """
    if name == RicianBlockFading.name:
        return RicianBlockFading(rician_k_db)
    if name == AwgnChannel.name:
        return AwgnChannel()
    if name == RayleighBlockFading.name:
        return RayleighBlockFading()
    raise RadioConfigurationError(f"channel: got {name!r}, wanted one of {list(CHANNEL_NAMES)}.")
