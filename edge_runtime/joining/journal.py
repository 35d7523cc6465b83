"""The steps that a host has taken, on its own disk: what it starts from when it comes back.

A step is written when it has been taken, and not waited for: what a power cut takes away of the
tail stands in the log. What a host has *released* stands elsewhere, and is waited for
(`edge_runtime.guard.ledger`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import JournalError, WireError
from edge_runtime.protocol.rounds import RoundResult

_logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), id TEXT NOT NULL)
    STRICT;
CREATE TABLE IF NOT EXISTS steps (round_index INTEGER PRIMARY KEY, message BLOB NOT NULL) STRICT;
"""


class Journal:
    """The journal of one run; that of another run gives way to it.

    Args:
        path: it is made if it is not there.
        run_id: of the run.

    Raises:
        JournalError: it cannot be written, or another process has it.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self._path, self._run_id = path, run_id
        if run_of(path) != run_id:
            with _errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove(path)
        with _errors(path):
            self._connection = _open(self._path)
            with self._connection:
                self._connection.execute("INSERT OR REPLACE INTO run VALUES (1, ?)", (run_id,))

    def steps(self) -> Iterator[RoundResult]:
        """Those of rounds 0, 1, ... as far as they are here and intact; whatever is behind goes."""
        with _errors(self._path):
            rows = self._connection.execute("SELECT * FROM steps ORDER BY round_index").fetchall()
        number = 0
        for number, (round_index, message) in enumerate(rows):
            try:
                step = wire.decode_step(message)
            except WireError as error:
                _logger.warning("%s: round %d: %s", self._path, round_index, error)
                break
            if (step.round_index, step.run_id) != (number, self._run_id):
                break
            yield step
        else:
            return
        with _errors(self._path), self._connection:
            self._connection.execute("DELETE FROM steps WHERE round_index >= ?", (number,))

    def append(self, steps: Sequence[RoundResult]) -> None:
        """Write steps down that have been taken.

        Raises:
            JournalError: it cannot be written.
        """
        with _errors(self._path), self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO steps VALUES (?, ?)",
                [(step.round_index, wire.encode_step(step)) for step in steps],
            )

    def close(self) -> None:
        """Let the file go. Idempotent."""
        self._connection.close()

    def remove(self) -> None:
        """Once it is closed: the run is over, and nobody comes back to it."""
        _remove(self._path)


def run_of(path: Path) -> str | None:
    """Which run a journal is of; None if there is none that can be read.

    Raises:
        JournalError: another process has it.
    """
    if not path.is_file():
        return None
    try:
        with contextlib.closing(_open(path)) as connection:
            found = connection.execute("SELECT id FROM run").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            with _errors(path):
                raise
        _logger.warning("%s: no journal (%s)", path, error)
        return None
    return None if found is None else str(found[0])


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise JournalError(
            f"{path}: the host's own journal cannot be written ({error}). Free some disk space, "
            "stop whoever else has it open, or name another folder with --state."
        ) from error


def _open(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=0.0)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
