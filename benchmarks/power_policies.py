"""What does the power policy do to what a run learns? Loss and accuracy by policy and SNR.

The bundled task with 20 devices and a promise to whole devices (epsilon 60, delta 1e-2, 150 rounds
of eight numbers, Rayleigh fading in blocks of 15 rounds, pilots long enough for -20 dB, a model
that forgets 1 % of its noise a round), once with every policy that plans runs; `perfect` without
any promise and `subsampled`, one example at epsilon 1, stand beside them. The learning rate is one
rule for all, four times the preset's rate times the share of its progress that noise leaves
(`pairzero plan`), at most the preset's. `paper` keeps no promise, so no run has it.

A policy's difference to `static` is taken seed by seed, with a Student interval over the seeds,
widened for as many comparisons as there are (Bonferroni, 95 % for all together). Resumes; a run
takes some 14 s on one core, all of them half an hour on two::

    python benchmarks/power_policies.py policies.jsonl
    python benchmarks/power_policies.py policies.jsonl --show --json power_policies.json
    python benchmarks/power_policies.py quick.jsonl --quick
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from study import Study

from server.config.files import load_config
from server.config.run_config import RunConfig
from server.planning.learnability import outlook
from server.planning.policy_preview import preview_policy
from server.planning.scalar_rms import TypicalNumber
from server.report.page import read_runs
from server.run.experiment import Experiment

SNRS_DB = (-20.0, -10.0, 0.0, 10.0, 20.0)
SEEDS = (0, 1, 2, 3, 4)
POLICIES = (
    "static", "optimal", "reversed", "selection", "equal_split", "constant_inversion",
    "truncated_inversion", "sign", "subsampled", "perfect",
)  # fmt: skip
RATE = 6e-2
TYPICAL = 0.765
"""Of the mean of 80 public examples before tuning, as `pairzero plan` finds it."""


def configure(policy: str, snr_db: float, seed: int, rounds: int, rate: float) -> RunConfig:
    """The study's run with one policy."""
    changes: dict[str, Any] = {
        "federation.num_devices": 20,
        "optimizer.batch_size": 4,
        "optimizer.rounds": rounds,
        "optimizer.learning_rate": rate,
        "optimizer.typical_number": TYPICAL,
        "radio.snr_db": snr_db,
        "radio.pilot_symbols": 65536,
        "radio.coherence_rounds": 15,
        "power.contraction": 0.99,
        "power.policy": policy,
        "privacy.unit": "device",
        "privacy.epsilon": 60.0,
        "privacy.delta": 1e-2,
        "run.seed": seed,
        "run.evaluation_interval": rounds,
        "run.workers": 1,
    }
    if policy == "sign":
        changes |= {"radio.waveform": "coherent_vote", "privacy.vote_noise": "after_sign"}
        del changes["optimizer.typical_number"]
    if policy == "subsampled":
        changes |= {"privacy.unit": "example", "privacy.epsilon": 1.0, "privacy.delta": 1e-5}
    if policy == "static":
        del changes["power.contraction"]  # its rounds are all alike
    if policy == "perfect":
        promise = (
            "privacy.unit", "privacy.epsilon", "privacy.delta", "power.contraction",
            "power.policy", "optimizer.typical_number",
        )  # fmt: skip
        changes = {key: value for key, value in changes.items() if key not in promise}
        changes["privacy.enabled"] = False
    return load_config("snips", changes)


def one_run(policy: str, snr_db: float, seed: int, rounds: int) -> dict[str, Any]:
    """Loss and accuracy, before and after."""
    config = configure(policy, snr_db, seed, rounds, RATE)
    typical = TypicalNumber(1.0 if policy == "sign" else TYPICAL, "the study's")
    preview = preview_policy(config, policy, [650] * 20, spending=False)
    share = outlook(config, preview, typical).effective_rounds / rounds
    rate = RATE * min(1.0, max(4.0 * share, 1e-4))
    with tempfile.TemporaryDirectory() as folder:
        run = Experiment.start(configure(policy, snr_db, seed, rounds, rate), Path(folder) / "run")
        try:
            run.run(is_fresh_process=False)
            first, *_, last = run.store.evaluations()
            silent = sum(row.num_speakers == 0 for row in run.store.rounds())
        finally:
            run.close()
        summary = read_runs(Path(folder) / "run")[0].summary
    return {
        "policy": policy, "snr_db": snr_db, "seed": seed, "rounds": rounds,
        "learning_rate": rate, "worth_rounds": share * rounds, "silent_rounds": silent,
        "epsilon": summary["epsilon"], "outcome": summary["outcome"],
        "accuracy_before": first.accuracy, "accuracy": last.accuracy,
        "loss_before": first.loss, "loss": last.loss,
    }  # fmt: skip


def one_cell(cell: tuple[str, float, int], rounds: int) -> dict[str, Any]:
    """The run of a cell, for a pool of processes."""
    return one_run(*cell, rounds)


def interval(values: Sequence[float], error: float) -> tuple[float, float]:
    """Mean, and half the width of its Student interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.inf
    factor = float(student.ppf(1.0 - error / 2.0, count - 1))
    return mean, factor * float(np.std(values, ddof=1)) / math.sqrt(count)


def conclusions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every policy and SNR."""
    by_cell: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault((row["policy"], row["snr_db"]), {})[row["seed"]] = row
    num_comparisons = max(1, sum(policy != "static" for policy, _ in by_cell))
    found = []
    for (policy, snr_db), of_seed in sorted(by_cell.items(), key=_order):
        base = by_cell.get(("static", snr_db), {})
        line: dict[str, Any] = {"policy": policy, "snr_db": snr_db, "runs": len(of_seed)}
        for name in ("accuracy", "loss", "worth_rounds"):
            values = [row[name] for row in of_seed.values()]
            line[name], line[f"{name}_half_width"] = interval(values, 0.05)
        for name in ("accuracy", "loss"):
            pairs = [row[name] - base[s][name] for s, row in of_seed.items() if s in base]
            if policy != "static" and len(pairs) > 1:
                mean, half = interval(pairs, 0.05 / num_comparisons)
                line[f"{name}_over_static"] = mean
                line[f"{name}_over_static_half_width"] = half
                line[f"{name}_differs"] = abs(mean) > half
        found.append(line)
    return found


def _order(entry: tuple[tuple[str, float], Any]) -> tuple[float, int]:
    (policy, snr_db), _ = entry
    return snr_db, POLICIES.index(policy)


def show(lines: list[dict[str, Any]]) -> None:
    """The table; a star where a difference to static is real."""
    print("SNR dB  policy                 runs    worth        accuracy              loss")
    for line in lines:
        star = {name: "*" if line.get(f"{name}_differs") else " " for name in ("accuracy", "loss")}
        print(
            f"{line['snr_db']:6g}  {line['policy']:21s}{line['runs']:6d}{line['worth_rounds']:9.2f}"
            f"{100 * line['accuracy']:9.1f} +-{100 * line['accuracy_half_width']:5.1f} %"
            f"{star['accuracy']}{line['loss']:9.3f} +-{line['loss_half_width']:6.3f}{star['loss']}"
        )


def main() -> None:
    study = Study(__doc__, quick="a few short runs")
    study.parser.add_argument("--processes", type=int, default=2)
    args = study.begin()
    wanted = [(p, snr, seed) for seed, snr, p in itertools.product(SEEDS, SNRS_DB, POLICIES)]
    rounds = 150
    if args.quick:
        wanted, rounds = [(p, 20.0, s) for s in (0, 1) for p in ("static", "sign", "perfect")], 3
    todo = study.missing(wanted, lambda row: (row["policy"], row["snr_db"], row["seed"]))
    with ProcessPoolExecutor(args.processes) as pool:
        for row in pool.map(one_cell, todo, itertools.repeat(rounds)):
            study.add(row, f"{row['policy']} at {row['snr_db']:g} dB, seed {row['seed']}")
    lines = conclusions(study.rows)
    show(lines)
    study.finish(cells=lines, runs=study.rows)


if __name__ == "__main__":
    main()
