r"""What a round costs whose examples' prefixes are all kept, beside one that computes them.

A bundle with the last layers trained, one-sided differences along eight directions, random prompts.
Rounds with and without kept prefixes alternate in one process on the same weights and prompts; the
ratio is the median of those of neighbours. All prompts were kept in a round before that is not
counted. Both end in the same digest.

    python benchmarks/make_random_opt.py --size 125m --out MODEL
    pairzero export MODEL BUNDLE --task snips
    python benchmarks/kept_prefixes.py kept.jsonl --bundle BUNDLE --json kept.json
    python benchmarks/kept_prefixes.py quick.jsonl --quick        # the bundled model
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, keep_prefixes
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.protocol.rounds import RoundResult
from edge_runtime.tasks import Prompt, batches_by_length

SCALE, DIRECTIONS, EXAMPLES, PAIRS = 2.0**-10, 8, 40, 6
LONGEST = 48
MB = 10**6


def measured(folder: Path, trainable: list[str], pairs: int) -> dict[str, Any]:
    """Seconds of rounds of both kinds, in turn."""
    bundle = open_bundle(folder)
    stores = [ParameterStore.from_bundle(bundle, trainable, 2) for _ in range(2)]
    forwards = [OnnxForward(bundle, store, num_workers=2) for store in stores]
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(rng.integers(4, forwards[0].vocab_size, rng.integers(12, LONGEST + 1)), 0)
        for _ in range(EXAMPLES)
    ]
    batches = batches_by_length(prompts, MAX_ROWS)[0]

    def a_round(number: int, which: int) -> float:
        store, forward = stores[which], forwards[which]
        started = time.perf_counter()
        begun = forward.begin(batches)
        forward.finish(begun)
        for seed in direction_seeds(number, DIRECTIONS):
            with store.moved(seed, SCALE):
                forward.finish(begun)
        steps = tuple(((number + q) % 7 - 3) << 20 for q in range(DIRECTIONS))
        store.apply_step(RoundResult("kept", number, number, steps))
        store.settle()
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as where:
        kept = keep_prefixes(forwards[1], Path(where), 1000 * MB, LONGEST)
        if kept is None:
            raise SystemExit("on this machine losses follow company: nothing may be kept")
        for which in (0, 1):
            a_round(0, which)
        times = [[a_round(number, which) for which in (0, 1)] for number in range(1, pairs + 1)]
    for forward in forwards:
        forward.close()
    return {
        "bundle": folder.name,
        "trainable": trainable,
        "examples": EXAMPLES,
        "kept": len(kept),
        "round_s": statistics.median(plain for plain, _ in times),
        "round_of_kept_s": statistics.median(keeping for _, keeping in times),
        "kept_to_plain": statistics.median(keeping / plain for plain, keeping in times),
        "digests_are_equal": stores[0].digest() == stores[1].digest(),
    }


def main() -> None:
    study = Study(__doc__, quick="the bundled model, two pairs")
    study.parser.add_argument("--bundle", type=Path, default=BUNDLED_MODEL_FOLDER)
    args = study.begin()
    layers = open_bundle(args.bundle).num_layers
    trainable = [f"*.layers.{layer}.*" for layer in (layers - 2, layers - 1)]
    for name in study.missing([args.bundle.name], lambda row: row["bundle"]):
        row = measured(args.bundle, trainable, 2 if args.quick else PAIRS)
        study.add(row, f"{name}: {row['kept_to_plain']:.3f} of a round without")
    study.finish(rows=study.rows)


if __name__ == "__main__":
    main()
