"""Whole runs for end-to-end tests: carried out and closed, and what they left on the disk."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from server.config.files import PRESETS_FOLDER, load_config, parse_config
from server.config.run_config import RunConfig
from server.config.unread import unread_keys
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import MechanismRecord
from server.run.experiment import Experiment
from server.store.records import RoundRow
from server.store.run_store import RunStore

SMALL = {
    "optimizer.directions": 2, "optimizer.batch_size": 4, "privacy.epsilon": 8.0,
    "task.validation_examples": 20, "task.max_tokens": 24,
}  # fmt: skip
"""What whole runs have in common: a second or two each."""


def configured(settings: dict[str, Any], preset: str = "snips", **changes: Any) -> RunConfig:
    """A preset with settings, as far as something reads them beside ``section__key=value``."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    merged = {**settings, **changed}
    document = tomllib.loads((PRESETS_FOLDER / f"{preset}.toml").read_text("utf-8"))
    for dotted, value in merged.items():
        *sections, key = dotted.split(".")
        functools.reduce(lambda keys, name: keys.setdefault(name, {}), sections, document)[key] = (
            value
        )
    unread = {u.key for u in unread_keys(parse_config(document, source="test"), settings)}
    kept = {key: value for key, value in merged.items() if key in changed or key not in unread}
    return load_config(preset, kept)


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
