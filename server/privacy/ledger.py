"""The privacy ledger: what was paid, written down before the antenna speaks.

What it is written into is chained and durable (`edge_runtime.guard.chained_table`); here is what
the records mean: of which round and attempt, whether they were charged before, who spoke.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Sequence

import msgspec

from edge_runtime.guard.chained_table import ChainedRow, ChainedTable
from edge_runtime.protocol.rounds import Access
from server.errors import LedgerCorruptError, PrivacyError, UnknownMechanismError
from server.privacy.mechanism import MechanismRecord
from server.privacy.on_air import (
    NO_DEVICE,
    Configuration,
    SpeakersKnown,
    SpeakersUnknown,
    decode_entry,
    encode_entry,
)

logger = logging.getLogger(__name__)

# One attempt at a round: the record of each device. A correction is an attempt too.
_Attempt = dict[int, MechanismRecord]


class PrivacyLedger:
    """An append-only list of `MechanismRecord` in a SQLite database.

    Opening it verifies every record; a ledger in doubt stops the run, because a forgotten record
    would be a free release. The caller owns the connection and closes it.

    Args:
        connection: opened with ``PRAGMA synchronous=FULL`` (or EXTRA) and a rollback journal or
            WAL, and not inside a transaction. The tables are made if neither exists.

    Guarantees:
        * after `append` returns, the records survive a power cut;
        * what `records` returns is exactly what was appended, in order, or LedgerCorruptError;
        * a re-sent identical release is not charged twice, and a new one never counts as re-sent.

    Not noticed: the whole database replaced by an older copy, or both tables dropped. Keep `head`
    elsewhere too (for instance in the run's log) to notice that.

    Raises:
        LedgerCorruptError: a broken chain, a gap, a missing tail, an unreadable record, or a
            missing table.
        PrivacyError: a connection that does not survive a power cut.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._table = ChainedTable(connection, failed=PrivacyError, corrupt=LedgerCorruptError)
        self._records: list[MechanismRecord] = []
        self._rounds: dict[int, list[_Attempt]] = {}
        self._on_air: dict[int, SpeakersUnknown] = {}
        self._spoke: dict[int, tuple[int, ...]] = {}
        self._configurations: list[tuple[str, int]] = []
        self.verify()

    @property
    def head(self) -> tuple[int, str]:
        """Number of records and the last link of the chain."""
        return self._table.head

    def records(self) -> tuple[MechanismRecord, ...]:
        """Every record that was ever charged, oldest first, corrections included."""
        return tuple(self._records)

    def append(self, records: Sequence[MechanismRecord]) -> tuple[MechanismRecord, ...]:
        """Write down the releases of one round; return those that are new and must be charged.

        A round that is resumed after a crash sends the very same noisy scalars again. That is the
        same release, known by its noise streams, and costs nothing:

        * SUPERPOSED: free only if the *whole* round is identical. If some devices sent the same
          signal again and others a new one (or none), the difference of the two sums would hold
          the changed devices with nobody else's noise: refused. A round whose streams are all new
          is a further release.
        * SLOTTED: each device by itself; identical is free, a new stream is a further release.
        * The same stream with anything else changed would let two equations cancel the noise:
          refused.

        The ledger sees the plan, not the air: "identical" also needs the same speakers and the
        same gains, which only a repeatable simulation has (`Transceiver.repeats_bit_for_bit`). On
        a radio `RoundLoop.skip_round` passes over a paid round.

        Call it before transmission, then compose what it returns. An empty round appends nothing.

        Raises:
            PrivacyError: records of several rounds or access modes, a device twice, noise that was
                used before, or a write that failed (nothing was written; do not transmit).
            LedgerCorruptError: somebody else wrote to the ledger meanwhile.
        """
        if not records:
            return ()
        round_index = _check_one_round(records)
        attempts = self._rounds.get(round_index, [])
        requested = {record.device_index: record for record in records}
        if records[0].access is Access.SUPERPOSED and requested in attempts:
            logger.info("round %d: the same release again, nothing to charge", round_index)
            return ()
        known = [record for attempt in attempts for record in attempt.values()]
        if any(record.access is not records[0].access for record in known):
            raise PrivacyError(
                f"round {round_index} was charged with another access mode before. Start a new "
                "round instead."
            )
        if records[0].access is Access.SLOTTED:
            requested = {k: record for k, record in requested.items() if record not in known}
        known_streams = {record.noise_stream for record in known}
        reused = sorted(k for k, r in requested.items() if r.noise_stream in known_streams)
        if reused:
            raise PrivacyError(
                f"round {round_index}: devices {reused} would use the noise of an earlier attempt "
                "at this round again, but the round is not identical. The noise would cancel "
                "between the two. Repeat the round exactly, or draw fresh noise on every device."
            )
        return self._write(round_index, requested)

    def append_correction(self, records: Sequence[MechanismRecord]) -> tuple[MechanismRecord, ...]:
        """Charge more for a round that turned out to hold less noise than was certified.

        Example: a device dropped out after the ledger was written, so its noise is missing from
        the sum. It is the same release: accounts charge it in place of the first record, and never
        less.

        Raises:
            PrivacyError: no earlier record of that device and noise stream in that round, one that
                certified no more noise than the correction, or a failed write.
        """
        if not records:
            return ()
        round_index = _check_one_round(records)
        attempts = self._rounds.get(round_index, [])
        requested = {record.device_index: record for record in records}
        if requested in attempts:
            return ()
        for device_index, record in requested.items():
            earlier = [a[device_index] for a in attempts if device_index in a]
            same = [r for r in earlier if r.noise_stream == record.noise_stream]
            if not same or min(r.noise_multiplier for r in same) <= record.noise_multiplier:
                raise PrivacyError(
                    f"round {round_index}, device {device_index}: a correction needs an earlier "
                    "record with the same noise stream and more certified noise. Use append() for "
                    "a release of its own."
                )
        return self._write(round_index, requested)

    def note_configuration(self, digest: str) -> None:
        """Write down what the prices from here on mean; nothing happens if that is there.

        Raises:
            PrivacyError: the write failed.
        """
        if not self._configurations or self._configurations[-1][0] != digest:
            entry = Configuration(digest=digest)
            self._table.append([ChainedRow(0, NO_DEVICE, 0, encode_entry(entry))])
            self._configurations.append((digest, len(self._records)))

    def check_configuration(self, digest: str) -> None:
        """Return if a configuration is the one that the records were priced under.

        A run that was about to go on, and died before it did, still has the one before.

        Raises:
            LedgerCorruptError: it is another one, or nobody wrote down which it was.
        """
        if not self._records and not self._configurations:
            return
        good = [known for known, _ in self._configurations[-1:]]
        if self._configurations and self._configurations[-1][1] == len(self._records):
            good += [known for known, _ in self._configurations[-2:-1]]
        if digest not in good:
            raise LedgerCorruptError(
                "privacy ledger: its records were priced under another configuration than the one "
                "that is stored: what they promise, and to whom, is not what it says. Restore the "
                "run folder from a copy."
            )

    @property
    def rounds_on_air(self) -> tuple[SpeakersUnknown, ...]:
        """Rounds of which something may have been sent, and nobody has written down by whom."""
        return tuple(self._on_air.values())

    def least_certified(self, record: MechanismRecord) -> float:
        """The least noise that was charged for a record's release so far; infinite if none was."""
        return min(
            (
                earlier.certified_noise_std
                for attempt in self._rounds.get(record.round_index, [])
                for earlier in attempt.values()
                if earlier.noise_stream == record.noise_stream
            ),
            default=math.inf,
        )

    def note_sending(self, entry: SpeakersUnknown) -> None:
        """Write down that a round is about to be sent; it is on the disk when this returns.

        Raises:
            PrivacyError: the round was never charged, or the write failed; do not transmit.
        """
        if not self._rounds.get(entry.round_index):
            raise PrivacyError(f"round {entry.round_index}: about to be sent, and never charged.")
        if self._on_air.get(entry.round_index) != entry:
            self._table.append([ChainedRow(entry.round_index, NO_DEVICE, 0, encode_entry(entry))])
            self._on_air[entry.round_index] = entry

    def speakers(self, round_index: int) -> tuple[int, ...] | None:
        """Who spoke in a round, when it was last known; None if it never was."""
        return self._spoke.get(round_index)

    def unknown_speakers(self) -> tuple[MechanismRecord, ...]:
        """What rounds on the air cost beyond what was charged, if the dearest set of devices spoke.

        That is each device alone, with nobody else's noise (`server.privacy.on_air`). Whoever reads
        what a run has spent adds them; whoever goes on with it calls `settle_unknown_speakers`.
        """
        dearer = []
        for entry in self._on_air.values():
            latest = {k: r for a in self._rounds[entry.round_index] for k, r in a.items()}
            for k in entry.devices:
                alone = msgspec.structs.replace(
                    latest[k], certified_noise_std=entry.alone_noise_std(k), num_missing=0
                )
                if alone.certified_noise_std < self.least_certified(alone):
                    dearer.append(alone)
        return tuple(dearer)

    def settle_unknown_speakers(self) -> None:
        """Charge `unknown_speakers`. The rounds stay on the air until somebody says who spoke.

        Raises:
            PrivacyError: the write failed.
        """
        dearer = self.unknown_speakers()
        for round_index in sorted({record.round_index for record in dearer}):
            self.append_correction([r for r in dearer if r.round_index == round_index])

    def note_speakers(self, round_index: int, speakers: Sequence[int]) -> None:
        """Write down who spoke, when everything that was missing has been charged.

        Nothing happens for a round that is not on the air.

        Raises:
            PrivacyError: the write failed.
        """
        if round_index in self._on_air:
            entry = SpeakersKnown(round_index=round_index, speakers=tuple(sorted(speakers)))
            self._table.append([ChainedRow(round_index, NO_DEVICE, 0, encode_entry(entry))])
            del self._on_air[round_index]
            self._spoke[round_index] = entry.speakers

    def verify(self) -> None:
        """Read the whole ledger again and check every link.

        Raises:
            LedgerCorruptError: see the class.
        """
        records: list[MechanismRecord] = []
        rounds: dict[int, list[_Attempt]] = {}
        on_air: dict[int, SpeakersUnknown] = {}
        spoke: dict[int, tuple[int, ...]] = {}
        configurations: list[tuple[str, int]] = []
        for sequence, row in enumerate(self._table.read(), start=1):
            try:
                if row.device_index == NO_DEVICE:
                    entry = decode_entry(row.record)
                    if isinstance(entry, Configuration):
                        configurations.append((entry.digest, len(records)))
                    else:
                        _file_on_air(on_air, spoke, row.round_index, entry)
                    continue
                record = MechanismRecord.decode(row.record)
            except UnknownMechanismError as error:
                raise LedgerCorruptError(
                    f"privacy ledger: record {sequence} is intact but cannot be priced: {error}"
                ) from error
            if (record.round_index, record.device_index) != (row.round_index, row.device_index):
                raise LedgerCorruptError(
                    f"privacy ledger: record {sequence} and its index columns disagree."
                )
            records.append(record)
            _file_under_round(rounds, row.attempt, record)
        self._records, self._rounds = records, rounds
        self._on_air, self._spoke, self._configurations = on_air, spoke, configurations

    def _write(self, round_index: int, requested: _Attempt) -> tuple[MechanismRecord, ...]:
        """Append one attempt in one durable transaction; all of it or nothing."""
        if not requested:
            return ()
        attempt = len(self._rounds.get(round_index, []))
        written = tuple(requested[device_index] for device_index in sorted(requested))
        self._table.append(
            [
                ChainedRow(round_index, record.device_index, attempt, record.encode())
                for record in written
            ]
        )
        self._records.extend(written)
        for record in written:
            _file_under_round(self._rounds, attempt, record)
        return written


def _check_one_round(records: Sequence[MechanismRecord]) -> int:
    """The common round of some records; PrivacyError if they are not one round's."""
    devices = [record.device_index for record in records]
    if len({(record.round_index, record.access) for record in records}) != 1:
        raise PrivacyError("records of several rounds or access modes, wanted those of one round.")
    if len(set(devices)) != len(devices):
        raise PrivacyError(f"devices {devices}: wanted each device once in a round.")
    return records[0].round_index


def _file_on_air(
    on_air: dict[int, SpeakersUnknown],
    spoke: dict[int, tuple[int, ...]],
    round_index: int,
    entry: SpeakersUnknown | SpeakersKnown,
) -> None:
    """Add an entry of speakers to what is open."""
    if entry.round_index != round_index:
        raise LedgerCorruptError("privacy ledger: an entry of speakers is of another round.")
    if isinstance(entry, SpeakersUnknown):
        on_air[round_index] = entry
    elif on_air.pop(round_index, None) is None:
        raise LedgerCorruptError(
            f"privacy ledger: who spoke in round {round_index} is there, that it was sent is not."
        )
    else:
        spoke[round_index] = entry.speakers


def _file_under_round(
    rounds: dict[int, list[_Attempt]], attempt: int, record: MechanismRecord
) -> None:
    """Add a record to its attempt; attempts of a round are numbered without gaps."""
    attempts = rounds.setdefault(record.round_index, [])
    if attempt == len(attempts):
        attempts.append({})
    if attempt != len(attempts) - 1 or record.device_index in attempts[attempt]:
        raise LedgerCorruptError(
            f"privacy ledger: attempt {attempt} at round {record.round_index} is out of order."
        )
    attempts[attempt][record.device_index] = record
