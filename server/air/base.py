"""The air from the server's side: what it orders, captures and makes of it."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol.rounds import Participation, RoundPlan, SoundingOrder
from edge_runtime.uplink import SendingGate
from radio.arrays import Complex64Array
from radio.errors import RadioCalibrationError, RadioError
from radio.health import RadioHealth
from radio.transceiver import Transceiver
from radio.waveforms.coherent import ChannelEstimate
from server.air.channel_simulation import ChannelSimulation
from server.air.kept_captures import KeptCaptures
from server.air.orders import ask, check_none_missing, have_done, those_who
from server.air.receiver import Receiver
from server.planning.round_plan import ChannelKnowledge, RoundPower

_logger = logging.getLogger(__name__)

_CAPTURE_TIMEOUT_S = 5.0
"""On top of a capture's own duration."""

MAX_OVERLOADED_SHARE = 1e-4
"""A converter that clips more often than this is told of; random phases rarely peak."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a plan.

    Attributes:
        speakers: devices whose signals went out, ascending.
        sums: estimates of the sums of their numbers [Q]; empty if nobody spoke.
        num_speakers: how many each of the sums is of [Q].
        total_weights: of those, what each sum is divided by for a mean [Q].
        sum_noise_std: of what channel and receiver add to a sum, measured; the largest of them.
        num_erased: speakers whose numbers could not be read, and are part of no sum.
        unknown: devices that may have spoken and did not answer. A sum that may hold their numbers
            is none.
    """

    speakers: tuple[int, ...]
    sums: tuple[float, ...] = ()
    num_speakers: tuple[int, ...] = ()
    total_weights: tuple[float, ...] = ()
    sum_noise_std: float = 0.0
    num_erased: int = 0
    unknown: tuple[int, ...] = ()


OnSpoken = Callable[[Sequence[int], Sequence[int]], None]
"""Called with the devices that spoke, and those of which nobody knows."""


class Air(ABC):
    """How a round goes over the air, one class a kind of radio."""

    @property
    @abstractmethod
    def source(self) -> str:
        """What the numbers come from, for eyes only: "loopback+rayleigh", "ideal (no radio)"."""

    @property
    @abstractmethod
    def is_simulated(self) -> bool:
        """Whether a program makes what is received; see `Transceiver.is_simulated`."""

    @property
    @abstractmethod
    def repeats_bit_for_bit(self) -> bool:
        """Whether a round that is carried out again is heard as the very same numbers."""

    @abstractmethod
    def needs_channel(self, round_index: int, channel: ChannelKnowledge | None) -> bool:
        """Whether the channel has to be learnt before this round.

        Args:
            round_index: the next round.
            channel: what was learnt last, None for nothing.
        """

    @abstractmethod
    def check_channel(self, round_index: int, channel: ChannelKnowledge | None) -> None:
        """Return if a round may be planned on what is known; asked before anything is paid.

        Raises:
            RadioCalibrationError: it is too old, of other devices, or nothing is known.
        """

    @abstractmethod
    def learn_channel(
        self, control: ControlChannel, run_id: str, round_index: int
    ) -> ChannelKnowledge:
        """Have the devices send what is known in advance, and see how it arrives."""

    @abstractmethod
    def carry(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: OnSpoken,
        before_sending: Callable[[], None],
    ) -> Heard:
        """Announce a plan, have its numbers sent, and hear their sums.

        Args:
            control: to the devices.
            plan: what they are told.
            power: what it was made of.
            on_spoken: told who spoke, and of whom that is unknown, as soon as it is. Where all
                speak at once that is before anything is heard: a dropout is paid for even if
                nothing comes of the round.
            before_sending: called once, before the first number is sent; what it raises keeps all
                of them from being sent.

        Raises:
            NonFiniteScalarError: no device could speak.
            HostsMissingError: nobody answered, or nobody knows whether all are silent.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the radio go. Idempotent."""


@dataclass(frozen=True, slots=True)
class CoherentAir(Air):
    """All devices at once, at positions of a common time axis; also the ideal link.

    Attributes:
        receiver: hears pilots and sums.
        simulation: of the channel.
        num_devices: K.
        pilot_amplitude: of every pilot, over full scale.
        coherence_rounds: rounds of a fading block; pilots are sent once in each.
        gate: through which the devices' numbers go, where they are in this process; else a plan
            counts as sent when it is announced.
    """

    receiver: Receiver
    simulation: ChannelSimulation
    num_devices: int
    pilot_amplitude: float
    coherence_rounds: int
    gate: SendingGate | None = None

    @property
    def source(self) -> str:
        """The receiver's."""
        return self.receiver.source

    @property
    def is_simulated(self) -> bool:
        """What the receiver says of itself."""
        return self.receiver.is_simulated

    @property
    def repeats_bit_for_bit(self) -> bool:
        """What the receiver says of itself."""
        return self.receiver.repeats_bit_for_bit

    def needs_channel(self, round_index: int, channel: ChannelKnowledge | None) -> bool:
        """At the start of each fading block."""
        return channel is None or round_index % self.coherence_rounds == 0

    def check_channel(self, round_index: int, channel: ChannelKnowledge | None) -> None:
        """Return if there is an estimate; how good it is reaches the price."""
        if not isinstance(channel, ChannelEstimate):
            raise RadioCalibrationError("channel: there is no estimate; send pilots first.")
        check_devices(len(channel.gains), self.num_devices)

    def learn_channel(
        self, control: ControlChannel, run_id: str, round_index: int
    ) -> ChannelKnowledge:
        """Have the devices sound, as at the start of the round's fading block; estimate gains."""
        block_start = round_index - round_index % self.coherence_rounds
        self.simulation.begin_sounding(block_start)
        order = SoundingOrder(run_id, block_start, self.pilot_amplitude, 0)
        have_done(control, order)
        return self.receiver.hear_pilots(0, self.pilot_amplitude)

    def carry(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: OnSpoken,
        before_sending: Callable[[], None],
    ) -> Heard:
        """Broadcast the plan; the devices answer when their signals are out, or why not."""
        self.simulation.begin_payload(plan.round_index)
        if self.gate is None:
            before_sending()
            answers = ask(control, plan)
        else:
            with self.gate.kept_until_sending(before_sending):
                answers = ask(control, plan)
        speakers = those_who(Participation.TRANSMITTED, answers)
        unknown = answers.unknown_devices
        on_spoken(speakers, unknown)
        if unknown and not speakers:
            check_none_missing(answers, plan.round_index)
        if unknown or not speakers:
            # A sum that somebody may be part of is nobody's.
            return Heard(speakers, unknown=unknown)
        reception = self.receiver.hear_sum(0, power.receive_scale)
        return Heard(
            speakers=speakers,
            sums=reception.sum_estimates,
            num_speakers=(len(speakers),) * len(reception.sum_estimates),
            total_weights=(float(len(speakers)),) * len(reception.sum_estimates),
            sum_noise_std=reception.receiver_noise_std,
        )

    def close(self) -> None:
        """Close the receiver."""
        self.receiver.close()


def nobody_is_left() -> None:
    """Devices in this process end what they hold before they answer."""


@dataclass(frozen=True, slots=True)
class HeldAir(Air):
    """Radios without a common clock: devices hold what the server captures.

    Attributes:
        transceiver: the server's.
        simulation: of the channel.
        num_devices: K.
        kept: captures of chosen rounds.
        wait_until_silent: returns when nobody is on the air who may still be from before.
        health: of the transceiver, all rounds together.
    """

    transceiver: Transceiver
    simulation: ChannelSimulation
    num_devices: int
    kept: KeptCaptures
    wait_until_silent: Callable[[], None] = field(default=nobody_is_left, kw_only=True)
    health: RadioHealth = field(default_factory=RadioHealth, kw_only=True)

    @property
    def source(self) -> str:
        """The transceiver's own name for itself."""
        return self.transceiver.source

    @property
    def is_simulated(self) -> bool:
        """What the transceiver says of itself."""
        return self.transceiver.is_simulated

    @property
    def repeats_bit_for_bit(self) -> bool:
        """What the transceiver says of itself."""
        return self.transceiver.repeats_bit_for_bit

    def carry(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: OnSpoken,
        before_sending: Callable[[], None],
    ) -> Heard:
        """Carry the plan out, keep what was captured if it is asked for, look after the radio."""
        self.wait_until_silent()
        before_sending()
        with self.keeping("round", plan.round_index):
            heard = self.carry_out(control, plan, power, on_spoken)
        self.tell_health(plan.round_index)
        return heard

    @abstractmethod
    def carry_out(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: OnSpoken,
    ) -> Heard:
        """What `carry` says, in the order of the waveform."""

    def capture(self, num_samples: int, label: str) -> Complex64Array:
        """What is on the air for that long; the label is for whoever keeps it."""
        duration_s = num_samples / self.transceiver.sample_rate_hz
        capture = self.transceiver.capture(num_samples, timeout_s=duration_s + _CAPTURE_TIMEOUT_S)
        self.kept.note(label, capture, self.transceiver.sample_rate_hz)
        return capture

    def tell_health(self, round_index: int) -> None:
        """Into the log, if something of the round was too loud or lost."""
        try:
            health = self.transceiver.take_health()
        except RadioError as error:
            # What was heard is heard; the next capture will say more.
            _logger.warning("round %d: %s", round_index, error)
            return
        if health is None:
            return
        self.health.add(health)
        if health.overloaded_share > MAX_OVERLOADED_SHARE:
            _logger.warning(
                "round %d: %.2f %% of the receiver's samples were at the end of its converter, "
                "where powers do not add up: lower pluto.rx_gain_db",
                round_index,
                100.0 * health.overloaded_share,
            )
        if health.num_overflows:
            _logger.warning(
                "round %d: the receiver lost samples in %d of %d captures: the host is too slow",
                round_index,
                health.num_overflows,
                health.num_captures,
            )

    def keeping(self, what: str, round_index: int) -> contextlib.AbstractContextManager[None]:
        """Within it captures are kept, if those of this round are."""
        return self.kept.of_round(what, round_index, self.transceiver)

    def close(self) -> None:
        """Close the transceiver."""
        self.transceiver.close()


def check_devices(known: int, wanted: int) -> None:
    """Return if a channel is that of so many devices.

    Raises:
        RadioCalibrationError: it is another one's.
    """
    if known != wanted:
        raise RadioCalibrationError(
            f"channel: known for {known} devices, {wanted} take part. Send pilots again."
        )
