r"""Which learning rate, clip and weights suit a preset's model? Tuned on training data alone.

Takes 1,000 of the training examples away from the devices and evaluates on them, so that the
validation file stays unseen until the figures that are reported; ``--on-validation`` makes those.

    python benchmarks/tune_preset.py tuned.jsonl --try optimizer.learning_rate=1e-4 \
        --try optimizer.learning_rate=2e-4,optimizer.clip=20 --seeds 100 101
    python benchmarks/tune_preset.py tuned.jsonl --try model.trainable=*norm*+*.bias
    python benchmarks/tune_preset.py tuned.jsonl --show --json tuned.json
    python benchmarks/tune_preset.py reviews.jsonl --preset smollm2-mr --try optimizer.clip=6

Each ``--try`` is the preset (`snips`) with those settings, run once for every seed, over its radio
(``--ideal``: without radio and privacy). Every finished run is a line of the file.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.task_spec import load_task
from server.config.files import load_config, toml_value
from server.run.experiment import Experiment, Progress

HELD_OUT = 1000
IDEAL = {"radio.backend": "ideal", "privacy.enabled": False}
EVALUATIONS = 5


def hold_out(folder: Path, task_name: str = "snips") -> tuple[Path, Path]:
    """Split a task's training file into one to train on and one to tune on."""
    task, place = load_task(task_name)
    lines = (place / task.train).read_text("utf-8").strip().split("\n")
    order = np.random.default_rng(1).permutation(len(lines))
    train, held_out = folder / "train.tsv", folder / "held_out.tsv"
    held_out.write_text("\n".join(lines[i] for i in order[:HELD_OUT]) + "\n", "utf-8")
    train.write_text("\n".join(lines[i] for i in order[HELD_OUT:]) + "\n", "utf-8")
    return train, held_out


def parse_settings(text: str) -> dict[str, Any]:
    """``section.key=value,...`` as overrides; a value with stars is patterns, joined by ``+``."""
    settings = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        parsed = toml_value(value)
        is_patterns = isinstance(parsed, str) and "*" in parsed
        settings[name] = parsed.split("+") if is_patterns else parsed
    return settings


def run_once(
    preset: str, overrides: dict[str, Any], folder: Path, prefixes: PrefixCache | None
) -> tuple[dict[str, Any], PrefixCache | None]:
    """One run: its curve and what it cost; and what it has kept of frozen layers, for the next."""
    config = load_config(preset, overrides)
    interval = max(1, config.optimizer.rounds // EVALUATIONS)
    config = load_config(preset, overrides | {"run.evaluation_interval": interval})
    curve: list[tuple[int, float, float]] = []

    def note(progress: Progress) -> None:
        if (e := progress.evaluation) is not None:
            curve.append((e.num_rounds, round(e.accuracy, 4), round(e.loss, 4)))

    experiment, failure = Experiment.start(config, folder, prefixes=prefixes), ""
    try:
        experiment.run(note)
    except Exception as error:  # a diverged setting is a result, not the end of the sweep
        failure = str(error)[:80]
    finally:
        measured = experiment.store.rounds()
        experiment.close()
    row = {
        "curve": curve,
        "rms": float(np.sqrt(np.mean([np.square(r.true_means or 0.0).mean() for r in measured]))),
        "clipped": float(np.mean([r.share_clipped or 0.0 for r in measured])),
        "noise_multiplier": max((r.noise_multiplier for r in measured), default=0.0),
        "ms": 1e3 * float(np.median([r.wall_s for r in measured])),
        "failure": failure,
    }
    return row, experiment.prefixes


def show(rows: list[dict[str, Any]]) -> None:
    """Accuracy of every setting, mean over its seeds and each."""

    def settings_of(row: dict[str, Any]) -> tuple[str, str]:
        return row["data"], row["settings"]

    for (data, settings), group in itertools.groupby(sorted(rows, key=settings_of), settings_of):
        last = [row["curve"][-1] if row["curve"] else (0, 0.0, 0.0) for row in group]
        accuracies = [100 * accuracy for _, accuracy, _ in last]
        loss = statistics.fmean(row[2] for row in last)
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        print(
            f"{statistics.fmean(accuracies):5.1f} %, loss {loss:.3f}  {data}: {settings} [{each}]"
        )


def main() -> None:
    study = Study(__doc__, quick="10 rounds a run")
    study.parser.add_argument("--preset", default="snips")
    study.parser.add_argument("--try", dest="tries", action="append", default=[])
    study.parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    study.parser.add_argument("--ideal", action="store_true", help="no radio, no privacy")
    study.parser.add_argument("--on-validation", action="store_true", help="the figures to report")
    args = study.begin()
    data = "validation" if args.on_validation else "held out"
    tries = [f"{text}{',ideal' if args.ideal else ''}" for text in args.tries]
    wanted = [(data, text, seed) for text in tries for seed in args.seeds]
    todo = study.missing(wanted, lambda row: (row["data"], row["settings"], row["seed"]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train, held_out = hold_out(folder, load_config(args.preset).task.name)
        prefixes: PrefixCache | None = None
        files = {"task.train": str(train), "task.validation": str(held_out)}
        for number, (_, text, seed) in enumerate(todo, 1):
            overrides = {
                **parse_settings(text.removesuffix(",ideal")),
                **(IDEAL if args.ideal else {}),
                **({} if args.on_validation else files),
                **({"optimizer.rounds": 10} if args.quick else {}),
                "run.seed": seed,
            }
            result, prefixes = run_once(args.preset, overrides, folder / str(number), prefixes)
            row = {"data": data, "settings": text, "seed": seed, **result}
            study.add(row, f"{number}/{len(todo)} {text}, seed {seed}: {row['curve'][-1:]}")
    show(study.rows)
    study.finish(runs=study.rows)


if __name__ == "__main__":
    main()
