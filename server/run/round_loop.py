"""RoundLoop: one round as a story. No arithmetic here; each sentence is a function elsewhere."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from edge_runtime.control.channel import ControlChannel
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import GENERATOR, derive_direction_seed
from edge_runtime.protocol.rounds import (
    Access,
    DigestRequest,
    RoundPlan,
    RoundResult,
    Vote,
)
from server.air.base import Air, Heard
from server.air.orders import ask, error_of
from server.config.plan_config import PlanConfig
from server.errors import HostsMissingError, ReplicaMismatchError
from server.planning.round_plan import ChannelKnowledge, PlannedRound, RoundPower, without
from server.power.channel_inversion import PowerPlan
from server.privacy.mechanism import MechanismRecord
from server.run.crew import Crew, SteadyCrew
from server.run.optimizer import hold_within, learning_rate, step_integers, votes_decided
from server.run.pricing import Pricing
from server.store.records import RoundRow
from server.store.run_store import RunStore

_logger = logging.getLogger(__name__)


class ScalarObservations(Protocol):
    """What only a simulation knows: the scalars before noise and channel."""

    def true_means(self, round_index: int) -> tuple[float, ...] | None:
        """The means over the devices that spoke, before noise [Q]."""

    def mean_noises(self, round_index: int) -> tuple[float, ...] | None:
        """The means of the artificial noise that they added in phase [Q]."""

    def share_clipped(self, round_index: int) -> float | None:
        """The share of examples that were clipped."""


@dataclass(frozen=True, slots=True)
class HeardMeans:
    """What the receiver made of a round.

    Attributes:
        estimates: of the mean scalars, held within the clip, or what votes were decided to be [Q].
        as_received: the same before that [Q].
        receiver_noise_std: on each of them, measured.
        artificial_noise_std: of privacy noise on each of them, as planned.
    """

    estimates: tuple[float, ...]
    as_received: tuple[float, ...]
    receiver_noise_std: float
    artificial_noise_std: float


StepRule = Callable[[HeardMeans], tuple[float, ...]]
"""What the mean scalars are taken to be, of what was heard; it comes after the noise and is free.

A rule that remembers earlier rounds has to be asked again for them where a run is resumed.
"""


def as_heard(means: HeardMeans) -> tuple[float, ...]:
    """The plain rule: what was heard."""
    return means.estimates


def example_plan(config: PlanConfig, run_id: str) -> RoundPlan:
    """The plan of round 0 without orders: what the plans of all rounds have in common."""
    return RoundPlan(
        run_id=run_id,
        round_index=0,
        direction_seed=derive_direction_seed(config.run.seed, 0),
        num_directions=config.optimizer.directions,
        difference=config.optimizer.difference,
        direction_generator=GENERATOR,
        perturbation_scale=2.0**config.optimizer.perturbation_scale_log2,
        clip=config.optimizer.clip,
        batch_size=config.optimizer.batch_size,
        access=config.access,
        vote=config.vote,
        frame_start_sample=0,
        orders=(),
    )


@dataclass(frozen=True, slots=True)
class RoundLoop:
    """The server's side of a run."""

    run_id: str
    config: PlanConfig
    control: ControlChannel
    air: Air
    pricing: Pricing
    replica: ParameterStore
    store: RunStore
    truth: ScalarObservations
    step_rule: StepRule = as_heard
    crew: Crew = field(default_factory=SteadyCrew)
    clock: Callable[[], float] = time.perf_counter

    def run_round(self, round_index: int, channel: ChannelKnowledge) -> RoundRow:
        """Plan, pay, announce and hear, decide, step, record.

        Args:
            round_index: the next round.
            channel: from `channel_for`.

        Raises:
            BudgetExhaustedError: the round may not be afforded; nothing was transmitted.
            BudgetExceededError: devices fell silent, and what was heard cost more than the budget;
                no step is taken.
            NonFiniteScalarError: the model has diverged: no device had a finite loss.
            RadioCalibrationError: the channel is not known well enough; nothing was paid.
        """
        started = self.clock()
        if self.pricing.was_charged_before(round_index) and not self._repeats_bit_for_bit:
            return self.skip_round(round_index)
        self.air.check_channel(round_index, channel)
        # Who is away is not counted on, and pays nothing.
        here = without(channel, self.control.away_devices)
        planned = self.pricing.plan_round(round_index, here)
        plan = self.make_plan(round_index, planned.power)
        price = self.pricing.price(planned, plan.release)
        self.pricing.charge(price)
        heard = self._carry(plan, planned, price)
        if heard is None:
            return self.skip_round(round_index)
        self.pricing.charge_quiet_receiver(
            price, planned.power, heard.speakers, heard.sum_noise_std
        )
        self.pricing.note_speakers(round_index, heard.speakers)
        means = self.means_of(heard, planned.noise_std_of_mean(heard.speakers))
        is_enough = min(heard.num_speakers, default=0) >= self.config.federation.min_speakers
        result = self.decide_step(round_index, means.estimates if is_enough else self._nothing)
        row = self.describe(planned, price, heard, means, result, started)
        return self.record_step(result, row)

    def _carry(
        self, plan: RoundPlan, planned: PlannedRound, price: Sequence[MechanismRecord]
    ) -> Heard | None:
        """What came of a plan; None where nobody knows, and who is missing may come back."""
        spoke: Sequence[int] = ()

        def on_spoken(speakers: Sequence[int], unknown: Sequence[int]) -> None:
            nonlocal spoke
            spoke = speakers
            self.pricing.charge_correction(price, planned.power, speakers, unknown)

        try:
            return self.air.carry(
                self.control,
                plan,
                planned.power,
                on_spoken,
                lambda: self.pricing.note_sending(planned),
            )
        except HostsMissingError:
            if not self.control.lets_go:
                raise
            missing = ", ".join(sorted(self.control.away))
            _logger.warning("round %d is passed over: no answer of %s", plan.round_index, missing)
            # Who did not answer has paid by now as if alone; there is nothing to settle later.
            self.pricing.note_speakers(plan.round_index, spoke)
            return None

    def skip_round(self, round_index: int) -> RoundRow:
        """Pass over a round that was paid for, and perhaps sent, and of which nothing was heard.

        The run was interrupted, or nobody has answered. A radio cannot say the same again: the
        gains have changed, and the difference of two sums would hold single devices with nobody
        else's noise; and devices that lived on have answered. The price stays paid.
        """
        result = self.decide_step(round_index, self._nothing)
        row = RoundRow(
            round_index=round_index,
            direction_seed=result.direction_seed,
            step_integers=result.step_integers,
            is_skipped=True,
            mean_estimates=self._nothing,
            learning_rate=learning_rate(self.config.optimizer, round_index),
        )
        return self.record_step(result, row)

    def gather(self, round_index: int, should_stop: Callable[[], bool]) -> bool:
        """Whether somebody has come back before this round (`Crew.gather`)."""
        return self.crew.gather(round_index, self.replica.digest, should_stop)

    @property
    def _repeats_bit_for_bit(self) -> bool:
        return self.air.repeats_bit_for_bit and not self.control.lets_go

    def channel_for(
        self, round_index: int, known: ChannelKnowledge | None = None
    ) -> ChannelKnowledge | None:
        """What is known of the channel, or, where that will not do, what new pilots tell.

        Returns:
            None where somebody went meanwhile, who may come back.
        """
        if known is not None and not self.air.needs_channel(round_index, known):
            return known
        try:
            return self.air.learn_channel(self.control, self.run_id, round_index)
        except HostsMissingError as error:
            if not self.control.lets_go:
                raise
            _logger.warning("%s", error)
            return None

    def make_plan(self, round_index: int, power: RoundPower) -> RoundPlan:
        """The order that goes to every device."""
        return msgspec.structs.replace(
            example_plan(self.config, self.run_id),
            round_index=round_index,
            direction_seed=derive_direction_seed(self.config.run.seed, round_index),
            orders=power.orders(),
            receiver_noise_std=self.pricing.counted_noise_std(power) or None,
        )

    @property
    def _nothing(self) -> tuple[float, ...]:
        """What is learnt where nobody is heard."""
        return (0.0,) * self.config.optimizer.directions

    def _energies(self, power: RoundPower) -> tuple[float, ...]:
        """What every device sends, where a common level was planned and noise is on the air."""
        is_ideal = self.config.radio.backend == "ideal"
        is_slotted = self.config.access is Access.SLOTTED
        if is_ideal or is_slotted or not isinstance(power, PowerPlan):
            return ()
        return power.energies(self.config.largest_number, self.config.federation.num_devices)

    def means_of(self, heard: Heard, artificial_noise_std: float) -> HeardMeans:
        """The mean estimates, by the step rule, and their noises; zero when nobody spoke."""
        if not heard.sums:
            return HeardMeans(self._nothing, self._nothing, 0.0, artificial_noise_std)
        means = self._as_heard(heard, artificial_noise_std)
        return replace(means, estimates=tuple(self.step_rule(means)))

    def _as_heard(self, heard: Heard, artificial_noise_std: float) -> HeardMeans:
        means = tuple(s / w for s, w in zip(heard.sums, heard.total_weights, strict=True))
        noise_std = heard.sum_noise_std / min(heard.total_weights)
        optimizer = self.config.optimizer
        if self.config.vote is Vote.NONE:
            held = hold_within(means, optimizer.clip)
            return HeardMeans(held, means, noise_std, artificial_noise_std)
        value = optimizer.vote_value
        return HeardMeans(
            estimates=votes_decided(means, optimizer.vote_decision, value),
            as_received=tuple(value * mean for mean in means),
            receiver_noise_std=value * noise_std,
            artificial_noise_std=artificial_noise_std,
        )

    def decide_step(self, round_index: int, mean_estimates: Sequence[float]) -> RoundResult:
        """The step that everybody will take."""
        seed = derive_direction_seed(self.config.run.seed, round_index)
        rate = learning_rate(self.config.optimizer, round_index)
        return RoundResult(self.run_id, round_index, seed, step_integers(rate, mean_estimates))

    def record_step(self, result: RoundResult, row: RoundRow) -> RoundRow:
        """First the store, then the word: no device is ever ahead of what a resume reads.

        A run that dies in between has decided the step, and a resume tells it to everybody; had it
        been told first, the round would be heard again, another step decided, and whoever lived on
        would refuse it for ever.
        """
        self.store.append_round(row)
        self.crew.note(result)
        self.take_step(result)
        self.pricing.note(row)
        return row

    def take_step(self, result: RoundResult) -> None:
        """Every device and the server's own replica move by the same integers."""
        answers = ask(self.control, result)
        for host, refusal in answers.refusals.items():
            if len(answers.refusals) == len(self.control.hosts):
                raise error_of(refusal)
            _logger.warning("%s does not follow: %s", host, refusal.reason)
            if self.control.lets_go:
                self.control.let_go([host])  # until its digest says that it has followed
        self.replica.apply_step(result)

    def compare_replicas(self, round_index: int, is_last: bool = False) -> str:
        """Ask every host for its digest; equal bits of all, or an error.

        Args:
            round_index: how many rounds there were.
            is_last: whether there are no more; then somebody has to say.

        Raises:
            ReplicaMismatchError: a host holds other weights than the server, or does not say where
                it cannot come back and prove it.
        """
        own = self.replica.digest()
        answers = ask(self.control, DigestRequest(self.run_id, round_index))
        for refusal in answers.refusals.values():
            if not self.control.lets_go:
                raise error_of(refusal)
        silent = set(self.control.hosts) - {report.host for report in answers.digests}
        if silent and self.control.lets_go and (answers.digests or not is_last):
            self.control.let_go(silent)
            _logger.warning("after round %d: without %s", round_index, ", ".join(sorted(silent)))
        elif silent:
            raise ReplicaMismatchError(
                f"after round {round_index}: no digest of {', '.join(sorted(silent))}. Whether "
                "their weights are the server's is unknown; they must say, or join again."
            )
        for report in answers.digests:
            if report.parameter_digest != own:
                raise ReplicaMismatchError(
                    f"after round {round_index}: {report.host} holds weights "
                    f"{report.parameter_digest[:16]}, the server {own[:16]}. Its base weights or "
                    "its direction generator differ; it must join again from the bundle."
                )
        return own

    def describe(
        self,
        planned: PlannedRound,
        price: Sequence[MechanismRecord],
        heard: Heard,
        means: HeardMeans,
        result: RoundResult,
        started: float,
    ) -> RoundRow:
        """Everything worth remembering of the round."""
        power = planned.power
        true_means = self.truth.true_means(result.round_index)
        noises = self.truth.mean_noises(result.round_index)
        return RoundRow(
            round_index=result.round_index,
            direction_seed=result.direction_seed,
            step_integers=result.step_integers,
            num_speakers=len(heard.speakers),
            num_erased=heard.num_erased,
            mean_estimates=means.estimates,
            true_means=true_means,
            squared_error_of_noise=_squared_norm(noises),
            squared_error_of_radio=_radio_error(means, true_means, noises),
            share_clipped=self.truth.share_clipped(result.round_index),
            artificial_noise_std=means.artificial_noise_std,
            receiver_noise_std=means.receiver_noise_std,
            amplitude_error_bound=planned.amplitude_error_bound,
            noise_multiplier=min((r.noise_multiplier for r in price), default=0.0),
            receive_scale=power.receive_scale,
            energies=self._energies(power),
            weakest_gain=planned.weakest_gain,
            learning_rate=learning_rate(self.config.optimizer, result.round_index),
            # Real keys, real batches: how long they took to compute is nobody's business.
            wall_s=None if self.config.privacy.has_system_keys else self.clock() - started,
        )


def _squared_norm(values: Sequence[float] | None) -> float | None:
    return None if values is None else math.fsum(value * value for value in values)


def _radio_error(
    heard: HeardMeans, true_means: Sequence[float] | None, noises: Sequence[float] | None
) -> float | None:
    """What was received less what was sent, noise included: channel and receiver alone."""
    if true_means is None or noises is None:
        return None
    sent = zip(heard.as_received, true_means, noises, strict=True)
    return _squared_norm([received - (true + noise) for received, true, noise in sent])
