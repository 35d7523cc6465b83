"""Invariant: spent budget is never under-reported. Every damage ends in a named error."""

import sqlite3

import privacy_records
import pytest

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from server.errors import LedgerCorruptError, PrivacyError
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import RECORD_VERSION, MechanismRecord

NUM_ROUNDS = 5


def make_record(round_index, device_index):
    return privacy_records.make_record(
        round_index,
        device_index,
        rate=1.0,
        unit=PrivacyUnit.DEVICE,
        relation=NeighbouringRelation.REPLACE_ONE,
        certified_noise_std=20.0,
    )


def connect(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.sqlite"
    connection = connect(path)
    ledger = PrivacyLedger(connection)
    for round_index in range(NUM_ROUNDS):
        ledger.append([make_record(round_index, k) for k in range(2)])
    connection.close()
    return path


DAMAGES = {
    "tail cut": "DELETE FROM privacy_ledger WHERE sequence > 7",
    "last record cut": "DELETE FROM privacy_ledger WHERE sequence = 10",
    "everything cut": "DELETE FROM privacy_ledger",
    "gap": "DELETE FROM privacy_ledger WHERE sequence = 4",
    "first cut": "DELETE FROM privacy_ledger WHERE sequence = 1",
    "cheaper noise": "UPDATE privacy_ledger SET record = replace(record, '20.0', '90.0') "
    "WHERE sequence = 3",
    "record is text": "UPDATE privacy_ledger SET record = CAST(record AS TEXT) WHERE sequence = 3",
    "index column": "UPDATE privacy_ledger SET device_index = 5 WHERE sequence = 3",
    "round column": "UPDATE privacy_ledger SET round_index = 0 WHERE sequence = 3",
    "attempt column": "UPDATE privacy_ledger SET attempt = 1 WHERE sequence = 3",
    "attempt is text": "UPDATE privacy_ledger SET attempt = 'x' WHERE sequence = 3",
    "link": "UPDATE privacy_ledger SET chain = 'ff' WHERE sequence = 3",
    "head count": "UPDATE ledger_head SET count = 9",
    "head chain": "UPDATE ledger_head SET chain = 'ff'",
    "head row gone": "DELETE FROM ledger_head",
    "head table gone": "DROP TABLE ledger_head",
    "ledger table gone": "DROP TABLE privacy_ledger",
}


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_in_the_tables_stops_the_run(path, statement):
    connection = connect(path)
    connection.execute(statement)
    connection.commit()
    with pytest.raises(LedgerCorruptError):
        PrivacyLedger(connection)
    connection.close()


def test_a_flipped_byte_in_a_record_is_found_wherever_it_is(path):
    connection = connect(path)
    (blob,) = connection.execute("SELECT record FROM privacy_ledger WHERE sequence = 6").fetchone()
    for position in range(0, len(blob), 7):
        damaged = bytearray(blob)
        damaged[position] ^= 1
        connection.execute(
            "UPDATE privacy_ledger SET record = ? WHERE sequence = 6", (bytes(damaged),)
        )
        connection.commit()
        with pytest.raises(LedgerCorruptError, match="record 6"):
            PrivacyLedger(connection)
    connection.execute("UPDATE privacy_ledger SET record = ? WHERE sequence = 6", (blob,))
    connection.commit()
    assert PrivacyLedger(connection).head[0] == 2 * NUM_ROUNDS
    connection.close()


def test_a_flipped_byte_in_the_file_is_found_or_harmless(path):
    whole = path.read_bytes()
    connection = connect(path)
    expected = PrivacyLedger(connection).records()
    connection.close()
    for position in range(0, len(whole), 211):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            assert PrivacyLedger(connection).records() == expected
        except (LedgerCorruptError, sqlite3.DatabaseError):
            pass
        finally:
            connection.close()


def test_a_truncated_file_is_found(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    connection = sqlite3.connect(path)
    with pytest.raises((LedgerCorruptError, sqlite3.DatabaseError)):
        PrivacyLedger(connection)
    connection.close()


def test_a_record_of_a_later_version_stops_the_run_although_the_chain_is_right(path, monkeypatch):
    connection = connect(path)
    ledger = PrivacyLedger(connection)
    ours, theirs = (b'"version":%d' % (RECORD_VERSION + i) for i in (0, 1))
    later = make_record(NUM_ROUNDS, 0).encode().replace(ours, theirs)
    monkeypatch.setattr(MechanismRecord, "encode", lambda self: later)
    ledger.append([make_record(NUM_ROUNDS, 0)])
    monkeypatch.undo()
    with pytest.raises(LedgerCorruptError, match="version"):
        PrivacyLedger(connection)
    connection.close()


class DiesWhile:
    """A connection whose power is cut at one kind of statement."""

    def __init__(self, connection, doomed):
        self._connection = connection
        self._doomed = doomed
        self._seen = 0

    @property
    def in_transaction(self):
        return self._connection.in_transaction

    def execute(self, statement, *arguments):
        if statement.startswith(self._doomed):
            self._seen += 1
            if self._doomed != "INSERT" or self._seen == 2:
                raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, *arguments)


@pytest.mark.parametrize("doomed", ["BEGIN", "INSERT", "UPDATE", "COMMIT"])
def test_a_write_that_fails_charges_all_or_nothing_and_forbids_transmission(path, doomed):
    connection = connect(path)
    ledger = PrivacyLedger(connection)
    before = ledger.head
    ledger._table._connection = DiesWhile(connection, doomed)
    with pytest.raises(PrivacyError, match="may be transmitted"):
        ledger.append([make_record(NUM_ROUNDS, k) for k in range(2)])
    assert ledger.head == before
    again = PrivacyLedger(connection)
    assert again.head == before
    assert len(again.append([make_record(NUM_ROUNDS, k) for k in range(2)])) == 2
    connection.close()


def test_a_crash_between_ledger_and_account_costs_budget_never_the_reverse(path):
    running = Accountant(epsilon=8.0, delta=1e-5)
    connection = connect(path)
    ledger = PrivacyLedger(connection)
    running.compose_all(ledger.records())
    ledger.append([make_record(NUM_ROUNDS, k) for k in range(2)])
    connection.close()  # the process dies here, before compose()

    connection = connect(path)
    resumed_ledger = PrivacyLedger(connection)
    resumed = Accountant(epsilon=8.0, delta=1e-5)
    resumed.compose_all(resumed_ledger.records())
    assert resumed.spent(0) > running.spent(0)
    # The resumed round sends the same noisy scalars: the same release, not charged again.
    assert resumed_ledger.append([make_record(NUM_ROUNDS, k) for k in range(2)]) == ()
    connection.close()
