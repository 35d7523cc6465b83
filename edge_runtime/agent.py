"""DeviceAgent: what an edge computer does in a round, from the order to the step.

One agent may host several virtual devices. They share one copy of the weights and one forward
session; each has its own data, its own private randomness and its own uplink.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.guard.guard import Asked, Guard, history_after
from edge_runtime.guard.policy import DevicePolicy
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS
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
    RunEnded,
    SilenceOrder,
    SoundingOrder,
    TransmitOrder,
)
from edge_runtime.spsa import ScalarEstimate, estimate_scalars, gradients_along
from edge_runtime.tasks import Prompt, batches_by_length
from edge_runtime.virtual_device import VirtualDevice
from radio.arrays import Float32Array, Float64Array
from radio.errors import RadioError
from radio.self_closing import all_at_once, silence_each

_logger = logging.getLogger(__name__)

ScalarObserver = Callable[[int, int, ScalarEstimate, tuple[complex, ...]], None]
"""Called with (round_index, device_index, estimate, noise). For simulations that compare the radio
with the truth; a real device has none, because its scalars must not leave it except over the
air."""


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
        self._guard: Guard | None = None
        # The weights that numbers are measured on: those here now, and every step from here on.
        self._history = store.digest() if any(d.is_private for d in devices) else ""
        self._data_names = {
            device.device_index: device.private_random.commit_to_data(device.prompts.digest())
            for device in devices
            if device.is_private
        }

    @property
    def policies(self) -> dict[str, DevicePolicy]:
        """What the owners of the data allow, of those who are promised anything."""
        return {d.owner: d.policy for d in self._devices if d.policy is not None}

    def guard_with(self, guard: Guard) -> None:
        """From here on releases are counted; without it a device with a policy says nothing.

        Args:
            guard: of these policies; it is closed with the agent.
        """
        self._guard = guard

    @property
    def host(self) -> str:
        """The name of this computer."""
        return self._host

    @property
    def run_id(self) -> str:
        """The run it serves."""
        return self._run_id

    @property
    def num_steps(self) -> int:
        """How many steps its weights have taken."""
        return self._last_applied_round + 1

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
                return self.fall_silent(message)
            case RunEnded():
                self.end_run(message)
        return []

    def send_pilots(self, order: SoundingOrder) -> None:
        """Each device sends its pilot in its own slot of the sounding frame."""
        self._check_run(order.run_id)
        self._check_pilot(order.amplitude)
        for device in self._devices:
            try:
                device.uplink.send_pilot(device.device_index, order)
            except RadioError as error:
                _logger.warning("pilot of device %d: %s", device.device_index, error)

    def hold_pilot(self, order: PilotHold) -> None:
        """One device holds its pilot, the others are silent."""
        self._check_run(order.run_id)
        self._check_pilot(order.amplitude)
        for device in self._devices:
            if device.device_index != order.device_index:
                device.silence()
                continue
            try:
                device.uplink.hold_pilot(device.device_index, order)
            except RadioError as error:
                _logger.warning("pilot of device %d: %s", order.device_index, error)

    def _check_pilot(self, amplitude: float) -> None:
        for device in self._devices:
            if device.policy is not None:
                device.policy.check_amplitude(amplitude)

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
                device.silence()
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
            device.silence()
        return device.report(self._run_id, round_index, what, reason, scale)

    def fall_silent(self, order: SilenceOrder) -> list[RoundReport]:
        """Every device ends what it holds, whatever another one says.

        Returns:
            Of those of whose bursts, since the last such order, one ended before it was told to.

        Raises:
            RadioNotSilentError: of those that are not known to be silent; nothing may go on then.
        """
        self._check_run(order.run_id)
        silence_each([device.silence for device in self._devices])
        return [
            device.report(self._run_id, order.round_index, Participation.ENDED_EARLY)
            for device in self._devices
            if device.uplink.take_ended_early()
        ]

    def run_round(self, plan: RoundPlan) -> list[RoundReport]:
        """Check the order, look along every direction, speak Q numbers per device.

        Raises:
            PlanRefusedError, DeviceLedgerError: nothing is said, and nothing has changed.
        """
        self.verify_plan(plan)
        orders = plan.orders_by_device()
        speaking = [(d, orders[d.device_index]) for d in self._devices if d.device_index in orders]
        release = plan.release  # a digest of every order; taken once for all devices
        self._admit(plan, release, speaking)
        self._last_planned_round = plan.round_index
        drawn = [device.draw(plan, release) for device, _ in speaking]
        gradients = self.measure_gradients(plan, drawn)

        reports = {
            d.device_index: d.report(self._run_id, plan.round_index, Participation.TRUNCATED)
            for d in self._devices
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
            PlanRefusedError: another run, a round that does not grow, an unknown generator, or
                noise for a device that was told of no promise.
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
            order = orders.get(device.device_index)
            if order is not None and order.artificial_noise_std > 0.0 and not device.is_private:
                raise PlanRefusedError(
                    f"device {device.device_index}: noise {order.artificial_noise_std} is ordered, "
                    "it was told of no promise. Its configuration is not the server's."
                )

    def _admit(
        self, plan: RoundPlan, release: str, speaking: Sequence[tuple[VirtualDevice, TransmitOrder]]
    ) -> None:
        """Every release is within its owner's policy, and on this disk, before anything is sent."""
        asked = [
            Asked(
                owner=device.owner,
                policy=device.policy,
                num_records=len(device.prompts),
                commitment=device.private_random.commitment,
                data=self._data_names[device.device_index],
                order=order,
            )
            for device, order in speaking
            if device.policy is not None
        ]
        if not asked:
            return
        if self._guard is None:
            raise PlanRefusedError(
                "these devices have a policy and no ledger to count their releases in. Please "
                "report how they were started."
            )
        self._guard.admit(plan, release, self._history, asked)

    def measure_gradients(
        self, plan: RoundPlan, drawn: Sequence[Sequence[Prompt]]
    ) -> list[Float64Array]:
        """Projected gradients of each device's examples [num_examples, Q]; w is w again afterwards.

        Devices share passes: no example's loss follows its company (`pass_shapes`).

        Raises:
            LatticeError: w + mu z or w - mu z lies beyond the exact range.
        """
        batches, order = batches_by_length([p for own in drawn for p in own], self._max_rows)
        begun = self._forward.begin(batches)
        found = np.empty(len(order), dtype=np.float32)

        def losses() -> Float32Array:
            """The losses of all examples, device by device, on the weights as they are now."""
            if batches:
                outputs = self._forward.finish(begun)
                found[order] = np.concatenate([output.losses for output in outputs])
            return found.copy()

        gradients = gradients_along(
            self._store,
            losses,
            direction_seeds(plan.direction_seed, plan.num_directions),
            plan.perturbation_scale,
            plan.difference,
        )
        ends = np.cumsum([len(own) for own in drawn], dtype=int)
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
        self._history = history_after(self._history, result)
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

    def begin_again(self) -> None:
        """The server was started again; where nothing is promised it may ask for a round again."""
        if not any(device.is_private for device in self._devices):
            self._last_planned_round = self._last_applied_round

    def end_run(self, order: RunEnded) -> None:
        """Nothing more will be said in this run; its private keys go.

        Raises:
            DeviceKeysError: they are still there.
        """
        self._check_run(order.run_id)
        if self._guard is not None:
            self._guard.end_run()

    def close(self) -> None:
        """Silence every uplink, whatever another one says, and stop the worker threads.

        Raises:
            RadioNotSilentError: of those that are not known to be silent.
        """
        try:
            silence_each([device.uplink.close for device in self._devices])
        finally:
            if self._guard is not None:
                self._guard.close()
            self._forward.close()
            self._store.close()

    def _check_run(self, run_id: str) -> None:
        if run_id != self._run_id:
            raise PlanRefusedError(f"run_id {run_id!r}: this device serves run {self._run_id!r}.")

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
                non_finite_counts_as_zero=device.is_private,
            )
            said, noise = device.with_noise(plan, release, order, estimate.clipped_scalars)
            done = device.uplink.send_scalars(said, order, plan)
        except (NonFiniteScalarError, RadioError) as error:
            _logger.warning("round %d device %d: %s", plan.round_index, device.device_index, error)
            # The full text stays in the local log: it may tell the size of the secret batch or the
            # amplitude of the signal, and what a device says must not depend on its data.
            reason = type(error).__name__
            return device.report(self._run_id, plan.round_index, Participation.DROPPED, reason)
        if self._observe_scalar is not None:
            self._observe_scalar(plan.round_index, device.device_index, estimate, noise)
        return device.report(self._run_id, plan.round_index, done)
