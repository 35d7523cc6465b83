"""A device's policy: what the owner of its data lets it release, whatever a server asks for.

The owner has it proved once, for all of its rounds together, by the exact accountant
(``pairzero policy``); on the device it takes sums and comparisons alone to keep to it:

* each release's noise multiplier m is worked out here, from the order's own noise, clip, batch and
  directions, and the sampling rate from the number of records that are really here;
* subsampled rounds each use up one of the rounds that the proof allowed, the noisiest that this
  one covers; other rounds pay y = 1 / (2 m^2) each, of a budget that composes exactly, whatever
  each m (Gaussian differential privacy).

Noise of others counts where the owner says so, and then the promise rests on the server's word
(`Cover.FEDERATION`). What devices that fell silent cost the others is priced by the server, which
alone hears who spoke; covered by its own noise, a device is touched by neither.
"""

from __future__ import annotations

import enum
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_runtime.guard.cover import ROUND_DOWN, ArtificialNoise, certified_noise_stds
from edge_runtime.guard.sensitivity import (
    NeighbouringRelation,
    PrivacyUnit,
    release_sensitivity,
)
from edge_runtime.input_files import read_settings
from edge_runtime.protocol.errors import PlanRefusedError, PromiseError
from edge_runtime.protocol.rounds import Access, RoundPlan, TransmitOrder, Vote
from radio.waveforms import WaveformName

POLICY_VERSION = 1
"""Rises when the meaning of a field changes."""

MAX_HOLD_S = 10.0
"""Longest that a burst is held where no owner says otherwise."""

_ROUNDING = 1e-9
"""Relative: what float64 may do to an amplitude that was planned to be as large as it may be."""


class Cover(enum.StrEnum):
    """Whose noise a device counts.

    OWN: its own alone. The promise holds whatever the server and all other devices do.
    FEDERATION: that of everybody who is ordered to speak with it, but for some. It holds if the
        server sends everybody the same order and they are the devices it says they are.
    """

    OWN = "own"
    FEDERATION = "federation"


class AllowedRounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """So many rounds, each with at least so much noise.

    Attributes:
        number: of rounds.
        min_noise_multiplier: the least ratio of noise to sensitivity of each of them.
    """

    number: int
    min_noise_multiplier: float


class DevicePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the owner of a device's data lets it release, in all, whatever a server asks for.

    Attributes:
        version: POLICY_VERSION of the writer.
        epsilon: what the rounds come to, proved where the policy was written.
        delta: likewise; what of it is set aside for channel estimates is not proved here.
        unit: whom the promise protects.
        relation: which change of the data it survives.
        access: the only one it speaks in; slotted shows what a device says by itself.
        waveform: the only one it speaks with.
        vote: whether it says numbers or signs, and where the noise comes in.
        cover: whose noise counts.
        min_speakers: with fewer orders than so many its own noise alone counts.
        num_missing: q, others whose noise is not counted, whoever they are.
        counts_receiver_noise: whether what the server says of its receiver's noise is believed.
        max_clip: the largest clip.
        min_batch: the smallest nominal batch.
        max_directions: the most numbers of a round.
        max_amplitude: of the transmitter, over full scale, 0 to 1: of a pilot, a band, a packet, or
            the largest number before its noise.
        max_hold_s: longest that a radio of its own holds one burst: then it ends, whatever a server
            does or does not do.
        carrier_hz: the only one that a radio of its own sends on; None for any.
        max_sampling_rate: the largest share of its records that a batch is drawn with; 1 where
            batches are not counted on.
        budget: R, what rounds may cost in all where batches are not counted on; 0 elsewhere.
        rounds: those that are allowed, in all: of every run, with any key, from the first on.

    Raises:
        PromiseError: a policy from which no promise follows.
    """

    version: int
    epsilon: float
    delta: float
    unit: PrivacyUnit
    relation: NeighbouringRelation
    access: Access
    waveform: WaveformName
    vote: Vote
    cover: Cover
    min_speakers: int = 1
    num_missing: int = 0
    counts_receiver_noise: bool = False
    max_clip: float
    min_batch: int
    max_directions: int
    max_amplitude: float = 1.0
    max_hold_s: float = MAX_HOLD_S
    carrier_hz: float | None = None
    max_sampling_rate: float
    budget: float = 0.0
    rounds: tuple[AllowedRounds, ...]

    def __post_init__(self) -> None:
        """Refuse what promises nothing."""
        _require(
            self.version == POLICY_VERSION,
            f"version: got {self.version}, this device keeps version {POLICY_VERSION}.",
        )
        for name in (
            "epsilon", "delta", "max_clip", "max_amplitude", "max_hold_s", "max_sampling_rate",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value > 0.0,
                f"{name}: got {value}, wanted a finite number > 0.",
            )
        for name in ("delta", "max_amplitude", "max_sampling_rate"):
            _require(getattr(self, name) <= 1.0, f"{name}: got {getattr(self, name)}, above 1.")
        for name in ("min_batch", "max_directions", "min_speakers"):
            _require(getattr(self, name) >= 1, f"{name}: got {getattr(self, name)}, wanted >= 1.")
        _require(self.num_missing >= 0, f"num_missing: got {self.num_missing}, wanted >= 0.")
        _require(bool(self.rounds), "rounds: none are allowed, so there is nothing to agree to.")
        for allowed in self.rounds:
            _require(
                allowed.number >= 1
                and math.isfinite(allowed.min_noise_multiplier)
                and allowed.min_noise_multiplier > 0.0,
                f"rounds: got {allowed.number} with a noise multiplier of at least "
                f"{allowed.min_noise_multiplier}, wanted some, with some noise.",
            )
        _require(
            self.cover is Cover.OWN or self.access is Access.SUPERPOSED,
            'cover: "federation" in slotted access, where nobody\'s noise covers another; wanted '
            '"own".',
        )
        if self.is_subsampled:
            _require(self.budget == 0.0, "budget: rounds that are subsampled have none.")
        else:
            _require(
                math.isfinite(self.budget) and self.budget > 0.0,
                f"budget: got {self.budget}, wanted a finite number > 0.",
            )

    @property
    def is_subsampled(self) -> bool:
        """Whether the promise counts that a batch holds few of the records."""
        return (
            self.unit is PrivacyUnit.EXAMPLE and self.relation is NeighbouringRelation.ZERO_OUT_ONE
        )

    @property
    def num_rounds(self) -> int:
        """All rounds that are allowed."""
        return sum(allowed.number for allowed in self.rounds)

    def check_amplitude(self, amplitude: float) -> None:
        """Return if something may be as loud as that, over full scale.

        Raises:
            PlanRefusedError: it may not.
        """
        if amplitude > self.max_amplitude * (1.0 + _ROUNDING):
            raise PlanRefusedError(
                f"policy max_amplitude: an amplitude of {amplitude:.6g} is asked for, at most "
                f"{self.max_amplitude:.6g} is allowed."
            )

    def check_kind(self, plan: RoundPlan) -> None:
        """Return if a plan, whoever is to speak in it, is of the kind that was agreed to.

        Raises:
            PlanRefusedError: it is not; the message names the field and both figures.
        """
        for name, got, agreed in (
            ("access", plan.access, self.access),
            ("vote", plan.vote, self.vote),
        ):
            if got is not agreed:
                raise PlanRefusedError(f'policy {name}: "{got}" is asked for, agreed is "{agreed}"')
        for name, value, most in (
            ("max_clip", plan.clip, self.max_clip),
            ("max_directions", plan.num_directions, self.max_directions),
        ):
            if value > most:
                raise PlanRefusedError(
                    f"policy {name}: {value:g} is asked for, at most {most:g} is allowed."
                )
        if plan.batch_size < self.min_batch:
            raise PlanRefusedError(
                f"policy min_batch: a batch of {plan.batch_size} is asked for, allowed are those "
                f"from {self.min_batch} on."
            )

    def check_order(self, plan: RoundPlan, order: TransmitOrder) -> None:
        """Return if an order of a plan is of the kind that was agreed to.

        Raises:
            PlanRefusedError: it or its plan is not.
        """
        self.check_kind(plan)
        if self.access is Access.SUPERPOSED and (order.bands or order.packet):
            raise PlanRefusedError(
                'policy access: "superposed", and the order is for a waveform whose devices can be '
                "told apart."
            )
        self.check_amplitude(_amplitude(plan, order))

    def check_carrier(self, carrier_hz: float) -> None:
        """Return if a radio of the device's own may send there.

        Raises:
            PlanRefusedError: it may not.
        """
        if self.carrier_hz is not None and carrier_hz != self.carrier_hz:
            raise PlanRefusedError(
                f"policy carrier_hz: {carrier_hz:g} is asked for, allowed is {self.carrier_hz:g}."
            )

    def check_covers(self, num_rounds: int) -> None:
        """Return if so many rounds could be allowed, were there none before.

        Raises:
            PlanRefusedError: they could not.
        """
        if num_rounds > self.num_rounds:
            raise PlanRefusedError(
                f"policy rounds: {num_rounds} are asked for, {self.num_rounds} are allowed in all."
            )

    def check_sampling_rate(self, batch_size: int, num_records: int) -> float:
        """The rate at which a record is drawn, if it is not above what was agreed to.

        Raises:
            PlanRefusedError: it is; fewer records are here, or more are asked for.
        """
        rate = min(1.0, batch_size / num_records) if self.is_subsampled else 1.0
        if rate > self.max_sampling_rate:
            raise PlanRefusedError(
                f"policy max_sampling_rate: a batch of {batch_size} from {num_records} records is "
                f"{rate:.6g}, at most {self.max_sampling_rate:.6g} is allowed."
            )
        return rate

    def noise_multipliers(self, plan: RoundPlan) -> Mapping[int, float]:
        """Device index -> ratio of the noise that counts to the sensitivity, rounded down."""
        sensitivity = release_sensitivity(
            access=plan.access,
            vote=plan.vote,
            directions=plan.num_directions,
            clip=plan.clip,
            batch_size=plan.batch_size,
            unit=self.unit,
            relation=self.relation,
        )
        covered: Mapping[int, float] = {o.device_index: o.artificial_noise_std for o in plan.orders}
        if self.cover is Cover.FEDERATION and len(covered) >= self.min_speakers:
            counted = plan.receiver_noise_std if self.counts_receiver_noise else None
            covered = certified_noise_stds(
                access=plan.access,
                artificial_noise=ArtificialNoise.CIRCULAR,
                noise_stds=covered,
                num_missing=self.num_missing,
                receiver_noise_std=counted or 0.0,
            )
        return {index: std / sensitivity * ROUND_DOWN for index, std in covered.items()}


def _amplitude(plan: RoundPlan, order: TransmitOrder) -> float:
    """The loudest an order asks for, over full scale; of a number before its noise."""
    if order.bands is not None:
        return max(order.bands.amplitudes)
    if order.packet is not None:
        return order.packet.amplitude
    return abs(order.tx_gain) * (1.0 if plan.vote is not Vote.NONE else plan.clip)


def check_hold(asked_s: float, most_s: float = MAX_HOLD_S) -> None:
    """Return if bursts may be held for so long.

    Raises:
        PlanRefusedError: they may not.
    """
    if not asked_s <= most_s:
        raise PlanRefusedError(
            f"policy max_hold_s: bursts of up to {asked_s:g} s are asked for (radio.max_hold_s), "
            f"at most {most_s:g} s are allowed."
        )


def load_policy(path: Path) -> DevicePolicy:
    """Read a policy file.

    Raises:
        PromiseError: it cannot be read, or is none.
    """
    try:
        return msgspec.convert(read_settings(path), DevicePolicy)
    except OSError as error:
        raise PromiseError(f"{path}: cannot be read ({error.strerror}).") from error
    except (
        tomllib.TOMLDecodeError,
        msgspec.ValidationError,
        UnicodeDecodeError,
        PromiseError,
    ) as error:
        raise PromiseError(
            f"{path}: not a policy: {error} `pairzero policy` writes one."
        ) from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PromiseError(f"policy {message}")
