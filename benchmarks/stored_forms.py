r"""Does a run learn as well on weights of 16 bits, and on frozen ones of 8?

The preset `snips`, radio and privacy as they are, on the bundled model exported in each form: all
float32; all matrices in 16 bits; and all in 8 but those that the preset trains, which get 16. Each
form is made as a user would (`pairzero save`, then `pairzero export --store`), so it needs the
[export] extra. The accuracy is the validation file's, after the last round; the figure of a form is
the median over the seeds, and what it differs from float32 by.

    python benchmarks/stored_forms.py forms.jsonl --json forms.json    # 9 runs of 450 rounds
    python benchmarks/stored_forms.py quick.jsonl --quick              # 2 runs of 20
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from study import Study

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER
from edge_runtime.task_spec import load_task
from server.config.files import load_config
from server.export import export_bundle
from server.model.tuned import HUGGING_FACE_FOLDER, load_model, save_model
from server.run.experiment import Experiment, Progress

FORMS = ("float32", "int16", "int8")
SEEDS = (0, 1, 2)
QUICK = {"optimizer.rounds": 20}


def make_bundle(form: str, folder: Path) -> Path:
    """The bundled model in one of the forms."""
    out = folder / form
    if out.is_dir():
        return out
    config = load_config("snips", {})
    task, _ = load_task(config.task.name)
    source = folder / "source"
    if not source.is_dir():
        save_model(load_model(BUNDLED_MODEL_FOLDER), source)
    trainable = config.model.trainable if form == "int8" else ()
    return export_bundle(
        source / HUGGING_FACE_FOLDER, out, task=task, store=form, trainable=list(trainable)
    )


def run_once(form: str, seed: int, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """One run: its accuracy before and after, and its pace."""
    bundle = make_bundle(form, folder)
    overrides = {"model.bundle": str(bundle), "run.seed": seed, **changes}
    config = load_config("snips", overrides)
    curve: list[tuple[int, float]] = []

    def note(progress: Progress) -> None:
        if (e := progress.evaluation) is not None:
            curve.append((e.num_rounds, round(e.accuracy, 4)))

    with tempfile.TemporaryDirectory() as run_folder:
        experiment = Experiment.start(config, Path(run_folder) / "run")
        try:
            experiment.run(note)
        finally:
            rows = experiment.store.rounds()
            experiment.close()
    return {
        "form": form,
        "seed": seed,
        "rounds": len(rows),
        "curve": curve,
        "accuracy": curve[-1][1],
        "ms_per_round": 1e3 * statistics.median(row.wall_s or 0.0 for row in rows),
        "bundle_mb": sum(path.stat().st_size for path in bundle.iterdir()) / 1e6,
    }


def main() -> None:
    study = Study(__doc__, quick="one seed, 20 rounds, float32 and int16")
    args = study.begin()
    cells = [(form, seed) for seed in SEEDS for form in FORMS]
    if args.quick:
        cells = [("float32", 0), ("int16", 0)]
    with tempfile.TemporaryDirectory() as folder:
        for form, seed in study.missing(cells, lambda row: (row["form"], row["seed"])):
            row = run_once(form, seed, Path(folder), QUICK if args.quick else {})
            study.add(row, f"{form}, seed {seed}: {row['accuracy']:.1%}")
    forms = {}
    for form in FORMS:
        rows = [row for row in study.rows if row["form"] == form]
        if rows:
            forms[form] = {
                "accuracy_median": statistics.median(row["accuracy"] for row in rows),
                "accuracies": [row["accuracy"] for row in rows],
                "ms_per_round": statistics.median(row["ms_per_round"] for row in rows),
                "bundle_mb": rows[0]["bundle_mb"],
            }
    base = forms["float32"]["accuracy_median"]
    for form, figures in forms.items():
        figures["points_below_float32"] = 100 * (base - figures["accuracy_median"])
        print(f"{form:8s} {figures['accuracy_median']:.1%}  {figures['accuracies']}")
    study.finish(forms=forms, rows=study.rows)


if __name__ == "__main__":
    main()
