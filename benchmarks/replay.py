r"""What a round costs that is only replayed: how a resumed run, or who was away, catches up.

Steps of the ``snips`` preset, eight directions, on the weights that it moves; CPU time of one
thread. By turns with the words of the stochastic rounding from the kernel, and from a numpy
generator for each tensor and direction, which is what defines them; weights end equal.

    python benchmarks/replay.py replay.jsonl --json replay.json    # half a minute
    python benchmarks/replay.py quick.jsonl --quick
"""

from __future__ import annotations

import time
from unittest.mock import patch

from study import Study

from edge_runtime import lattice
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.kernel import KERNEL_NAME, rounding_word
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol import direction
from edge_runtime.protocol.rounds import RoundResult
from server.config.files import load_config

TURNS = 5
ROUNDS = 1000
QUICK_ROUNDS = 50
WORDS = {"kernel": rounding_word, "a generator each": direction.rounding_word}


def replayed_ms(words: str, num_rounds: int) -> tuple[float, str]:
    """CPU milliseconds a round, and the digest that the weights end with."""
    config = load_config("snips")
    store = ParameterStore.from_bundle(open_bundle(BUNDLED_MODEL_FOLDER), config.model.trainable, 1)
    results = [
        RoundResult(
            "replay",
            index,
            direction.derive_direction_seed(0, index),
            tuple((-1) ** (index + q) * (q + 1) * 12345678 for q in range(8)),
        )
        for index in range(num_rounds)
    ]
    with patch.object(lattice, "rounding_word", WORDS[words]):
        begun = time.process_time()
        store.replay(results)
        store.settle()
        taken_s = time.process_time() - begun
    return 1e3 * taken_s / num_rounds, store.digest()


def main() -> None:
    study = Study(__doc__, quick="few rounds, two turns")
    args = study.begin()
    num_rounds, turns = (QUICK_ROUNDS, 2) if args.quick else (ROUNDS, TURNS)
    wanted = [(turn, words, num_rounds) for turn in range(turns) for words in WORDS]
    for turn, words, count in study.missing(
        wanted, lambda row: (row["turn"], row["words"], row["rounds"])
    ):
        cpu_ms, digest = replayed_ms(words, count)
        row = {"turn": turn, "words": words, "rounds": count, "cpu_ms": cpu_ms, "digest": digest}
        study.add(row, f"{words}: {cpu_ms:.3f} ms a round")
    if len({row["digest"] for row in study.rows}) != 1:
        raise SystemExit("the weights differ: the words do")
    best = {words: min(r["cpu_ms"] for r in study.rows if r["words"] == words) for words in WORDS}
    ratio = best["kernel"] / best["a generator each"]
    print(f"kernel {KERNEL_NAME}: {best['kernel']:.3f} ms a round, {ratio:.2f} of a generator each")
    study.finish(kernel=KERNEL_NAME, best_cpu_ms=best, ratio=ratio, rows=study.rows)


if __name__ == "__main__":
    main()
