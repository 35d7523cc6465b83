"""How near does planning as the run goes come to hindsight, and does the budget hold on any path?

Random fading paths: K = 5, T = 200, SNR -25 to 20 dB, receiver noise trusted or not, weights of a
contraction. For each path and rule the objective over that of the optimum that knows the whole
path, and what was spent of the budget::

    python benchmarks/online_planning.py online.jsonl                  # 1,000 paths, some minutes
    python benchmarks/online_planning.py online.jsonl --show --json online.json
    python benchmarks/online_planning.py quick.jsonl --quick
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from hindsight import plan_optimal
from study import Study

from server.power.online import OnlinePlanner, Rule
from server.power.schedule import PlanningProblem
from server.privacy.gaussian import budget_of

NUM_PATHS, NUM_ROUNDS, NUM_DEVICES = 1000, 200, 5
DRAWS = 500


def path(index: int) -> dict[str, Any]:
    """One path under all rules."""
    rng = np.random.default_rng([2025, index])
    snr_db = float(rng.uniform(-25.0, 20.0))
    weights = float(rng.uniform(0.99, 1.0)) ** -np.arange(NUM_ROUNDS)
    run = PlanningProblem(
        power_gains=rng.exponential(size=(NUM_DEVICES, NUM_ROUNDS)),
        bounds=np.ones(NUM_DEVICES),
        sensitivities=np.full(NUM_ROUNDS, 2.0),
        weights=weights / weights.max(),
        noise_power=10.0 ** (-snr_db / 10.0),
        budget=budget_of(5.0, 1e-2),
        trusted_noise_fraction=float(rng.choice([0.0, 1.0])),
        peak_factor=float(rng.choice([0.0, 8.0])),
    )
    assumed = dataclasses.replace(
        run,
        power_gains=rng.exponential(size=(NUM_DEVICES, DRAWS)),
        sensitivities=np.full(DRAWS, 2.0),
        weights=np.ones(DRAWS),
    )
    best = plan_optimal(run).objective
    row: dict[str, Any] = {
        "index": index, "snr_db": round(snr_db, 2), "trusted": run.trusted_noise_fraction
    }  # fmt: skip
    for rule in Rule:
        planner = OnlinePlanner(assumed, run.weights, rule)
        rounds = [planner.plan_round(run.power_gains[:, t]) for t in range(NUM_ROUNDS)]
        row[rule] = {
            "over_hindsight": math.fsum(one.objective for one in rounds) / best,
            "spent": math.fsum(one.spent for one in rounds) / run.budget,
            "silent": sum(bool(one.is_silent[0]) for one in rounds),
        }
    return row


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{len(rows)} paths")
    print(
        f"{'rule':10s}{'mean':>9s}{'worst':>9s}{'exceeded':>10s}{'most spent':>15s}{'silent':>8s}"
    )
    for rule in Rule:
        ratios = [row[rule]["over_hindsight"] for row in rows]
        spent = [row[rule]["spent"] for row in rows]
        silent = sum(row[rule]["silent"] for row in rows)
        print(
            f"{rule:10s}{np.mean(ratios):9.4f}{max(ratios):9.4f}"
            f"{sum(share > 1.0 for share in spent):10d}{max(spent):15.12f}{silent:8d}"
        )
    print("mean, worst: objective over that of hindsight; exceeded: paths beyond the budget")


def main() -> None:
    study = Study(__doc__, quick="five paths")
    args = study.begin()
    wanted = range(5 if args.quick else NUM_PATHS)
    for index in study.missing(wanted, lambda row: int(row["index"])):
        study.add(path(index), f"path {index}")
    show(study.rows)
    study.finish(paths=study.rows)


if __name__ == "__main__":
    main()
