r"""Which learning rate, clip and weights suit the bundled model? Tuned on training data alone.

Takes 1,000 of the Snips training commands away from the devices and evaluates on them, so that the
validation file stays unseen until the figures that are reported.

    python benchmarks/tune_snips.py --rounds 500 \
        --try learning_rate=1e-4 --try learning_rate=2e-4,clip=20 --try trainable=norms_and_biases

Each ``--try`` is one run of the `snips` preset with those settings, over the preset's radio
(``--ideal``: without radio and privacy). Prints a line per run; ``--json FILE`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.task_spec import TASKS_FOLDER
from server.config.files import load_config, toml_value
from server.run.experiment import Experiment, Progress

HELD_OUT = 1000
IDEAL = {"radio.backend": "ideal", "privacy.enabled": False}
SECTION_OF = {
    "learning_rate": "optimizer",
    "final_learning_rate_fraction": "optimizer",
    "clip": "optimizer",
    "batch_size": "optimizer",
    "perturbation_scale_log2": "optimizer",
    "trainable": "model",
    "bundle": "model",
    "snr_db": "radio",
    "min_gain": "radio",
    "payload_symbols": "radio",
    "coherence_rounds": "radio",
    "epsilon": "privacy",
    "seed": "run",
}


def hold_out(folder: Path) -> tuple[Path, Path]:
    """Split the training file into one to train on and one to tune on."""
    lines = (TASKS_FOLDER.parent / "snips" / "train.tsv").read_text("utf-8").strip().split("\n")
    order = np.random.default_rng(1).permutation(len(lines))
    train, held_out = folder / "train.tsv", folder / "held_out.tsv"
    held_out.write_text("\n".join(lines[i] for i in order[:HELD_OUT]) + "\n", "utf-8")
    train.write_text("\n".join(lines[i] for i in order[HELD_OUT:]) + "\n", "utf-8")
    return train, held_out


def parse_settings(text: str) -> dict[str, Any]:
    settings = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        parsed = toml_value(value)
        is_patterns = isinstance(parsed, str) and "*" in parsed
        settings[f"{SECTION_OF[name]}.{name}"] = parsed.split("+") if is_patterns else parsed
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--evaluations", type=int, default=5)
    parser.add_argument("--try", dest="tries", action="append", required=True)
    parser.add_argument("--ideal", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train, held_out = hold_out(folder)
        for number, text in enumerate(args.tries):
            overrides = {
                "optimizer.rounds": args.rounds,
                "run.evaluation_interval": max(1, args.rounds // args.evaluations),
                "task.train": str(train),
                "task.validation": str(held_out),
                **parse_settings(text),
            }
            if args.ideal:
                overrides |= IDEAL
            curve: list[tuple[int, float, float]] = []

            def note(progress: Progress, curve: list[tuple[int, float, float]] = curve) -> None:
                if (e := progress.evaluation) is not None:
                    curve.append((e.num_rounds, round(e.accuracy, 3), round(e.loss, 3)))

            experiment = Experiment.start(load_config("snips", overrides), folder / str(number))
            try:
                failure = ""
                experiment.run(note)
            except Exception as error:  # a diverged setting is a result, not the end of the sweep
                failure = str(error)[:80]
            finally:
                measured = experiment.store.rounds()
                experiment.close()
            rms = float(np.sqrt(np.mean([np.square(r.true_means or 0.0).mean() for r in measured])))
            clipped = float(np.mean([r.share_clipped or 0.0 for r in measured]))
            ms = 1e3 * float(np.median([r.wall_s for r in measured]))
            print(
                f"{text}: rms {rms:.2f} clipped {clipped:.0%} {ms:.0f} ms",
                curve,
                failure,
                flush=True,
            )
            rows.append(
                {"settings": text, "curve": curve, "rms": rms, "ms": ms, "failure": failure}
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
