"""``pairzero report`` and ``destroy-keys``: runs that are already there."""

from __future__ import annotations

import argparse
import sys

from edge_runtime.guard.keys import HostKeys
from server.files import to_json
from server.report import page as report
from server.report.terminal import ProgressPrinter
from server.store.records import Outcome
from server.store.run_store import RunStore


def write_report(args: argparse.Namespace) -> int:
    """Write summary, pictures and page of a run again, from its store alone."""
    printer = ProgressPrinter(sys.stderr if args.json else sys.stdout)
    runs = report.read_runs(args.run)
    if args.json:
        print(to_json(runs[0].summary))
    else:
        printer.table([run.summary for run in runs], args.run)
    report.write_runs(runs)
    return 0


def destroy_keys(args: argparse.Namespace) -> int:
    """End an interrupted run for good."""
    store = RunStore.open(args.run)  # refused while a process is at work on it
    try:
        if not store.outcome.is_final:
            store.set_meta("outcome", Outcome.ABANDONED)
        found = HostKeys.destroy(args.run)
    finally:
        store.close()
    print(f"{args.run}: {'private keys destroyed' if found else 'no private keys there'}.")
    return 0
