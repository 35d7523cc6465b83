"""Can anybody tell from what is heard whether one record took part, better than is charged?

Two devices, wired as in a run, send four numbers a round (`audited_run.py`). With a canary among
the first device's records and without it 40,000 runs each; an attacker who knows the canary's shift
scores every run by its likelihood ratio, once under the noise that was charged and once under what
noise the first runs showed him, correlations between numbers, quadratures and rounds included. At
thresholds that were fixed beforehand the counts are held against the whole privacy profile of what
was charged, computed by dp-accounting (`server.privacy.audit`; all tests of a cell together refute
a sound one once in a million). "proved" is epsilon, at the promised delta, of the quietest
mechanism, of the charged rate and rounds, that is not refuted; "noise" its share of the charged
noise. Sound cells must stay at or above 1, and of each kind of fault the smallest one that is seen
is the figure. Resumes; half an hour on two cores::

    python benchmarks/privacy_audit.py audit.jsonl
    python benchmarks/privacy_audit.py audit.jsonl --show --json privacy_audit.json
    python benchmarks/privacy_audit.py quick.jsonl --quick
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from audited_run import DELTA, EPSILON, NUM_DIRECTIONS, PATTERN, AuditedRun, Cell
from dp_accounting.pld import privacy_loss_distribution as pld
from study import Study

from radio.arrays import Float64Array
from server.planning.privacy_terms import PrivacyTerms
from server.privacy.audit import Profile, is_refuted

ALPHA = 1e-6
NUM_CHUNKS, CHUNK = 9, 5_000
"""The first chunk shows the attacker the noise; the others are counted."""

THRESHOLDS = (-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5)
"""Of the log likelihood ratio."""

ATTACKS = ("as charged", "as seen")

CELLS = {
    "one round": Cell(),
    "two rounds": Cell(rounds=2),
    "half are drawn": Cell(declared=20, held=20),
    "half are drawn, two rounds": Cell(rounds=2, declared=20, held=20),
    "a carrier turned": Cell(turned_rad=0.1),
    "noise x 0.97": Cell(noise=0.97),
    "noise x 0.95": Cell(noise=0.95),
    "noise x 0.9": Cell(noise=0.9),
    "half are drawn, noise x 0.9": Cell(declared=20, held=20, noise=0.9),
    "clip x 1.03": Cell(clip=1.03),
    "clip x 1.05": Cell(clip=1.05),
    "clip x 1.1": Cell(clip=1.1),
    "rate x 1.05": Cell(declared=20, held=19),
    "rate x 1.11": Cell(declared=20, held=18),
    "rate x 1.25": Cell(declared=20, held=16),
    "a device without noise": Cell(is_one_silent=True),
    "one noise for all numbers": Cell(is_one_noise=True),
    "one noise for two rounds": Cell(rounds=2, reuses_noise=True),
    "noise in phase alone": Cell(turned_rad=0.1, is_in_phase=True),
}


class Attack:
    """Likelihood ratios under a model of the noise: independent and of one size, or as it was seen.

    Args:
        run: a run of the cell, for what was charged.
        seen: mean and covariance of views without the canary, of all rounds in a row; None for the
            noise that was charged.
    """

    def __init__(self, run: AuditedRun, seen: tuple[Float64Array, Float64Array] | None) -> None:
        rounds = run.cell.rounds
        self._rate = run.terms.sampling_probabilities[0]
        shift = np.concatenate([run.shift * PATTERN, np.zeros(NUM_DIRECTIONS)])
        self._shift = np.tile(shift, rounds)
        if seen is None:
            std = np.array(run.terms.noise_multipliers) * run.terms.sensitivity
            self._mean = np.zeros(len(self._shift))
            self._inverse = np.diag(np.repeat(std**-2.0, 2 * NUM_DIRECTIONS))
        else:
            self._mean, self._inverse = seen[0], np.linalg.inv(seen[1])
        if self._rate < 1.0:  # a canary that is drawn in one round need not be in another
            blocks = np.kron(np.eye(rounds), np.ones((2 * NUM_DIRECTIONS,) * 2))
            self._inverse = self._inverse * blocks

    def scores(self, views: Float64Array) -> Float64Array:
        """Log likelihood ratios of views [num, rounds 2 Q], canary or not."""
        pull = (views - self._mean) @ self._inverse * self._shift
        drag = self._inverse @ self._shift * self._shift
        exponents = pull - drag / 2.0
        if self._rate == 1.0:
            total: Float64Array = exponents.sum(axis=1)
            return total
        per_round = exponents.reshape(len(views), -1, 2 * NUM_DIRECTIONS).sum(axis=2)
        drawn = np.log(self._rate) + per_round
        ratios: Float64Array = np.logaddexp(drawn, np.log1p(-self._rate)).sum(axis=1)
        return ratios


def examine(
    name: str, has_canary: bool, chunk: int, num: int, seen: tuple[list[Any], list[Any]] | None
) -> dict[str, Any]:
    """A chunk of runs: the attacker's first look, or counts above each threshold."""
    run = AuditedRun(CELLS[name], has_canary=has_canary, seed=1 + chunk)
    try:
        views = np.array([view.reshape(-1) for view in run.views(num)])
    finally:
        run.close()
    row = {"cell": name, "has_canary": has_canary, "chunk": chunk, "runs": num}
    if seen is None:
        return row | {"mean": views.mean(axis=0).tolist(), "covariance": np.cov(views.T).tolist()}
    mean, covariance = (np.array(part) for part in seen)
    scores = [Attack(run, model).scores(views) for model in (None, (mean, covariance))]
    above = [[int(np.count_nonzero(s > t)) for t in THRESHOLDS] for s in scores]
    return row | {"above": above}


@functools.cache
def terms_of(name: str) -> PrivacyTerms:
    """What a cell is charged by; the same with and without the canary."""
    run = AuditedRun(CELLS[name], has_canary=False, seed=1)
    run.close()
    return run.terms


@functools.cache
def charged(name: str, share: float) -> tuple[Profile, float]:
    """Profile and epsilon of what a cell is charged, with a share of the noise."""
    terms = terms_of(name)
    rate = terms.sampling_probabilities[0]
    total = None
    for multiplier in terms.noise_multipliers:
        one = pld.from_gaussian_mechanism(
            share * multiplier,
            value_discretization_interval=1e-3,
            sampling_prob=rate,
        )
        total = one if total is None else total.compose(one)
    assert total is not None
    epsilons = np.linspace(0.0, 1.5 * EPSILON, 97)
    deltas = total.get_delta_for_epsilon(epsilons.tolist())
    return tuple(zip(epsilons.tolist(), deltas, strict=True)), total.get_epsilon_for_delta(DELTA)


def counts(rows: Sequence[dict[str, Any]], name: str) -> tuple[int, dict[bool, list[list[int]]]]:
    """Runs of each kind, and those above each threshold, [attacks, thresholds], by canary."""
    counted = [row for row in rows if row["cell"] == name and "above" in row]
    num = sum(row["runs"] for row in counted if row["has_canary"])
    above = {
        has_canary: np.sum(
            [row["above"] for row in counted if row["has_canary"] is has_canary], axis=0
        ).tolist()
        for has_canary in (True, False)
    }
    return num, above


def most_noise(num: int, above: dict[bool, list[list[int]]], name: str) -> tuple[float, str]:
    """The largest share of noise, to 1 %, that no attack refutes, and the best attack."""
    each = ALPHA / (len(ATTACKS) * len(THRESHOLDS))

    def is_too_much(share: float, attack: int) -> bool:
        profile, _ = charged(name, share)
        pairs = zip(above[True][attack], above[False][attack], strict=True)
        return any(is_refuted(profile, int(h), int(f), num, alpha=each) for h, f in pairs)

    def most(attack: int) -> float:
        low, high = 5, 200  # percent
        if not is_too_much(high / 100, attack):
            return high / 100
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_too_much(middle / 100, attack) else (middle, high)
        return low / 100

    shares = [most(attack) for attack in range(len(ATTACKS))]
    return min(shares), ATTACKS[int(np.argmin(shares))]


def conclusions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a cell."""
    found = []
    for name, cell in CELLS.items():
        if not any(row["cell"] == name and "above" in row for row in rows):
            continue
        num, above = counts(rows, name)
        share, attack = most_noise(num, above, name)
        found.append(
            {
                "cell": name, "is_sound": cell.is_sound, "runs": 2 * num,
                "charged": charged(name, 1.0)[1], "proved": charged(name, share)[1],
                "share_of_noise": share, "attack": attack, "is_refuted": share < 1.0,
                "above_with_canary": above[True], "above_without": above[False],
            }
        )  # fmt: skip
    return found


def main() -> None:
    study = Study(__doc__, quick="few runs of some cells")
    study.parser.add_argument("--workers", type=int, default=2, help="processes")
    args = study.begin()
    names, size, num_chunks = list(CELLS), CHUNK, NUM_CHUNKS
    if args.quick:
        names, size, num_chunks = ["two rounds", "one noise for two rounds"], 500, 2
    with ProcessPoolExecutor(args.workers) as pool:
        # First what the attacker sees, then what is counted.
        for chunks in ([0], range(1, num_chunks)):
            models = {
                row["cell"]: (row["mean"], row["covariance"]) for row in study.rows if "mean" in row
            }
            wanted = [
                (name, has_canary, chunk)
                for chunk in chunks
                for name in names
                for has_canary in ((True, False) if chunk else (False,))
            ]
            jobs = [
                pool.submit(examine, *part, size, models[part[0]] if part[2] else None)
                for part in study.missing(
                    wanted, lambda row: (row["cell"], row["has_canary"], row["chunk"])
                )
            ]
            for job in jobs:
                row = job.result()
                study.add(row, f"{row['cell']}, canary {row['has_canary']}, chunk {row['chunk']}")
    found = conclusions(study.rows)
    print(f"{'cell':30}{'runs':>9}{'charged':>9}{'proved':>9}{'noise':>7}  attack")
    for line in found:
        kind = "sound" if line["is_sound"] else "fault"
        verdict = "refuted" if line["is_refuted"] else "not refuted"
        print(
            f"{line['cell']:30}{line['runs']:>9,}{line['charged']:>9.3f}{line['proved']:>9.3f}"
            f"{line['share_of_noise']:>7.2f}  {line['attack']:12}{kind}, {verdict}"
        )
    study.finish(delta=DELTA, alpha=ALPHA, thresholds=THRESHOLDS, attacks=ATTACKS, cells=found)


if __name__ == "__main__":
    main()
