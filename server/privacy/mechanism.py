"""What one device released in one round, written down so that it can be priced.

A `MechanismRecord` holds everything the price depends on and nothing that depends on data. It is
validated at birth, versioned, and read back strictly: what cannot be understood is never free.
"""

from __future__ import annotations

import math
import re

import msgspec

from edge_runtime.guard.cover import ROUND_DOWN
from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.rounds import Access, Vote
from radio.waveforms import WaveformName
from server.errors import PrivacyError, UnknownMechanismError

RECORD_VERSION = 5
"""Rises when a field is added or the meaning of one changes."""

POISSON_SUBSAMPLED_GAUSSIAN = "poisson_subsampled_gaussian"
GAUSSIAN = "gaussian"
KINDS = (POISSON_SUBSAMPLED_GAUSSIAN, GAUSSIAN)

SUPERPOSABLE = frozenset({WaveformName.COHERENT, WaveformName.COHERENT_VOTE})
"""Waveforms whose signals differ between devices in one complex gain and in nothing else. Those of
radios with carriers and clocks of their own can be told apart, so no device's noise covers another.
"""

_HEX = re.compile(r"[0-9a-f]{8,}")


class MechanismRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device's release in one round: sensitivity, subsampling and the noise that counts.

    Its noise is discrete, on the grid that clip and batch declare, and its sensitivity that of
    numbers on that grid (`edge_runtime.number_grid`).

    Attributes:
        version: RECORD_VERSION of the writer.
        kind: "poisson_subsampled_gaussian" or "gaussian".
        round_index: 0-based.
        device_index: whose data the release touches; the price goes on this device's account.
        access: superposed or slotted; in slotted access only the device's own noise may be
            certified (`certified_noise_stds` knows the rule).
        waveform: that carries it; superposed only one of SUPERPOSABLE.
        vote: whether signs were said, and where the noise came in. A sign of a noisy number carries
            nobody else's noise, so it is slotted on any waveform.
        unit: whom the promise protects.
        relation: which change of the data it survives.
        sensitivity: `sensitivity.sum_sensitivity`, in units of the scalar.
        sampling_probability: Poisson rate q of one example; 1 for kind "gaussian".
        certified_noise_std: lower bound on the noise per real dimension, in units of the scalar.
        receiver_noise_std: what of that is the receiver's own, in the same units; 0 if it is not
            counted.
        num_missing: q, others whose noise is not counted, whoever they are.
        amplitude_error_bound: eta; every device arrives within [1 - eta, 1 + eta] of the common
            level (except with the probability that the accountant sets aside as csi_delta).
        noise_stream: hexadecimal name of the noise that is drawn, of (key, release). Equal streams
            mean the very same noise, so a re-sent scalar can be told from a new release.

    Raises:
        PrivacyError: a value that no honest release can have.
        UnknownMechanismError: another version, an unknown kind, or a combination of kind, unit and
            relation, or of access and waveform, that has no proof here.
    """

    version: int
    kind: str
    round_index: int
    device_index: int
    access: Access
    waveform: WaveformName
    vote: Vote
    unit: PrivacyUnit
    relation: NeighbouringRelation
    sensitivity: float
    sampling_probability: float
    certified_noise_std: float
    receiver_noise_std: float
    num_missing: int
    amplitude_error_bound: float
    noise_stream: str

    def __post_init__(self) -> None:
        """Refuse what cannot be priced."""
        self._check_mechanism()
        for name in ("round_index", "device_index"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63,
                f"{name}: got {value!r}, wanted an integer in 0..2**63-1.",
            )
        for name, kind in (
            ("access", Access),
            ("waveform", WaveformName),
            ("vote", Vote),
            ("unit", PrivacyUnit),
            ("relation", NeighbouringRelation),
        ):
            value = getattr(self, name)
            _require(isinstance(value, kind), f"{name}: got {value!r}, wanted {kind.__name__}.")
        for name in ("sensitivity", "certified_noise_std"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value > 0,
                f"{name}: got {value}, wanted a finite number > 0.",
            )
        _require(
            0 <= self.receiver_noise_std * ROUND_DOWN**2 <= self.certified_noise_std,
            f"receiver_noise_std: got {self.receiver_noise_std}, wanted 0 to certified_noise_std, "
            f"{self.certified_noise_std}.",
        )
        _require(
            type(self.num_missing) is int and self.num_missing >= 0,
            f"num_missing: got {self.num_missing!r}, wanted an integer >= 0.",
        )
        _require(
            0 <= self.amplitude_error_bound < 1,
            f"amplitude_error_bound: got {self.amplitude_error_bound}, wanted a number in [0, 1). "
            "Raise min_gain or sound the channel longer.",
        )
        _require(
            0 < self.sampling_probability <= 1,
            f"sampling_probability: got {self.sampling_probability}, wanted a number in (0, 1].",
        )
        _require(
            _HEX.fullmatch(self.noise_stream) is not None,
            f"noise_stream: got {self.noise_stream!r}, wanted at least 8 lower-case hex digits.",
        )
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0,
            f"noise multiplier: got {self.noise_multiplier} from std {self.certified_noise_std} "
            f"and sensitivity {self.sensitivity}, wanted a finite number > 0.",
        )

    def _check_mechanism(self) -> None:
        """Refuse a version, kind or combination without a proof."""
        if type(self.version) is not int or self.version != RECORD_VERSION:
            raise UnknownMechanismError(
                f"version: got {self.version!r}, this program prices version {RECORD_VERSION}. "
                "Use the program that wrote the record."
            )
        if self.kind not in KINDS:
            raise UnknownMechanismError(
                f"kind: got {self.kind!r}, wanted one of {', '.join(KINDS)}. An unknown mechanism "
                "is never counted as free."
            )
        if self.kind == GAUSSIAN and self.sampling_probability != 1:
            raise UnknownMechanismError(
                f"kind 'gaussian' with sampling_probability {self.sampling_probability}: wanted 1. "
                "Use kind 'poisson_subsampled_gaussian' if batches are drawn by Poisson sampling."
            )
        if self.kind == POISSON_SUBSAMPLED_GAUSSIAN and (
            self.unit is not PrivacyUnit.EXAMPLE
            or self.relation is not NeighbouringRelation.ZERO_OUT_ONE
        ):
            raise UnknownMechanismError(
                f"kind 'poisson_subsampled_gaussian' with unit {self.unit} and relation "
                f"{self.relation}: amplification is proved here for one example, zeroed out. "
                "Use kind 'gaussian'."
            )
        if self.access is Access.SUPERPOSED and self.waveform not in SUPERPOSABLE:
            raise UnknownMechanismError(
                f"access 'superposed' with waveform {self.waveform!r}: carriers and timing tell "
                "its devices apart, so each is covered by its own noise alone. Account it as "
                "'slotted'."
            )
        if self.access is Access.SLOTTED and self.receiver_noise_std != 0:
            raise UnknownMechanismError(
                "access 'slotted' with receiver noise counted: a device's own noise covers it, and "
                "nothing else."
            )
        if self.access is Access.SUPERPOSED and self.vote is Vote.NOISE_BEFORE:
            raise UnknownMechanismError(
                "access 'superposed' with noise before the sign: a sign carries no noise that "
                "could cover another device. Account it as 'slotted'."
            )
        is_vote = self.vote is not Vote.NONE
        if isinstance(self.waveform, WaveformName) and is_vote is not self.waveform.carries_signs:
            raise UnknownMechanismError(
                f"waveform {self.waveform!r} with vote {self.vote!r}: the two contradict each "
                "other."
            )

    @property
    def noise_multiplier(self) -> float:
        """certified_noise_std / (sensitivity (1 + eta) / (1 - eta)), rounded down.

        The device's own shift may arrive larger by 1 + eta while everybody's noise arrives smaller
        by 1 - eta. In slotted access both carry the same factor and eta may be recorded as 0.
        """
        eta = self.amplitude_error_bound
        attenuated = self.certified_noise_std * (1.0 - eta)
        return attenuated / (self.sensitivity * (1.0 + eta)) * ROUND_DOWN

    def encode(self) -> bytes:
        """Canonical bytes: JSON with the fields in the order of this class."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> MechanismRecord:
        """Read `encode` back, strictly.

        Guarantees: the result encodes to exactly ``data``.

        Raises:
            UnknownMechanismError: anything else, the cause chained.
        """
        try:
            record = _DECODER.decode(data)
        except UnknownMechanismError:
            raise
        except (msgspec.MsgspecError, PrivacyError, UnicodeDecodeError) as error:
            raise UnknownMechanismError(
                f"a privacy record of {len(data)} bytes cannot be read: {error} It is not counted "
                "as free; restore the ledger or use the program that wrote it."
            ) from error
        if record.encode() != data:
            raise UnknownMechanismError(
                "a privacy record is not in canonical form, so it was not written by this program."
            )
        return record


_DECODER = msgspec.json.Decoder(MechanismRecord)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PrivacyError(message)
