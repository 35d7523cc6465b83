"""One step after another, phase by phase: what each takes of memory, time and energy.

::

    open bundle | load weights | open sessions                                          once
    frozen prefix | clean pass | (move | pass) ... | restore and step | transmit        a round

The phases of a round are those of `edge_runtime.agent`, in its order: moves are carried out when
the pass after them asks for the weights, so the way home from one direction and the way out along
the next are one move. What is kept in 16 or 8 bits moves on its way to a pass, in "pass". "clean
pass" is there where differences are one-sided; "frozen prefix" takes next to nothing where all
layers move.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, FLOAT32, Bundle, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.kernel import KERNEL_NAME
from edge_runtime.parameters import ParameterStore
from edge_runtime.profiling import memory
from edge_runtime.profiling.phases import Phase, PhaseMeter
from edge_runtime.profiling.sensors import EnergyMeter, Reading, Sensors, has_throttled
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.protocol.errors import ProfileError
from edge_runtime.protocol.rounds import Difference, RoundResult
from edge_runtime.tasks import Batch, load_tokenizer
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform

SCALE = 2.0**-10
OPEN_SESSIONS = "open sessions"
_STEP = 1 << 20
_FIRST_TOKEN = 4
_RATE_HZ = 1e6


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What is profiled.

    Attributes:
        bundle: folder of the model.
        batch: examples of a pass.
        seq: tokens of each.
        directions: numbers of a round.
        difference: one-sided or two-sided.
        trainable: patterns of the tensors that move.
        threads: of a pass, and of the moves.
        rounds: that are carried out; one before them is not counted.
    """

    bundle: Path
    batch: int = 16
    seq: int = 64
    directions: int = 1
    difference: Difference = Difference.TWO_SIDED
    trainable: tuple[str, ...] = ("*",)
    threads: int = 1
    rounds: int = 5


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile has found so far.

    Attributes:
        bundle: folder of the model.
        weights: of it; and
        trainable: of them, those that move.
        weight_bytes: in memory; matrices that are mapped are not.
        batch, seq, directions, difference, threads, rounds: as asked for.
        kernel: of the moves: "c" or "numpy".
        is_complete: whether all rounds are in it; what was killed left the phases before.
        phases: in the order in which they came.
        step_s: of a whole round, median; None before the first is over.
        step_j: joules of it; None without a counter.
        energy_counter: what they are of.
        temperature_c: of the board, before and after; None where it has no sensor.
        frequency_hz: likewise of its slowest core.
        has_throttled: whether the board held its clock back: then these times are void.
    """

    bundle: str
    weights: int
    trainable: int
    weight_bytes: int
    batch: int
    seq: int
    directions: int
    difference: str
    threads: int
    rounds: int
    kernel: str
    is_complete: bool
    phases: list[Phase]
    step_s: float | None = None
    step_j: float | None = None
    energy_counter: str | None = None
    temperature_c: tuple[float | None, float | None] = (None, None)
    frequency_hz: tuple[float | None, float | None] = (None, None)
    has_throttled: bool | None = None

    @property
    def peak_rss_bytes(self) -> int:
        """The most that any phase took."""
        return max((phase.peak_rss_bytes for phase in self.phases), default=0)

    @property
    def base_bytes(self) -> int:
        """What the process takes with its sessions, without weights; 0 before they are open."""
        opened = next((phase for phase in self.phases if phase.name == OPEN_SESSIONS), None)
        if opened is None:
            return 0
        return opened.anonymous_bytes + opened.file_bytes - self.weight_bytes


def check_fits(bundle: Bundle, settings: ProfileSettings) -> None:
    """Return if a model can be asked for such a step.

    Raises:
        ProfileError: it cannot.
    """
    for name in ("batch", "seq", "directions", "threads", "rounds"):
        if getattr(settings, name) < 1:
            raise ProfileError(f"--{name}: got {getattr(settings, name)}, wanted 1 or more.")
    positions = int(bundle.manifest.architecture["max_position_embeddings"])
    if settings.seq > positions:
        raise ProfileError(
            f"--seq: got {settings.seq}, this model has {positions} positions. Ask for fewer."
        )


def profile(
    settings: ProfileSettings,
    on_progress: Callable[[Profile], None] = lambda found: None,
    *,
    check: Callable[[Bundle], None] = lambda bundle: None,
    sensors: Sensors | None = None,
    sets_peak_back: bool = True,
) -> Profile:
    """Carry out some rounds, and say what they took.

    Args:
        settings: what is profiled.
        on_progress: told after every phase, so that what is killed leaves what it had found.
        check: asked of the model before anything else is done; what it raises ends it there.
        sensors: of the board.
        sets_peak_back: see `PhaseMeter`.

    Raises:
        ProfileError: the kernel does not tell, or the model cannot be asked for that.
        EdgeError: bundle or patterns do not fit.
    """
    sensors = Sensors() if sensors is None else sensors
    energy = sensors.energy_meter()
    try:
        profiling = _Profiling(settings, sensors, energy, on_progress, sets_peak_back)
        return profiling.carry_out(check)
    finally:
        if energy is not None:
            energy.close()


def base_bytes(threads: int) -> int:
    """What a process takes that has used a model's sessions, without its weights.

    With the model that comes with pairzero. It stays in memory: for a process that only predicts.
    """
    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    load_tokenizer(bundle.tokenizer_path)
    store = ParameterStore.from_bundle(bundle, num_threads=threads)
    with contextlib.closing(store):
        forward = OnnxForward(bundle, store, intra_op_threads=threads)
        with contextlib.closing(forward):
            forward.run(_batch(bundle, 1, 1))
            return memory.resident().total - store.bytes_in_memory


def _batch(bundle: Bundle, batch: int, seq: int) -> Batch:
    """Random prompts, which all end with the answer."""
    vocab_size = int(bundle.manifest.architecture["vocab_size"])
    first = min(_FIRST_TOKEN, vocab_size - 1)
    ids = np.random.default_rng(0).integers(first, vocab_size, (batch, seq))
    ends = (np.arange(batch) + 1) * seq - 1
    return Batch(ids, ends.astype(np.int64), np.zeros(batch, dtype=np.int64))


class _Profiling:
    def __init__(
        self,
        settings: ProfileSettings,
        sensors: Sensors,
        energy: EnergyMeter | None,
        on_progress: Callable[[Profile], None],
        sets_peak_back: bool,
    ) -> None:
        self._settings, self._sensors, self._energy = settings, sensors, energy
        self._before: Reading = sensors.read()
        self._meter = PhaseMeter(
            energy,
            sets_peak_back=sets_peak_back,
            on_phase=lambda meter: on_progress(self._found(is_complete=False)),
        )
        self._weights = self._trainable = self._weight_bytes = self._rounds_done = 0
        self._steps_s: list[float] = []
        self._steps_j: list[float] = []
        self._on_progress = on_progress

    def carry_out(self, check: Callable[[Bundle], None]) -> Profile:
        settings, meter = self._settings, self._meter
        with meter.phase("open bundle"):
            bundle = open_bundle(settings.bundle)
            check_fits(bundle, settings)
            check(bundle)
            load_tokenizer(bundle.tokenizer_path)  # a device has one
        stored_bytes = bundle.weights_path.stat().st_size
        with meter.phase("load weights", weight_bytes=stored_bytes):
            store = ParameterStore.from_bundle(bundle, settings.trainable, settings.threads)
        self._weights, self._trainable = store.num_parameters, store.num_trainable
        self._weight_bytes = store.bytes_in_memory
        store.check_perturbation_scale(SCALE)
        with contextlib.closing(store):
            with meter.phase(OPEN_SESSIONS):
                forward = OnnxForward(bundle, store, intra_op_threads=settings.threads)
            with contextlib.closing(forward):
                round_of = DeviceRounds(settings, bundle, store, forward, meter)
                meter.is_counting = False
                round_of.carry_out(0)
                meter.is_counting = True
                for number in range(1, settings.rounds + 1):
                    begun_s, joules = time.perf_counter(), self._joules()
                    round_of.carry_out(number)
                    self._steps_s.append(time.perf_counter() - begun_s)
                    self._steps_j.append(self._joules() - joules)
                    self._rounds_done = number
        found = self._found(is_complete=True)
        self._on_progress(found)
        return found

    def _joules(self) -> float:
        return 0.0 if self._energy is None else self._energy.joules()

    def _found(self, *, is_complete: bool) -> Profile:
        settings = self._settings
        # A program is asked for it, which takes milliseconds: not between two phases of a round.
        after = self._sensors.read() if is_complete else self._before
        return Profile(
            bundle=str(settings.bundle),
            weights=self._weights,
            trainable=self._trainable,
            weight_bytes=self._weight_bytes,
            batch=settings.batch,
            seq=settings.seq,
            directions=settings.directions,
            difference=str(settings.difference),
            threads=settings.threads,
            rounds=self._rounds_done,
            kernel=KERNEL_NAME,
            is_complete=is_complete,
            phases=self._meter.phases(self._rounds_done),
            step_s=statistics.median(self._steps_s) if self._steps_s else None,
            step_j=statistics.median(self._steps_j) if self._energy and self._steps_j else None,
            energy_counter=None if self._energy is None else self._energy.counter,
            temperature_c=(self._before.temperature_c, after.temperature_c),
            frequency_hz=(self._before.frequency_hz, after.frequency_hz),
            has_throttled=has_throttled(self._before, after) if is_complete else None,
        )


class DeviceRounds:
    """A device's rounds, in phases, over a radio that only takes what is sent.

    Args:
        settings: what a round is.
        bundle: the model.
        store: its weights; and
        forward: its passes on them; both stay their owner's.
        meter: of the phases.
    """

    def __init__(
        self,
        settings: ProfileSettings,
        bundle: Bundle,
        store: ParameterStore,
        forward: OnnxForward,
        meter: PhaseMeter,
    ) -> None:
        self._settings, self._store, self._forward, self._meter = settings, store, forward, meter
        self._batch = _batch(bundle, settings.batch, settings.seq)
        self._waveform = CoherentWaveform(num_devices=1, num_scalars=settings.directions)
        medium = SoftwareMedium(
            num_devices=1,
            sample_rate_hz=_RATE_HZ,
            noise_power=0.0,
            noise_rng=np.random.default_rng(0),
            channel_name="profile",
        )
        self._medium, self._radio = medium, LoopbackTransceiver(medium, 0)

    def carry_out(self, number: int) -> None:
        """One of them."""
        settings, store, meter = self._settings, self._store, self._meter
        tokens = settings.batch * settings.seq
        everything, stepped = store.num_bytes(), store.num_bytes(trained=True)
        moved = store.num_bytes(trained=True, kept_as=FLOAT32)
        with meter.phase("frozen prefix"):
            begun = self._forward.begin([self._batch])
        is_one_sided = settings.difference is Difference.ONE_SIDED
        if is_one_sided:
            store.settle()
            with meter.phase("clean pass", tokens=tokens, weight_bytes=everything):
                self._forward.finish(begun)
        for seed in direction_seeds(number, settings.directions):
            for scale in (SCALE,) if is_one_sided else (SCALE, -SCALE):
                with store.moved(seed, scale):
                    with meter.phase("move", weight_bytes=moved):
                        store.settle()
                    with meter.phase("pass", tokens=tokens, weight_bytes=everything):
                        self._forward.finish(begun)
        with meter.phase("restore and step", weight_bytes=stepped):
            steps = tuple(((number + q) % 7 - 3) * _STEP for q in range(settings.directions))
            store.apply_step(RoundResult("profile", number, number, steps))
            store.settle()
        with meter.phase("transmit"):
            burst = self._waveform.modulate([0.5 + 0j] * settings.directions, 0.5)
            self._radio.transmit(burst, start_sample=0)
            self._medium.clear()
