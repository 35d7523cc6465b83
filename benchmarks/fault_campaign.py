r"""Faults without end in runs over hosts: what is left is whole, or it is said what is not.

A broker, a server, three hosts with policies and ledgers of their own, each a process behind a
piece of network of its own, in three kinds of labs: with credentials, without, and with a virtual
Pluto for each host. Every few seconds something happens to one of them, drawn by a seed: it is
killed (kill -9) and started again after a while, or stopped; a host loses its journal, the broker
all that it has; a disk is full, a clock jumps by up to 300 days; a link is cut, frozen, swallows
everything, or some messages come twice or with a wrong bit. Whoever ends by itself is started
again, as an operator would (`tests/support/fault_lab.py`). At the end:

* the run has all of its rounds, and the server's digest is that of every host that is there;
* every release that a device has counted is paid for by the server, none is made twice, and none
  that was heard is missing from the device's own ledger;
* nobody was on the air for longer than its hold and three seconds after it, its server or its
  broker had died;
* keys are destroyed, and nobody is left running.

Runs go on until so many faults have come; a run that ends with its rounds has had fewer than were
asked for. Leaves out: hardware, kernels, and what a network does to packets rather than to streams.

    python benchmarks/fault_campaign.py faults.jsonl --json faults.json   # 200 faults, an hour
    python benchmarks/fault_campaign.py quick.jsonl --quick               # 10 faults
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from study import Study

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fault_lab import MUST_BE_NONE, Kind, run_with_faults  # noqa: E402

FAULTS, FAULTS_A_RUN = 200, 20
QUICK = ((Kind.SECURED, 0, 4), (Kind.PLAIN, 0, 3), (Kind.RADIOS, 0, 3))
QUICK_HASTE = 2.0


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = Study(__doc__, quick="three runs with few faults")
    args = study.begin()

    def wanted() -> Iterator[tuple[Kind, int, int]]:
        if args.quick:
            yield from QUICK
            return
        for number in itertools.count():
            if sum(sum(row["faults"].values()) for row in study.rows) >= FAULTS:
                return
            seed, which = divmod(number, len(Kind))
            yield list(Kind)[which], seed, FAULTS_A_RUN

    done = {(row["kind"], row["seed"], row["wanted"]) for row in study.rows}
    for kind, seed, number in () if args.show else wanted():
        if (kind, seed, number) in done:
            continue
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            haste = QUICK_HASTE if args.quick else 1.0
            row = {"wanted": number, **run_with_faults(Path(folder), kind, seed, number, haste)}
        study.add(row, json.dumps(row))
    totals: collections.Counter[str] = collections.Counter()
    for row in study.rows:
        totals.update(row["faults"])
    sums = {what: sum(row[what] for row in study.rows) for what in MUST_BE_NONE}
    unequal = sum(row["outcome"] != "complete" for row in study.rows)
    print(f"{totals.total()} faults ({', '.join(f'{n} {k}' for k, n in sorted(totals.items()))}): "
          f"{unequal} runs that are not complete with equal weights, {sums}")  # fmt: skip
    study.finish(faults=totals, not_complete=unequal, **sums, rows=study.rows)
    if unequal or any(sums.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
