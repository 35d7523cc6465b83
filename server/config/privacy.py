"""Configuration of the promise."""

from __future__ import annotations

from typing import Literal

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.rounds import Access
from server.config.section import Section, check_within
from server.errors import ConfigurationError
from server.numeric import check_positive
from server.privacy.receiver_noise import KEPT_BACK


class PrivacySection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The promise.

    Attributes:
        enabled: false adds no noise and promises nothing; the run says so everywhere.
        unit: whom it protects. "example": one record of one device. "device": all that a device
            holds; a mean of few devices then has more noise than signal, of many it learns.
        relation: which change it survives, "zero_out_one" or "replace_one". Only examples that are
            zeroed out gain from being drawn in batches; everything else pays every round in full.
        epsilon: budget of the whole run.
        delta: failure probability of the whole run, below 1/n.
        access: "superposed": the receiver meets only the sum, and all devices' noise covers each
            of them. "slotted": it may tell them apart, and each is covered by its own. Left out,
            what holds for the waveform: superposed for the coherent ones (not with noise before
            a sign), slotted for others.
        vote_noise: waveforms that carry signs: "before_sign", the sign of a noisy number, or
            "after_sign", a sign with noise on it, which one record can turn whatever the batch.
        trusted_noise_fraction: rho, the part of the receiver's noise power that may be counted
            besides the devices' own; 0 unless somebody vouches for the receiver. Superposed only.
        missing_devices: q; the promise to a device holds without the noise of any q others, who may
            fall silent after they were paid for or tell the server theirs. Superposed access is
            planned for it by the policies with equal noises; slotted access holds for any q.
        csi_failure_fraction: share of delta set aside for channel estimates worse than the bound
            that the noise was planned with; nothing is where access is slotted, because a device's
            noise arrives as loud as its number.
        noise_source: "system": keys from the operating system's generator, kept by the devices.
            "simulation": keys derived from the run's seed, so that a run can be repeated bit for
            bit; protects nobody from a reader of the configuration; software radio only.
    """

    enabled: bool = True
    unit: PrivacyUnit = PrivacyUnit.EXAMPLE
    relation: NeighbouringRelation = NeighbouringRelation.ZERO_OUT_ONE
    epsilon: float = 8.0
    delta: float = 1e-5
    access: Access | None = None
    vote_noise: Literal["before_sign", "after_sign"] = "before_sign"
    trusted_noise_fraction: float = 0.0
    missing_devices: int = 0
    csi_failure_fraction: float = 0.1
    noise_source: Literal["system", "simulation"] = "system"

    def __post_init__(self) -> None:
        """Check the promise, also where none is made."""
        check_positive("privacy.epsilon", self.epsilon)
        if not 0.0 < self.delta < 1.0:
            raise ConfigurationError(
                f"privacy.delta: got {self.delta}, wanted between 0 and 1, and below 1/n."
            )
        check_within("privacy.trusted_noise_fraction", self.trusted_noise_fraction, 0.0, 1.0)
        check_within("privacy.csi_failure_fraction", self.csi_failure_fraction, 0.0, 0.5)

    @property
    def counted_noise_fraction(self) -> float:
        """rho but for what is kept back for another purpose (`server.privacy.receiver_noise`)."""
        return min(self.trusted_noise_fraction, 1.0 - KEPT_BACK)

    @property
    def has_system_keys(self) -> bool:
        """A promise that rests on secrets only the devices hold."""
        return self.enabled and self.noise_source == "system"

    @property
    def has_simulated_keys(self) -> bool:
        """A promise whose noise whoever knows the configuration can undo."""
        return self.enabled and self.noise_source == "simulation"
