"""What a plan is made from: the part of a configuration that power and privacy depend on."""

from __future__ import annotations

import dataclasses
import math

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.rounds import Access, Vote
from radio.errors import RadioError
from radio.software_air.impairments import Impairments, impairments_from_name
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import check_can_be_heard
from radio.waveforms.side_by_side import Packets
from server.config.learning import FederationSection, OptimizerSection, RunSection
from server.config.power import PowerSection
from server.config.privacy import PrivacySection
from server.config.radio import ImpairmentsSection, RadioSection
from server.config.section import Section, check_within
from server.errors import ConfigurationError
from server.power.catalogue import POLICIES, check_plans_rounds

_LARGEST_SCALAR = 1e6
"""Stands for an infinite clip on the ideal link, where loudness means nothing."""

MAX_WEIGHT_SPREAD = 1e3
"""Of the last round over the first: measured forgetting is some tens (theory.md, section 4.3)."""


class PlanConfig(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who says how much how often, over what air, with what promise; see the sections.

    Everything that `server.planning` is given of a run. Which model learns what, and on which
    hosts, is none of its business (`server.config.run_config`).
    """

    federation: FederationSection = FederationSection()
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()
    radio: RadioSection = RadioSection()
    impairments: ImpairmentsSection = ImpairmentsSection()
    power: PowerSection = PowerSection()
    privacy: PrivacySection = PrivacySection()

    def __post_init__(self) -> None:
        """Check what sections must agree on; each has checked its own values."""
        if self.radio.backend != "ideal":
            self._check_signals()
        has_captures = self.radio.backend != "ideal" and not self.radio.waveform.needs_common_clock
        if self.radio.keep_captures and not has_captures:
            raise ConfigurationError(
                f'radio.keep_captures: radio.waveform = "{self.radio.waveform}" at radio.backend = '
                f'"{self.radio.backend}" has none; held bursts have, as with "energy".'
            )
        self._check_weights()
        self.power.limits.over(self.federation.num_devices, self.optimizer.rounds, 1.0)
        most_missing = self.federation.num_devices - 1
        check_within("privacy.missing_devices", self.privacy.missing_devices, 0, most_missing)
        if self.privacy.enabled:
            self._check_privacy()
        elif self.power.limits.limits_anything:
            raise ConfigurationError(
                "[power.limits]: privacy.enabled = false, and such runs plan no power. Leave them "
                "out."
            )
        elif not math.isfinite(self.optimizer.clip) and self.radio.backend != "ideal":
            raise ConfigurationError(
                "optimizer.clip: infinite; a transmitter needs a bound. Set a finite clip, or "
                'radio.backend = "ideal".'
            )

    @property
    def impaired_by(self) -> Impairments:
        """The impairments of the software air: the named set's, but for what was changed.

        Raises:
            RadioConfigurationError: no such set, or a number that cannot be.
        """
        named = impairments_from_name(self.radio.impairments_name)
        return dataclasses.replace(named, **self.impairments.changes)

    @property
    def impairments_label(self) -> str:
        """For reports: the name of the set, starred where something was changed."""
        return self.radio.impairments_name + ("*" if self.impairments.changes else "")

    @property
    def is_subsampled(self) -> bool:
        """Whether the promise counts that a batch holds few of a device's examples."""
        privacy = self.privacy
        is_example = privacy.unit is PrivacyUnit.EXAMPLE
        return is_example and privacy.relation is NeighbouringRelation.ZERO_OUT_ONE

    @property
    def power_policy(self) -> str:
        """The name of the policy; see `PowerSection`."""
        if self.power.policy is not None:
            return self.power.policy
        if self.power.limits.limits_anything:
            return "limited"
        return "subsampled" if self.is_subsampled else "optimal"

    @property
    def access(self) -> Access:
        """What the receiver may tell apart; see `PrivacySection`."""
        if self.privacy.access is not None:
            return self.privacy.access
        return Access.SUPERPOSED if self._may_superpose else Access.SLOTTED

    @property
    def vote(self) -> Vote:
        """Whether devices say numbers or signs, and where their noise comes in."""
        if not self.radio.waveform.carries_signs:
            return Vote.NONE
        is_before = self.privacy.vote_noise == "before_sign"
        return Vote.NOISE_BEFORE if is_before else Vote.NOISE_AFTER

    @property
    def energy_waveform(self) -> EnergyWaveform:
        """The bands of a round's numbers, where powers add.

        Raises:
            RadioConfigurationError: more numbers than there is room for.
        """
        has_noise_on_air = self.privacy.enabled and self.vote is Vote.NOISE_AFTER
        return self.radio.energy_waveform(
            self.optimizer.directions,
            are_votes=self.radio.waveform.carries_signs and not has_noise_on_air,
        )

    @property
    def coherent_waveform(self) -> CoherentWaveform:
        """The frames of a round, where amplitudes add."""
        return self.radio.coherent_waveform(self.federation.num_devices, self.optimizer.directions)

    @property
    def packets(self) -> Packets:
        """Those of a round, where devices are told apart.

        Raises:
            RadioConfigurationError: more devices or numbers than there is room for.
        """
        return self.radio.packets(self.federation.num_devices, self.optimizer.directions)

    @property
    def largest_number(self) -> float:
        """G, the largest number that is said before its noise: a sign, or the clip."""
        return 1.0 if self.vote is not Vote.NONE else min(self.optimizer.clip, _LARGEST_SCALAR)

    @property
    def _may_superpose(self) -> bool:
        """Whether the noise of one device covers the others."""
        return self.radio.waveform.needs_common_clock and self.vote is not Vote.NOISE_BEFORE

    def _check_signals(self) -> None:
        """Bands, offsets and noise, before any radio is opened.

        What real radios do is known when they are calibrated, and not before.
        """
        radio = self.radio
        if radio.has_plutos and radio.waveform.needs_common_clock:
            raise ConfigurationError(
                f'radio.waveform: "{radio.waveform}" needs one carrier and one clock for all, '
                f'which radio.backend = "{radio.backend}" has not. Set radio.waveform = "energy".'
            )
        try:
            impairments = self.impaired_by
            if radio.backend == "pluto":
                impairments = Impairments()
            offset_hz = impairments.largest_offset_hz(radio.carrier_hz)
            signal_to_noise = radio.max_amplitude**2 / radio.noise_power
            if radio.waveform.adds_powers:
                bands = self.energy_waveform
                bands.check_offset(offset_hz)
                if not radio.has_plutos:
                    check_can_be_heard(bands, radio.noise_power, radio.max_amplitude)
            if not radio.waveform.superposes:
                packets = self.packets
                packets.check_offset(offset_hz)
                packets.check_clock(impairments.largest_ppm)
                if not radio.has_plutos:
                    packets.check_can_be_read(signal_to_noise)
        except RadioError as error:
            raise ConfigurationError(f"[radio]: {error}") from error

    def _check_weights(self) -> None:
        """How fast a model is taken to forget."""
        spread = -self.optimizer.rounds * math.log(self.power.contraction)
        if spread > math.log(MAX_WEIGHT_SPREAD):
            least = MAX_WEIGHT_SPREAD ** (-1.0 / self.optimizer.rounds)
            raise ConfigurationError(
                f"power.contraction: {self.power.contraction} over {self.optimizer.rounds} rounds "
                f"would have the last weigh e^{spread:.1f} times the first; models do not forget "
                f"like that. Wanted at least {least:.6f}."
            )

    def check_policy(self, name: str) -> None:
        """Return if a power policy can plan this run.

        Args:
            name: of the policy, the configuration's own or another one.

        Raises:
            ConfigurationError: it cannot; the message says why, and which can.
        """
        check_plans_rounds(
            name,
            access=self.access,
            vote=self.vote,
            is_subsampled=self.is_subsampled,
            has_limits=self.power.limits.limits_anything,
        )

    def _check_what_covers(self) -> None:
        """Whose noise counts."""
        privacy = self.privacy
        if self.access is Access.SLOTTED and privacy.trusted_noise_fraction > 0.0:
            raise ConfigurationError(
                f"privacy.trusted_noise_fraction: got {privacy.trusted_noise_fraction}, and each "
                "device is covered by its own noise alone here. Leave it out."
            )
        has_equal_noises = POLICIES[self.power_policy].has_equal_noises
        is_superposed = self.access is Access.SUPERPOSED
        if privacy.missing_devices > 0 and is_superposed and not has_equal_noises:
            able = [policy.name for policy in POLICIES.values() if policy.has_equal_noises]
            raise ConfigurationError(
                f"privacy.missing_devices: got {privacy.missing_devices}, and power.policy = "
                f'"{self.power_policy}" deals noise out as power allows it, some of it to few. '
                f"Use one of: {', '.join(able)}."
            )

    def _check_privacy(self) -> None:
        if not math.isfinite(self.optimizer.clip):
            raise ConfigurationError("optimizer.clip: infinite; privacy needs a finite clip.")
        self.check_policy(self.power_policy)
        self._check_what_covers()
        is_superposed = self.access is Access.SUPERPOSED
        if self.privacy.csi_failure_fraction == 0.0 and is_superposed:
            raise ConfigurationError(
                "privacy.csi_failure_fraction: got 0, wanted > 0: channel estimates have errors "
                "without a certain bound, so part of delta must cover them."
            )
        if is_superposed and not self.radio.waveform.needs_common_clock:
            raise ConfigurationError(
                f'privacy.access: "superposed" does not hold for radio.waveform = '
                f'"{self.radio.waveform}": a receiver can tell its devices apart, so each is '
                'covered by its own noise alone. Leave privacy.access out, or set "slotted".'
            )
        if is_superposed and self.vote is Vote.NOISE_BEFORE:
            raise ConfigurationError(
                'privacy.access: "superposed" does not hold for noise before a sign: a sign '
                'carries none. Leave privacy.access out, or set vote_noise = "after_sign".'
            )
        if is_superposed and self.impaired_by.tells_devices_apart:
            raise ConfigurationError(
                f'radio.impairments: "{self.impairments_label}" leaves marks of each device on '
                "its signal, by which a receiver tells them apart; the superposed statement does "
                'not hold then. Set radio.waveform = "energy", or privacy.enabled = false.'
            )
        if self._may_superpose and not is_superposed:
            raise ConfigurationError(
                f'privacy.access: got "slotted"; with radio.waveform = "{self.radio.waveform}" '
                "this version plans superposed access only."
            )
        if self.radio.backend == "ideal":
            raise ConfigurationError(
                'radio.backend "ideal" sends no samples and adds no noise: set '
                "privacy.enabled = false."
            )
