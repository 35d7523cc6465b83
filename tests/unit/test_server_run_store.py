"""The run store: what is in it survives; what is not never happened."""

import dataclasses
import math
import sqlite3
import subprocess
import sys
import time

import pytest

from server.errors import RunStoreError
from server.store import run_store
from server.store.records import EvaluationRow, RoundRow
from server.store.run_store import STORE_FILE, RunStore

META = {"run_id": "toy-1", "config": {"optimizer": {"clip": math.inf}}, "wall_s": 0.0}
# SQLite waits this long for another writer (2 s) and a loaded machine may add some.
REFUSED_WITHIN_S = 8.0


def row(round_index, **changes):
    values = {
        "round_index": round_index,
        "direction_seed": 2**64 - 1 - round_index,
        "step_integers": (-(2**50) + round_index, 7),
        "num_speakers": 3,
        "num_erased": round_index % 3,
        "is_skipped": round_index % 2 == 1,
        "mean_estimates": (0.1 + round_index, -1e-300),
        "true_means": (1 / 3, 5e-324),
        "squared_error_of_noise": 0.1,
        "squared_error_of_radio": 1e-17,
        "share_clipped": 0.25,
        "artificial_noise_std": 1e-300,
        "receiver_noise_std": 0.2,
        "amplitude_error_bound": 0.01,
        "noise_multiplier": 0.5,
        "receive_scale": 5e-324,
        "energies": (0.0, 1e-9),
        "weakest_gain": 0.3,
        "learning_rate": 1e-4,
        "wall_s": 0.05,
    }
    return RoundRow(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "toy"


@pytest.fixture
def store(folder):
    store = RunStore.create(folder, META)
    yield store
    store.close()


def reopen(store):
    store.close()
    return RunStore.open(store.path.parent)


def test_create_makes_the_folder_and_keeps_what_it_was_given(store):
    again = reopen(store)
    assert {key: again.meta(key) for key in META} == META
    assert again.meta("never set") is None
    assert again.num_rounds() == 0
    again.close()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("config", "{"), ("config", "[1]"), ("config", "[" * 100_000), ("wall_s", '"x"'),
        ("wall_s", "9" * 5000), ("wall_s", ""), ("run_id", "5"), ("outcome", '"odd"'),
        ("outcome", "5"), ("task", "5"), ("task", "{}"), ("class_examples", "5"),
        ("source", "null"), ("worth_rounds", '"x"'), ("stretches", '[{"first_round": 0}]'),
        ("epsilon_spent", '"x"'), ("peak_rss_mb", "[]"), ("is_simulated", "0"),
    ],
)  # fmt: skip
def test_what_is_not_of_its_kind_is_damage_and_told(store, key, text):
    with store.connection:
        store.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, text))
    again = reopen(store)
    with pytest.raises(RunStoreError, match=f"damaged: what it holds under '{key}'"):
        again.outcome if key == "outcome" else again.meta(key)
    again.close()


def test_create_twice_is_refused_and_harms_nothing(store, folder):
    store.append_round(row(0))
    store.close()
    with pytest.raises(RunStoreError, match=r"already there.*--resume"):
        RunStore.create(folder, {"run_id": "another"})
    again = RunStore.open(folder)
    assert again.meta("run_id") == "toy-1"
    assert again.rounds() == [row(0)]
    again.close()


def test_a_second_writer_is_refused_at_once(store, folder):
    started = time.monotonic()
    with pytest.raises(RunStoreError, match="in use by another process"):
        RunStore.open(folder)
    assert time.monotonic() - started < REFUSED_WITHIN_S
    store.append_round(row(0))  # the first one is not disturbed


def test_a_second_writer_in_another_process_is_refused(store, folder):
    program = (
        "import sys, pathlib; from server.store.run_store import RunStore\n"
        "from server.errors import RunStoreError\n"
        "try:\n    RunStore.open(pathlib.Path(sys.argv[1]))\n"
        "except RunStoreError as error:\n    sys.exit(f'refused: {error}')\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr.startswith("refused: ")
    assert "in use by another process" in child.stderr


def test_the_store_is_free_again_after_close(store):
    store.append_round(row(0))
    again = reopen(store)
    again.append_round(row(1))
    again.close()


def test_reopen_gives_the_same_rows_bit_for_bit(store):
    rows = [
        row(0),
        row(1, direction_seed=0, step_integers=(2**50,), true_means=None, share_clipped=None),
        row(2, direction_seed=2**63, mean_estimates=(-1 / 3,), wall_s=math.pi),
    ]
    for each in rows:
        store.append_round(each)
    again = reopen(store)
    assert again.rounds() == rows
    assert again.num_rounds() == 3
    again.close()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_unsigned_64_bit_seeds_survive(store, seed):
    store.append_round(row(0, direction_seed=seed))
    (result,) = store.results("toy-1")
    assert result.direction_seed == seed
    assert (result.run_id, result.round_index) == ("toy-1", 0)
    assert result.step_integers == (-(2**50), 7)


@pytest.mark.parametrize("round_index", [0, 2, 7])
def test_rounds_come_in_order_each_once(store, round_index):
    store.append_round(row(0))
    with pytest.raises(RunStoreError, match=f"round {round_index} comes after 1 rounds"):
        store.append_round(row(round_index))
    assert store.rounds() == [row(0)]
    store.append_round(row(1))


def test_an_evaluation_recorded_again_changes_nothing(store):
    first = EvaluationRow(0, 2.5, 0.4, None)
    later = EvaluationRow(10, 2.0, 0.5, 1.25)
    store.append_evaluation(later)
    store.append_evaluation(first)
    store.append_evaluation(first)
    assert store.evaluations() == [first, later]


def test_set_meta_replaces_and_is_durable(store):
    store.set_meta("wall_s", 3.5)
    store.set_meta("wall_s", 4.5)
    store.set_meta("epsilon_spent", None)
    again = reopen(store)
    assert again.meta("wall_s") == 4.5
    assert again.meta("epsilon_spent") is None
    again.close()


def test_a_commit_is_on_the_disk_before_it_returns(store):
    assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.append_round(row(0))
    assert not store.connection.in_transaction


def test_no_run_there_is_named(tmp_path):
    with pytest.raises(RunStoreError, match="no run to continue"):
        RunStore.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough " * 40])
def test_a_file_that_is_no_store_is_refused(tmp_path, content):
    (tmp_path / STORE_FILE).write_bytes(content)
    with pytest.raises(RunStoreError, match=STORE_FILE):
        RunStore.open(tmp_path)


def test_another_database_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / STORE_FILE)
    connection.execute("CREATE TABLE meta (key TEXT, value TEXT)")
    connection.close()
    with pytest.raises(RunStoreError, match="not a run store of version"):
        RunStore.open(tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_truncated_file_ends_in_a_named_error(store, folder, kept):
    for index in range(200):
        store.append_round(row(index))
    store.close()
    path = folder / STORE_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) // 512 * 512])
    with pytest.raises(RunStoreError, match="damaged"):
        damaged = RunStore.open(folder)
        try:
            damaged.rounds()
        finally:
            damaged.close()


def test_an_overwritten_page_ends_in_a_named_error(store, folder):
    for index in range(200):
        store.append_round(row(index))
    store.close()
    path = folder / STORE_FILE
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(RunStoreError, match="damaged"):
        damaged = RunStore.open(folder)
        try:
            damaged.rounds()
        finally:
            damaged.close()


def test_a_full_disk_is_named_and_loses_nothing(store):
    store.append_round(row(0))
    (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
    store.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RunStoreError, match="Free some disk space"):
        for index in range(1, 400):
            store.append_round(row(index))
    again = reopen(store)
    recorded = again.rounds()
    assert recorded == [row(index) for index in range(len(recorded))]
    assert recorded
    again.close()


def test_a_create_that_fails_leaves_no_store_behind(folder):
    class NotJson:
        pass

    with pytest.raises(TypeError):
        RunStore.create(folder, {"run_id": "toy-1", "config": NotJson()})
    assert not (folder / STORE_FILE).exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_folder_should_be_is_named(tmp_path, below):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RunStoreError, match="taken"):
        RunStore.create(tmp_path / "taken" / below, META)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("change", [{"mean_estimates": (1.0, math.nan)}, {"wall_s": math.nan}])
def test_nan_is_refused_and_not_stored_as_nothing(store, change):
    with pytest.raises(RunStoreError):
        store.append_round(dataclasses.replace(row(0), **change))
    assert store.num_rounds() == 0


def test_a_file_system_without_shared_memory_can_hold_a_run(tmp_path):
    """The log's index stays in this process: nothing may be needed under its name on the disk."""
    RunStore.create(tmp_path, META).close()
    (tmp_path / f"{STORE_FILE}-shm").mkdir()
    store = RunStore.open(tmp_path)
    try:
        store.append_round(row(0))
        assert store.num_rounds() == 1
    finally:
        store.close()


def test_damage_is_said_of_damage_only(tmp_path, store):
    store.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(RunStoreError, match="Nothing recorded was lost") as refused:
        store.append_round(row(0))
    assert "damaged" not in str(refused.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / STORE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(RunStoreError, match="damaged or not a run"):
        RunStore.open(tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE rounds SET step_integers = '[1, 7]' WHERE round_index = 1", "at round 1"),
        ("UPDATE rounds SET mean_estimates = '[0.5]' WHERE round_index = 0", "at round 0"),
        ("UPDATE rounds SET chain = 'x' WHERE round_index = 2", "at round 2"),
        ("DELETE FROM rounds WHERE round_index = 1", "at round 1"),
        ("DELETE FROM rounds WHERE round_index = 2", "2 rounds are here, and more"),
        ("UPDATE rounds_head SET count = 2", "3 rounds are here, and more"),
    ],
)
def test_a_changed_or_missing_round_is_noticed(store, damage, words):
    for index in range(3):
        store.append_round(row(index))
    assert store.rounds() == [row(index) for index in range(3)]
    with store.connection:
        store.connection.execute(damage)
    with pytest.raises(RunStoreError, match=words):
        store.rounds()
    with pytest.raises(RunStoreError, match=words):
        list(store.results("toy"))


def test_a_run_on_a_medium_that_cannot_be_written_is_read(tmp_path, store, monkeypatch):
    store.append_round(row(0))
    folder, rounds = store.path.parent, store.rounds()
    store.close()
    before = store.path.read_bytes()

    def refuse(path):
        raise AssertionError("opened for writing")

    monkeypatch.setattr(run_store, "_connect", refuse)
    monkeypatch.setattr(run_store.os, "access", lambda path, mode: False)
    again = RunStore.open_to_read(folder)
    assert again.rounds() == rounds
    with pytest.raises(RunStoreError, match="readonly"):
        again.append_round(row(1))
    again.close()
    assert store.path.read_bytes() == before
    # With a log beside it, which an interrupted run leaves, reading is going on with it.
    store.path.with_name(store.path.name + "-wal").touch()
    with pytest.raises(AssertionError, match="opened for writing"):
        RunStore.open_to_read(folder)
