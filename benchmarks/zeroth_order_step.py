"""A zeroth-order step against its bare forward passes on the same weights, and its peak memory.

    python benchmarks/make_random_opt.py --size 125m --out MODEL
    pairzero export MODEL BUNDLE --task TASK.toml
    python benchmarks/zeroth_order_step.py BUNDLE --batch 16 --seq 64 --threads 2
    python benchmarks/zeroth_order_step.py BUNDLE --trainable '*.layers.1[01].*'
    python benchmarks/zeroth_order_step.py BUNDLE --directions 8 --difference one_sided

One fresh process. Blocks of steps, of their own passes and of as many bare forwards (whole passes,
weights not moved) alternate; the ratios are medians of those of neighbours. A step is what a device
does: run the frozen layers, then for each direction perturb, finish the pass, flip, finish,
restore; update. Its own passes are the same ones, of the layers that a step runs, with nothing
moved and nothing expanded: where weights are kept in 16 or 8 bits, scratch stays what it was.
Afterwards ``--restores`` moves there and back must leave the digest as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.kernel import KERNEL_NAME
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.protocol.rounds import Difference, RoundResult
from edge_runtime.tasks import Batch
from radio.arrays import Float32Array, Int64Array
from server.run.environment import peak_rss_mb

SCALE = 2.0**-10
BLOCK = 4


def memory_of_process(field: str = "VmRSS") -> float:
    """A field of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1e3 * 1.024
    raise SystemExit(f"no {field} in /proc/self/status: this benchmark needs Linux")


@contextlib.contextmanager
def nothing_expanded() -> Iterator[None]:
    """Matrices in scratch stay the last layer's; rows of tables are still looked up."""
    real = ParameterStore.expand

    def expand(
        self: ParameterStore, name: str, out: Float32Array, rows: Int64Array | None = None
    ) -> None:
        if rows is not None:
            real(self, name, out, rows)

    ParameterStore.expand = expand  # type: ignore[method-assign]
    try:
        yield
    finally:
        ParameterStore.expand = real  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trainable", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--directions", type=int, default=1)
    parser.add_argument(
        "--difference", type=Difference, choices=list(Difference), default=Difference.TWO_SIDED
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--restores", type=int, default=0)
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="own passes alone")
    args = parser.parse_args()

    bundle = open_bundle(args.bundle)
    store = ParameterStore.from_bundle(bundle, args.trainable, args.threads)
    forward = OnnxForward(bundle, store, intra_op_threads=args.threads)
    loaded_peak_mb = peak_rss_mb()
    vocabulary = int(bundle.manifest.architecture["vocab_size"])
    ids = np.random.default_rng(0).integers(4, vocabulary, (args.batch, args.seq))
    ends = (np.arange(args.batch) + 1) * args.seq - 1
    batch = Batch(ids, ends.astype(np.int64), np.zeros(args.batch, dtype=np.int64))

    is_one_sided = args.difference is Difference.ONE_SIDED
    num_sweeps = args.difference.num_sweeps(args.directions)
    block_steps = max(1, BLOCK // args.directions)

    def step(index: int) -> None:
        begun = forward.begin([batch])
        if is_one_sided:
            forward.finish(begun)
        for seed in direction_seeds(index, args.directions):
            for scale in (SCALE,) if is_one_sided else (SCALE, -SCALE):
                with store.moved(seed, scale):
                    forward.finish(begun)
        steps = tuple(((index + q) % 7 - 3) << 20 for q in range(args.directions))
        store.apply_step(RoundResult("benchmark", index, index, steps))

    def own_passes() -> None:
        with nothing_expanded():
            begun = forward.begin([batch])
            for _ in range(num_sweeps):
                forward.finish(begun)

    def timed(work: object, *arguments: object) -> float:
        started = time.perf_counter()
        work(*arguments)  # type: ignore[operator]
        return time.perf_counter() - started

    step(1)
    store.settle()
    steps, own, bare, memory = [], [], [], [memory_of_process()]
    for first in range(2, args.steps + 2, block_steps):
        # The settle at the end makes the moves that a next step would have shared a pass with: a
        # block of n steps pays for one pass over the weights more than n steps of a long run.
        block = sum(timed(step, first + k) for k in range(block_steps)) + timed(store.settle)
        steps.append(block / block_steps)
        own.append(sum(timed(own_passes) for _ in range(block_steps)) / block_steps)
        num_bare = num_sweeps * block_steps if args.bare else 0
        bare.append(sum(timed(forward.run, batch) for _ in range(num_bare)) / block_steps)
        memory.append(memory_of_process())
    peak_mb, anonymous_mb = peak_rss_mb(), memory_of_process("RssAnon")

    before = store.digest()
    for index in range(args.restores):
        store.add_direction(index, SCALE)
        store.settle()
        store.add_direction(index, -SCALE)
    result = {
        "weights": store.num_parameters,
        "trainable": store.num_trainable,
        "directions": args.directions, "difference": args.difference,
        "batch": args.batch, "seq": args.seq, "threads": args.threads, "kernel": KERNEL_NAME,
        "step_s": statistics.median(steps),
        "own_passes_s": statistics.median(own),
        "step_to_own_passes": statistics.median(s / o for s, o in zip(steps, own, strict=True)),
        "bare_forwards": num_sweeps if args.bare else None,
        "bare_forwards_s": statistics.median(bare) if args.bare else None,
        "step_to_bare_forwards": (
            statistics.median(s / b for s, b in zip(steps, bare, strict=True))
            if args.bare
            else None
        ),
        "anonymous_mb": anonymous_mb,
        "peak_rss_mb": peak_mb,
        "peak_rss_after_loading_mb": loaded_peak_mb,
        "rss_growth_mb": memory[-1] - memory[0],
        "steps": args.steps,
        "restores": args.restores,
        "digest_unchanged": store.digest() == before,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
