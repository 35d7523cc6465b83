"""The table under a privacy ledger: rows that are chained, durable, and never changed.

Every row is chained by SHA-256 to all rows before it, and a second table holds their number and the
last link, changed in the same transaction; so a flipped bit, a gap and a missing tail are all
noticed. The chain has no key: it finds damage, not a forger with write access. The server's ledger
and a device's own are such tables.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

GENESIS = hashlib.sha256(b"pairzero privacy ledger 1").hexdigest()
"""The link before the first record."""

_SYNCHRONOUS_FULL = 2
_DOES_NOT_SURVIVE_POWER_LOSS = (
    "the connection has PRAGMA synchronous={} and journal_mode={}, wanted synchronous FULL and a "
    "journal. A record must be on disk before its signal is in the air."
)

_SCHEMA = (
    "CREATE TABLE privacy_ledger (sequence INTEGER PRIMARY KEY, round_index INTEGER NOT NULL, "
    "device_index INTEGER NOT NULL, attempt INTEGER NOT NULL, record BLOB NOT NULL, "
    "chain TEXT NOT NULL)",
    "CREATE TABLE ledger_head (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), "
    "count INTEGER NOT NULL, chain TEXT NOT NULL)",
)


_THE_DISKS = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_BUSY")
"""Errors of SQLite in a file that is as it was."""


class ChainedRow(NamedTuple):
    """One row: what it is of, and its bytes, which the chain covers with the attempt."""

    round_index: int
    device_index: int
    attempt: int
    record: bytes


def make_durable(connection: sqlite3.Connection) -> None:
    """One process at a time, and a commit returns only when the disk has it.

    Raises:
        sqlite3.Error: it is no database, or another process has it.
    """
    # Exclusive first: SQLite then keeps the log's index in its own memory, and a file system
    # without shared memory (many a network share) can hold a ledger.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    # The ledgers' promise rests on this line.
    connection.execute("PRAGMA synchronous = FULL")


def _next_link(previous: str, attempt: int, record: bytes) -> str:
    """SHA-256 over the previous link, the attempt number and the record."""
    return hashlib.sha256(f"{previous}|{attempt}|".encode("ascii") + record).hexdigest()


class ChainedTable:
    """An append-only table of `ChainedRow` in a SQLite database.

    Args:
        connection: opened with ``PRAGMA synchronous=FULL`` (or EXTRA) and a rollback journal or
            WAL, and not inside a transaction; the tables are made if neither exists.
        failed: raised where nothing could be written or read, and nothing was lost.
        corrupt: raised where rows were lost or changed.

    Raises:
        corrupt: one of the tables is missing.
        failed: a connection that does not survive a power cut.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        failed: type[Exception],
        corrupt: type[Exception],
    ) -> None:
        self._connection = connection
        self._failed, self._corrupt = failed, corrupt
        with self._corruption_is_named():
            self._check_durable()
            self._create_if_new()
        self.head = (0, GENESIS)
        """Number of rows and the last link of the chain, as read or written last."""

    def append(self, rows: Sequence[ChainedRow]) -> None:
        """Append rows of one round in one durable transaction, all or none.

        Raises:
            corrupt: another process has written meanwhile.
            failed: the write failed; nothing was written.
        """
        self._check_durable()
        count, chain = self.head
        try:
            with self._transaction():
                stored = self._connection.execute("SELECT count, chain FROM ledger_head").fetchall()
                if stored != [(count, chain)]:
                    raise self._corrupt(
                        f"privacy ledger: the head says {stored}, this process wrote {count} "
                        "records. Another process has the ledger open; stop one of them."
                    )
                for row in rows:
                    count, chain = count + 1, _next_link(chain, row.attempt, row.record)
                    self._connection.execute(
                        "INSERT INTO privacy_ledger VALUES (?, ?, ?, ?, ?, ?)", (count, *row, chain)
                    )
                self._connection.execute(
                    "UPDATE ledger_head SET count = ?, chain = ?", (count, chain)
                )
        except sqlite3.Error as error:
            raise self._failed(
                f"privacy ledger: round {rows[0].round_index} could not be written ({error}). "
                "Nothing was charged and nothing may be transmitted. Check the disk and resume."
            ) from error
        self.head = count, chain

    def read(self) -> list[ChainedRow]:
        """Every row, each link checked.

        Raises:
            corrupt: a broken chain, a gap, a missing tail.
        """
        count, chain = 0, GENESIS
        with self._corruption_is_named():
            stored = self._connection.execute(
                "SELECT sequence, round_index, device_index, attempt, record, chain "
                "FROM privacy_ledger ORDER BY sequence"
            ).fetchall()
            heads = self._connection.execute("SELECT count, chain FROM ledger_head").fetchall()
        rows = []
        for sequence, round_index, device_index, attempt, record, link in stored:
            if sequence != count + 1:
                raise self._corrupt(
                    f"privacy ledger: record {count + 1} is missing, the next is {sequence}. "
                    "Restore its folder from a copy; a gap may hide a release."
                )
            if not isinstance(record, bytes) or not isinstance(attempt, int):
                raise self._corrupt(f"privacy ledger: record {sequence} has a wrong type.")
            chain = _next_link(chain, attempt, record)
            if link != chain:
                raise self._corrupt(
                    f"privacy ledger: the chain breaks at record {sequence}; it or one before it "
                    "was changed. Restore its folder from a copy."
                )
            count = sequence
            rows.append(ChainedRow(round_index, device_index, attempt, record))
        if heads != [(count, chain)]:
            raise self._corrupt(
                f"privacy ledger: {count} records are here, the head says {heads}. The tail is "
                "missing or the head was changed; restore its folder from a copy."
            )
        self.head = count, chain
        return rows

    def link_at(self, count: int) -> str | None:
        """The link behind so many rows; None if there are fewer."""
        if count == 0:
            return GENESIS
        found = self._connection.execute(
            "SELECT chain FROM privacy_ledger WHERE sequence = ?", (count,)
        ).fetchone()
        return None if found is None else str(found[0])

    def _create_if_new(self) -> None:
        names = {
            name
            for (name,) in self._connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' "
                "AND name IN ('privacy_ledger', 'ledger_head')"
            )
        }
        if len(names) == 1:
            raise self._corrupt(
                f"privacy ledger: only the table {names.pop()!r} is there. Restore its folder."
            )
        if not names:
            with self._transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO ledger_head VALUES (1, 0, ?)", (GENESIS,))

    def _check_durable(self) -> None:
        """Refuse a connection on which a commit may still be lost."""
        if self._connection.in_transaction:
            raise self._failed(
                "the connection is inside a transaction, so an append would not be on disk before "
                "the signal is sent. Commit first."
            )
        (synchronous,) = self._connection.execute("PRAGMA synchronous").fetchone()
        (journal_mode,) = self._connection.execute("PRAGMA journal_mode").fetchone()
        if synchronous < _SYNCHRONOUS_FULL or journal_mode in ("off", "memory"):
            raise self._failed(_DOES_NOT_SURVIVE_POWER_LOSS.format(synchronous, journal_mode))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _corruption_is_named(self) -> Iterator[None]:
        """Turn SQLite's own complaints about a damaged file, or about its disk, into ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "").startswith(_THE_DISKS):
                raise self._failed(
                    f"privacy ledger: {error}. Nothing was charged and nothing may be transmitted. "
                    "Mend that, a full disk with some space, and go on; nothing recorded was lost."
                ) from error
            raise self._corrupt(
                f"privacy ledger: SQLite cannot read it ({error}). Restore its folder from a copy."
            ) from error
