"""The configuration of a run: one TOML file, typed, every key known, every value checked.

A file names only what it changes; the rest are the defaults below. A misspelt key is an error
with the nearest valid name, never a silent default. Presets in `server/presets` are such files.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec

from edge_runtime.protocol.rounds import (
    MAX_ABS_STEP_INTEGER,
    MAX_DIRECTIONS,
    STEP_QUANTUM,
    Access,
    Vote,
)
from radio.errors import RadioError
from radio.software_air.impairments import Impairments, impairments_from_name
from radio.waveforms.energy_calibration import check_can_be_heard
from server.config.learning import (
    FederationSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    TaskSection,
)
from server.config.power import PowerSection
from server.config.privacy import PrivacySection
from server.config.radio import PlutoSection, RadioSection, VirtualPlutoSection
from server.config.section import Section, check_count, check_within
from server.errors import ConfigurationError
from server.numeric import check_positive
from server.power.catalogue import POLICIES, check_plans_rounds
from server.privacy.units import NeighbouringRelation, PrivacyUnit

_MAX_LEARNING_RATE = 1e3
_LARGEST_SCALAR = 1e6
"""Stands for an infinite clip on the ideal link, where loudness means nothing."""

MAX_WEIGHT_SPREAD = 1e3
"""Of the last round over the first: measured forgetting is some tens (theory.md, section 4.3)."""


# One key for every attribute of Impairments; left out, the named set's.
ImpairmentsSection = msgspec.defstruct(
    "ImpairmentsSection",
    [(field.name, float | None, None) for field in dataclasses.fields(Impairments)],
    bases=(Section,),
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
)


class RunConfig(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole configuration; see the sections."""

    description: str = ""
    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    federation: FederationSection = FederationSection()
    optimizer: OptimizerSection = OptimizerSection()
    radio: RadioSection = RadioSection()
    impairments: ImpairmentsSection = ImpairmentsSection()  # type: ignore[valid-type]
    power: PowerSection = PowerSection()
    pluto: PlutoSection = PlutoSection()
    virtual_pluto: VirtualPlutoSection = VirtualPlutoSection()
    privacy: PrivacySection = PrivacySection()

    @property
    def evaluates_in_public(self) -> bool:
        """Whether the model may be evaluated: nobody is promised anything, or the data are public.

        See `TaskSection.validation_is_public`.
        """
        return self.task.validation_is_public or not self.privacy.has_system_keys

    @property
    def impaired_by(self) -> Impairments:
        """The impairments of the software air: the named set's, but for what was changed.

        Raises:
            RadioConfigurationError: no such set, or a number that cannot be.
        """
        named = impairments_from_name(self.radio.impairments_name)
        return dataclasses.replace(named, **self._changed_impairments)

    @property
    def impairments_label(self) -> str:
        """For reports: the name of the set, starred where something was changed."""
        return self.radio.impairments_name + ("*" if self._changed_impairments else "")

    @property
    def _changed_impairments(self) -> dict[str, Any]:
        values: dict[str, float | None] = msgspec.structs.asdict(self.impairments)
        changed = {name: value for name, value in values.items() if value is not None}
        # A TOML number may be written without a point, or bits with one.
        return {
            name: int(value) if name.endswith("_bits") and float(value).is_integer() else value
            for name, value in changed.items()
        }

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
    def largest_number(self) -> float:
        """G, the largest number that is said before its noise: a sign, or the clip."""
        return 1.0 if self.vote is not Vote.NONE else min(self.optimizer.clip, _LARGEST_SCALAR)

    @property
    def _may_superpose(self) -> bool:
        """Whether the noise of one device covers the others."""
        return self.radio.waveform.needs_common_clock and self.vote is not Vote.NOISE_BEFORE

    def __post_init__(self) -> None:
        """Check every value; all limits are stated here and nowhere else."""
        check_count("federation.num_devices", self.federation.num_devices, 1)
        check_within(
            "federation.min_speakers",
            self.federation.min_speakers, 1, self.federation.num_devices,
        )  # fmt: skip
        check_within(
            "federation.dropout_probability", self.federation.dropout_probability, 0.0, 0.9
        )
        check_count("optimizer.rounds", self.optimizer.rounds, 1)
        check_within("optimizer.directions", self.optimizer.directions, 1, MAX_DIRECTIONS)
        check_count("optimizer.batch_size", self.optimizer.batch_size, 1)
        check_within(
            "optimizer.perturbation_scale_log2", self.optimizer.perturbation_scale_log2, -20, 0
        )
        check_positive("optimizer.learning_rate", self.optimizer.learning_rate)
        check_within(
            "optimizer.learning_rate", self.optimizer.learning_rate, 0.0, _MAX_LEARNING_RATE
        )
        check_within(
            "optimizer.final_learning_rate_fraction",
            self.optimizer.final_learning_rate_fraction, 0.0, 1.0,
        )  # fmt: skip
        if not self.optimizer.clip > 0:
            raise ConfigurationError(f"optimizer.clip: got {self.optimizer.clip}, wanted > 0.")
        if self.optimizer.clip < self.optimizer.rounding_of_a_gradient:
            raise ConfigurationError(
                f"optimizer.clip: {self.optimizer.clip} is below "
                f"{self.optimizer.rounding_of_a_gradient:.3g}, what the rounding of a loss makes "
                f"of a {self.optimizer.difference} projected gradient at mu = "
                f"2^{self.optimizer.perturbation_scale_log2}: nothing else would be sent. Raise "
                "perturbation_scale_log2 or the clip."
            )
        if self.optimizer.typical_number is not None:
            check_positive("optimizer.typical_number", self.optimizer.typical_number)
        check_positive("optimizer.vote_value", self.optimizer.vote_value)
        check_within("radio.snr_db", self.radio.snr_db, -60.0, 120.0)
        check_count("radio.coherence_rounds", self.radio.coherence_rounds, 1)
        check_positive("radio.min_gain", self.radio.min_gain)
        check_positive("radio.min_band_gain", self.radio.min_band_gain)
        check_count("radio.pilot_symbols", self.radio.pilot_symbols, 16)
        check_count("radio.payload_symbols", self.radio.payload_symbols, 1)
        check_positive("radio.sample_rate_hz", self.radio.sample_rate_hz)
        check_within("radio.max_amplitude", self.radio.max_amplitude, 1e-6, 1.0)
        check_positive("radio.carrier_hz", self.radio.carrier_hz)
        check_within("radio.rician_k_db", self.radio.rician_k_db, -60.0, 60.0)
        check_positive("radio.calibration_max_age_s", self.radio.calibration_max_age_s)
        if self.radio.backend != "ideal":
            self._check_signals()
        has_captures = self.radio.backend != "ideal" and not self.radio.waveform.needs_common_clock
        if self.radio.keep_captures and not has_captures:
            raise ConfigurationError(
                f'radio.keep_captures: radio.waveform = "{self.radio.waveform}" at radio.backend = '
                f'"{self.radio.backend}" has none; held bursts have, as with "energy".'
            )
        check_count("task.max_tokens", self.task.max_tokens, 8)
        check_count("task.validation_examples", self.task.validation_examples, 0)
        check_count("run.evaluation_interval", self.run.evaluation_interval, 1)
        check_count("run.digest_interval", self.run.digest_interval, 1)
        check_count("run.workers", self.run.workers, 0)
        check_count("run.intra_op_threads", self.run.intra_op_threads, 1)
        check_within("privacy.csi_failure_fraction", self.privacy.csi_failure_fraction, 0.0, 0.5)
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
        largest = max(self.optimizer.clip, self.optimizer.vote_value)
        largest_step = self.optimizer.learning_rate * largest
        if math.isfinite(largest_step) and largest_step > MAX_ABS_STEP_INTEGER * STEP_QUANTUM:
            raise ConfigurationError(
                f"optimizer.learning_rate: {self.optimizer.learning_rate} times clip "
                f"{self.optimizer.clip} is a step of {largest_step:g} per weight; at most "
                f"{MAX_ABS_STEP_INTEGER * STEP_QUANTUM:g} can travel. Lower one of them."
            )

    def _check_signals(self) -> None:
        """Bands, offsets and noise, before any radio is opened.

        What real radios do is known when they are calibrated, and not before.
        """
        radio = self.radio
        try:
            impairments = self.impaired_by
            if radio.backend == "pluto":
                impairments = Impairments()
            offset_hz = impairments.largest_offset_hz(radio.carrier_hz)
            signal_to_noise = radio.max_amplitude**2 / radio.noise_power
            if radio.waveform.adds_powers:
                bands = radio.energy_waveform
                bands.check_offset(offset_hz)
                if not radio.has_plutos:
                    check_can_be_heard(bands, radio.noise_power, radio.max_amplitude)
            if not radio.waveform.superposes:
                packets = radio.slotted_waveform(self.optimizer.directions)
                packets.check_offset(offset_hz)
                packets.check_clock(impairments.largest_ppm)
                if not radio.has_plutos:
                    packets.check_can_be_read(signal_to_noise)
        except RadioError as error:
            raise ConfigurationError(f"[radio]: {error}") from error
        if radio.has_plutos:
            self._check_plutos()

    def _check_plutos(self) -> None:
        radio, num_devices = self.radio, self.federation.num_devices
        if radio.waveform.needs_common_clock:
            raise ConfigurationError(
                f'radio.waveform: "{radio.waveform}" needs one carrier and one clock for all, '
                f'which radio.backend = "{radio.backend}" has not. Set radio.waveform = "energy".'
            )
        if radio.backend == "pluto":
            self.pluto.check_radios(num_devices)
            self.pluto.settings([self.pluto.receiver, *self.pluto.devices], radio)
            return
        if self.pluto.devices or self.pluto.receiver:
            raise ConfigurationError(
                'pluto.devices: radio.backend = "virtual-pluto" starts radios of its own. Leave '
                'the URIs out, or set radio.backend = "pluto".'
            )
        self.virtual_pluto.bench(num_devices, self.impaired_by, self.run.seed)
        self.pluto.settings(["ip:127.0.0.1"] * (1 + num_devices), radio)

    def _check_power(self) -> None:
        self.check_policy(self.power_policy)
        self.power.limits.over(self.federation.num_devices, self.optimizer.rounds, 1.0)
        check_within("power.min_participation", self.power.min_participation, 0.0, 1.0)
        check_within("power.wrong_sign_probability", self.power.wrong_sign_probability, 0.0, 0.499)
        check_within("power.contraction", self.power.contraction, 0.5, 1.0)
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
        privacy, num_devices = self.privacy, self.federation.num_devices
        check_within("privacy.trusted_noise_fraction", privacy.trusted_noise_fraction, 0.0, 1.0)
        check_within("privacy.missing_devices", privacy.missing_devices, 0, num_devices - 1)
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
        check_positive("privacy.epsilon", self.privacy.epsilon)
        if not math.isfinite(self.optimizer.clip):
            raise ConfigurationError("optimizer.clip: infinite; privacy needs a finite clip.")
        if not 0.0 < self.privacy.delta < 1.0:
            raise ConfigurationError(
                f"privacy.delta: got {self.privacy.delta}, wanted between 0 and 1, and below 1/n."
            )
        self._check_power()
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
