"""Whole runs for end-to-end tests: carried out and closed, and what they left on the disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import MechanismRecord
from server.run.experiment import Experiment
from server.store.records import RoundRow
from server.store.run_store import RunStore


class Left(NamedTuple):
    """Of a run, in its folder: rows without times, the ledger, the weights' digest, epsilon."""

    rows: list[RoundRow]
    records: tuple[MechanismRecord, ...]
    digest: str | None
    epsilon: float | None


def carry_out(run: Experiment, **options: Any) -> bool:
    """Run to the end, or until asked to stop; closed whatever happens."""
    try:
        return run.run(**options)
    finally:
        run.close()


def looked_at(folder: Path) -> Left:
    """What is there; two runs that are the same leave the same."""
    store = RunStore.open(folder)
    try:
        return Left(
            rows=[dataclasses.replace(row, wall_s=0.0) for row in store.rounds()],
            records=PrivacyLedger(store.connection).records(),
            digest=store.meta("parameter_digest"),
            epsilon=store.meta("epsilon_spent"),
        )
    finally:
        store.close()
