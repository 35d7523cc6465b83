"""Uplink: how a device's numbers leave it.

CoherentUplink modulates them and hands real samples to a transceiver. EnergyUplink keeps them and
holds all of them side by side when it is told to, SlottedUplink in a packet, whose slot is a time
or a place in the band. IdealUplink drops them into a box that adds exactly; it is the noiseless
reference ("perfect" in the literature) and the oracle of the tests, and it promises no privacy.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_runtime.protocol.rounds import (
    Participation,
    PilotHold,
    RoundPlan,
    SoundingOrder,
    TransmitOrder,
)
from radio.arrays import Complex64Array
from radio.errors import RadioConfigurationError
from radio.transceiver import Transceiver
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import Burst, EnergyWaveform
from radio.waveforms.side_by_side import Packets


class Uplink(ABC):
    """One device's way out: to positions of a time axis, or held until it is told to stop."""

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """Send the known pilot in the device's own slot.

        Raises:
            RadioError: the radio refuses, or the waveform has no slots.
        """
        raise _not_mine("a sounding order", "it has no position for a pilot")

    @abstractmethod
    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        """Send Q numbers, each with its circular noise, or make ready to hold them.

        Returns:
            TRANSMITTED, or READY.

        Raises:
            RadioError: the radio refuses; nothing was transmitted then.
        """

    def hold_pilot(self, device_index: int, order: PilotHold) -> None:
        """Hold the known pilot on the air.

        Raises:
            RadioError: the radio refuses, or the waveform holds nothing.
        """
        raise _not_mine("a pilot to hold", "it has none, or a position for it")

    def hold_numbers(self) -> float:
        """Hold the numbers that are ready on the air.

        Returns:
            By which they are smaller than they should be, to stay below full scale, 0 to 1; of a
            packet 1: bits are read or they are not, and what is read counts whole.

        Raises:
            RadioError: the radio refuses, nothing is ready, or the waveform holds nothing.
        """
        raise _not_mine("numbers to hold", "they are sent at a time")

    def take_ended_early(self) -> bool:
        """Whether, since this was asked last, what it held ended before it was told to."""
        return False

    @abstractmethod
    def fall_silent(self) -> None:
        """End what is held, if anything is.

        Raises:
            RadioNotSilentError: it may still be on the air, and nothing ends it from here.
        """

    @abstractmethod
    def close(self) -> None:
        """Fall silent for good. Idempotent.

        Raises:
            RadioNotSilentError: it may still be on the air.
        """


def _not_mine(what: str, why: str) -> RadioConfigurationError:
    return RadioConfigurationError(
        f"{what}: not for this device's waveform, {why}. Server and device must have the same "
        "radio.waveform."
    )


class SendingGate:
    """What has to happen before the first number of a round is sent, on a host of several devices.

    Numbers are computed first, and that takes most of a round; a process that dies meanwhile has
    sent nothing, and its ledger says so.
    """

    def __init__(self) -> None:
        self._before: Callable[[], None] | None = None

    @contextlib.contextmanager
    def kept_until_sending(self, before: Callable[[], None]) -> Iterator[None]:
        """Within it ``before`` is called when the first number comes by."""
        self._before = before
        try:
            yield
        finally:
            self._before = None

    def pass_through(self) -> None:
        """A number is about to be sent.

        Raises:
            Whatever ``before`` raises; then nothing may be sent, and the next number asks again.
        """
        if self._before is not None:
            self._before()
            self._before = None


@dataclass(frozen=True, slots=True)
class CoherentUplink(Uplink):
    """Coherent amplitude: samples = tx_gain * scalar * sequence, one number after the other."""

    transceiver: Transceiver
    waveform: CoherentWaveform
    gate: SendingGate = field(default_factory=SendingGate)

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """Send the pilot at the ordered amplitude."""
        burst, offset_samples = self.waveform.sounding_burst(device_index, order.amplitude)
        self.transceiver.transmit(burst, start_sample=order.frame_start_sample + offset_samples)

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        """Modulate and transmit in the payload slot."""
        if order.bands is not None or order.packet is not None:
            raise _not_mine("an order without a gain", "its numbers are amplitudes")
        burst = self.waveform.modulate(noisy_scalars, order.tx_gain)
        start_sample = plan.frame_start_sample + self.waveform.payload_offset_samples
        self.gate.pass_through()
        self.transceiver.transmit(burst, start_sample=start_sample)
        return Participation.TRANSMITTED

    def fall_silent(self) -> None:
        """A burst ends by itself."""

    def close(self) -> None:
        """Close the transceiver."""
        self.transceiver.close()


@dataclass(slots=True)
class EnergyUplink(Uplink):
    """Powers of paired bands: numbers are held as long as it takes the receiver to capture them.

    The phases of a burst are drawn from what everybody knows; they carry nothing.
    """

    transceiver: Transceiver
    waveform: EnergyWaveform
    _ready: Burst | None = None

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        """Make the buffer of the numbers, as shares of the largest; in phase, where a power is."""
        self._ready = None
        if order.bands is None:
            raise _not_mine("an order without levels of two bands", "a number is a power in them")
        if len(order.bands.amplitudes) != 2 * len(noisy_scalars):
            raise _not_mine(
                f"levels of {len(order.bands.amplitudes)} bands",
                f"its {len(noisy_scalars)} numbers have two each",
            )
        # What is not finite is refused here, before anything is sent.
        self._ready = self.waveform.burst(
            [scalar.real / order.bands.full_range for scalar in noisy_scalars],
            np.reshape(order.bands.amplitudes, (-1, 2)),
            _phase_rng(f"numbers/{plan.direction_seed}/{order.device_index}"),
        )
        return Participation.READY

    def hold_pilot(self, device_index: int, order: PilotHold) -> None:
        """Full power, evenly in all bands."""
        rng = _phase_rng(f"pilot/{order.round_index}/{device_index}")
        self.transceiver.hold(self.waveform.pilot(order.amplitude, rng))

    def hold_numbers(self) -> float:
        """The numbers' powers, at the ordered amplitudes."""
        if self._ready is None:
            raise RadioConfigurationError("no numbers are ready. Nothing was transmitted.")
        self.transceiver.hold(self._ready.samples)
        return self._ready.scale

    def take_ended_early(self) -> bool:
        """What its transceiver says."""
        return self.transceiver.take_ended_early()

    def fall_silent(self) -> None:
        """End the burst."""
        self.transceiver.fall_silent()

    def close(self) -> None:
        """Close the transceiver, which ends the burst."""
        self.transceiver.close()


@dataclass(slots=True)
class SlottedUplink(Uplink):
    """All numbers in one digital packet, held while the receiver captures it."""

    transceiver: Transceiver
    waveform: Packets
    _ready: Complex64Array | None = None

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        """Make the packet of the numbers, in phase, as shares of the largest."""
        self._ready = None
        if order.packet is None:
            raise _not_mine("an order without levels of a packet", "its numbers are digital")
        self._ready = self.waveform.modulate(
            [scalar.real / order.packet.full_range for scalar in noisy_scalars],
            order.packet.amplitude,
            sender=order.device_index,
            round_index=plan.round_index,
        )
        return Participation.READY

    def hold_numbers(self) -> float:
        """The packet, at the ordered amplitude."""
        if self._ready is None:
            raise RadioConfigurationError("no packet is ready. Nothing was transmitted.")
        self.transceiver.hold(self._ready)
        return 1.0

    def take_ended_early(self) -> bool:
        """What its transceiver says."""
        return self.transceiver.take_ended_early()

    def fall_silent(self) -> None:
        """End the packet."""
        self.transceiver.fall_silent()

    def close(self) -> None:
        """Close the transceiver, which ends the packet."""
        self.transceiver.close()


def uplink_with(
    waveform: CoherentWaveform | EnergyWaveform | Packets,
    transceiver: Transceiver,
    gate: SendingGate | None = None,
) -> Uplink:
    """A device's end of the air.

    Args:
        waveform: of the run.
        transceiver: the device's.
        gate: through which the numbers of its host go, where they are amplitudes.
    """
    if isinstance(waveform, EnergyWaveform):
        return EnergyUplink(transceiver, waveform)
    if isinstance(waveform, CoherentWaveform):
        return CoherentUplink(transceiver, waveform, SendingGate() if gate is None else gate)
    return SlottedUplink(transceiver, waveform)


def _phase_rng(name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"pairzero/phases/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Box(Protocol):
    """Where one end of the ideal link puts its numbers."""

    def put(self, scalars: Iterable[float]) -> None:
        """Add one device's numbers."""


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

    box: Box

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        """There is no channel to learn."""

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        """Put the numbers into the box; the ideal link is noiseless, so they are real."""
        self.box.put(scalar.real for scalar in noisy_scalars)
        return Participation.TRANSMITTED

    def fall_silent(self) -> None:
        """Nothing is on any air."""

    def close(self) -> None:
        """Nothing to silence."""
