"""What is said before a run's first round, and what reaches its rehearsal's air.

A host knocks and is told what the run is; it loads data and weights, makes its keys, and says who
its devices are; when all are there, each host is told to start, and says that it is ready.
"""

from __future__ import annotations

import math

import msgspec

from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import WireError
from edge_runtime.protocol.members import Member, is_token
from edge_runtime.protocol.rounds import RoundPlan
from edge_runtime.task_spec import TaskSpec
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import PacketsSideBySide
from radio.waveforms.slotted import SlottedWaveform

AnyWaveform = CoherentWaveform | EnergyWaveform | SlottedWaveform | PacketsSideBySide

_MOST_WHERE = 300


def knock_subject(host: str) -> str:
    """Where a host knocks; it is known before the run's name is."""
    return f"pz.lobby.knock.{host}"


def here_subject(run_id: str, host: str, instance: str = "any") -> str:
    """Where a host can be found, this process of it or any; nothing is ever answered there."""
    return f"pz.{run_id}.here.{host}.{instance}"


def server_subject(run_id: str) -> str:
    """Where the server of a run can be found; nothing is ever answered there."""
    return f"pz.{run_id}.server"


def _check_tokens(*names: str) -> None:
    for name in names:
        if not is_token(name):
            raise WireError(f"got the name {name!r}, wanted 1 to 64 letters, digits, - and _.")


class Knock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="knock"):
    """A host asks what there is to take part in.

    Attributes:
        host: its name.
    """

    host: str

    def __post_init__(self) -> None:
        """Refuse what cannot be part of an address."""
        _check_tokens(self.host)


class PlutoTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the devices' own radios are set (`radio.pluto.settings`).

    Attributes:
        carrier_hz: of all of them.
        rf_bandwidth_hz: of their analogue filters.
        tx_attenuation_db: while they send.
        max_hold_s: longest that one burst is held.
    """

    carrier_hz: float
    rf_bandwidth_hz: float
    tx_attenuation_db: float
    max_hold_s: float


class AirTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The radio of a run, as far as a device has to have the same.

    Attributes:
        sample_rate_hz: of both ends.
        max_amplitude: of the transmitter, over full scale.
        pluto: how devices' own radios are set; None, and the server plays the air.
        coherent: the waveform, where amplitudes add.
        energy: likewise where powers add.
        packets: likewise where packets follow one another.
        side_by_side: likewise where they stand side by side.

    Raises:
        WireError: more than one waveform, or none.
    """

    sample_rate_hz: float
    max_amplitude: float
    pluto: PlutoTerms | None = None
    coherent: CoherentWaveform | None = None
    energy: EnergyWaveform | None = None
    packets: SlottedWaveform | None = None
    side_by_side: PacketsSideBySide | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if sum(waveform is not None for waveform in self._all) != 1:
            raise WireError("air: wanted exactly one waveform.")

    @property
    def waveform(self) -> AnyWaveform:
        """The one that there is."""
        (found,) = (waveform for waveform in self._all if waveform is not None)
        return found

    @property
    def _all(self) -> tuple[AnyWaveform | None, ...]:
        return self.coherent, self.energy, self.packets, self.side_by_side


class RunTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="run_terms"):
    """What a host has to know before it can say who its devices are.

    Attributes:
        run_id: of the run.
        bundle_digest: of the model.
        task: template and label words; no paths.
        max_tokens: of a prompt.
        trainable: patterns of the tensors that move, or one word (`edge_runtime.trainable`).
        example: the plan of round 0 without orders; what those of all rounds have in common.
        rounds: of the run.
        is_private: whether anything is promised about the devices' data.
        air: its radio; None for the link without one.
        simulated_seed: from which devices derive their keys; only where they were started for it.
    """

    run_id: str
    bundle_digest: str
    task: TaskSpec
    max_tokens: int
    trainable: tuple[str, ...]
    example: RoundPlan
    rounds: int
    is_private: bool
    air: AirTerms | None = None
    simulated_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be part of an address, or of a path."""
        _check_tokens(self.run_id, self.bundle_digest)


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """A host says who its devices are.

    Attributes:
        host: its name.
        run_id: of the run.
        members: name of each device -> what there is to know of it.
        instance: names this process of it; a random token.
        where: the computer it is on, for a person who looks for it.
        challenge: a random token that the start has to give back.
    """

    host: str
    run_id: str
    members: dict[str, Member]
    instance: str
    where: str
    challenge: str

    def __post_init__(self) -> None:
        """Refuse what cannot be part of an address, or of a line."""
        _check_tokens(self.host, self.instance, self.challenge, *self.members)
        if len(self.where) > _MOST_WHERE or not self.where.isprintable():
            raise WireError(f"where: got {self.where[:_MOST_WHERE]!r}, wanted a computer's name.")


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start"):
    """Everybody is there; or a server proves that it is there now, to a host whose link was lost.

    Attributes:
        run_id: of the run.
        indices: name of each of the host's devices -> by which orders know it.
        heard: name -> how many releases of it the server has heard.
        challenge: the host's own; another one is an old start.
        epoch: of the server's last order; older ones are nobody's any more.
        sequence: likewise.
    """

    run_id: str
    indices: dict[str, int]
    heard: dict[str, int]
    challenge: str
    epoch: int
    sequence: int


class NumbersSent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="numbers_sent"):
    """A device's numbers on the ideal link, during an order.

    Attributes:
        epoch: of the order that they are sent during.
        sequence: likewise.
        device_index: whose.
        numbers: real, noise included [Q].
    """

    epoch: int
    sequence: int
    device_index: int
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not all(map(math.isfinite, self.numbers)):
            raise WireError("numbers: one is not finite.")


class SignalSent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="signal_sent"):
    """A device's samples, during an order; those that are held come in pieces.

    Attributes:
        epoch: of the order that they are sent during.
        sequence: likewise.
        device_index: whose.
        samples: complex64, or complex128 where they are exact; little endian.
        is_exact: which.
        start_sample: where they are to be; None, and they are held.
        piece: number of this piece.
        num_pieces: of all.
    """

    epoch: int
    sequence: int
    device_index: int
    samples: bytes
    is_exact: bool = False
    start_sample: int | None = None
    piece: int = 0
    num_pieces: int = 1


class SilenceSent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="silence_sent"):
    """A device ends what it holds; that is never too late.

    Attributes:
        device_index: whose.
    """

    device_index: int


class RadioNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="radio_note"):
    """How a device's own radio is, for whoever looks after it; nothing is answered.

    Attributes:
        device_index: whose.
        temperature_c: of its chip, which computes nothing.
        num_underflows: how often it has run out of samples since the run began.
    """

    device_index: int
    temperature_c: float | None
    num_underflows: int


class Agreed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="agreed"):
    """As you say."""


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """Not so.

    Attributes:
        reason: for a person; nothing of anybody's data.
        kind: name of the error's class, where somebody acts on it.
    """

    reason: str
    kind: str = ""


class LeaveAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="leave_asked"):
    """A device is about to hold a burst with a radio of its own, if its order is still waited for.

    Attributes:
        epoch: of the order that it is held for.
        sequence: likewise.
        device_index: whose.
    """

    epoch: int
    sequence: int
    device_index: int


OnAir = NumbersSent | SignalSent | SilenceSent | LeaveAsked
"""What a device tells the server about what it sends; or sends, to an air that the server plays."""

JoiningMessage = Knock | RunTerms | Hello | Start | OnAir | RadioNote | Agreed | Refused

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[JoiningMessage] = msgspec.msgpack.Decoder(JoiningMessage)


def encode(message: JoiningMessage) -> bytes:
    """A message as bytes.

    Raises:
        WireError: it is larger than the limit.
    """
    return wire.pack(_encoder.encode(message))


def decode(data: bytes) -> JoiningMessage:
    """Bytes as a message, or a WireError that says what is wrong with them."""
    return wire.decode_body(wire.unpack(data), _decoder)


def refusal_of(message: JoiningMessage) -> str:
    """Why somebody refuses; empty if it does not.

    Raises:
        WireError: neither agreed nor refused.
    """
    if isinstance(message, Refused):
        return message.reason
    if not isinstance(message, Agreed):
        raise WireError(f"got {type(message).__name__}, wanted an answer.")
    return ""
