r"""Where does a round's processor time go that one host carries out for several devices?

The preset `snips` (eight one-sided numbers, batches of 16, three matrices of two layers move) with
1, 5 and 20 devices on one copy of the weights, with as many workers and threads of a pass as asked
for; each cell in a process of its own, which carries out the first rounds of a run. By phase:
seconds of the wall and of all processors, a round, and beside them the same passes over the same
batches with nothing moved, nothing drawn and nobody to answer: what no way of doing rounds can be
below.

    python benchmarks/hosted_devices.py hosted.jsonl --json hosted.json      # 9 cells, 3 minutes
    python benchmarks/hosted_devices.py quick.jsonl --quick                  # 1 cell
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from study import Study

from edge_runtime.agent import DeviceAgent
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.virtual_device import VirtualDevice
from server.air.base import CoherentAir
from server.config.files import load_config
from server.run.experiment import Experiment
from server.run.pricing import Pricing
from server.run.round_loop import RoundLoop
from server.store.run_store import RunStore

DEVICES = (1, 5, 20)
SHAPES = ((1, 1), (2, 1), (1, 2))
ROUNDS, QUICK_ROUNDS, WARM = 16, 3, 2
TIMED: tuple[tuple[str, type, str], ...] = (
    ("batches drawn", VirtualDevice, "draw"),
    ("frozen prefix", OnnxForward, "begin"),
    ("moves", ParameterStore, "settle"),
    ("passes", OnnxForward, "finish"),
    ("numbers said", DeviceAgent, "_speak"),
    ("a device's round", DeviceAgent, "run_round"),
    ("a device's step", DeviceAgent, "apply_result"),
    ("heard", CoherentAir, "carry"),
    ("planned", Pricing, "plan_round"),
    ("priced", Pricing, "price"),
    ("charged", Pricing, "charge"),
    ("row stored", RunStore, "append_round"),
    ("step told", RoundLoop, "take_step"),
)
"""What is timed -> whose; a phase that holds another is told without it."""


class Clock:
    """Seconds of the wall and of all processors, by phase; of each the time of no other."""

    def __init__(self) -> None:
        self.wall: collections.Counter[str] = collections.Counter()
        self.cpu: collections.Counter[str] = collections.Counter()
        self._open: list[list[float]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens within, but for phases within it."""
        self._open.append([0.0, 0.0])
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            inner = self._open.pop()
            self.wall[name] += wall - inner[0]  # type: ignore[assignment]
            self.cpu[name] += cpu - inner[1]  # type: ignore[assignment]
            if self._open:
                self._open[-1][0] += wall
                self._open[-1][1] += cpu


def timed(clock: Clock, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(do)
    def call(*arguments: Any, **named: Any) -> Any:
        with clock.phase(name):
            return do(*arguments, **named)

    return call


def one_cell(devices: int, workers: int, threads: int, num_rounds: int) -> dict[str, Any]:
    """A cell, in this process."""
    config = load_config(
        "snips",
        {
            "federation.num_devices": devices,
            "run.workers": workers, "run.intra_op_threads": threads,
            "run.evaluation_interval": 1000, "task.validation_examples": 20,
        },
    )  # fmt: skip
    clock, begun_with = Clock(), []
    for name, owner, method in TIMED:
        setattr(owner, method, timed(clock, name, getattr(owner, method)))
    begin = OnnxForward.begin

    def note(self: OnnxForward, batches: Any) -> Any:
        begun_with.append((self, list(batches)))
        return begin(self, batches)

    OnnxForward.begin = note  # type: ignore[method-assign]
    walls, cpus, totals = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.start(config, Path(folder) / "run")
        with contextlib.closing(experiment):
            channel = experiment.loop.channel_for(0)
            assert channel is not None
            for number in range(num_rounds + WARM):
                channel = experiment.loop.channel_for(number, channel)
                assert channel is not None
                clock.wall.clear()
                clock.cpu.clear()
                begun, begun_cpu = time.perf_counter(), time.process_time()
                experiment.loop.run_round(number, channel)
                whole = time.perf_counter() - begun, time.process_time() - begun_cpu
                if number >= WARM:
                    totals.append(whole)
                    walls.append(dict(clock.wall))
                    cpus.append(dict(clock.cpu))
            bare = [_bare(forward, batches) for forward, batches in begun_with[-num_rounds:]]
    phases = sorted({name for row in walls for name in row})
    return {
        "round_s": statistics.median(wall for wall, _ in totals),
        "round_cpu_s": statistics.median(cpu for _, cpu in totals),
        "bare_s": statistics.median(wall for wall, _ in bare),
        "bare_cpu_s": statistics.median(cpu for _, cpu in bare),
        "examples": statistics.median(
            sum(batch.num_examples for batch in batches) for _, batches in begun_with[-num_rounds:]
        ),
        "phases": {
            name: {
                "s": statistics.median(row.get(name, 0.0) for row in walls),
                "cpu_s": statistics.median(row.get(name, 0.0) for row in cpus),
            }
            for name in phases
        },
    }


def _bare(forward: OnnxForward, batches: list[Any]) -> tuple[float, float]:
    """The passes of a round and nothing else."""
    sweeps = 1 + len(direction_seeds(0, 8))
    begun, begun_cpu = time.perf_counter(), time.process_time()
    kept = forward.begin(batches)
    for _ in range(sweeps):
        forward.finish(kept)
    return time.perf_counter() - begun, time.process_time() - begun_cpu


def main() -> None:
    if len(sys.argv) == 6 and sys.argv[1] == "cell":
        print(json.dumps(one_cell(*map(int, sys.argv[2:]))))
        return
    study = Study(__doc__, quick="one cell, few rounds")
    args = study.begin()
    cells = [(d, *shape) for d, shape in itertools.product(DEVICES, SHAPES)]
    if args.quick:
        cells = [(2, 1, 1)]
    num_rounds = QUICK_ROUNDS if args.quick else ROUNDS
    for cell in study.missing(cells, lambda row: (row["devices"], row["workers"], row["threads"])):
        command = [sys.executable, __file__, "cell", *map(str, (*cell, num_rounds))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = {
            **dict(zip(("devices", "workers", "threads"), cell, strict=True)), **json.loads(said),
        }  # fmt: skip
        study.add(row, f"{cell}: {row['round_s']:.4f} s, bare {row['bare_s']:.4f}")
    for row in study.rows:
        phases = sorted(row["phases"].items(), key=lambda item: -item[1]["cpu_s"])
        shares = ", ".join(
            f"{name} {phase['cpu_s'] / row['round_cpu_s']:.0%}" for name, phase in phases[:5]
        )
        print(
            f"{row['devices']} devices, {row['workers']} workers x {row['threads']} threads: "
            f"{row['round_s'] * 1e3:.1f} ms ({row['round_cpu_s'] * 1e3:.1f} of CPU), bare passes "
            f"{row['bare_s'] / row['round_s']:.2f} of it "
            f"({row['bare_cpu_s'] / row['round_cpu_s']:.2f} of CPU): {shares}"
        )
    study.finish(rows=study.rows)


if __name__ == "__main__":
    main()
