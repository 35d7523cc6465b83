"""RunStore: one SQLite file per run. What is in it survives kill -9; what is not never happened.

A round is written in two transactions, each on the disk before the next thing happens: the price
(`server.privacy.ledger`, same file) before anything is transmitted, and the step with everything
measured after everybody was told it. A run that died is continued from here: the weights are the
bundle plus the steps.

Rounds are chained by SHA-256 like the ledger's records, and a head holds their number and the last
link: a changed step would lead to other weights, and a missing one too. The chain has no key; it
finds damage, not a forger.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from edge_runtime.guard.chained_table import make_durable
from edge_runtime.protocol.rounds import RoundResult
from server.config.files import parse_config
from server.config.run_config import RunConfig
from server.errors import RunStoreError
from server.store.meta import RunMeta
from server.store.records import STORE_FILE, EvaluationRow, Outcome, RoundRow

_APPLICATION_ID = 0x70415A30  # "pAZ0"
_SCHEMA_VERSION = 7
_SQLITE_MAGIC = b"SQLite format 3\0"
_GENESIS = hashlib.sha256(b"pairzero rounds 1").hexdigest()


def _column_type(name: str, annotation: Any) -> str:
    """How SQLite holds a field of a round; what may be None may be NULL."""
    if name == "direction_seed":
        return "TEXT NOT NULL"  # unsigned 64 bits do not fit SQLite's integer
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = {bool: "INTEGER", int: "INTEGER", float: "REAL", tuple: "TEXT"}
    return kinds[get_origin(parts[0]) or parts[0]] + " NOT NULL" * (NoneType not in parts)


_FIELDS = {field.name: get_type_hints(RoundRow)[field.name] for field in fields(RoundRow)}
_ROUND_COLUMNS = list(_FIELDS)
_COLUMN_TYPES = {name: _column_type(name, annotation) for name, annotation in _FIELDS.items()}
_LISTS = tuple(
    name
    for name, kind in _COLUMN_TYPES.items()
    if kind.startswith("TEXT") and name != "direction_seed"
)
"""Held as JSON, a number for each direction or device."""

_META = get_type_hints(RunMeta)

_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE rounds (
    {", ".join(f"{name} {kind}" for name, kind in _COLUMN_TYPES.items())},
    chain TEXT NOT NULL,
    PRIMARY KEY (round_index)
) STRICT;
CREATE TABLE rounds_head (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    count INTEGER NOT NULL,
    chain TEXT NOT NULL
) STRICT;
CREATE TABLE evaluations (
    num_rounds INTEGER PRIMARY KEY,
    loss REAL,
    accuracy REAL,
    epsilon REAL
) STRICT;
"""


def look_at(folder: Path) -> tuple[RunConfig, Outcome]:
    """The configuration that a run was started with, and how the run stands.

    Raises:
        RunStoreError: no run there, or one without a configuration.
    """
    store = RunStore.open_to_read(folder)
    try:
        return store.config(), store.outcome
    finally:
        store.close()


class RunStore:
    """The record of one run. One writer at a time; a second one is refused."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> RunStore:
        """Start a new run folder.

        Raises:
            RunStoreError: a run is already there.
        """
        path = folder / STORE_FILE
        if path.exists():
            raise RunStoreError(
                f"{folder}: a run is already there. Continue it with: pairzero run --resume "
                f"{folder}, or name another folder with --out."
            )
        rows = [(key, json.dumps(value, sort_keys=True)) for key, value in meta.items()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunStoreError(
                f"{folder}: the run folder cannot be made ({error.strerror}). Name another one "
                "with --out."
            ) from error
        _create_for_owner_only(path)
        store = cls(_connect(path), path)
        try:
            # One transaction: a store is there with its schema and meta, or it is not there.
            with store._errors(), store.connection:
                store.connection.execute("BEGIN IMMEDIATE")
                store.connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                store.connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                for statement in _SCHEMA.split(";"):
                    store.connection.execute(statement)
                store.connection.execute("INSERT INTO rounds_head VALUES (1, 0, ?)", (_GENESIS,))
                store.connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        except BaseException:
            store.remove()
            raise
        return store

    @classmethod
    def open(cls, folder: Path) -> RunStore:
        """Open an existing run to go on with it.

        Raises:
            RunStoreError: no run there, not one of pairzero's, or in use by another process.
        """
        path = _database_in(folder)
        return cls(_connect(path), path).checked()

    @classmethod
    def open_to_read(cls, folder: Path) -> RunStore:
        """Open an existing run to look at it; also one on a medium that cannot be written.

        Raises:
            RunStoreError: as `open`.
        """
        path = _database_in(folder)
        # What was logged and is not in the file yet could not be read from there.
        has_log = path.with_name(path.name + "-wal").exists()
        if os.access(folder, os.W_OK) or has_log:
            return cls(_connect(path), path).checked()
        uri = f"{path.absolute().as_uri()}?immutable=1"
        return cls(sqlite3.connect(uri, uri=True), path).checked()

    def checked(self) -> RunStore:
        """This store, if it was written by a pairzero of this version; else it is closed."""
        try:
            with self._errors():
                found = [
                    self.connection.execute(f"PRAGMA {what}").fetchone()[0]
                    for what in ("application_id", "user_version")
                ]
            if found != [_APPLICATION_ID, _SCHEMA_VERSION]:
                raise RunStoreError(
                    f"{self.path}: not a run store of version {_SCHEMA_VERSION} (version "
                    f"{found[1]}). Read it with the pairzero that wrote it."
                )
        except BaseException:
            self.close()
            raise
        return self

    def meta(self, key: str) -> Any:
        """A value given at creation, or set since (`RunMeta`); None if there is none.

        Raises:
            RunStoreError: what is there is not of its kind.
        """
        with self._errors():
            row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return msgspec.convert(json.loads(row[0]), _META[key])
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise RunStoreError(
                f"{self.path}: damaged: what it holds under {key!r} is no such thing ({error}). "
                "Restore the run folder from a copy."
            ) from error

    def config_digest(self) -> str:
        """SHA-256 of the configuration as it is stored; the ledger has it chained to its prices."""
        return configuration_digest(self.meta("config"))

    def config(self) -> RunConfig:
        """The configuration that the run was started with.

        Raises:
            RunStoreError: none was stored.
        """
        document = self.meta("config")
        if document is None:
            raise RunStoreError(f"{self.path}: holds no configuration, so no run to continue.")
        return parse_config(document, source=str(self.path))

    @property
    def outcome(self) -> Outcome:
        """How the run stands; a run that died without a word was interrupted."""
        outcome: Outcome | None = self.meta("outcome")
        return outcome or Outcome.INTERRUPTED

    def set_meta(self, key: str, value: Any) -> None:
        """Set a value, durably."""
        self.set_all_meta({key: value})

    def set_all_meta(self, values: dict[str, Any]) -> None:
        """Set values, durably: all of them or none."""
        rows = [(key, json.dumps(value, sort_keys=True)) for key, value in values.items()]
        with self._errors(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def append_round(self, row: RoundRow) -> None:
        """Record a finished round, durably. Rounds come in order, each once."""
        with self._errors():
            (head,) = self.connection.execute("SELECT count, chain FROM rounds_head").fetchall()
        if row.round_index != head[0]:
            raise RunStoreError(
                f"{self.path}: round {row.round_index} comes after {head[0]} rounds. "
                "The store and the run disagree; resume the run from the store."
            )
        values = asdict(row)
        _refuse_nan(values)
        values["direction_seed"] = str(row.direction_seed)
        values["is_skipped"] = int(row.is_skipped)
        for name in _LISTS:
            values[name] = None if values[name] is None else json.dumps(values[name])
        stored = [values[name] for name in _ROUND_COLUMNS]
        link = _next_link(head[1], stored)
        marks = ", ".join("?" for _ in (*_ROUND_COLUMNS, "chain"))
        with self._errors(), self.connection:
            self.connection.execute(
                f"INSERT INTO rounds ({', '.join(_ROUND_COLUMNS)}, chain) VALUES ({marks})",
                [*stored, link],
            )
            self.connection.execute(
                "UPDATE rounds_head SET count = ?, chain = ?", (row.round_index + 1, link)
            )

    def append_evaluation(self, row: EvaluationRow) -> None:
        """Record an evaluation; the same one again (after a resume) changes nothing."""
        _refuse_nan(asdict(row))
        with self._errors(), self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)",
                (row.num_rounds, row.loss, row.accuracy, row.epsilon),
            )

    def num_rounds(self) -> int:
        """Finished rounds."""
        with self._errors():
            return int(self.connection.execute("SELECT COUNT(*) FROM rounds").fetchone()[0])

    def rounds(self) -> list[RoundRow]:
        """Every finished round, in order.

        Raises:
            RunStoreError: a round was changed, or one is missing.
        """
        with self._errors():
            chained = self.connection.execute(
                f"SELECT {', '.join(_ROUND_COLUMNS)}, chain FROM rounds ORDER BY round_index"
            ).fetchall()
            head = self.connection.execute("SELECT count, chain FROM rounds_head").fetchall()
        link, rows = _GENESIS, [row[:-1] for row in chained]
        for index, (*stored, stored_link) in enumerate(chained):
            link = _next_link(link, stored)
            if stored[0] != index or stored_link != link:
                raise RunStoreError(
                    f"{self.path}: the chain of its rounds breaks at round {index}: it was changed "
                    "or one before it is missing. Its steps would lead to other weights; restore "
                    "the run folder from a copy."
                )
        if head != [(len(rows), link)]:
            raise RunStoreError(
                f"{self.path}: {len(rows)} rounds are here, and more were recorded. The last ones "
                "are missing; restore the run folder from a copy."
            )
        return [_to_round_row(dict(zip(_ROUND_COLUMNS, row, strict=True))) for row in rows]

    def evaluations(self) -> list[EvaluationRow]:
        """Every evaluation, in order."""
        with self._errors():
            rows = self.connection.execute(
                "SELECT num_rounds, loss, accuracy, epsilon FROM evaluations ORDER BY num_rounds"
            ).fetchall()
        return [EvaluationRow(*row) for row in rows]

    def results(self, run_id: str) -> Iterator[RoundResult]:
        """The journal: every step taken so far, to be replayed on the bundle's weights."""
        for row in self.rounds():
            yield RoundResult(run_id, row.round_index, row.direction_seed, row.step_integers)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def remove(self) -> None:
        """Close and delete a store that should not have been made; and its folder, if empty."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunStoreError(_explain(self.path, error)) from error


def _next_link(previous: str, stored: Sequence[Any]) -> str:
    """SHA-256 over the previous link and every column of a round."""
    return hashlib.sha256(f"{previous}|{json.dumps(list(stored))}".encode()).hexdigest()


def _to_round_row(values: dict[str, Any]) -> RoundRow:
    """A row as SQLite returns it: no unsigned 64-bit integers, no booleans and no lists."""
    values["direction_seed"] = int(values["direction_seed"])
    values["is_skipped"] = bool(values["is_skipped"])
    for name in _LISTS:
        values[name] = None if values[name] is None else tuple(json.loads(values[name]))
    return RoundRow(**values)


def _refuse_nan(values: dict[str, Any]) -> None:
    """SQLite would store NaN as NULL, a figure that does not exist."""
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and math.isnan(number) for number in numbers):
            raise RunStoreError(f"{name}: got NaN, which is no figure and is not stored.")


def _database_in(folder: Path) -> Path:
    """The path of a store, known by its first bytes: what is none is not touched."""
    path = folder / STORE_FILE
    try:
        if not path.is_file():
            raise RunStoreError(f"{folder}: no {STORE_FILE} there, so no run to continue or show.")
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise RunStoreError(f"{path}: cannot be read ({error.strerror}).") from error
    if not is_database:
        raise RunStoreError(
            f"{path}: the file is damaged or not a run. Restore the run folder from a copy."
        )
    return path


def _create_for_owner_only(path: Path) -> None:
    """An empty file that nobody else can read; SQLite gives its side files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise RunStoreError(
            f"{path}: cannot be made ({error.strerror}). Name another folder with --out."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        # No waiting: who finds the store in use is told at once.
        connection = sqlite3.connect(path, timeout=0.0)
    except sqlite3.Error as error:
        raise RunStoreError(_explain(path, error)) from error
    try:
        make_durable(connection)
        # Take the write lock now, so that a second writer learns it at once.
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
    except sqlite3.Error as error:
        connection.close()
        raise RunStoreError(_explain(path, error)) from error
    return connection


def _explain(path: Path, error: sqlite3.Error) -> str:
    message = str(error)
    if "locked" in message or "busy" in message:
        return f"{path}: in use by another process ({message}). Wait for it, or stop it."
    if "full" in message:
        return f"{path}: {message}. Free some disk space and resume; nothing recorded was lost."
    if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return (
            f"{path}: {message}. The file is damaged or not a run; copy the run folder before "
            "trying again."
        )
    return f"{path}: {message}. Nothing recorded was lost; mend the cause and try again."


def configuration_digest(document: Any) -> str:
    """SHA-256 of a configuration's document, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
