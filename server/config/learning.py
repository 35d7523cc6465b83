"""Configuration of what is learnt, by whom, and how: model, task, federation, optimizer, run."""

from __future__ import annotations

import math
from typing import Literal

from edge_runtime.protocol.rounds import (
    MAX_ABS_STEP_INTEGER,
    MAX_DIRECTIONS,
    STEP_QUANTUM,
    Difference,
)
from server.config.section import (
    MAX_ROUNDS,
    MAX_THREADS,
    Section,
    check_count,
    check_within,
)
from server.errors import ConfigurationError
from server.numeric import check_positive

BUNDLED_MODEL = "bundled"
_MAX_LEARNING_RATE = 1e3
_MOST_CACHE_MB = 1_000_000
_LOSS_ROUNDING = 2.0**-18  # float32 sums in another order move a loss by some 5e-6 (self_check)


class ModelSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which model, and which of its weights move.

    Paths in a configuration file are relative to the file, on the command line to the folder it is
    typed in.

    Attributes:
        bundle: "bundled", or the path of a folder made by ``pairzero export``.
        trainable: "all", "norms_and_biases", or a list of tensor name patterns.
        prefix_cache_mb: what the layers below the first that moves give is kept, by prompt and for
            the whole run, in a file of that size without a name; 0 keeps nothing.
    """

    bundle: str = BUNDLED_MODEL
    trainable: str | tuple[str, ...] = "all"
    prefix_cache_mb: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        check_count("model.prefix_cache_mb", self.prefix_cache_mb, 0, _MOST_CACHE_MB)


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

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        check_count("task.max_tokens", self.max_tokens, 8)
        check_count("task.validation_examples", self.validation_examples, 0)


DEADLINE_S = 60.0
_MOST_DEVICES = 1_000_000
"""A round costs the server something for each of them; ten thousand are many."""


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
        deadline_s: how long hosts of their own are waited for, order by order; who is later is
            unknown in this round and heard in the next. In one process nobody is waited for.
    """

    num_devices: int = 5
    min_speakers: int = 1
    dropout_probability: float = 0.0
    deadline_s: float = DEADLINE_S

    def __post_init__(self) -> None:
        """Check who can take part."""
        check_count("federation.num_devices", self.num_devices, 1, _MOST_DEVICES)
        check_within("federation.min_speakers", self.min_speakers, 1, self.num_devices)
        check_within("federation.dropout_probability", self.dropout_probability, 0.0, 0.9)
        check_within("federation.deadline_s", self.deadline_s, 0.01, 86400.0)


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

    def __post_init__(self) -> None:
        """Check the step, and that what it is made of can travel."""
        check_count("optimizer.rounds", self.rounds, 1, MAX_ROUNDS)
        check_within("optimizer.directions", self.directions, 1, MAX_DIRECTIONS)
        check_count("optimizer.batch_size", self.batch_size, 1)
        check_within("optimizer.perturbation_scale_log2", self.perturbation_scale_log2, -20, 0)
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_within("optimizer.learning_rate", self.learning_rate, 0.0, _MAX_LEARNING_RATE)
        check_within(
            "optimizer.final_learning_rate_fraction", self.final_learning_rate_fraction, 0.0, 1.0
        )
        if not self.clip > 0:
            raise ConfigurationError(f"optimizer.clip: got {self.clip}, wanted > 0.")
        if self.clip < self.rounding_of_a_gradient:
            raise ConfigurationError(
                f"optimizer.clip: {self.clip} is below {self.rounding_of_a_gradient:.3g}, what the "
                f"rounding of a loss makes of a {self.difference} projected gradient at mu = "
                f"2^{self.perturbation_scale_log2}: nothing else would be sent. Raise "
                "perturbation_scale_log2 or the clip."
            )
        if self.typical_number is not None:
            check_positive("optimizer.typical_number", self.typical_number)
        check_positive("optimizer.vote_value", self.vote_value)
        largest_step = self.learning_rate * max(self.clip, self.vote_value)
        if math.isfinite(largest_step) and largest_step > MAX_ABS_STEP_INTEGER * STEP_QUANTUM:
            raise ConfigurationError(
                f"optimizer.learning_rate: {self.learning_rate} times clip {self.clip} is a step "
                f"of {largest_step:g} per weight; at most {MAX_ABS_STEP_INTEGER * STEP_QUANTUM:g} "
                "can travel. Lower one of them."
            )

    @property
    def sweeps_per_round(self) -> int:
        """Forward passes over its batch that a device makes in a round."""
        return self.difference.num_sweeps(self.directions)

    @property
    def rounding_of_a_gradient(self) -> float:
        """What a loss that is off in its last bits does to a projected gradient."""
        sides = 1 if self.difference is Difference.ONE_SIDED else 2
        return _LOSS_ROUNDING * 2.0**-self.perturbation_scale_log2 / sides


class RunSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the run is carried out.

    Attributes:
        seed: of everything that a simulation draws: data split, directions, channel.
        evaluation_interval: rounds between evaluations.
        digest_interval: rounds between comparisons of the replicas' weights.
        workers: forward passes at a time; 0 means one for each processor that may be used.
        intra_op_threads: threads within one forward pass.
    """

    seed: int = 0
    evaluation_interval: int = 100
    digest_interval: int = 100
    workers: int = 0
    intra_op_threads: int = 1

    def __post_init__(self) -> None:
        """Check intervals and threads."""
        check_count("run.evaluation_interval", self.evaluation_interval, 1)
        check_count("run.digest_interval", self.digest_interval, 1)
        check_count("run.workers", self.workers, 0, MAX_THREADS)
        check_count("run.intra_op_threads", self.intra_op_threads, 1, MAX_THREADS)
