"""A digital packet from each device, in a slot of its own, from the server's side.

Slots are times, or places in the band (`SlottedAir`, `SideBySideAir`)::

    time        plan: all make ready | for each: it holds its packet | capture | ... | silence
    frequency   plan: all make ready | all hold their packets | capture | silence

No calibration: a packet is read at any loudness, or it is an erasure.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol.rounds import (
    NumbersHold,
    PacketHold,
    Participation,
    RoundPlan,
)
from radio.waveforms.side_by_side import Packets, PacketsSideBySide
from radio.waveforms.slotted import SlottedWaveform
from server.air.base import Heard, HeldAir, OnSpoken, check_devices
from server.air.orders import ask, check_none_missing, silence_all, those_who
from server.planning.round_plan import ChannelKnowledge, NothingLearnt, RoundPower
from server.power.slotted_waveform import PacketPowerPlan

Shares = tuple[float, ...] | None
"""A packet's numbers over their largest [Q]; None for an erasure."""


@dataclass(frozen=True, slots=True)
class OnAir:
    """Whose packets of a round are on the air, or may be: devices, as they were told to hold."""

    spoke: list[int]
    unknown: list[int]


@dataclass(frozen=True, slots=True)
class PacketAir(HeldAir):
    """Packets, held and captured; nothing to be learnt before.

    Attributes:
        waveform: packets.
    """

    waveform: Packets

    def needs_channel(self, round_index: int, channel: ChannelKnowledge | None) -> bool:
        """Only to be told that there is nothing to learn."""
        return channel is None

    def check_channel(self, round_index: int, channel: ChannelKnowledge | None) -> None:
        """Return if it was said of these devices; there is nothing that could be too old.

        Raises:
            RadioCalibrationError: it was said of others.
        """
        known = channel.num_devices if isinstance(channel, NothingLearnt) else 0
        check_devices(known, self.num_devices)

    def learn_channel(
        self, control: ControlChannel, run_id: str, round_index: int
    ) -> ChannelKnowledge:
        """Nothing is sent, and nothing learnt."""
        return NothingLearnt(self.num_devices)

    def carry_out(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: OnSpoken,
    ) -> Heard:
        """The plan, and then the packets of those who are ready."""
        if not isinstance(power, PacketPowerPlan):
            raise TypeError(f"power: got {type(power).__name__}, wanted a PacketPowerPlan.")
        self.simulation.begin_payload(plan.round_index)
        answers = ask(control, plan)
        ready = those_who(Participation.READY, answers)
        if not ready:
            check_none_missing(answers, plan.round_index)
        on_air = OnAir([], [])
        packets: list[Shares] = []
        try:
            if ready:
                packets = self.read_packets(control, plan, ready, on_air)
        finally:
            try:
                silence_all(control, plan.run_id, plan.round_index)
            finally:
                on_spoken(on_air.spoke, on_air.unknown)
        spoke, unknown = tuple(on_air.spoke), tuple(on_air.unknown)
        read = [packet for packet in packets if packet is not None]
        if not read:
            return Heard(spoke, num_erased=len(packets), unknown=unknown)
        sums = tuple(power.full_range * math.fsum(column) for column in zip(*read, strict=True))
        # What is left of the radio: half a step either way on each number.
        step = power.full_range / self.waveform.largest_integer
        return Heard(
            speakers=spoke,
            sums=sums,
            num_speakers=(len(read),) * len(sums),
            total_weights=(float(len(read)),) * len(sums),
            sum_noise_std=step * math.sqrt(len(read) / 12.0),
            num_erased=len(packets) - len(read),
            unknown=unknown,
        )

    @abstractmethod
    def read_packets(
        self, control: ControlChannel, plan: RoundPlan, ready: Sequence[int], on_air: OnAir
    ) -> list[Shares]:
        """Have those who are ready hold their packets, and read them.

        Args:
            control: to the devices.
            plan: of the round.
            ready: who has a packet.
            on_air: whose packet is there, or may be, is written down before anything is captured.
                Of whom it is unknown that packet alone is lost.

        Returns:
            Of each who spoke, in that order.
        """


@dataclass(frozen=True, slots=True)
class SlottedAir(PacketAir):
    """One device after another.

    Attributes:
        waveform: packets.
    """

    waveform: SlottedWaveform

    def read_packets(
        self, control: ControlChannel, plan: RoundPlan, ready: Sequence[int], on_air: OnAir
    ) -> list[Shares]:
        """A hold and a capture for each."""
        packets = []
        for device in ready:
            answers = ask(control, PacketHold(plan.run_id, plan.round_index, device))
            if answers.missing:
                # Whoever went may be heard beside the next.
                on_air.unknown.extend(set(answers.unknown_devices) & {device})
                self.wait_until_silent()
            if not those_who(Participation.TRANSMITTED, answers):
                continue
            on_air.spoke.append(device)
            capture = self.capture(self.waveform.capture_samples, f"packet of device {device}")
            packets.append(
                self.waveform.demodulate(capture, sender=device, round_index=plan.round_index)
            )
        return packets


@dataclass(frozen=True, slots=True)
class SideBySideAir(PacketAir):
    """All at once, each at its place in the band.

    Attributes:
        waveform: packets and their places.
    """

    waveform: PacketsSideBySide

    def read_packets(
        self, control: ControlChannel, plan: RoundPlan, ready: Sequence[int], on_air: OnAir
    ) -> list[Shares]:
        """One hold and one capture for all."""
        hold = NumbersHold(plan.run_id, plan.round_index)
        answers = ask(control, hold, control.hosts_of(ready))
        on_air.unknown.extend(answers.unknown_devices)
        on_air.spoke.extend(those_who(Participation.TRANSMITTED, answers))
        if not on_air.spoke:
            return []
        capture = self.capture(self.waveform.capture_samples, "packets")
        return self.waveform.demodulate(capture, on_air.spoke, round_index=plan.round_index)
