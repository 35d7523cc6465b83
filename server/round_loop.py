"""RoundLoop: one round as a story. No arithmetic here; each sentence is a function elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_runtime.control.channel import ControlChannel
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import GENERATOR, derive_direction_seed
from edge_runtime.protocol.errors import NonFiniteScalarError
from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    Participation,
    RoundPlan,
    RoundReport,
    RoundResult,
    SoundingOrder,
    TransmitOrder,
)
from radio.waveforms.coherent import ChannelEstimate
from server.config import RunConfig
from server.errors import ReplicaMismatchError
from server.optimizer import learning_rate, means_of_sums, step_integers
from server.power.static import PowerPlan
from server.pricing import PlannedRound, Pricing
from server.privacy.mechanism import MechanismRecord
from server.receiver import Receiver
from server.run_records import RoundRow
from server.run_store import RunStore
from server.simulation import ChannelSimulation


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
        estimates: of the mean scalars, held within the clip [Q].
        as_received: the same before that [Q].
        receiver_noise_std: on each of them, measured.
    """

    estimates: tuple[float, ...]
    as_received: tuple[float, ...]
    receiver_noise_std: float


@dataclass(frozen=True, slots=True)
class RoundLoop:
    """The server's side of a run."""

    run_id: str
    config: RunConfig
    control: ControlChannel
    receiver: Receiver
    pricing: Pricing
    replica: ParameterStore
    store: RunStore
    channel_simulation: ChannelSimulation
    truth: ScalarObservations
    clock: Callable[[], float] = time.perf_counter

    def run_round(self, round_index: int, channel: ChannelEstimate) -> RoundRow:
        """Plan, pay, announce, hear, decide, step, record.

        Args:
            round_index: the next round.
            channel: the fading block's channel estimate, from `learn_channel`.

        Raises:
            BudgetExhaustedError: the round may not be afforded; nothing was transmitted.
            BudgetExceededError: devices fell silent, and what was heard cost more than the budget;
                no step is taken.
            NonFiniteScalarError: the model has diverged: no device had a finite loss.
        """
        started = self.clock()
        if self.pricing.was_charged_before(round_index) and not self.receiver.repeats_bit_for_bit:
            return self.skip_round(round_index)
        planned = self.pricing.plan_round(round_index, channel)
        plan = self.make_plan(round_index, planned.power)
        price = self.pricing.price(planned, plan.release)
        self.pricing.charge(price)
        reports = self.announce(plan)
        speakers = _speakers(reports)
        self.pricing.charge_correction(price, planned.power, speakers)
        heard = self.hear_means(planned.power, len(speakers))
        is_enough = len(speakers) >= self.config.federation.min_speakers
        result = self.decide_step(round_index, heard.estimates if is_enough else self._nothing)
        row = self.describe(planned, price, speakers, heard, result, started)
        self.take_step(result)
        self.store.append_round(row)
        return row

    def skip_round(self, round_index: int) -> RoundRow:
        """Pass over a round that was paid for, and perhaps sent, before the run was interrupted.

        A radio cannot say the same again: the gains have changed, and the difference of two sums
        would hold single devices with nobody else's noise. The price stays paid.
        """
        result = self.decide_step(round_index, self._nothing)
        row = RoundRow(
            round_index=round_index,
            direction_seed=result.direction_seed,
            step_integers=result.step_integers,
            num_speakers=0,
            is_skipped=True,
            mean_estimates=self._nothing,
            true_means=None,
            squared_error_of_noise=None,
            squared_error_of_radio=None,
            share_clipped=None,
            artificial_noise_std=0.0,
            receiver_noise_std=0.0,
            amplitude_error_bound=0.0,
            noise_multiplier=0.0,
            receive_scale=0.0,
            weakest_gain=0.0,
            learning_rate=learning_rate(self.config.optimizer, round_index),
            wall_s=None,
        )
        self.take_step(result)
        self.store.append_round(row)
        return row

    def learn_channel(self, round_index: int) -> ChannelEstimate:
        """Have the devices sound at the start of the round's fading block and estimate gains."""
        block_start = round_index - round_index % self.config.radio.coherence_rounds
        amplitude = self.config.radio.max_amplitude
        self.channel_simulation.begin_sounding(block_start)
        self.control.broadcast(SoundingOrder(self.run_id, block_start, amplitude, 0))
        return self.receiver.hear_pilots(0, amplitude)

    def make_plan(self, round_index: int, power: PowerPlan) -> RoundPlan:
        """The order that goes to every device."""
        return RoundPlan(
            run_id=self.run_id,
            round_index=round_index,
            direction_seed=derive_direction_seed(self.config.run.seed, round_index),
            num_directions=self.config.optimizer.directions,
            difference=self.config.optimizer.difference,
            direction_generator=GENERATOR,
            perturbation_scale=2.0**self.config.optimizer.perturbation_scale_log2,
            clip=self.config.optimizer.clip,
            batch_size=self.config.optimizer.batch_size,
            access=self.config.privacy.access,
            frame_start_sample=0,
            orders=tuple(
                TransmitOrder(
                    device_index=index,
                    tx_gain_real=power.tx_gains[index].real,
                    tx_gain_imag=power.tx_gains[index].imag,
                    artificial_noise_std=power.artificial_noise_std[index],
                )
                for index in power.participants
            ),
        )

    def announce(self, plan: RoundPlan) -> list[RoundReport]:
        """Broadcast the plan; the devices answer when their signals are out, or why not."""
        self.channel_simulation.begin_payload(plan.round_index)
        self.control.broadcast(plan)
        return [m for m in self.control.collect() if isinstance(m, RoundReport)]

    @property
    def _nothing(self) -> tuple[float, ...]:
        """What is learnt where nobody is heard."""
        return (0.0,) * self.config.optimizer.directions

    def hear_means(self, power: PowerPlan, num_speakers: int) -> HeardMeans:
        """The mean estimates and their measured receiver noise; zero when nobody spoke."""
        if num_speakers == 0:
            return HeardMeans(self._nothing, self._nothing, 0.0)
        reception = self.receiver.hear_sum(0, power.receive_scale)
        sums = reception.sum_estimates
        return HeardMeans(
            estimates=means_of_sums(sums, num_speakers, self.config.optimizer.clip),
            as_received=tuple(value / num_speakers for value in sums),
            receiver_noise_std=reception.receiver_noise_std / num_speakers,
        )

    def decide_step(self, round_index: int, mean_estimates: Sequence[float]) -> RoundResult:
        """The step that everybody will take."""
        seed = derive_direction_seed(self.config.run.seed, round_index)
        rate = learning_rate(self.config.optimizer, round_index)
        return RoundResult(self.run_id, round_index, seed, step_integers(rate, mean_estimates))

    def take_step(self, result: RoundResult) -> None:
        """Every device and the server's own replica move by the same integers."""
        self.control.broadcast(result)
        self.replica.apply_step(result)

    def compare_replicas(self, round_index: int) -> str:
        """Ask every host for its digest; equal bits, or an error.

        Raises:
            ReplicaMismatchError: a host holds other weights than the server.
        """
        own = self.replica.digest()
        self.control.broadcast(DigestRequest(self.run_id, round_index))
        for report in self.control.collect():
            if isinstance(report, DigestReport) and report.parameter_digest != own:
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
        speakers: list[int],
        heard: HeardMeans,
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
            num_speakers=len(speakers),
            is_skipped=False,
            mean_estimates=heard.estimates,
            true_means=true_means,
            squared_error_of_noise=_squared_norm(noises),
            squared_error_of_radio=_radio_error(heard, true_means, noises),
            share_clipped=self.truth.share_clipped(result.round_index),
            artificial_noise_std=planned.noise_std_of_mean(speakers),
            receiver_noise_std=heard.receiver_noise_std,
            amplitude_error_bound=planned.amplitude_error_bound,
            noise_multiplier=min((r.noise_multiplier for r in price), default=0.0),
            receive_scale=power.receive_scale,
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


def _speakers(reports: list[RoundReport]) -> list[int]:
    """Devices whose signals went out; if every one of them failed, the run cannot go on."""
    speakers = [r.device_index for r in reports if r.participation is Participation.TRANSMITTED]
    dropped = [r for r in reports if r.participation is Participation.DROPPED]
    if dropped and not speakers:
        raise NonFiniteScalarError(
            f"round {dropped[0].round_index}: no device could speak. "
            f"Device {dropped[0].device_index} says: {dropped[0].reason}; its log has the details. "
            "If losses are not finite the model has diverged: lower optimizer.learning_rate."
        )
    return speakers
