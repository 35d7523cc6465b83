r"""What do many directions a round buy? Accuracy against rounds, sweeps, airtime and seconds.

    python benchmarks/directions.py tune RESULTS.jsonl     # learning rate and clip of every cell
    python benchmarks/directions.py run RESULTS.jsonl      # five seeds of every cell, tuned
    python benchmarks/directions.py after RESULTS.jsonl    # what else may be done with the numbers
    python benchmarks/directions.py preset RESULTS.jsonl   # the preset; and 90 rounds of 8
    python benchmarks/directions.py show RESULTS.jsonl [--json FILE]

A cell is (Q, difference, epsilon) on the `snips` preset's model, data and channel, every run with
as many forward sweeps. Learning rates and clips are tuned on 1,000 training commands that are taken
away from the devices (`tune_preset.hold_out`), with one seed; the figures come from the validation
file, with five others. Epsilon "none" is without privacy and without radio.

Every finished run is a line in RESULTS; what is there is not run again, so each step can be stopped
at any time and goes on where it was. Seconds are of the machine at hand: run nothing beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tune_preset import IDEAL, hold_out

from edge_runtime.protocol.rounds import Difference, RoundResult
from server.config.files import load_config
from server.run.evaluation import evaluate
from server.run.experiment import Experiment, Progress
from server.run.round_loop import HeardMeans, StepRule, as_heard

SWEEPS = 1620
DIRECTIONS = (1, 2, 4, 8, 16)
DIFFERENCES = ("one_sided", "two_sided")
TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
POINTS = 12
LEVELS = (0.80, 0.85, 0.88)
RATES = (0.006, 0.009, 0.013, 0.018, 0.025)  # times sqrt(Q)
CLIPS = (7.0, 14.0)  # times sqrt(Q): the norm of Q gradients grows so
CELL = ("directions", "difference", "epsilon")
SHORT = {"rounds": 90, "directions": 8, "difference": "one_sided"}
SHORT_RATE, SHORT_CLIP = 0.025, 7.0  # as tuned for 8 one-sided directions at epsilon 1

Settings = dict[str, Any]


def overrides(settings: Settings) -> Settings:
    if "preset" in settings:
        changed = {f"optimizer.{name}": value for name, value in settings["preset"].items()}
        return changed if settings["private"] else changed | IDEAL
    sweeps_per_round = Difference(settings["difference"]).num_sweeps(settings["directions"])
    rounds = max(1, round(SWEEPS / sweeps_per_round))
    changed = {
        "optimizer.rounds": rounds,
        "optimizer.directions": settings["directions"],
        "optimizer.difference": settings["difference"],
        "optimizer.learning_rate": settings["rate"] * math.sqrt(settings["directions"]),
        "optimizer.clip": settings["clip"] * math.sqrt(settings["directions"]),
        "run.evaluation_interval": max(1, rounds // settings.get("points", POINTS)),
        "run.digest_interval": rounds,
    }
    if settings["epsilon"] is None:
        return changed | IDEAL  # the preset's payload of 256 symbols else
    return changed | {"privacy.epsilon": settings["epsilon"]}


def run_once(
    settings: Settings, seed: int, data: Settings, rule: StepRule = as_heard, average: float = 0.0
) -> Settings:
    """One run; its curve and what it cost. ``average``: part of the iterates that are averaged."""
    curve: list[tuple[int, float, float]] = []

    def note(progress: Progress) -> None:
        if (e := progress.evaluation) is not None:
            curve.append((e.num_rounds, e.accuracy, e.loss))

    with tempfile.TemporaryDirectory() as folder:
        config = load_config("snips", overrides(settings) | data | {"run.seed": seed})
        experiment = Experiment.start(config, Path(folder) / "run", step_rule=rule)
        failure = ""
        try:
            experiment.run(note)
            if average:
                curve.append((len(experiment.store.rounds()), *averaged(experiment, average)))
        except Exception as error:  # a diverged setting is a result, not the end of the study
            failure = f"{type(error).__name__}: {error}"[:120]
        finally:
            rows = experiment.store.rounds()
            experiment.close()
    radio = config.radio
    pilots = radio.pilot_symbols / radio.coherence_rounds
    return {
        "settings": settings,
        "seed": seed,
        "curve": curve,
        "rounds": len(rows),
        "sweeps_per_round": config.optimizer.sweeps_per_round,
        "symbols_per_round": config.optimizer.directions * radio.payload_symbols + pilots,
        "seconds_per_round": statistics.median(row.wall_s or 0.0 for row in rows) if rows else None,
        "share_clipped": statistics.fmean(row.share_clipped or 0.0 for row in rows),
        "noise_multiplier": max((row.noise_multiplier for row in rows), default=0.0),
        "failure": failure,
    }


def normalised() -> StepRule:
    """FZOO's: divided by the spread of the round's numbers, brought back by its running mean."""
    spreads: list[float] = []

    def rule(heard: HeardMeans) -> tuple[float, ...]:
        spread = float(np.std(heard.estimates, ddof=1))
        if spread == 0.0:
            return heard.estimates
        spreads.append(spread)
        factor = statistics.fmean(spreads[:10]) / spread
        return tuple(factor * p for p in heard.estimates)

    return rule


def wiener() -> StepRule:
    """Shrunk by S / (S + noise variance), S from a running mean of what is heard."""
    power = [0.0]

    def rule(heard: HeardMeans) -> tuple[float, ...]:
        noise_variance = heard.artificial_noise_std**2 + heard.receiver_noise_std**2
        now = float(np.mean(np.square(heard.estimates)))
        power[0] = now if power[0] == 0.0 else 0.9 * power[0] + 0.1 * now
        signal = max(power[0] - noise_variance, 0.05 * power[0])
        factor = signal / (signal + noise_variance)
        return tuple(factor * p for p in heard.estimates)

    return rule


def averaged(experiment: Experiment, part: float) -> tuple[float, float]:
    """Accuracy and loss of the mean of the last iterates: the run's replica takes the difference.

    The mean of the weights after rounds T-M+1 .. T lies behind the last ones by step t times the
    share of these iterates that come before it.
    """
    results = list(experiment.store.results(experiment.loop.run_id))
    num_averaged = max(1, round(part * len(results)))
    first = len(results) - num_averaged + 1
    for result in results[first:]:
        share = (result.round_index - first + 1) / num_averaged
        back = tuple(round(-share * step) for step in result.step_integers)
        experiment.loop.replica.apply_step(
            RoundResult(result.run_id, result.round_index, result.direction_seed, back)
        )
    got = evaluate(experiment.components.forward, experiment.components.validation)
    assert got is not None
    return got.accuracy, got.loss


AFTER: dict[str, tuple[Callable[[], StepRule], float]] = {
    "nothing": (lambda: as_heard, 0.0),
    "normalised": (normalised, 0.0),
    "wiener": (wiener, 0.0),
    "mean of the last tenth": (lambda: as_heard, 0.1),
    "mean of the last quarter": (lambda: as_heard, 0.25),
}


class Results:
    """A file of finished runs, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def of(self, kind: str) -> list[Settings]:
        """The runs of one step."""
        return [row for row in self.rows if row["kind"] == kind]

    def get(self, kind: str, settings: Settings, seed: int) -> Settings | None:
        """A finished run; None if there is none."""
        for row in self.of(kind):
            if row["settings"] == settings and row["seed"] == seed:
                return row
        return None

    def add(self, kind: str, row: Settings) -> None:
        """Write a finished run down."""
        row = {"kind": kind, **row}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        last = row["curve"][-1] if row["curve"] else None
        print(kind, row["settings"], "seed", row["seed"], last, row["failure"], flush=True)


def cells() -> Iterator[Settings]:
    for num_directions, difference in itertools.product(DIRECTIONS, DIFFERENCES):
        for epsilon in (1.0, None):
            yield {"directions": num_directions, "difference": difference, "epsilon": epsilon}


def tune(results: Results) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = hold_out(Path(folder))
        data = {"task.train": str(train), "task.validation": str(held_out)}
        for cell, rate, clip in itertools.product(cells(), RATES, CLIPS):
            if cell["epsilon"] is None and clip != CLIPS[-1]:
                continue
            settings = cell | {"rate": rate, "clip": clip, "points": 1}
            if results.get("tune", settings, TUNING_SEED) is None:
                results.add("tune", run_once(settings, TUNING_SEED, data))


def best_settings(results: Results, cell: Settings) -> Settings:
    """Those whose last held-out loss was lowest among the runs that did not fail."""
    tried = [
        row for row in results.of("tune")
        if not row["failure"] and all(row["settings"][name] == cell[name] for name in CELL)
    ]  # fmt: skip
    if not tried:
        raise SystemExit(f"{cell}: nothing was tuned; run the tune step first.")
    best: Settings = min(tried, key=lambda row: row["curve"][-1][2])["settings"]
    return {name: value for name, value in best.items() if name != "points"}


def run_cells(results: Results) -> None:
    for cell in cells():
        run_seeds(results, best_settings(results, cell))
    winner = winning_settings(results)
    for epsilon in (0.5, 8.0):
        run_seeds(results, winner | {"epsilon": epsilon})


def run_seeds(results: Results, settings: Settings) -> None:
    for seed in SEEDS:
        if results.get("run", settings, seed) is None:
            results.add("run", run_once(settings, seed, {}))


def winning_settings(results: Results) -> Settings:
    """The cell at epsilon 1 with the lowest median loss at the end."""
    medians: list[tuple[float, Settings]] = []
    for cell in cells():
        if cell["epsilon"] == 1.0:
            settings = best_settings(results, cell)
            rows = [row for row in results.of("run") if row["settings"] == settings]
            medians.append((statistics.median(row["curve"][-1][2] for row in rows), settings))
    return min(medians, key=lambda one: one[0])[1]


def run_after(results: Results) -> None:
    winner = winning_settings(results)
    for name, (make, average) in AFTER.items():
        for seed in SEEDS:
            settings = winner | {"after": name}
            if results.get("after", settings, seed) is None:
                row = run_once(winner, seed, {}, make(), average)
                results.add("after", row | {"settings": settings})


def run_preset(results: Results) -> None:
    """The preset whole, with privacy and without, and planned for 90 rounds only."""
    optimizer = load_config("snips").optimizer
    now = msgspec.to_builtins(optimizer)
    short = SHORT | {
        "learning_rate": SHORT_RATE * math.sqrt(SHORT["directions"]),
        "clip": SHORT_CLIP * math.sqrt(SHORT["directions"]),
    }
    for changed, private in ((now, True), (now, False), (now | short, True)):
        for seed in SEEDS:
            settings = {"preset": changed, "private": private}
            if results.get("preset", settings, seed) is None:
                results.add("preset", run_once(settings, seed, {}))


def interval(values: list[float]) -> str:
    """Median and range of the seeds."""
    return f"{statistics.median(values):6.1%} ({min(values):.1%}-{max(values):.1%})"


def first_round_at(row: Settings, level: float) -> float:
    """The first evaluated round with that accuracy; infinite if there is none."""
    return next((n for n, accuracy, _ in row["curve"] if accuracy >= level), math.inf)


def grouped(rows: list[Settings]) -> dict[str, list[Settings]]:
    """The runs of equal settings, by these as JSON."""
    groups: dict[str, list[Settings]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["settings"], sort_keys=True), []).append(row)
    return groups


def show(results: Results) -> list[Settings]:
    table = []
    for key, rows in grouped(results.of("run")).items():
        settings = json.loads(key)
        line: Settings = dict(settings)
        line["accuracy"] = [row["curve"][-1][1] for row in rows]
        line["loss"] = [row["curve"][-1][2] for row in rows]
        line["rounds"] = rows[0]["rounds"]
        for level in LEVELS:
            rounds = statistics.median(first_round_at(row, level) for row in rows)
            costs = {
                "rounds": 1.0,
                "sweeps": rows[0]["sweeps_per_round"],
                "symbols": rows[0]["symbols_per_round"],
                "seconds": statistics.median(row["seconds_per_round"] for row in rows),
            }
            line[f"to_{level:.0%}"] = {
                name: round(rounds * cost, 2) if math.isfinite(rounds) else None
                for name, cost in costs.items()
            }
        table.append(line)
    table.sort(key=lambda s: (s["epsilon"] or 99.0, s["directions"], s["difference"]))
    print(f"{len(SEEDS)} seeds, {SWEEPS} sweeps a run; median (range); cost to 80 % in medians")
    for line in table:
        to = line["to_80%"]
        print(
            f"epsilon {line['epsilon'] or 'none':>4} Q {line['directions']:2d} "
            f"{line['difference']:9s} rate {line['rate']:.3f} clip {line['clip']:4.1f} (x sqrt Q) "
            f"{line['rounds']:4d} rounds: {interval(line['accuracy'])}; to 80 %: "
            f"{to['rounds']} rounds, {to['sweeps']} sweeps, {to['symbols']} symbols, "
            f"{to['seconds']} s"
        )
    for name, rows in grouped(results.of("preset")).items():
        settings = json.loads(name)
        optimizer = settings["preset"]
        last = [row["curve"][-1][1] for row in rows]
        seconds = [row["rounds"] * row["seconds_per_round"] for row in rows]
        print(
            f"preset, {'private' if settings['private'] else 'noiseless'}: "
            f"{optimizer['rounds']} rounds of {optimizer['directions']}, "
            f"{optimizer['rounds'] * rows[0]['sweeps_per_round']} sweeps: {interval(last)}, "
            f"{statistics.median(seconds):.1f} s"
        )
    after: dict[str, list[Settings]] = {}
    for row in sorted(results.of("after"), key=lambda row: int(row["seed"])):
        after.setdefault(row["settings"]["after"], []).append(row)
    for name, rows in after.items():
        accuracy = [row["curve"][-1][1] for row in rows]
        gains = [a - b["curve"][-1][1] for a, b in zip(accuracy, after["nothing"], strict=False)]
        print(f"after: {name:25s} {interval(accuracy)}; against nothing {t_interval(gains)}")
    return table


def t_interval(gains: list[float]) -> str:
    """Mean of paired differences and its 95 % interval (Student's t, four degrees of freedom)."""
    if len(gains) < 5 or not any(gains):
        return "-"
    half = 2.776 * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.fmean(gains):+.1%} +- {half:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("step", choices=("tune", "run", "after", "preset", "show"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--json", type=Path, help="where `show` writes its table")
    args = parser.parse_args()
    results = Results(args.results)
    if args.step == "show":
        table = show(results)
        if args.json:
            args.json.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    else:
        steps = {"tune": tune, "run": run_cells, "after": run_after, "preset": run_preset}
        steps[args.step](results)


if __name__ == "__main__":
    main()
