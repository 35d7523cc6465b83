"""What happens to a signal between two antennas: complex gains per device and coherence block.

Block fading: over one block (sounding frame and payload frame of a round) device k is heard as
sum_l h_kl x_k[n - l], with complex amplitudes h_kl that do not change; flat channels have one tap,
h_k. h takes a full-scale transmit sample to the receiver's scale. Left out: Doppler inside a block,
carrier and clock offsets, correlation between devices or between blocks.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from radio.arrays import Complex128Array
from radio.checks import check_integer, check_not_negative, check_positive
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

    def taps(
        self, rng: np.random.Generator, num_devices: int, sample_rate_hz: float
    ) -> Complex128Array:
        """Echoes a sample apart, complex128 [num_devices, num_taps]: of flat channels the gains."""
        return self.gains(rng, num_devices)[:, None]


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


_DECAYS = 8.0
"""Echoes later than so many delay spreads are left out, 0.03 % of the power."""

MAX_TAPS = 1024


@dataclass(frozen=True, slots=True)
class MultipathBlockFading(ChannelModel):
    """Echoes with an exponential power-delay profile: h_kl ~ CN(0, p_l), p_l ~ exp(-l / (f_s tau)).

    The p_l add up to 1. Bands further apart than about 1 / (2 pi tau) fade independently; at a
    sample rate far below that the channel is flat Rayleigh fading.

    Attributes:
        delay_spread_s: tau, the root mean square of the delays, > 0.

    Source: the exponential profile of COST 207; any textbook on mobile radio.
    """

    name: ClassVar[str] = "multipath"
    delay_spread_s: float = 100e-9

    def __post_init__(self) -> None:
        check_positive("delay_spread_s", self.delay_spread_s)

    def gains(self, rng: np.random.Generator, num_devices: int) -> Complex128Array:
        """What a signal far narrower than the echoes allow would meet."""
        return RayleighBlockFading().gains(rng, num_devices)

    def taps(
        self, rng: np.random.Generator, num_devices: int, sample_rate_hz: float
    ) -> Complex128Array:
        """See `ChannelModel.taps`.

        Raises:
            RadioConfigurationError: more than `MAX_TAPS`.
        """
        count = check_integer("num_devices", num_devices, minimum=1)
        spread = self.delay_spread_s * check_positive("sample_rate_hz", sample_rate_hz)
        num_taps = 1 + math.ceil(_DECAYS * spread)
        if num_taps > MAX_TAPS:
            raise RadioConfigurationError(
                f"delay_spread_s: got {self.delay_spread_s:g}, {num_taps} echoes at "
                f"{sample_rate_hz:g} samples a second, wanted at most {MAX_TAPS}."
            )
        powers = np.exp(-np.arange(num_taps) / spread)
        parts = rng.standard_normal((count, 2 * num_taps)).view(np.complex128)
        taps: Complex128Array = parts * np.sqrt(powers / (2.0 * powers.sum()))
        return taps


CHANNEL_NAMES: tuple[str, ...] = (
    AwgnChannel.name,
    RayleighBlockFading.name,
    RicianBlockFading.name,
    MultipathBlockFading.name,
)


def channel_from_name(
    name: str, *, rician_k_db: float = 6.0, delay_spread_s: float = 100e-9
) -> ChannelModel:
    """The model called ``name``, with unit mean power gain.

    Raises:
        RadioConfigurationError: there is none; the message lists the names.
    """
    if name == MultipathBlockFading.name:
        return MultipathBlockFading(delay_spread_s)
    if name == RicianBlockFading.name:
        return RicianBlockFading(rician_k_db)
    if name == AwgnChannel.name:
        return AwgnChannel()
    if name == RayleighBlockFading.name:
        return RayleighBlockFading()
    raise RadioConfigurationError(f"channel: got {name!r}, wanted one of {list(CHANNEL_NAMES)}.")
