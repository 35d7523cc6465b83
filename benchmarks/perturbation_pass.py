"""The pass over all weights against the memory it has to move, in one process, interleaved.

    python benchmarks/perturbation_pass.py --weights 125000000 --threads 2

Prints nanoseconds per weight and the ratio to an in-place scaling of the same array by numpy, which
reads and writes every weight and does nothing else. "fused" makes two directions in one trip: the
restore, step and next perturbation of a round. The numpy twin runs beside the C kernel. Best of
``--repeats``; the array is cut into the pieces that ParameterStore gives its threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edge_runtime.kernel import KERNEL_NAME, KERNEL_REASON, add_moves, numpy_twin

PIECE_WEIGHTS = 1 << 20
SCALE = 2.0**-10

Piece = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=int, default=125_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if KERNEL_NAME != "c":
        raise SystemExit(f"the C kernel is not there: {KERNEL_REASON}")

    weights = np.zeros(args.weights, dtype=np.float32)
    pieces = [weights[i : i + PIECE_WEIGHTS] for i in range(0, args.weights, PIECE_WEIGHTS)]
    one = np.float32(1.0)
    variants: dict[str, Callable[[Piece], object]] = {
        "scale in place": lambda piece: np.multiply(piece, one, out=piece),
        "one direction": lambda piece: add_moves(piece, 0, 0, [1], [SCALE]),
        "two directions, fused": lambda piece: add_moves(piece, 0, 0, [1, 2], [SCALE, -SCALE]),
        "one direction, numpy": lambda piece: numpy_twin.add_moves(piece, 0, 0, [1], [SCALE]),
    }
    best = dict.fromkeys(variants, float("inf"))
    with ThreadPoolExecutor(args.threads) as pool:
        for _ in range(args.repeats):
            for name, work in variants.items():
                started = time.perf_counter()
                list(pool.map(work, pieces))
                best[name] = min(best[name], time.perf_counter() - started)
    probe = best["scale in place"]
    rows = {
        name: {"ns_per_weight": 1e9 * seconds / args.weights, "ratio_to_scale": seconds / probe}
        for name, seconds in best.items()
    }
    print(
        json.dumps({"weights": args.weights, "threads": args.threads, "variants": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
