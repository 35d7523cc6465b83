"""How little can a run be worth, in rounds without noise, and still learn something?

The preset snips with a promise to whole devices and a budget so large or small that noise leaves
the wanted number of its 450 rounds; the learning rate is the preset's times a few factors, because
the best one falls with the noise. Resumes; a run takes some 20 s, all of them some minutes::

    python benchmarks/feasibility.py feasibility.jsonl
    python benchmarks/feasibility.py feasibility.jsonl --show --json feasibility.json
    python benchmarks/feasibility.py quick.jsonl --quick
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from study import Study

from server.config.files import load_config
from server.report.page import read_runs
from server.run.experiment import Experiment

EPSILONS = (20.0, 50.0, 100.0, 160.0, 300.0, 1200.0)
RATE_FACTORS = (0.006, 0.02, 0.06, 0.2, 0.5)
SEEDS = (0, 1)
RATE = 6e-2


def one_run(epsilon: float, factor: float, seed: int, rounds: int) -> dict[str, Any]:
    """Accuracy before and after, and what the rounds were worth."""
    config = load_config(
        "snips",
        {
            "privacy.unit": "device",
            "privacy.epsilon": epsilon,
            "power.policy": "static",
            "radio.snr_db": 40.0,
            "optimizer.rounds": rounds,
            "optimizer.learning_rate": RATE * factor,
            "run.seed": seed,
            "run.evaluation_interval": rounds,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Experiment.start(config, Path(folder) / "run")
        try:
            run.run()
        finally:
            run.close()
        summary = read_runs(Path(folder) / "run")[0].summary
    noise_to_signal = 10.0 ** (summary["noise_nmse_db"] / 10.0)
    return {
        "epsilon": epsilon, "factor": factor, "seed": seed, "rounds": rounds,
        "effective_rounds": rounds / (1.0 + noise_to_signal),
        "accuracy_before": summary["accuracy_before"], "accuracy_after": summary["accuracy_after"],
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    print("epsilon   worth rounds   accuracy gained (points), each seed, by factor of the rate")
    for epsilon in sorted({row["epsilon"] for row in rows}):
        of_it = [row for row in rows if row["epsilon"] == epsilon]
        worth = [row["effective_rounds"] for row in of_it]
        cells = []
        for factor in sorted({row["factor"] for row in of_it}):
            gains = [
                100 * (row["accuracy_after"] - row["accuracy_before"])
                for row in of_it
                if row["factor"] == factor
            ]
            cells.append(f"{factor:g}: " + ", ".join(f"{gain:+.1f}" for gain in gains))
        print(f"{epsilon:7g}{min(worth):8.2f} to {max(worth):<7.2f}{';  '.join(cells)}")


def main() -> None:
    study = Study(__doc__, quick="one short run")
    args = study.begin()
    # The best factor is about the share of its progress that a round keeps.
    wanted = [
        (epsilon, factor, seed)
        for epsilon, factor, seed in itertools.product(EPSILONS, RATE_FACTORS, SEEDS)
        if 0.0002 <= factor / epsilon <= 0.0013
    ]
    if args.quick:
        wanted = [(300.0, 0.2, 0)]
    for epsilon, factor, seed in study.missing(
        wanted, lambda row: (row["epsilon"], row["factor"], row["seed"])
    ):
        row = one_run(epsilon, factor, seed, 5 if args.quick else 450)
        study.add(row, f"epsilon {epsilon:g}, factor {factor:g}, seed {seed}")
    show(study.rows)
    study.finish(runs=study.rows)


if __name__ == "__main__":
    main()
