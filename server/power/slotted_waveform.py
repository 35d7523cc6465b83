"""Power plan of digital packets: everybody at full power, one device after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edge_runtime.protocol.rounds import PacketLevels, TransmitOrder
from server.numeric import check_not_negative, check_positive
from server.power.energy_waveform import range_for


@dataclass(frozen=True, slots=True)
class PacketPowerPlan:
    """Who speaks, how loud, and with how much noise.

    Attributes:
        participants: devices that speak: all who are there.
        amplitude: of every packet, over full scale.
        full_range: R, the largest number, in units of the scalar.
        artificial_noise_std: sigma_k of each participant in units of the scalar.
    """

    participants: tuple[int, ...]
    amplitude: float
    full_range: float
    artificial_noise_std: Mapping[int, float]

    def __post_init__(self) -> None:
        """Freeze the mapping."""
        frozen = MappingProxyType(dict(self.artificial_noise_std))
        object.__setattr__(self, "artificial_noise_std", frozen)

    @property
    def receive_scale(self) -> float:
        """There is no common level: packets arrive as loud as they arrive."""
        return 0.0

    @property
    def weights(self) -> Mapping[int, float]:
        """Who is read counts as much as the next."""
        return dict.fromkeys(self.participants, 1.0)

    def orders(self) -> tuple[TransmitOrder, ...]:
        """What each participant is told."""
        return tuple(
            TransmitOrder(
                device_index=k,
                tx_gain_real=0.0,
                tx_gain_imag=0.0,
                artificial_noise_std=self.artificial_noise_std[k],
                packet=PacketLevels(self.amplitude, self.full_range),
            )
            for k in self.participants
        )


def plan_packets(
    *, devices: Sequence[int], max_amplitude: float, scalar_bound: float, noise_std: float
) -> PacketPowerPlan:
    """Full power for all; the range is the bound and four standard deviations of the noise.

    Args:
        devices: those who are there, ascending.
        max_amplitude: largest amplitude over full scale, 0 to 1.
        scalar_bound: G, the bound on abs(p_k).
        noise_std: sigma of every device's own artificial noise, in units of the scalar.

    Raises:
        ConfigurationError: a value out of range.
    """
    check_positive("max_amplitude", max_amplitude)
    check_positive("scalar_bound", scalar_bound)
    check_not_negative("noise_std", noise_std)
    everybody = tuple(devices)
    return PacketPowerPlan(
        participants=everybody,
        amplitude=max_amplitude,
        full_range=range_for(scalar_bound, noise_std),
        artificial_noise_std=dict.fromkeys(everybody, noise_std),
    )
