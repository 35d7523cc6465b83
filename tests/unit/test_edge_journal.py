"""The journal of a host's steps: what is in it is what was taken, or it ends before."""

import contextlib
import sqlite3

import pytest

from edge_runtime.joining.journal import Journal, run_of
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import JournalError
from edge_runtime.protocol.rounds import RoundResult

RUN = "run"
STEPS = [RoundResult(RUN, t, 2**64 - 1 - t, (t, -(2**50))) for t in range(6)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state" / "journal.sqlite"
    with contextlib.closing(Journal(path, RUN)) as journal:
        journal.append(STEPS[:4])
        journal.append(STEPS[4:])
        journal.append([])
    return path


def steps_in(path, run_id=RUN):
    with contextlib.closing(Journal(path, run_id)) as journal:
        return list(journal.steps())


def changed(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def test_what_was_taken_is_there_when_it_is_opened_again(path):
    assert steps_in(path) == STEPS
    assert run_of(path) == RUN
    assert path.stat().st_mode & 0o077 == 0


def test_another_run_begins_with_none(path):
    assert steps_in(path, "another") == []
    assert run_of(path) == "another"


@pytest.mark.parametrize(
    "spoilt",
    [
        ("DELETE FROM steps WHERE round_index = 3",),
        ("UPDATE steps SET message = ? WHERE round_index = 3", b"garbage"),
        ("UPDATE steps SET message = ? WHERE round_index = 3", wire.encode_step(STEPS[2])),
        (
            "UPDATE steps SET message = ? WHERE round_index = 3",
            wire.encode_step(RoundResult("another", 3, 0, (1,))),
        ),
    ],
)
def test_it_ends_before_what_is_damaged_and_goes_on_from_there(path, spoilt):
    changed(path, *spoilt)
    assert steps_in(path) == STEPS[:3]
    with contextlib.closing(Journal(path, RUN)) as journal:
        journal.append(STEPS[3:5])
        assert list(journal.steps()) == STEPS[:5]  # nothing of the old tail behind them


def test_what_is_no_journal_gives_way_to_one(tmp_path, caplog):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"no database" * 1000)
    assert run_of(path) is None
    assert steps_in(path) == []
    assert "no journal" in caplog.text
    assert run_of(tmp_path / "missing.sqlite") is None


def test_one_host_one_process(path):
    with contextlib.closing(Journal(path, RUN)):
        for open_it in (lambda: Journal(path, RUN), lambda: run_of(path)):
            with pytest.raises(JournalError, match="stop whoever else has it open"):
                open_it()


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"name another folder with --state"):
        Journal(tmp_path / "file" / "journal.sqlite", RUN)


def test_it_goes_when_the_run_is_over(path):
    journal = Journal(path, RUN)
    journal.close()
    journal.close()
    journal.remove()
    assert list(path.parent.iterdir()) == []
