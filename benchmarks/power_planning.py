"""Are the closed forms of power planning the optimum, and what do they cost beside a solver?

Random instances: K 2 to 50, T 50 to 2,000, SNR -30 to 20 dB, unequal bounds and path losses, the
weights of a contraction A^-t. For each, the objective of the closed form over that of cvxpy with
CLARABEL, the share of the budget that was spent, and both times in one process, one after the
other::

    python benchmarks/power_planning.py planning.jsonl                       # 400 instances
    python benchmarks/power_planning.py planning.jsonl --show --json planning.json
    python benchmarks/power_planning.py quick.jsonl --quick                  # some seconds

A closed form may be better than the solver, which stops at a tolerance; it must never be more than
1e-6 worse. What a solver ends with other than "optimal" is counted and is no comparison. Plans with
batteries, duty cycles and caps have no closed form: those are CLARABEL against SCS, both made
feasible, and agree as well as SCS does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import convex_oracle
import numpy as np
from hindsight import (
    central_limit_costs,
    plan_optimal,
    plan_sign,
    plan_subsampled,
    wrong_majority_bound,
)
from study import Study

from server.power.limits import PowerLimits, energies
from server.power.policies.equal_split import plan_equal_split
from server.power.policies.limited import plan_limited
from server.power.policies.selection import plan_selection
from server.power.schedule import InfeasiblePlanError, PlanningProblem
from server.privacy.gaussian import budget_of, gdp_mu_of

KINDS = {
    "optimal": 200, "trusted": 60, "equal_split": 60, "sign": 60, "subsampled": 60, "limited": 60,
}  # fmt: skip
SAMPLING_PROBABILITY = 0.02
WORSE_LIMIT, SCS_LIMIT = 1e-6, 1e-3


def instance(kind: str, index: int, quick: bool) -> tuple[PlanningProblem, dict[str, Any]]:
    """A random problem of a kind, and what else its policy is told."""
    rng = np.random.default_rng([list(KINDS).index(kind), index, int(quick)])
    devices = int(rng.integers(2, 51))
    rounds = int(rng.integers(50, 101 if quick or kind == "limited" else 2001))
    snr_db = float(rng.uniform(-30.0, 20.0))
    paths = 10.0 ** (-rng.uniform(0.0, 1.0, (devices, 1)))
    contraction = float(rng.uniform(0.998, 1.0))
    weights = contraction ** -np.arange(rounds)
    is_vote = kind == "sign"
    epsilon, delta = float(rng.choice([1.0, 5.0])), float(rng.choice([1e-2, 1e-5]))
    bounds = np.ones(devices) if is_vote else rng.uniform(0.3, 1.0, devices)
    trusted = float(rng.choice([0.0, 0.1, 0.5, 0.9])) if kind == "trusted" else 1.0
    problem = PlanningProblem(
        power_gains=rng.exponential(size=(devices, rounds)) * paths,
        bounds=bounds,
        sensitivities=np.full(rounds, 2.0 * float(bounds.max())),
        weights=weights / weights.max(),
        noise_power=10.0 ** (-snr_db / 10.0),
        budget=budget_of(epsilon, delta),
        trusted_noise_fraction=trusted,
        peak_factor=float(rng.choice([0.0, 8.0])),
    )
    told = {
        "devices": devices, "rounds": rounds, "snr_db": round(snr_db, 2), "trusted": trusted,
        "missing": int(rng.integers(0, devices)), "e0": round(float(rng.uniform(0.3, 0.49)), 3),
        "mu": gdp_mu_of(epsilon, delta), "peak_factor": problem.peak_factor,
        "battery": round(float(rng.uniform(0.2, 1.0)), 3),
        "duty": round(float(rng.uniform(0.3, 1.0)), 3),
        "cap": round(float(rng.uniform(0.3, 1.0)), 3),
    }  # fmt: skip
    return problem, told


def compare(kind: str, index: int, quick: bool) -> dict[str, Any]:
    """Closed form and solver on one instance."""
    problem, told = instance(kind, index, quick)
    (ours, spent), own_s = timed(lambda: closed_form(kind, problem, told))
    row = {"kind": kind, "index": index, **told, "objective": ours, "own_s": own_s, "spent": spent}
    try:
        theirs, solver_s = timed(lambda: by_solver(kind, problem, told))
    except InfeasiblePlanError as error:
        return row | {"failure": str(error)}
    return row | {"worse_by": ours / theirs - 1.0, "solver_s": solver_s}


def closed_form(kind: str, problem: PlanningProblem, told: dict[str, Any]) -> tuple[float, float]:
    """Objective, and share of the budget spent."""
    if kind == "sign":
        schedule = plan_sign(problem, told["e0"])
        bound = wrong_majority_bound(schedule, told["e0"])
        return math.fsum(problem.weights * bound), schedule.spent / problem.budget
    if kind == "subsampled":
        costs = central_limit_costs(
            problem, sampling_probability=SAMPLING_PROBABILITY, mu=told["mu"]
        )
        limit = (told["mu"] / SAMPLING_PROBABILITY) ** 2
        noise = problem.noise_of_costs(costs)
        return math.fsum(problem.weights * noise), math.fsum(np.expm1(2.0 * costs)) / limit
    if kind == "equal_split":
        schedule = plan_equal_split(problem, told["missing"])
    elif kind == "limited":
        schedule = plan_limited(problem, limits_of(problem, told))
    else:
        schedule = plan_optimal(problem)
    return schedule.objective, schedule.spent / problem.budget


def limits_of(problem: PlanningProblem, told: dict[str, Any]) -> PowerLimits:
    """A battery below what the best devices would use, a duty cycle, a cap."""
    used = energies(plan_selection(problem))
    return PowerLimits(
        max_energy=np.maximum(told["battery"] * used, 1e-3 * used.max()),
        max_duty=told["duty"],
        peak_caps=told["cap"],
    )


def by_solver(kind: str, problem: PlanningProblem, told: dict[str, Any]) -> float:
    """The objective that cvxpy finds."""
    if kind == "sign":
        return convex_oracle.sign_objective(problem, told["e0"])
    if kind == "subsampled":
        return convex_oracle.central_limit_objective(
            problem, sampling_probability=SAMPLING_PROBABILITY, mu=told["mu"]
        )
    if kind == "limited":
        return plan_limited(problem, limits_of(problem, told), solver="SCS").objective
    if kind == "equal_split":
        return convex_oracle.equal_split_objective(problem, told["missing"])
    return convex_oracle.plan_convex(problem).objective


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = act()
    return result, time.perf_counter() - started


def largest_run() -> dict[str, float]:
    """Planning T = 8000 rounds of K = 50 devices, and the repair of a subsampled plan."""
    rng = np.random.default_rng(8000)
    problem = PlanningProblem(
        power_gains=rng.exponential(size=(50, 8000)),
        bounds=np.ones(50),
        sensitivities=np.full(8000, 2.0),
        weights=np.ones(8000),
        noise_power=1.0,
        budget=budget_of(5.0, 1e-2),
    )
    record_level = PlanningProblem(
        power_gains=problem.power_gains,
        bounds=problem.bounds,
        sensitivities=np.full(8000, 1.0 / 16.0),
        weights=problem.weights,
        noise_power=1.0,
        budget=1.0,
    )
    plan_optimal(problem)
    _, optimal_s = timed(lambda: plan_optimal(problem))
    _, shape_s = timed(
        lambda: central_limit_costs(record_level, sampling_probability=0.016, mu=0.5)
    )
    _, repaired_s = timed(
        lambda: plan_subsampled(record_level, sampling_probability=0.016, epsilon=2.0, delta=1e-5)
    )
    return {"optimal_s": optimal_s, "subsampled_shape_s": shape_s, "subsampled_s": repaired_s}


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'kind':14s}{'instances':>10s}{'failed':>8s}{'worst':>11s}{'median':>11s}"
        f"{'best':>11s}{'spent':>14s}{'solver/own':>12s}"
    )
    for kind in KINDS:
        group = [row for row in rows if row["kind"] == kind]
        compared = [row for row in group if "worse_by" in row]
        if not compared:
            continue
        worse = sorted(row["worse_by"] for row in compared)
        ratio = float(np.median([row["solver_s"] / row["own_s"] for row in compared]))
        spent = max(row["spent"] for row in group)
        limit = SCS_LIMIT if kind == "limited" else WORSE_LIMIT
        mark = " !" if worse[-1] > limit or spent > 1.0 + 1e-9 else ""
        print(
            f"{kind:14s}{len(group):10d}{len(group) - len(compared):8d}{worse[-1]:11.1e}"
            f"{worse[len(worse) // 2]:11.1e}{worse[0]:11.1e}{spent:14.9f}{ratio:12.1f}{mark}"
        )
    print(
        "worst, median, best: closed form over solver, less 1; spent: largest share of the budget"
    )


def main() -> None:
    study = Study(__doc__, quick="a few small instances")
    args = study.begin()
    wanted = [
        (kind, index)
        for kind, count in KINDS.items()
        for index in range(4 if args.quick else count)
    ]
    todo = study.missing(wanted, lambda row: (row["kind"], row["index"]))
    for number, (kind, index) in enumerate(todo, 1):
        row = compare(kind, index, args.quick)
        study.add(row, f"{number}/{len(todo)} {kind} {row.get('worse_by', 'failed')}")
    show(study.rows)
    times = {} if args.quick else largest_run()
    for name, seconds in times.items():
        print(f"T = 8000, K = 50: {name} {seconds:.3f}")
    study.finish(largest_run=times, instances=study.rows)


if __name__ == "__main__":
    main()
