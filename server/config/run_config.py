"""The configuration of a run: one TOML file, typed, every key known, every value checked.

A file names only what it changes; the rest are the defaults below. A misspelt key is an error
with the nearest valid name, never a silent default. Presets in `server/presets` are such files.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from edge_runtime.protocol.rounds import (
    MAX_ABS_STEP_INTEGER,
    MAX_DIRECTIONS,
    STEP_QUANTUM,
    Access,
    Difference,
    Vote,
)
from radio.errors import RadioError
from radio.software_air.impairments import Impairments, impairments_from_name
from radio.waveforms.energy_calibration import check_can_be_heard
from server.config.power_limits import PowerLimitsSection
from server.config.radio import PlutoSection, RadioSection, VirtualPlutoSection
from server.config.section import Section, check_count, check_within
from server.errors import ConfigurationError
from server.numeric import check_positive
from server.power.catalogue import (
    EQUAL_NOISE_POLICIES,
    check_plans_full_rounds,
    policy_named,
)
from server.privacy.receiver_noise import KEPT_BACK
from server.privacy.units import NeighbouringRelation, PrivacyUnit

PRESETS_FOLDER = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "snips"
BUNDLED_MODEL = "bundled"
_MAX_LEARNING_RATE = 1e3
_LARGEST_SCALAR = 1e6
"""Stands for an infinite clip on the ideal link, where loudness means nothing."""

MAX_WEIGHT_SPREAD = 1e3
"""Of the last round over the first: measured forgetting is some tens (theory.md, section 4.3)."""

_LOSS_ROUNDING = 2.0**-18  # float32 sums in another order move a loss by some 5e-6 (self_check)


class ModelSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which model, and which of its weights move.

    Paths in a configuration file are relative to the file, on the command line to the folder it is
    typed in.

    Attributes:
        bundle: "bundled", or the path of a folder made by ``pairzero export``.
        trainable: "all", "norms_and_biases", or a list of tensor name patterns.
    """

    bundle: str = BUNDLED_MODEL
    trainable: str | tuple[str, ...] = "all"


class TaskSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is learned.

    Attributes:
        name: a task that comes with pairzero, or the path of a task file.
        train: training data; empty takes the task's own.
        validation: validation data, likewise.
        validation_is_public: what is learnt from the validation data may be published. Where
            devices hold real keys nothing is evaluated without this, because loss and accuracy
            are stored and shown and no noise covers them.
        max_tokens: longer prompts keep their first token and their end.
        validation_examples: how many validation examples an evaluation uses; 0 means all.
    """

    name: str = "snips"
    train: str = ""
    validation: str = ""
    validation_is_public: bool = False
    max_tokens: int = 64
    validation_examples: int = 0


class FederationSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who takes part. Training examples are shuffled and dealt out evenly (IID).

    Attributes:
        num_devices: K.
        min_speakers: a round in which fewer speak moves nothing, and if so few are loud enough
            from the start, nobody speaks. It guards learning and not privacy: a sum that is not
            used was heard all the same, and is charged in full.
        dropout_probability: of each device in each round, after the round was paid for, as far as
            is expected. What the missing noise will cost is kept back, so that a run with such
            dropouts ends with its last round. Superposed access only; nobody else's noise covers a
            device elsewhere.
    """

    num_devices: int = 5
    min_speakers: int = 1
    dropout_probability: float = 0.0


class OptimizerSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The zeroth-order step: w <- w - learning_rate(t) * (1/Q) sum_q mean_estimate_q * z_q.

    Attributes:
        rounds: rounds of the whole run; the privacy budget is planned for exactly these.
        directions: Q, directions of a round, and numbers that each device sends in it.
        difference: "two_sided": 2 Q forward sweeps a round. "one_sided": Q + 1, because the losses
            at w serve all directions.
        batch_size: nominal examples per device and round.
        perturbation_scale_log2: log2 of mu; -10 is about the 1e-3 of the literature.
        learning_rate: at the first round.
        final_learning_rate_fraction: the rate falls along a half cosine to this fraction.
        clip: gamma, the bound on the norm of one example's Q projected gradients.
        typical_number: root mean square of a mean number before noise, if it is known; else it is
            looked at on public validation data (`server.planning.scalar_rms`). A run that noise
            would drown is refused by it.
        vote_value: waveforms that carry signs: what all votes one way count as, in place of a mean
            scalar.
        vote_decision: "majority": plus or minus the value, whichever more devices say. "soft": the
            value times the mean of the votes.
    """

    rounds: int = 1000
    directions: int = 1
    difference: Difference = Difference.TWO_SIDED
    batch_size: int = 16
    perturbation_scale_log2: int = -10
    learning_rate: float = 1e-4
    final_learning_rate_fraction: float = 0.05
    clip: float = 50.0
    typical_number: float | None = None
    vote_value: float = 1.0
    vote_decision: Literal["majority", "soft"] = "majority"

    @property
    def sweeps_per_round(self) -> int:
        """Forward passes over its batch that a device makes in a round."""
        return self.difference.num_sweeps(self.directions)

    @property
    def rounding_of_a_gradient(self) -> float:
        """What a loss that is off in its last bits does to a projected gradient."""
        sides = 1 if self.difference is Difference.ONE_SIDED else 2
        return _LOSS_ROUNDING * 2.0**-self.perturbation_scale_log2 / sides


# One key for every attribute of Impairments; left out, the named set's.
ImpairmentsSection = msgspec.defstruct(
    "ImpairmentsSection",
    [(field.name, float | None, None) for field in dataclasses.fields(Impairments)],
    bases=(Section,),
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
)


class PowerSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the budget is dealt out over the rounds; policies in `server.power.policies`.

    Rounds with Poisson batches (`RunConfig.is_subsampled`) are planned by two of them: "static",
    the same noise in every round, and "subsampled", the least noise at the end of a model that
    forgets. The others plan rounds without subsampling.

    Attributes:
        policy: see above. Left out: "subsampled", or "optimal" where nothing is subsampled.
        contraction: A, 0 to 1: the noise of round t weighs A^(T - t) at the end. 1 forgets nothing
            and has the same noise in every round.
        min_participation: with "selection", the share of the rounds that a device speaks in at
            least, those in which its own channel is best.
        wrong_sign_probability: with "sign", e0, how often a device's sign is not that of the mean.
        limits: batteries, duty cycles, caps and fairness, by the policy "limited", which needs a
            solver (pip install 'pairzero[plan]').
    """

    policy: str | None = None
    contraction: float = 1.0
    min_participation: float = 0.0
    wrong_sign_probability: float = 0.3
    limits: PowerLimitsSection = PowerLimitsSection()


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


class RunSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the run is carried out.

    Attributes:
        seed: of everything that a simulation draws: data split, directions, channel.
        evaluation_interval: rounds between evaluations.
        digest_interval: rounds between comparisons of the replicas' weights.
        workers: forward passes at a time; 0 means one per core.
        intra_op_threads: threads within one forward pass.
    """

    seed: int = 0
    evaluation_interval: int = 100
    digest_interval: int = 100
    workers: int = 0
    intra_op_threads: int = 1


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
        policy_named(self.power_policy, access=self.access, has_promise=True)
        if self.is_subsampled and self.power_policy not in ("static", "subsampled"):
            raise ConfigurationError(
                f'power.policy: "{self.power_policy}" plans rounds without subsampling, those of '
                'privacy.unit = "device"; rounds with Poisson batches have "static" and '
                '"subsampled".'
            )
        if not self.is_subsampled:
            check_plans_full_rounds(self.power_policy, self.access, self.vote)
        self._check_limits()
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
        has_equal_noises = self.power_policy in EQUAL_NOISE_POLICIES
        is_superposed = self.access is Access.SUPERPOSED
        if privacy.missing_devices > 0 and is_superposed and not has_equal_noises:
            raise ConfigurationError(
                f"privacy.missing_devices: got {privacy.missing_devices}, and power.policy = "
                f'"{self.power_policy}" deals noise out as power allows it, some of it to few. '
                f"Use one of: {', '.join(EQUAL_NOISE_POLICIES)}."
            )

    def _check_limits(self) -> None:
        """Whether the policy keeps the limits that are set, and they can be kept at all."""
        limits = self.power.limits
        limits.over(self.federation.num_devices, self.optimizer.rounds, 1.0)
        is_limited = self.power_policy == "limited"
        if limits.limits_anything and not is_limited:
            raise ConfigurationError(
                f'[power.limits]: power.policy = "{self.power_policy}" does not keep them; '
                'wanted "limited", for superposed rounds that are paid in full '
                '(privacy.unit = "device").'
            )
        if is_limited and not limits.limits_anything:
            raise ConfigurationError(
                'power.policy: "limited" without limits. Set some in [power.limits], or use '
                '"selection".'
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


def available_presets() -> dict[str, str]:
    """Preset name -> its one-line description."""
    presets = {}
    for path in sorted(PRESETS_FOLDER.glob("*.toml")):
        presets[path.stem] = str(tomllib.loads(path.read_text("utf-8")).get("description", ""))
    return presets


def load_config(preset_or_path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Load a preset by name or a file by path; ``overrides`` are "section.key" -> value.

    Raises:
        ConfigurationError: no such preset or file, unknown key, wrong type, impossible value.
    """
    path = Path(preset_or_path)
    if path.suffix != ".toml":
        path = PRESETS_FOLDER / f"{preset_or_path}.toml"
        if not path.is_file():
            known = available_presets()
            raise ConfigurationError(
                f"preset: no preset {preset_or_path!r}.{_did_you_mean(preset_or_path, known)} "
                f"Known: {', '.join(known)}; or give the path of a .toml file."
            )
    try:
        # utf-8-sig: editors on Windows put a byte-order mark first.
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    _resolve_paths(document, path.parent)
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        keys = document
        for section in sections:
            keys = keys.setdefault(section, {})
            if not isinstance(keys, dict):
                raise ConfigurationError(
                    f"{dotted}: {section!r} is a plain value, it has no keys. Write {section} = "
                    "... in a configuration file."
                )
        keys[key] = value
    # What came from the command line is relative to where it was typed.
    _resolve_paths(document, Path.cwd())
    return parse_config(document, source=str(path))


def _resolve_paths(document: dict[str, Any], folder: Path) -> None:
    """Paths in a file are relative to the file; stored absolute, so that resume finds them."""
    for section, key in (
        ("model", "bundle"), ("task", "name"), ("task", "train"), ("task", "validation"),
    ):  # fmt: skip
        keys = document.get(section)
        value = keys.get(key) if isinstance(keys, dict) else None
        if not isinstance(keys, dict) or not isinstance(value, str):
            continue
        is_name = key == "name" and not value.endswith(".toml")
        if value not in ("", BUNDLED_MODEL) and not is_name:
            keys[key] = str((folder / value).resolve())


def toml_value(text: str) -> Any:
    """A TOML value from a command line; bare words are strings: --set radio.channel=awgn."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_config(document: dict[str, Any], *, source: str) -> RunConfig:
    """Turn a parsed TOML document into a checked configuration."""
    sections = {f.name: f.type for f in msgspec.structs.fields(RunConfig)}
    for name, value in document.items():
        if name not in sections:
            raise ConfigurationError(
                f"{source}: unknown section [{name}].{_did_you_mean(name, sections)} "
                f"Known: {', '.join(sections)}."
            )
        if isinstance(value, dict):
            known = get_type_hints(sections[name])
            for key in value:
                if key not in known:
                    raise ConfigurationError(
                        f"{source}: unknown key {key!r} in [{name}].{_did_you_mean(key, known)} "
                        f"Known: {', '.join(known)}."
                    )
    try:
        return msgspec.convert(document, RunConfig)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from None
        raise ConfigurationError(f"{source}: {error}") from error


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def dump_config(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, for the run store and summaries."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain
