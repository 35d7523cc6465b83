"""Uplink: how a device's numbers leave it.

OverTheAirUplink modulates them and hands real samples to a transceiver. IdealUplink drops them into
a box that adds exactly; it is the noiseless reference ("perfect" in the literature) and the oracle
of the tests, and it promises no privacy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_runtime.protocol.rounds import RoundPlan, SoundingOrder, TransmitOrder
from radio.transceiver import Transceiver
from radio.waveforms.coherent import CoherentWaveform


class Uplink(ABC):
    """One device's way out."""

    @abstractmethod
    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """Send the known pilot in the device's own slot."""

    @abstractmethod
    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> None:
        """Send Q numbers, each with its circular noise.

        Raises:
            RadioError: the radio refuses; nothing was transmitted then.
        """

    @abstractmethod
    def close(self) -> None:
        """Fall silent. Idempotent."""


@dataclass(frozen=True, slots=True)
class OverTheAirUplink(Uplink):
    """Coherent amplitude: samples = tx_gain * scalar * sequence, one number after the other."""

    transceiver: Transceiver
    waveform: CoherentWaveform

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """Send the pilot at the ordered amplitude."""
        burst, offset_samples = self.waveform.sounding_burst(device_index, order.amplitude)
        self.transceiver.transmit(burst, start_sample=order.frame_start_sample + offset_samples)

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> None:
        """Modulate and transmit in the payload slot."""
        burst = self.waveform.modulate(noisy_scalars, order.tx_gain)
        start_sample = plan.frame_start_sample + self.waveform.payload_offset_samples
        self.transceiver.transmit(burst, start_sample=start_sample)

    def close(self) -> None:
        """Close the transceiver."""
        self.transceiver.close()


class ScalarBox:
    """Adds vectors of Q numbers, each sum exactly rounded, whatever the order (math.fsum)."""

    def __init__(self) -> None:
        self._vectors: list[tuple[float, ...]] = []

    def put(self, scalars: Iterable[float]) -> None:
        """Add one device's numbers."""
        self._vectors.append(tuple(scalars))

    def take_sums(self) -> tuple[float, ...]:
        """The sums of everything put in since the last call; none if there was nothing."""
        sums = tuple(math.fsum(column) for column in zip(*self._vectors, strict=True))
        self._vectors.clear()
        return sums


@dataclass(frozen=True, slots=True)
class IdealUplink(Uplink):
    """No radio. Does not model: anything."""

    box: ScalarBox

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """There is no channel to learn."""

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> None:
        """Put the numbers into the box; the ideal link is noiseless, so they are real."""
        self.box.put(scalar.real for scalar in noisy_scalars)

    def close(self) -> None:
        """Nothing to silence."""
