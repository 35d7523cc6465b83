"""The records of one round: what the server orders, what a device says, what everybody applies.

They are frozen, validated at birth and versioned on the wire (`edge_runtime.protocol.wire`). None
carries a device's scalars: those few numbers travel over the air only.
"""

from __future__ import annotations

import enum
import hashlib
import math

import msgspec

from edge_runtime.protocol.errors import WireError

PROTOCOL_VERSION = 9
"""Rises when the meaning of any record or of the direction generator changes."""

STEP_QUANTUM = 2.0**-40
"""A step travels as an integer multiple of this: fine enough that its rounding never shows."""

MAX_ABS_STEP_INTEGER = 2**50

MAX_DIRECTIONS = 256
"""Of one round. The margins of `edge_runtime.spsa.clip_to_ball` hold for as many."""


class Difference(enum.StrEnum):
    """Which losses a projected gradient is the difference of.

    TWO_SIDED: those at w + mu z and at w - mu z, two passes a direction.
    ONE_SIDED: those at w + mu z and at w itself; the latter serve all directions of a round.
    """

    TWO_SIDED = "two_sided"
    ONE_SIDED = "one_sided"

    def num_sweeps(self, num_directions: int) -> int:
        """Forward passes over its batch that a device makes in a round."""
        return num_directions + 1 if self is Difference.ONE_SIDED else 2 * num_directions


class Vote(enum.StrEnum):
    """Whether a device says numbers or their signs, and where its noise comes in.

    See `edge_runtime.vote`; the last two have different sensitivities.
    """

    NONE = "none"
    NOISE_BEFORE = "noise_before"
    NOISE_AFTER = "noise_after"


class Access(enum.StrEnum):
    """Who can see a single device's signal. The two need different privacy statements.

    SUPERPOSED: all devices transmit at once, the receiver meets the sum alone.
    SLOTTED: one after another, the receiver meets every scalar by itself.
    """

    SUPERPOSED = "superposed"
    SLOTTED = "slotted"


class Participation(enum.StrEnum):
    """What a device did in a round. Two kinds of silence that must never share one flag.

    TRANSMITTED: its signal went out. READY: its numbers wait for their plateaus, and its antenna is
    silent. TRUNCATED: ordered to be silent, its channel was too weak. DROPPED: it was to speak and
    could not (a loss was not finite, the plan was refused). ENDED_EARLY: what it held ended by a
    limit of its own, before it was told to be silent; whether a capture holds it nobody knows.
    """

    TRANSMITTED = "transmitted"
    READY = "ready"
    TRUNCATED = "truncated"
    DROPPED = "dropped"
    ENDED_EARLY = "ended_early"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WireError(message)


def _require_finite(**values: float) -> None:
    for name, value in values.items():
        _require(math.isfinite(value), f"{name}: got {value}, wanted a finite number.")


class BandLevels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How loud one device speaks where a number is a power in two bands (energy waveform).

    Attributes:
        amplitudes: of the transmitter for the largest number, over full scale, in bands A and B of
            the first number, then of the next [2 Q]; 0 in both where that number is not said.
        full_range: the largest number, in units of the scalar.
    """

    amplitudes: tuple[float, ...]
    full_range: float

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(
            2 <= len(self.amplitudes) <= 2 * MAX_DIRECTIONS and len(self.amplitudes) % 2 == 0,
            f"amplitudes: got {len(self.amplitudes)}, wanted two for each number.",
        )
        for value in self.amplitudes:
            _require(0.0 <= value <= 1.0, f"amplitudes: got {value}, wanted 0 to 1.")
        _require(any(self.amplitudes), "amplitudes: all are 0, wanted no order instead.")
        _require_finite(full_range=self.full_range)
        _require(self.full_range > 0, f"full_range: got {self.full_range}, wanted > 0.")


class PacketLevels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How loud one device speaks, and in which range, where its numbers are a digital packet.

    Attributes:
        amplitude: of the transmitter, over full scale.
        full_range: the largest number, in units of the scalar.
    """

    amplitude: float
    full_range: float

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(0 < self.amplitude <= 1, f"amplitude: got {self.amplitude}, wanted 0 to 1.")
        _require_finite(full_range=self.full_range)
        _require(self.full_range > 0, f"full_range: got {self.full_range}, wanted > 0.")


class TransmitOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How loud one device speaks: sample = tx_gain * (scalar + n + j m), for each of its scalars.

    Where a number is a power in two bands, or part of a packet, the gain is 0 and ``bands`` or
    ``packet`` says how loud.

    Attributes:
        device_index: the device this order is for.
        tx_gain_real: real part of the complex amplitude receive_scale / channel_gain.
        tx_gain_imag: its imaginary part.
        artificial_noise_std: standard deviation per quadrature of the device's private circular
            noise on each scalar, in units of the scalar (of a vote, if it comes after the sign).
            0 means no privacy is promised for this round.
        bands: levels of the energy waveform; None, and left out of the bytes, for others.
        packet: likewise of the slotted waveform.
    """

    device_index: int
    tx_gain_real: float
    tx_gain_imag: float
    artificial_noise_std: float
    bands: BandLevels | None = None
    packet: PacketLevels | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(self.device_index >= 0, f"device_index: got {self.device_index}, wanted >= 0.")
        _require_finite(
            tx_gain_real=self.tx_gain_real,
            tx_gain_imag=self.tx_gain_imag,
            artificial_noise_std=self.artificial_noise_std,
        )
        _require(
            self.artificial_noise_std >= 0,
            f"artificial_noise_std: got {self.artificial_noise_std}, wanted >= 0.",
        )

    @property
    def tx_gain(self) -> complex:
        """The complex amplitude that turns a scalar into a sample."""
        return complex(self.tx_gain_real, self.tx_gain_imag)


class RoundPlan(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag="round_plan",
):
    """The order for one round, the same for every device.

    Attributes:
        run_id: names the run; a plan of another run is refused.
        round_index: 0-based, strictly increasing.
        direction_seed: public uint64 seed of the first direction, from which those of the others
            follow (`direction.direction_seeds`).
        direction_generator: name and version of the generator (`direction.GENERATOR`).
        perturbation_scale: mu, a power of two.
        clip: gamma, the L2 bound on one example's Q projected gradients, and on the device's Q
            scalars.
        batch_size: nominal batch size b, the divisor, whatever a Poisson batch holds.
        access: superposed or slotted.
        frame_start_sample: when the payload frame starts on the medium's time axis.
        orders: one per device that is to speak; a device without an order is silent.
        num_directions: Q, as many numbers every device sends.
        difference: one-sided or two-sided.
        vote: whether the numbers are said, or their signs.
        receiver_noise_std: what the server counts of its receiver's own noise on a sum, in units of
            the scalar; None where it counts none. No device can check it.

    Defaults are left out of the bytes, so that a release of one two-sided number, and the noise and
    batch that are drawn for it, is the same as before there were others.
    """

    run_id: str
    round_index: int
    direction_seed: int
    direction_generator: str
    perturbation_scale: float
    clip: float
    batch_size: int
    access: Access
    frame_start_sample: int
    orders: tuple[TransmitOrder, ...]
    num_directions: int = 1
    difference: Difference = Difference.TWO_SIDED
    vote: Vote = Vote.NONE
    receiver_noise_std: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.receiver_noise_std is not None:
            _require_finite(receiver_noise_std=self.receiver_noise_std)
            _require(
                self.receiver_noise_std > 0,
                f"receiver_noise_std: got {self.receiver_noise_std}, wanted > 0, or none.",
            )
        _require(self.round_index >= 0, f"round_index: got {self.round_index}, wanted >= 0.")
        _require(
            0 <= self.direction_seed < 2**64,
            f"direction_seed: got {self.direction_seed}, wanted an unsigned 64-bit integer.",
        )
        _require(
            1 <= self.num_directions <= MAX_DIRECTIONS,
            f"num_directions: got {self.num_directions}, wanted 1 to {MAX_DIRECTIONS}.",
        )
        _require_finite(perturbation_scale=self.perturbation_scale)
        _require(
            self.perturbation_scale > 0 and math.frexp(self.perturbation_scale)[0] == 0.5,
            f"perturbation_scale: got {self.perturbation_scale}, wanted a positive power of two.",
        )
        # An infinite clip is the noiseless reference; it can never be planned with privacy.
        _require(self.clip > 0, f"clip: got {self.clip}, wanted > 0.")
        _require(self.batch_size >= 1, f"batch_size: got {self.batch_size}, wanted >= 1.")
        indices = [order.device_index for order in self.orders]
        _require(
            indices == sorted(set(indices)),
            f"orders: device indices {indices}, wanted each once, in ascending order.",
        )

    @property
    def release(self) -> str:
        """Names what an answer to this plan releases: the round and a digest of the whole order.

        The run is left out: its keys are its own.
        """
        order = msgspec.msgpack.encode(msgspec.structs.replace(self, run_id=""))
        return f"{self.round_index}/{hashlib.sha256(order).hexdigest()}"

    def orders_by_device(self) -> dict[int, TransmitOrder]:
        """Device index -> its order; a device that is to be silent has none."""
        return {order.device_index: order for order in self.orders}


class RoundReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="round_report"):
    """What one device says after a round. Nothing in it depends on its data but ``scale``.

    That one is made of its noisy numbers, as what is on the air is: whoever hears them knows it.

    Attributes:
        run_id: of the run.
        round_index: of the round.
        device_index: who says it.
        participation: what it did.
        reason: empty for TRANSMITTED, and otherwise tells an operator why the device was silent.
        scale: by which its numbers went out smaller to stay below full scale: what it weighs.
    """

    run_id: str
    round_index: int
    device_index: int
    participation: Participation
    reason: str = ""
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(0.0 < self.scale <= 1.0, f"scale: got {self.scale}, wanted above 0, at most 1.")


class RoundResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="round_result"):
    """The step that everybody takes: w <- w - sum_q step_q * z_q.

    step_q = step_integers[q] * STEP_QUANTUM, and z_q the direction of seed number q of
    `direction.direction_seeds`. Integers, so that every replica reads the same numbers. All 0 means
    that nothing moves (nobody spoke).
    """

    run_id: str
    round_index: int
    direction_seed: int
    step_integers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(self.round_index >= 0, f"round_index: got {self.round_index}, wanted >= 0.")
        _require(
            0 <= self.direction_seed < 2**64,
            f"direction_seed: got {self.direction_seed}, wanted an unsigned 64-bit integer.",
        )
        _require(
            1 <= len(self.step_integers) <= MAX_DIRECTIONS,
            f"step_integers: got {len(self.step_integers)}, wanted 1 to {MAX_DIRECTIONS}.",
        )
        largest = max(map(abs, self.step_integers))
        _require(
            largest <= MAX_ABS_STEP_INTEGER,
            f"step_integers: got {largest}, wanted at most 2**50 in absolute value.",
        )


class SoundingOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="sounding_order"):
    """Every device sends its pilot in its own slot, so that the receiver can learn its channel.

    Pilots are known in advance: they depend on no data and cost no privacy.
    """

    run_id: str
    round_index: int
    amplitude: float
    frame_start_sample: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require_finite(amplitude=self.amplitude)
        _require(self.amplitude > 0, f"amplitude: got {self.amplitude}, wanted > 0.")


class PilotHold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pilot_hold"):
    """One device holds its pilot until it is told otherwise; everybody else is silent.

    For radios without a common clock (`radio.waveforms.energy_calibration`). Pilots cost no
    privacy.
    """

    run_id: str
    round_index: int
    device_index: int
    amplitude: float

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(self.round_index >= 0, f"round_index: got {self.round_index}, wanted >= 0.")
        _require(self.device_index >= 0, f"device_index: got {self.device_index}, wanted >= 0.")
        _require(0 < self.amplitude <= 1, f"amplitude: got {self.amplitude}, wanted 0 to 1.")


class NumbersHold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="numbers_hold"):
    """Everybody who is ready holds all of its round's numbers, or its packet, at once.

    Each of them answers with a RoundReport when it is on the air; one who cannot has said nothing.
    """

    run_id: str
    round_index: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(self.round_index >= 0, f"round_index: got {self.round_index}, wanted >= 0.")


class PacketHold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="packet_hold"):
    """One device, if it is ready, holds its round's packet; everybody else is silent.

    It answers with a RoundReport when it is on the air.
    """

    run_id: str
    round_index: int
    device_index: int

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _require(self.round_index >= 0, f"round_index: got {self.round_index}, wanted >= 0.")
        _require(self.device_index >= 0, f"device_index: got {self.device_index}, wanted >= 0.")


class SilenceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="silence_order"):
    """Everybody ends what it holds."""

    run_id: str
    round_index: int


class RunEnded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="run_ended"):
    """There are no more rounds: whoever has private keys of the run destroys them."""

    run_id: str
    round_index: int


class DigestRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="digest_request"):
    """Asks every host of devices for the digest of its weights."""

    run_id: str
    round_index: int


class DigestReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="digest_report"):
    """The digest of one host's weights after the given round."""

    run_id: str
    round_index: int
    host: str
    parameter_digest: str
