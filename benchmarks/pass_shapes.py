"""Does an example's loss depend on the examples that share its forward pass?

    python benchmarks/pass_shapes.py [BUNDLE] --threads 1 --max-tokens 64 --tries 400

Runs made-up prompts in passes of random shape, company, place and padding, and counts how many of
the losses differ in any bit from that of the same prompt alone; passes of one row are counted with
and without the copy that `OnnxForward` runs beside a lone row. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.onnx_runtime import onnxruntime
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, losses_follow_company, make_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=BUNDLED_MODEL_FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--tries", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    bundle = open_bundle(args.bundle)
    vocab_size = int(bundle.manifest.architecture["vocab_size"])
    forward = OnnxForward(bundle, ParameterStore.from_bundle(bundle), intra_op_threads=args.threads)
    rng = np.random.default_rng(args.seed)

    def prompt(length: int) -> np.ndarray:
        return rng.integers(4, vocab_size, length)

    differ = differ_undoubled = 0
    largest = 0.0
    for _ in range(args.tries):
        example = prompt(int(rng.integers(1, args.max_tokens + 1)))
        forward.runs_rows_alone = False
        alone = forward.run(make_batch([example], len(example))).losses[0]
        forward.runs_rows_alone = True
        undoubled = forward.run(make_batch([example], len(example))).losses[0]
        num_rows = int(rng.integers(2, MAX_ROWS + 1))
        width = int(rng.integers(len(example), args.max_tokens + 1))
        rows = [prompt(int(rng.integers(1, width + 1))) for _ in range(num_rows)]
        place = int(rng.integers(num_rows))
        rows[place] = example
        loss = forward.run(make_batch(rows, width)).losses[place]
        differ += bool(loss != alone)
        differ_undoubled += bool(undoubled != alone)
        largest = max(largest, abs(float(loss) - float(alone)))
    forward.runs_rows_alone = False
    print(
        json.dumps(
            {
                "tries": args.tries,
                "losses_that_follow_company": differ,
                "largest_difference_nats": largest,
                "lone_rows_that_differ_without_a_copy": differ_undoubled,
                "check_before_a_run_says": losses_follow_company(
                    forward, vocab_size=vocab_size, max_tokens=args.max_tokens
                ),
                "threads": args.threads,
                "onnxruntime": onnxruntime.__version__,
                "machine": platform.machine(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
