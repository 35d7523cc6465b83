"""DeviceAgent: what an edge computer does in a round, from the order to the step.

One agent may host several virtual devices. They share one copy of the weights and one forward
session; each has its own data, its own private randomness and its own uplink.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.device_limits import DeviceLimits
from edge_runtime.forward import OnnxForward
from edge_runtime.number_grid import NumberGrid
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.direction import GENERATOR, direction_seeds
from edge_runtime.protocol.errors import NonFiniteScalarError, PlanRefusedError
from edge_runtime.protocol.orders import OrderMessage, Report
from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    NumbersHold,
    PacketHold,
    Participation,
    PilotHold,
    RoundPlan,
    RoundReport,
    RoundResult,
    SilenceOrder,
    SoundingOrder,
    TransmitOrder,
    Vote,
)
from edge_runtime.spsa import ScalarEstimate, estimate_scalars, gradients_along
from edge_runtime.tasks import Batch, PromptSet
from edge_runtime.uplink import Uplink
from edge_runtime.vote import said_on_grid, said_plainly
from radio.arrays import Float32Array, Float64Array
from radio.errors import RadioError, RadioNotSilentError
from radio.self_closing import all_at_once, silence_each

_logger = logging.getLogger(__name__)

ScalarObserver = Callable[[int, int, ScalarEstimate, tuple[complex, ...]], None]
"""Called with (round_index, device_index, estimate, noise). For simulations that compare the radio
with the truth; a real device has none, because its scalars must not leave it except over the
air."""


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """One device: its data, its secrets, its way out."""

    device_index: int
    prompts: PromptSet
    private_random: PrivateRandom
    uplink: Uplink
    limits: DeviceLimits


class DeviceAgent:
    """Carries out plans for its virtual devices on one copy of the weights."""

    def __init__(
        self,
        *,
        host: str,
        run_id: str,
        devices: Sequence[VirtualDevice],
        store: ParameterStore,
        forward: OnnxForward,
        max_rows: int = MAX_ROWS,
        observe_scalar: ScalarObserver | None = None,
    ) -> None:
        """Host some devices.

        Args:
            host: name of this computer, for reports.
            run_id: the run it serves.
            devices: the virtual devices.
            store: the one copy of the weights.
            forward: the session on these weights.
            max_rows: examples of one forward pass; under a privacy promise what
                `pass_shapes.choose_max_rows` found.
            observe_scalar: see `ScalarObserver`.
        """
        self._host = host
        self._run_id = run_id
        self._devices = tuple(devices)
        self._store = store
        self._forward = forward
        self._max_rows = max_rows
        self._observe_scalar = observe_scalar
        self._last_planned_round = -1
        self._last_applied_round = -1
        # Devices whose numbers of the last planned round wait for their plateaus.
        self._ready: set[int] = set()

    @property
    def host(self) -> str:
        """The name of this computer."""
        return self._host

    @property
    def run_id(self) -> str:
        """The run it serves."""
        return self._run_id

    @property
    def device_indices(self) -> tuple[int, ...]:
        """Whom it hosts."""
        return tuple(device.device_index for device in self._devices)

    def carry_out(self, message: OrderMessage) -> Sequence[Report]:
        """Act on one message of the server; what there is to report of it.

        Raises:
            EdgeError, RadioError: the order is refused, or could not be carried out.
        """
        match message:
            case RoundPlan():
                return self.run_round(message)
            case NumbersHold():
                return self.hold_numbers(message)
            case PacketHold():
                return self.hold_packet(message)
            case DigestRequest():
                return [self.report_digest(message)]
            case RoundResult():
                self.apply_result(message)
            case SoundingOrder():
                self.send_pilots(message)
            case PilotHold():
                self.hold_pilot(message)
            case SilenceOrder():
                self.fall_silent(message)
        return []

    def send_pilots(self, order: SoundingOrder) -> None:
        """Each device sends its pilot in its own slot of the sounding frame."""
        self._check_run(order.run_id)
        for device in self._devices:
            try:
                device.uplink.send_pilot(device.device_index, order)
            except RadioError as error:
                _logger.warning("pilot of device %d: %s", device.device_index, error)

    def hold_pilot(self, order: PilotHold) -> None:
        """One device holds its pilot, the others are silent."""
        self._check_run(order.run_id)
        for device in self._devices:
            if device.device_index != order.device_index:
                self._silence(device)
                continue
            try:
                device.uplink.hold_pilot(device.device_index, order)
            except RadioError as error:
                _logger.warning("pilot of device %d: %s", order.device_index, error)

    def hold_numbers(self, order: NumbersHold) -> list[RoundReport]:
        """Those who are ready hold their numbers, and say so; one who cannot is out of the round.

        Raises:
            PlanRefusedError: another run, or not the round whose numbers are ready.
        """
        self._check_is_ready(order.run_id, order.round_index)
        ready = [device for device in self._devices if device.device_index in self._ready]
        hold = functools.partial(self._hold, order.round_index)
        return all_at_once([functools.partial(hold, device) for device in ready])

    def hold_packet(self, order: PacketHold) -> list[RoundReport]:
        """The device holds its packet, if it is here and ready; the others are silent.

        Raises:
            PlanRefusedError: another run, or not the round whose packets are ready.
        """
        self._check_is_ready(order.run_id, order.round_index)
        reports = []
        for device in self._devices:
            if device.device_index != order.device_index:
                self._silence(device)
            elif device.device_index in self._ready:
                reports.append(self._hold(order.round_index, device))
        return reports

    def _check_is_ready(self, run_id: str, round_index: int) -> None:
        self._check_run(run_id)
        if round_index != self._last_planned_round or round_index <= self._last_applied_round:
            raise PlanRefusedError(
                f"numbers of round {round_index}: those here are of round "
                f"{self._last_planned_round}, and round {self._last_applied_round} is over."
            )

    def _hold(self, round_index: int, device: VirtualDevice) -> RoundReport:
        what, reason, scale = Participation.TRANSMITTED, "", 1.0
        try:
            scale = device.uplink.hold_numbers()
        except RadioError as error:
            _logger.warning("round %d device %d: %s", round_index, device.device_index, error)
            what, reason = Participation.DROPPED, type(error).__name__
            self._ready.remove(device.device_index)
            self._silence(device)
        return RoundReport(self._run_id, round_index, device.device_index, what, reason, scale)

    def fall_silent(self, order: SilenceOrder) -> None:
        """Every device ends what it holds, whatever another one says.

        Raises:
            RadioNotSilentError: of those that are not known to be silent; nothing may go on then.
        """
        self._check_run(order.run_id)
        silence_each([functools.partial(self._silence, device) for device in self._devices])

    def _silence(self, device: VirtualDevice) -> None:
        try:
            device.uplink.fall_silent()
        except RadioNotSilentError as error:
            raise RadioNotSilentError(f"device {device.device_index}: {error}") from error
        except RadioError as error:  # nothing is on the air, and nothing was
            _logger.warning("device %d: %s", device.device_index, error)

    def run_round(self, plan: RoundPlan) -> list[RoundReport]:
        """Check the order, look along every direction, speak Q numbers per device."""
        self.verify_plan(plan)
        self._last_planned_round = plan.round_index
        orders = plan.orders_by_device()
        speaking = [(d, orders[d.device_index]) for d in self._devices if d.device_index in orders]
        release = plan.release  # a digest of every order; taken once for all devices
        batches = [self._draw_batches(device, plan, release) for device, _ in speaking]
        gradients = self.measure_gradients(plan, batches)

        reports = {
            device.device_index: self._report(plan, device, Participation.TRUNCATED)
            for device in self._devices
        }
        for (device, order), own in zip(speaking, gradients, strict=True):
            reports[device.device_index] = self._speak(plan, release, device, order, own)
        self._ready = {
            index for index, r in reports.items() if r.participation is Participation.READY
        }
        return [reports[index] for index in sorted(reports)]

    def verify_plan(self, plan: RoundPlan) -> None:
        """Refuse a plan that this host should not carry out.

        Raises:
            PlanRefusedError: another run, a round that does not grow, an unknown generator, or an
                order beyond a device's own limits.
        """
        self._check_run(plan.run_id)
        if plan.round_index <= self._last_planned_round:
            raise PlanRefusedError(
                f"round_index {plan.round_index}: round {self._last_planned_round} was already "
                "carried out; a second answer to one round would be a second release."
            )
        if plan.round_index != self._last_applied_round + 1:
            raise PlanRefusedError(
                f"round_index {plan.round_index}: the weights here are those after round "
                f"{self._last_applied_round}; replay the missing results first."
            )
        if plan.direction_generator != GENERATOR:
            raise PlanRefusedError(
                f"direction_generator {plan.direction_generator!r}: this device makes "
                f"{GENERATOR!r}. Install the same pairzero everywhere."
            )
        orders = plan.orders_by_device()
        for device in self._devices:
            if device.device_index in orders:
                name = f"device {device.device_index}"
                device.limits.check(plan, orders[device.device_index], name)

    def measure_gradients(
        self, plan: RoundPlan, batches: Sequence[Sequence[Batch]]
    ) -> list[Float64Array]:
        """Projected gradients of each device's examples [num_examples, Q]; w is w again afterwards.

        Raises:
            LatticeError: w + mu z or w - mu z lies beyond the exact range.
        """
        begun = self._forward.begin([batch for own in batches for batch in own])

        def losses() -> Float32Array:
            """The losses of all examples, device by device, on the weights as they are now."""
            nothing = np.empty(0, dtype=np.float32)
            return np.concatenate([nothing, *(o.losses for o in self._forward.finish(begun))])

        gradients = gradients_along(
            self._store,
            losses,
            direction_seeds(plan.direction_seed, plan.num_directions),
            plan.perturbation_scale,
            plan.difference,
        )
        sizes = [sum(batch.num_examples for batch in own) for own in batches]
        ends = np.cumsum(sizes, dtype=int)
        return np.split(gradients, ends)[:-1]  # behind the last end is nothing

    def apply_result(self, result: RoundResult) -> None:
        """Take the step that everybody takes.

        Raises:
            PlanRefusedError: another run, or not the next round.
        """
        self._check_run(result.run_id)
        if result.round_index != self._last_applied_round + 1:
            raise PlanRefusedError(
                f"result of round {result.round_index}: wanted round "
                f"{self._last_applied_round + 1}; replay the missing results first."
            )
        self._store.apply_step(result)
        self._last_applied_round = result.round_index
        self._last_planned_round = max(self._last_planned_round, result.round_index)

    def report_digest(self, request: DigestRequest) -> DigestReport:
        """The digest of the weights this host holds."""
        self._check_run(request.run_id)
        return DigestReport(
            run_id=self._run_id,
            round_index=self._last_applied_round,
            host=self._host,
            parameter_digest=self._store.digest(),
        )

    def close(self) -> None:
        """Silence every uplink, whatever another one says, and stop the worker threads.

        Raises:
            RadioNotSilentError: of those that are not known to be silent.
        """
        try:
            silence_each([device.uplink.close for device in self._devices])
        finally:
            self._forward.close()
            self._store.close()

    def _check_run(self, run_id: str) -> None:
        if run_id != self._run_id:
            raise PlanRefusedError(f"run_id {run_id!r}: this device serves run {self._run_id!r}.")

    def _draw_batches(self, device: VirtualDevice, plan: RoundPlan, release: str) -> list[Batch]:
        """The device's secret Poisson batch, cut by length; empty when nobody was drawn."""
        num_records = len(device.prompts)
        probability = min(1.0, plan.batch_size / num_records)
        chosen = device.private_random.poisson_batch(release, num_records, probability)
        return device.prompts.batches_by_length(chosen, self._max_rows)

    def _speak(
        self,
        plan: RoundPlan,
        release: str,
        device: VirtualDevice,
        order: TransmitOrder,
        gradients: Float64Array,
    ) -> RoundReport:
        """Clip, add private noise, send or make ready. On any doubt: silence, and say why."""
        try:
            estimate = estimate_scalars(
                gradients,
                clip=plan.clip,
                batch_size=plan.batch_size,
                # Under a privacy promise not even silence may tell of one odd record.
                non_finite_counts_as_zero=device.limits.is_private,
            )
            said, noise = _say(plan, release, device, order, estimate.clipped_scalars)
            done = device.uplink.send_scalars(said, order, plan)
        except (NonFiniteScalarError, RadioError) as error:
            _logger.warning("round %d device %d: %s", plan.round_index, device.device_index, error)
            # The full text stays in the local log: it may tell the size of the secret batch or the
            # amplitude of the signal, and what a device says must not depend on its data.
            return self._report(plan, device, Participation.DROPPED, type(error).__name__)
        if self._observe_scalar is not None:
            self._observe_scalar(plan.round_index, device.device_index, estimate, noise)
        return self._report(plan, device, done)

    def _report(
        self, plan: RoundPlan, device: VirtualDevice, what: Participation, reason: str = ""
    ) -> RoundReport:
        return RoundReport(
            run_id=plan.run_id,
            round_index=plan.round_index,
            device_index=device.device_index,
            participation=what,
            reason=reason,
        )


def _say(
    plan: RoundPlan,
    release: str,
    device: VirtualDevice,
    order: TransmitOrder,
    scalars: Sequence[float],
) -> tuple[tuple[complex, ...], tuple[complex, ...]]:
    """What the device says, and the noise in it [Q]."""
    if not device.limits.is_private:
        return said_plainly(scalars, plan.vote), (0j,) * len(scalars)
    if plan.vote is Vote.NOISE_AFTER:
        grid = NumberGrid.of_votes()
    else:
        grid = NumberGrid.of_numbers(plan.clip, plan.batch_size)
    sigma = grid.steps_above(order.artificial_noise_std)
    draws = device.private_random.circular_draws(release, sigma, len(scalars))
    noise = tuple(complex(grid.number(n), grid.number(m)) for n, m in draws)
    return said_on_grid(scalars, draws, plan.vote, grid), noise
