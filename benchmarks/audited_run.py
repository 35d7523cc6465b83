"""A run whose losses are scripted and whose wiring is a run's, for `privacy_audit.py` to attack.

`build_agent` makes two devices with their keys, data and uplinks, as in every run; the
planner makes the orders; the coherent waveform and the software air carry the samples; the receiver
demodulates. Scripted are the losses alone: those of the canary, device 0's first record, differ as
much as floats do, all others not at all, so that the canary moves its device's numbers by the whole
of what one record may, along a direction that the attacker chose. A fault is put where it would be
in a program: into the private randomness, the clip, or the number of records.
"""

from __future__ import annotations

import cmath
import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import msgspec
import numpy as np

from edge_runtime import agent
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.guard.guard import Guard
from edge_runtime.guard.keys import HostKeys
from edge_runtime.parameters import ParameterStore
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.direction import derive_direction_seed
from edge_runtime.protocol.rounds import RoundPlan, RoundResult, TransmitOrder
from edge_runtime.spsa import ScalarEstimate, estimate_scalars
from edge_runtime.tasks import Batch, Prompt, PromptSet
from radio.arrays import Float64Array
from server.air.base import CoherentAir
from server.air.link import build_radio_link
from server.air.orders import ask
from server.config.files import load_config
from server.planning.privacy_terms import plan_privacy_terms
from server.planning.round_plan import plan_round
from server.run.local_host import build_agent
from server.run.round_loop import example_plan

EPSILON, DELTA = 8.0, 1e-5
NUM_DIRECTIONS, BATCH_SIZE = 4, 10

PATTERN = np.array([1.0, -1.0, 1.0, 1.0]) / math.sqrt(NUM_DIRECTIONS)
"""Along which the canary moves the numbers of its device; its sign turns with every round."""

CANARY = 1
"""Target of its row; every other row has 0."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A setting, and what is wrong with it.

    Attributes:
        rounds: of a run, all with the canary in reach.
        declared: records that each device says it has; `BATCH_SIZE` are drawn on average.
        held: records that it has.
        turned_rad: what the second device's carrier has turned since the pilots; no fault.
        noise: part of the ordered noise that is drawn.
        clip: of one example, times the declared one.
        reuses_noise: every round has the noise of the first.
        is_one_noise: all numbers of a round have that of the first.
        is_in_phase: the other quadrature has none.
        is_one_silent: the second device has none.
    """

    rounds: int = 1
    declared: int = BATCH_SIZE
    held: int = BATCH_SIZE
    turned_rad: float = 0.0
    noise: float = 1.0
    clip: float = 1.0
    reuses_noise: bool = False
    is_one_noise: bool = False
    is_in_phase: bool = False
    is_one_silent: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether it is as it says."""
        return self == Cell(self.rounds, self.declared, self.declared, self.turned_rad)


class FaultyRandom(PrivateRandom):
    """A device's private randomness, with the cell's faults in it."""

    run = 0
    """Counts runs, for noise that is the same in every round of one."""

    def __init__(self, key: bytes, cell: Cell, device_index: int) -> None:
        super().__init__(key)
        self._cell = cell
        self._is_silent = cell.is_one_silent and device_index == 1

    def circular_draws(self, release: str, sigma: int, num: int) -> tuple[tuple[int, int], ...]:
        """What the faults leave of the noise."""
        cell = self._cell
        sigma = 0 if self._is_silent else round(cell.noise * sigma)
        release = f"run {self.run}" if cell.reuses_noise else release
        draws = super().circular_draws(release, sigma, num)
        if cell.is_in_phase:
            draws = tuple((n, 0) for n, _ in draws)
        return draws[:1] * num if cell.is_one_noise else draws


class FaultyKeys:
    """Keys as in a run (`HostKeys`); what they are used by has faults."""

    def __init__(self, keys: Sequence[bytes], cell: Cell) -> None:
        self._randoms = [FaultyRandom(key, cell, index) for index, key in enumerate(keys)]

    def private_randoms(self) -> list[FaultyRandom]:
        """Each device's source of noise and batches."""
        return self._randoms

    @property
    def commitments(self) -> list[str]:
        """Public names of the keys."""
        return [own.commitment for own in self._randoms]

    def begin_run(self, index: int) -> None:
        """For noise that is used again within a run."""
        for own in self._randoms:
            own.run = index


_ONE_TOKEN = np.ones(1, dtype=np.int64)


class Rows:
    """A device's records: so many, the canary first, or its empty place."""

    def __init__(self, num_records: int, *, has_canary: bool) -> None:
        self._targets = np.zeros(num_records, dtype=np.int64)
        self._targets[0] = CANARY if has_canary else 0

    def __len__(self) -> int:
        return len(self._targets)

    def digest(self) -> str:
        """A name, where nobody compares them."""
        return f"{len(self)} rows"

    def chosen(self, indices: Iterable[int]) -> list[Prompt]:
        """Prompts of one token; only whose they are matters."""
        return [Prompt(_ONE_TOKEN, int(self._targets[int(i)])) for i in indices]


class Losses:
    """Scripted: the canary's is 0 at home and +-1e6 along a direction, everybody else's is 0."""

    runs_rows_alone = False
    sign = 1.0

    def __init__(self) -> None:
        self._num_asked = 0

    def begin(self, batches: Sequence[Batch]) -> list[Batch]:
        """A round begins."""
        self._num_asked = 0
        return list(batches)

    def finish(self, begun: Sequence[Batch]) -> list[SimpleNamespace]:
        """At home first, then along one direction after the other."""
        height = 0.0
        if self._num_asked:
            height = self.sign * 1e6 * float(np.sign(PATTERN[self._num_asked - 1]))
        self._num_asked += 1
        return [
            SimpleNamespace(losses=np.where(batch.target == CANARY, height, 0.0).astype("f4"))
            for batch in begun
        ]

    def run(self, batch: Batch) -> SimpleNamespace:
        """Of made-up prompts: no loss depends on its company."""
        return SimpleNamespace(losses=np.zeros(batch.num_examples, dtype="f4"))

    def close(self) -> None:
        """Nothing to let go of."""


class AnyRelease(Guard):
    """Lets the same few rounds be carried out thousands of times, which no policy would."""

    def __init__(self) -> None:
        pass

    def admit(self, *order: object) -> None:
        """Whatever it is."""

    def close(self) -> None:
        """Nothing to let go of."""


class AuditedRun:
    """Two devices, the air and a receiver, for one cell."""

    def __init__(self, cell: Cell, *, has_canary: bool, seed: int) -> None:
        self.cell = cell
        self.config = load_config(
            "snips",
            {
                "privacy.epsilon": EPSILON, "privacy.delta": DELTA,
                "federation.num_devices": 2, "optimizer.rounds": cell.rounds,
                "optimizer.directions": NUM_DIRECTIONS, "optimizer.difference": "one_sided",
                "optimizer.batch_size": BATCH_SIZE, "radio.snr_db": 40.0,
                "radio.channel": "awgn", "radio.coherence_rounds": 1_000_000, "run.seed": seed,
            },
        )  # fmt: skip
        name = seed.to_bytes(16, "little")
        self.keys = FaultyKeys(
            tuple(name + bytes([k, has_canary] + [0] * 14) for k in (0, 1)), cell
        )
        self.terms = plan_privacy_terms(self.config, [cell.declared] * 2, self.keys.commitments)
        self.link = build_radio_link(self.config, seed)
        bundle = open_bundle(BUNDLED_MODEL_FOLDER)
        self.losses = Losses()
        host = build_agent(
            self.config,
            max_tokens=self.config.task.max_tokens,
            run_id="audit",
            prompts=[
                cast(PromptSet, Rows(cell.held, has_canary=has_canary and k == 0)) for k in (0, 1)
            ],
            keys=cast(HostKeys, self.keys),
            uplinks=self.link.uplinks,
            terms=self.terms,
            weights=ParameterStore.from_bundle(bundle, ["*final_layer_norm.bias"], 1),
            forward=cast(OnnxForward, self.losses),
            vocab_size=int(bundle.manifest.architecture["vocab_size"]),
            observe_scalar=None,
        )
        host.guard_with(AnyRelease())
        self.control = InProcessChannel("audit", [HostEnd(host)])

    def close(self) -> None:
        """Silence and end everything."""
        self.control.close()
        self.link.close()

    @property
    def shift(self) -> float:
        """Norm of what one record may move, without what rounding is charged."""
        return self.config.optimizer.clip / BATCH_SIZE

    def views(self, num: int) -> Iterator[Float64Array]:
        """Of so many runs what the receiver has, [rounds, 2 Q]: both quadratures of every sum.

        Turned so that the canary's shift has the same sign in every round.
        """
        air = cast(CoherentAir, self.link.air)
        channel = air.learn_channel(self.control, "audit", 0)
        planned = [
            plan_round(self.config, self.terms, t, channel, self.link.noise_symbols).power
            for t in range(self.cell.rounds)
        ]
        orders = [self._turned(power.orders()) for power in planned]
        with self._clip():
            for run in range(num):
                self.keys.begin_run(run)
                view = np.empty((self.cell.rounds, 2 * NUM_DIRECTIONS))
                for t, power in enumerate(planned):
                    self.losses.sign = -1.0 if t % 2 else 1.0
                    plan = self._plan(run * self.cell.rounds + t, orders[t])
                    air.simulation.begin_payload(plan.round_index)
                    ask(self.control, plan)
                    heard = air.receiver.hear_sum(0, power.receive_scale)
                    parts = [*heard.sum_estimates, *heard.quadrature_estimates]
                    view[t] = self.losses.sign * np.array(parts)
                    nothing = (0,) * NUM_DIRECTIONS
                    result = RoundResult("audit", plan.round_index, plan.direction_seed, nothing)
                    ask(self.control, result)
                yield view

    def _turned(self, orders: Sequence[TransmitOrder]) -> tuple[TransmitOrder, ...]:
        """The second device as its carrier would bring it."""
        first, second = orders
        gain = second.tx_gain * cmath.exp(1j * self.cell.turned_rad)
        turned = msgspec.structs.replace(second, tx_gain_real=gain.real, tx_gain_imag=gain.imag)
        return first, turned

    def _clip(self) -> contextlib.AbstractContextManager[object]:
        """The fault of a clip, where the program has its own."""
        if self.cell.clip == 1.0:
            return contextlib.nullcontext()

        def wider(gradients: Float64Array, *, clip: float, **settings: Any) -> ScalarEstimate:
            return estimate_scalars(gradients, clip=self.cell.clip * clip, **settings)

        return patch.object(agent, "estimate_scalars", wider)

    def _plan(self, index: int, orders: tuple[TransmitOrder, ...]) -> RoundPlan:
        return msgspec.structs.replace(
            example_plan(self.config, "audit"),
            round_index=index,
            direction_seed=derive_direction_seed(self.config.run.seed, index),
            orders=orders,
        )
