"""A device's own ledger: every release of its data, on its own disk before the antenna speaks.

It belongs to a host and counts the releases of each of its devices, whatever run or key they were
of, in one durable transaction a round. Beside it lies its head, in a file of its own: an older copy
of the ledger, put back in its place, is behind its head and is refused. (Copies of both, put back
together, are noticed by nobody here; a server that says how often it has heard the device
notices, `DeviceLedger.check_holds`.)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edge_runtime.guard.chained_table import ChainedRow, ChainedTable, make_durable
from edge_runtime.protocol.errors import DeviceLedgerError

LEDGER_FILE = "device_ledger.sqlite"
HEAD_FILE = "device_ledger.head"
_HEAD_BYTES = 20 + 1 + 64 + 1


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One release of one device's data. Nothing in it depends on them.

    Attributes:
        owner: names the data: a host's device is the same owner in every run.
        run_id: of the run.
        round_index: of the round.
        commitment: public name of the key that noise and batch are drawn with.
        release: names the order (`RoundPlan.release`), and with the key the noise.
        data: keyed name of the data (`PrivateRandom.commit_to_data`).
        history: digest of the weights that numbers are measured on, and of every step to them.
        noise_multiplier: of the noise that counts to the sensitivity.
        sampling_rate: at which a record is drawn.
    """

    owner: str
    run_id: str
    round_index: int
    commitment: str
    release: str
    data: str
    history: str
    noise_multiplier: float
    sampling_rate: float

    @property
    def noise(self) -> tuple[str, str]:
        """Names the noise: the same key and the same order draw the same again."""
        return self.commitment, self.release


class DeviceLedger:
    """The releases of a host's devices, in a folder of its own disk.

    Guarantees: after `append` returns, the releases survive a power cut; what was appended is what
    is read, or an error; an older copy of the file is an error.

    Args:
        folder: it is made if it is not there.

    Raises:
        DeviceLedgerError: it cannot be opened or trusted; nothing may be released.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._head_path = folder / LEDGER_FILE, folder / HEAD_FILE
        self._by_noise: dict[tuple[str, str], Release] = {}
        self._by_owner: dict[str, list[Release]] = {}
        self._head = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_new = not self._path.exists()
            # Its owner's alone, and so are the journals that SQLite puts beside it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(self._path, timeout=0.0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise DeviceLedgerError(
                f"{self._path}: the device's own ledger cannot be opened ({error}). Without it "
                "nothing is released; name another folder, or mend this one."
            ) from error
        try:
            self._head = os.open(self._head_path, os.O_RDWR | os.O_CREAT, 0o600)
            self._read(is_new)
        except OSError as error:
            self.close()
            raise DeviceLedgerError(
                f"{self._head_path}: cannot be opened ({error.strerror}). Nothing is released."
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> tuple[int, str]:
        """Number of releases and the last link of their chain."""
        return self._table.head

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose data were released."""
        return tuple(self._by_owner)

    def releases(self, owner: str) -> tuple[Release, ...]:
        """Those of an owner's data, oldest first."""
        return tuple(self._by_owner.get(owner, ()))

    def same_noise(self, release: Release) -> Release | None:
        """The release that was made with the same key for the same order; None if none was."""
        return self._by_noise.get(release.noise)

    def check_holds(self, heard: Mapping[str, int]) -> None:
        """Return if it knows of as many releases as somebody says to have heard.

        Args:
            heard: owner -> how many.

        Raises:
            DeviceLedgerError: somebody has heard more; an older copy of the ledger is here.
        """
        for owner, number in heard.items():
            known = len(self._by_owner.get(owner, ()))
            if number > known:
                raise DeviceLedgerError(
                    f"{self._path}: {number} releases of device {owner} were heard, {known} are "
                    "in its ledger. It is an older copy, or another one; put the latest back. "
                    "Nothing is released."
                )

    def append(self, releases: Sequence[Release]) -> None:
        """Write releases of one round down; they are on the disk when this returns.

        Raises:
            DeviceLedgerError: they are not; nothing may be released.
        """
        if not releases:
            return
        self._table.append(
            [
                ChainedRow(release.round_index, position, 0, msgspec.json.encode(release))
                for position, release in enumerate(releases)
            ]
        )
        for release in releases:
            self._file(release)
        # Behind the ledger by a crash is no harm: what must not be is a ledger behind its head.
        with contextlib.suppress(OSError):
            self._write_head()

    def close(self) -> None:
        """Let the files go. Idempotent."""
        if self._head >= 0:
            os.close(self._head)
            self._head = -1
        self._connection.close()

    def _read(self, is_new: bool) -> None:
        try:
            make_durable(self._connection)
        except sqlite3.OperationalError as error:
            raise DeviceLedgerError(
                f"{self._path}: cannot be opened for writing ({error}). Another process may have "
                "it open: one device, one process. Nothing is released."
            ) from error
        except sqlite3.DatabaseError as error:
            raise DeviceLedgerError(
                f"{self._path}: SQLite cannot read it ({error}). What was released is unknown; put "
                "the latest ledger back. Nothing is released."
            ) from error
        self._table = ChainedTable(
            self._connection, failed=DeviceLedgerError, corrupt=DeviceLedgerError
        )
        for number, row in enumerate(self._table.read(), start=1):
            try:
                release = msgspec.json.decode(row.record, type=Release)
            except msgspec.MsgspecError as error:
                raise DeviceLedgerError(
                    f"{self._path}: release {number} cannot be read ({error}); it was written "
                    "by another version. Nothing is released."
                ) from error
            self._file(release)
        self._check_head(is_new)

    def _check_head(self, is_new: bool) -> None:
        here, _ = self._table.head
        stored = os.pread(self._head, _HEAD_BYTES + 1, 0)
        if not stored and (is_new or here == 0):
            self._write_head()
            os.fsync(self._head)
            return
        try:
            text = stored.decode("ascii").split()
            number, link = int(text[0]), text[1]
        except (ValueError, IndexError):
            number, link = -1, ""
        if 0 <= number <= here and self._table.link_at(number) == link:
            self._write_head()
            return
        what = (
            f"{number} releases were written, {here} are here: it is an older copy"
            if number > here
            else "it is not the ledger that its head was written for"
        )
        raise DeviceLedgerError(
            f"{self._path}: {what} ({self._head_path.name} beside it says so). A release that is "
            "not counted may have been made; put the latest ledger back. Nothing is released."
        )

    def _write_head(self) -> None:
        """In place and of one length, so that a power cut leaves the one before or this one."""
        number, link = self._table.head
        os.pwrite(self._head, f"{number:<20d} {link}\n".encode("ascii"), 0)

    def _file(self, release: Release) -> None:
        self._by_noise[release.noise] = release
        self._by_owner.setdefault(release.owner, []).append(release)
