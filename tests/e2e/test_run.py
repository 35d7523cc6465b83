"""Whole runs on the bundled model: what they leave behind, and that no interruption shows."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats
from tokenizers import Tokenizer

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, GRAPH_FILES
from edge_runtime.control.channel import ControlChannel
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.errors import DeviceKeysError, PlanRefusedError
from edge_runtime.protocol.rounds import DigestRequest, Participation, RoundResult, RunEnded
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import read_examples
from edge_runtime.uplink import CoherentUplink
from radio.errors import RadioUnavailableError
from server.air.base import CoherentAir
from server.air.orders import ask, those_who
from server.commands import cli
from server.config.files import load_config, parse_config
from server.errors import LedgerCorruptError, RunStoreError
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.report import page as report
from server.run import environment, experiment, pricing
from server.run.experiment import Experiment
from server.run.federation import split_iid
from server.run.round_loop import RoundLoop
from server.store.run_store import STORE_FILE, RunStore

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROOT = Path(__file__).parents[2]
ROUNDS = 32
NUM_DEVICES = 3
SETTINGS = {
    "federation.num_devices": NUM_DEVICES,
    "optimizer.rounds": ROUNDS,
    "optimizer.directions": 2,
    "optimizer.difference": "one_sided",
    "optimizer.batch_size": 4,
    "radio.coherence_rounds": 7,
    "radio.payload_symbols": 64,
    "privacy.epsilon": 8.0,
    "task.validation_examples": 40,
    "task.max_tokens": 24,
    "run.evaluation_interval": 8,
    "run.digest_interval": 9,
}
SHORT = {**SETTINGS, "optimizer.rounds": 4, "run.evaluation_interval": 4}
PLAIN = {**SHORT, "privacy.enabled": False}
ALPHA = 1e-6
TIMES = ("run_id", "wall_s", "rounds_per_s", "peak_rss_mb")
LOOKED_AT = ("worth_rounds", "worth_is_bound")  # only if somebody asked before it was started


def arguments(settings, *more):
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return ["run", *(a for pair in pairs for a in ("--set", pair)), *map(str, more), "--json"]


def run_cli(*argv):
    """Run the command in this process; (exit code, the JSON it printed)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in argv])
    assert out.getvalue(), err.getvalue()
    return code, json.loads(out.getvalue())


def essence(summary):
    """A summary without what may differ between two runs of the same bits."""
    return {key: value for key, value in summary.items() if key not in TIMES + LOOKED_AT}


def recorded(folder):
    """Everything in a store that an interruption must not change."""
    store = RunStore.open(folder)
    try:
        rows = [dataclasses.replace(row, wall_s=0.0) for row in store.rounds()]
        return rows, store.evaluations(), PrivacyLedger(store.connection).records()
    finally:
        store.close()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A whole run by the command line, with its reference: (folder, what it printed)."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, document = run_cli(*arguments(SETTINGS, "--out", folder, "--compare"))
    assert code == 0
    return folder, document


@pytest.fixture(scope="module")
def uninterrupted(compared):
    folder, document = compared
    return folder, {key: value for key, value in document.items() if key != "reference"}


def stop_after(config, folder, num_rounds):
    """Start a run and stop it between two rounds."""
    run = Experiment.start(config, folder)
    done = []
    try:
        assert not run.run(done.append, lambda: len(done) > num_rounds)
    finally:
        run.close()


def finish(run):
    """Drive a run to its end; (digest, epsilon)."""
    try:
        assert run.run()
        return run.store.meta("parameter_digest"), run.store.meta("epsilon_spent")
    finally:
        run.close()


def summary_of(folder):
    """The summary without drawing the plots."""
    store = RunStore.open(folder)
    try:
        config = parse_config(store.meta("config"), source="store")
        return report.summarise(store, config, store.rounds(), store.evaluations())
    finally:
        store.close()


# What a run leaves


def test_the_json_has_every_figure_of_the_issue(uninterrupted):
    _, summary = uninterrupted
    assert summary["complete"] is True
    assert summary["rounds"] == summary["rounds_planned"] == ROUNDS
    assert 0 <= summary["accuracy_before"] <= 1
    assert 0 <= summary["accuracy_after"] <= 1
    assert 0 < summary["epsilon"] <= summary["epsilon_budget"] == 8.0
    assert summary["delta"] == 1e-5
    # Five fading blocks of seven rounds were begun in 32 rounds.
    assert summary["uplink_symbols_per_device_per_round"] == pytest.approx(2 * 64 + 1024 * 5 / 32)
    assert math.isfinite(summary["nmse_db"])
    assert re.fullmatch(r"[0-9a-f]{64}", summary["parameter_digest"])
    assert summary["wall_s"] > 0
    assert summary["peak_rss_mb"] > 10
    assert summary["source"] == "loopback+rayleigh"
    assert summary["num_devices"] == NUM_DEVICES
    assert (summary["privacy_unit"], summary["neighbouring_relation"], summary["access"]) == (
        "example", "zero_out_one", "superposed",
    )  # fmt: skip
    assert summary["noise_source"] == "simulation"
    assert summary["evaluated_after_rounds"] == ROUNDS


def test_the_figures_are_those_of_the_store(uninterrupted):
    folder, summary = uninterrupted
    rows, evaluations, records = recorded(folder)
    assert summary["accuracy_before"] == evaluations[0].accuracy
    assert summary["accuracy_after"] == evaluations[-1].accuracy
    assert [e.num_rounds for e in evaluations] == list(range(0, ROUNDS + 1, 8))
    spoken = [row for row in rows if row.num_speakers]
    true = [value for row in spoken for value in row.true_means]
    heard = [value for row in spoken for value in row.mean_estimates]
    error = math.fsum((a - b) ** 2 for a, b in zip(heard, true, strict=True))
    power = math.fsum(value**2 for value in true)
    assert summary["nmse_db"] == pytest.approx(10 * math.log10(error / power), abs=1e-3)
    assert sum(row.num_speakers for row in rows) == len(records)


def test_the_files_are_there_and_the_report_opens_offline(uninterrupted):
    folder, summary = uninterrupted
    assert json.loads((folder / "summary.json").read_text()) == summary
    plots = sorted((folder / "plots").glob("*.png"))
    assert plots
    assert all(plot.read_bytes().startswith(b"\x89PNG\r\n") for plot in plots)
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(plots)
    sources = re.findall(r"(?:src|href)\s*=\s*(.{12})", page)
    assert set(sources) == {'"data:image/'}
    assert not re.findall(r"@import|url\(|<script|<link|<iframe", page)
    assert "A software radio" in page
    # What came of it is said first, and shown before anything else is explained.
    result = page.index(f"Accuracy from {summary['accuracy_before']:.1%} to ")
    assert result < page.index("<figure>") < page.index("<table>") < page.index('class="note"')
    assert summary["parameter_digest"] in page
    leftovers = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert leftovers == []


MANY = {"optimizer.directions": 3}


def test_a_run_of_three_numbers_a_round_says_what_it_sent_and_resumes_to_the_same_bits(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(Experiment.start(load_config("snips", SETTINGS | MANY), whole))
    stop_after(load_config("snips", SETTINGS | MANY), stopped, 9)
    finish(Experiment.resume(stopped))
    (rows, _, records), (again, _, _) = recorded(whole), recorded(stopped)
    assert {len(row.mean_estimates) for row in rows} == {3}
    assert [row.step_integers for row in rows] == [row.step_integers for row in again]
    summary = summary_of(whole)
    assert summary["parameter_digest"] == summary_of(stopped)["parameter_digest"]
    assert (summary["numbers_per_round"], summary["difference"]) == (3, "one_sided")
    assert summary["forward_sweeps_per_device"] == 4 * ROUNDS
    assert summary["payload_symbols_per_device_per_round"] == 3 * 64
    # One release a device and round, however many numbers.
    assert len(records) == sum(row.num_speakers for row in rows)
    errors = [
        sum(getattr(row, name) for row in rows if row.num_speakers)
        for name in ("squared_error_of_noise", "squared_error_of_radio")
    ]
    power = sum(x * x for row in rows if row.num_speakers for x in row.true_means)
    for key, error in zip(("noise_nmse_db", "radio_nmse_db"), errors, strict=True):
        assert summary[key] == pytest.approx(10 * math.log10(error / power), abs=1e-3)
    assert summary["radio_nmse_db"] != summary["noise_nmse_db"]


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(tmp_path):
    """Whatever the number of workers."""
    digests = []
    for name, seed, workers in (("first", 0, 1), ("again", 0, 3), ("other", 1, 1)):
        changes = {**PLAIN, "run.seed": seed, "run.workers": workers}
        digests.append(finish(Experiment.start(load_config("snips", changes), tmp_path / name)))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_compare_adds_the_same_run_without_privacy(compared):
    folder, summary = compared
    reference = summary["reference"]
    assert summary["source"].startswith("loopback+")
    assert reference["source"].startswith("ideal")
    assert reference["epsilon"] is reference["delta"] is None
    assert reference["uplink_symbols_per_device_per_round"] == 0
    assert reference["accuracy_before"] == summary["accuracy_before"]
    assert reference["parameter_digest"] != summary["parameter_digest"]
    assert "ideal (no radio)" in (folder / "report.html").read_text()
    assert (folder / "reference" / "report.html").is_file()


# Interrupted runs


def start_child(*argv):
    return subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_round(child, num_rounds):
    """Read the progress until an evaluation after at least ``num_rounds`` is reported."""
    seen = []
    for line in child.stderr:
        seen.append(line)
        first = line.split()[0] if line.split() else ""
        if first.isdigit() and int(first) >= num_rounds:
            return
    raise AssertionError(f"ended with {child.wait()} before round {num_rounds}: {seen}")


def end(child):
    """Wait; no process and no pipe stays."""
    out, err = child.communicate(timeout=600)
    return child.returncode, out, err


def check_like_uninterrupted(folder, uninterrupted):
    finish(Experiment.resume(folder))
    summary = summary_of(folder)
    whole_folder, whole = uninterrupted
    assert summary["parameter_digest"] == whole["parameter_digest"]
    assert summary["epsilon"] == whole["epsilon"]
    rows, evaluations, records = recorded(folder)
    whole_rows, whole_evaluations, whole_records = recorded(whole_folder)
    assert rows == whole_rows
    assert records == whole_records
    assert evaluations == whole_evaluations
    assert essence(summary) == essence(whole)


def num_rounds_in(folder):
    store = RunStore.open(folder)
    try:
        return store.num_rounds()
    finally:
        store.close()


def test_a_run_killed_half_way_ends_like_the_uninterrupted_one(tmp_path, uninterrupted):
    folder = tmp_path / "killed"
    child = start_child("-m", "server.commands.cli", *arguments(SETTINGS, "--out", folder))
    wait_for_round(child, 8)
    child.kill()
    assert end(child)[0] == -signal.SIGKILL
    assert 8 <= num_rounds_in(folder) < ROUNDS
    check_like_uninterrupted(folder, uninterrupted)


def test_a_run_that_died_without_a_word_can_be_reported(tmp_path, stopped, monkeypatch):
    """What it spent is what its ledger says, not what was noted when it stopped the last time."""
    folder = Path(shutil.copytree(stopped, tmp_path / "copy"))
    noted = summary_of(folder)["epsilon"]

    def die(self, row):
        raise DiedError

    run = Experiment.resume(folder)
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "append_round", die)
        patch.setattr(RunStore, "set_all_meta", lambda *_: None)  # not even its last words
        with pytest.raises(DiedError):
            finish(run)
    code, summary = run_cli("report", folder, "--json")
    assert code == 0
    _, _, records = recorded(folder)
    accounts = Accountant(epsilon=8.0, delta=1e-5, csi_delta=1e-6)
    accounts.compose_all(records)
    assert summary["epsilon"] == pytest.approx(accounts.worst_spent(), rel=1e-9)
    assert summary["epsilon"] > noted
    assert summary["outcome"] == "interrupted"
    page = (folder / "report.html").read_text()
    assert f"Spent epsilon {math.ceil(1000 * summary['epsilon']) / 1000:.3f} of 8" in page


def test_a_run_that_died_in_its_first_round_can_be_reported(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = Experiment.start(load_config("snips", SHORT), folder)
    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "set_all_meta", lambda *_: None)
        patch.setattr(CoherentAir, "carry", None)
        with pytest.raises(TypeError):
            finish(run)
    code, summary = run_cli("report", folder, "--json")
    assert (code, summary["rounds"], summary["source"]) == (0, 0, "loopback+rayleigh")
    assert summary["epsilon"] > 0  # the first round was paid for
    assert cli.main(["report", str(folder)]) == 0
    assert cli.main(["list", str(tmp_path)]) == 0


@pytest.mark.parametrize("moment", ["_join", "record_evaluation"])
def test_a_failure_after_the_store_was_made_lets_go_of_it(tmp_path, monkeypatch, moment):
    """Neither its lock nor a thread stays (the fixture of all tests looks for those)."""

    def fail(*_, **__):
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, moment, fail)
        with pytest.raises(DiedError):
            Experiment.start(load_config("snips", SHORT), tmp_path / "run")
    RunStore.open(tmp_path / "run").close()


DIE_AT = """
import os, signal, sys
from server.commands import cli
from server.store.run_store import RunStore

append_round = RunStore.append_round

def die_or_go_on(self, row):
    if row.round_index == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    append_round(self, row)

RunStore.append_round = die_or_go_on
cli.main(sys.argv[2:])
"""


def test_a_run_killed_between_ledger_and_round_ends_like_the_uninterrupted_one(
    tmp_path, uninterrupted
):
    folder = tmp_path / "killed"
    child = start_child("-c", DIE_AT, 16, *arguments(SETTINGS, "--out", folder))
    code, _, err = end(child)
    assert code == -signal.SIGKILL, err
    rows, _, records = recorded(folder)
    assert len(rows) == 16
    assert max(record.round_index for record in records) == 16
    check_like_uninterrupted(folder, uninterrupted)


class DiedError(BaseException):
    """Nothing in the packages catches it, as nothing catches a power cut."""


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (CoherentAir, "carry", 9),  # paid, not transmitted
        (RoundLoop, "record_step", 19),  # transmitted, not recorded
        (RoundLoop, "take_step", 19),  # recorded, told to nobody
        (Experiment, "evaluate", 16),  # recorded, not evaluated
        (Experiment, "evaluate", ROUNDS),  # the same after the last round
    ],
)
def test_a_run_that_died_at_an_awkward_moment_ends_like_the_uninterrupted_one(
    tmp_path, uninterrupted, monkeypatch, owner, name, at
):
    folder = tmp_path / "died"
    original = getattr(owner, name)

    def die_or_go_on(self, *arguments):
        if any(getattr(argument, "round_index", argument) == at for argument in arguments):
            raise DiedError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die_or_go_on)
        with pytest.raises(DiedError):
            finish(Experiment.start(load_config("snips", SETTINGS), folder))
    assert num_rounds_in(folder) == at + (name == "take_step")
    check_like_uninterrupted(folder, uninterrupted)


def test_ctrl_c_stops_cleanly_and_the_run_can_be_resumed(tmp_path, uninterrupted):
    folder = tmp_path / "interrupted"
    child = start_child("-m", "server.commands.cli", *arguments(SETTINGS, "--out", folder))
    wait_for_round(child, 8)
    child.send_signal(signal.SIGINT)
    code, out, err = end(child)
    assert code == 130, err
    assert f"Continue with: pairzero run --resume {folder}" in err
    assert "Traceback" not in err
    partial = json.loads(out)
    assert partial["complete"] is False
    assert 8 <= partial["rounds"] < ROUNDS
    assert 0 < partial["epsilon"] < uninterrupted[1]["epsilon"]
    assert "interrupted and can be resumed" in (folder / "report.html").read_text()
    check_like_uninterrupted(folder, uninterrupted)


def test_a_run_stopped_before_its_first_round_has_a_report_and_can_be_resumed(tmp_path):
    folder = tmp_path / "early"
    stop_after(load_config("snips", SHORT), folder, 0)
    report.write_runs(report.read_runs(folder))
    assert summary_of(folder)["rounds"] == 0
    finish(Experiment.resume(folder))
    assert summary_of(folder)["complete"] is True


def test_resuming_a_complete_run_changes_nothing(tmp_path, uninterrupted):
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted[0], folder)
    check_like_uninterrupted(folder, uninterrupted)


# Resume refuses what would not give the same bits


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    stop_after(load_config("snips", SHORT), folder, 2)
    return folder


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def check_refused(folder, error, match):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(error, match=match):
        Experiment.resume(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert set(after) == set(before)
    RunStore.open(folder).close()  # and the store was let go


@pytest.mark.parametrize("library", ["numpy", "onnxruntime", "tokenizers", "pairzero"])
def test_resume_refuses_another_library_version(stopped_copy, monkeypatch, library):
    real = environment.version
    monkeypatch.setattr(
        environment, "version", lambda name: "0.0.1" if name == library else real(name)
    )
    check_refused(stopped_copy, RunStoreError, "environment was .*same bits cannot be promised")


def test_resume_refuses_another_machine(stopped_copy, monkeypatch, capsys):
    monkeypatch.setattr(environment.platform, "machine", lambda: "pdp11")
    check_refused(stopped_copy, RunStoreError, "environment was .*pdp11")
    assert cli.main(["run", "--resume", str(stopped_copy)]) == 2
    assert "pdp11" in capsys.readouterr().err


def test_resume_refuses_another_bundle(tmp_path):
    bundle = Path(shutil.copytree(BUNDLED_MODEL_FOLDER, tmp_path / "bundle"))
    folder = tmp_path / "run"
    stop_after(load_config("snips", {**PLAIN, "model.bundle": str(bundle)}), folder, 1)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["source_model"] = "another one"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    check_refused(folder, RunStoreError, "bundle_digest was .*same bits cannot be promised")


@pytest.mark.parametrize("which", ["train", "validation"])
def test_resume_refuses_other_data(tmp_path, which):
    """The same noise on the scalar of other data: their difference would be in the clear."""
    task, task_folder = load_task("snips")
    copy = tmp_path / "data.tsv"
    shutil.copy(task_folder / getattr(task, which), copy)
    folder = tmp_path / "run"
    stop_after(load_config("snips", {**PLAIN, f"task.{which}": str(copy)}), folder, 1)
    lines = copy.read_text().splitlines(keepends=True)
    copy.write_text("".join([*lines[1:], lines[0].replace("\t", "\tplease ")]))
    check_refused(folder, RunStoreError, "same bits cannot be promised")


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM privacy_ledger WHERE sequence = (SELECT MAX(sequence) FROM privacy_ledger)",
        "DELETE FROM privacy_ledger",
        "UPDATE privacy_ledger SET record = CAST(replace(CAST(record AS TEXT), "
        "'\"sensitivity\":', '\"sensitivity\":0') AS BLOB) WHERE sequence = 2",
        "DROP TABLE ledger_head",
    ],
)
def test_resume_refuses_a_corrupt_ledger(stopped_copy, damage):
    connection = sqlite3.connect(stopped_copy / STORE_FILE)
    with connection:
        assert connection.execute(damage).rowcount != 0
    connection.close()
    check_refused(stopped_copy, LedgerCorruptError, "privacy ledger")


def test_resume_refuses_a_changed_step(stopped_copy):
    """It would lead to other weights, and the run would say "complete" over them."""
    connection = sqlite3.connect(stopped_copy / STORE_FILE)
    with connection:
        connection.execute("UPDATE rounds SET step_integers = '[1]' WHERE round_index = 0")
    connection.close()
    check_refused(stopped_copy, RunStoreError, "chain of its rounds breaks at round 0")


def test_resume_refuses_a_ledger_that_is_not_there_at_all(stopped_copy):
    """Rounds were transmitted, so an empty account would forget what they cost."""
    connection = sqlite3.connect(stopped_copy / STORE_FILE)
    with connection:
        connection.execute("DROP TABLE privacy_ledger")
        connection.execute("DROP TABLE ledger_head")
    connection.close()
    check_refused(stopped_copy, LedgerCorruptError, "ledger")


def test_resume_refuses_a_store_that_was_never_finished_being_made(tmp_path):
    folder = tmp_path / "run"
    RunStore.create(folder, {}).close()
    check_refused(folder, RunStoreError, STORE_FILE)


def test_resume_takes_no_other_settings(stopped_copy, capsys):
    assert cli.main(["run", "--resume", str(stopped_copy), "--rounds", "9"]) == 2
    assert "takes no other settings" in capsys.readouterr().err


# Keys of the operating system

SYSTEM = {**SHORT, "privacy.noise_source": "system"}


@pytest.fixture(scope="module")
def stopped_system_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "system"
    stop_after(load_config("snips", SYSTEM), folder, 2)
    return folder


def test_private_keys_are_for_their_owner_only(stopped_system_run):
    mode = (stopped_system_run / "private_keys.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    keys = json.loads((stopped_system_run / "private_keys.json").read_text())
    assert len(set(keys)) == NUM_DEVICES
    store_bytes = (stopped_system_run / STORE_FILE).read_bytes()
    assert not any(key.encode() in store_bytes or bytes.fromhex(key) in store_bytes for key in keys)


def test_a_simulated_run_keeps_no_keys(stopped):
    assert not (stopped / "private_keys.json").exists()


def test_a_system_run_resumes_with_its_own_keys(stopped_system_run, tmp_path):
    results = set()
    for name in ("one", "two"):
        copy = Path(shutil.copytree(stopped_system_run, tmp_path / name))
        results.add(finish(Experiment.resume(copy)))
    assert len(results) == 1


def test_two_system_runs_with_the_same_seed_differ(stopped_system_run, tmp_path):
    stop_after(load_config("snips", SYSTEM), tmp_path / "other", 2)
    rows, evaluations, records = recorded(stopped_system_run)
    other_rows, other_evaluations, other_records = recorded(tmp_path / "other")
    # The simulated part is the same: seeds, gains (as noisy pilots tell them: the receiver's noise
    # is not), the model at the start.
    assert [r.direction_seed for r in rows] == [r.direction_seed for r in other_rows]
    assert rows[0].weakest_gain == pytest.approx(other_rows[0].weakest_gain, rel=0.05)
    assert rows[0].weakest_gain != other_rows[0].weakest_gain
    assert evaluations[0] == other_evaluations[0]
    assert [r.mean_estimates for r in rows] != [r.mean_estimates for r in other_rows]
    assert not {r.noise_stream for r in records} & {r.noise_stream for r in other_records}


@pytest.mark.parametrize("content", [None, "", '["00"]', "[1, 2, 3, 4]"])
def test_resume_refuses_missing_or_damaged_keys(stopped_system_run, tmp_path, content):
    copy = Path(shutil.copytree(stopped_system_run, tmp_path / "copy"))
    if content is None:
        (copy / "private_keys.json").unlink()
    else:
        (copy / "private_keys.json").write_text(content)
    check_refused(copy, DeviceKeysError, "private keys cannot be read")


def test_resume_refuses_the_keys_of_another_run(stopped_system_run, tmp_path):
    copy = Path(shutil.copytree(stopped_system_run, tmp_path / "copy"))
    keys = [PrivateRandom.generate_key().hex() for _ in range(NUM_DEVICES)]
    (copy / "private_keys.json").write_text(json.dumps(keys))
    check_refused(copy, RunStoreError, "keys")


def test_compare_is_refused_where_people_are_promised_privacy(tmp_path, stopped_system_run, capsys):
    out = tmp_path / "run"
    assert cli.main([*arguments(SYSTEM, "--out", out, "--compare")]) == 2
    assert "without noise" in capsys.readouterr().err
    assert not out.exists()
    copy = Path(shutil.copytree(stopped_system_run, tmp_path / "copy"))
    before = (copy / STORE_FILE).read_bytes()
    assert cli.main(["run", "--resume", str(copy), "--compare"]) == 2
    assert "without noise" in capsys.readouterr().err
    assert not (copy / "reference").exists()
    assert (copy / STORE_FILE).read_bytes() == before


# The ideal link is plain federated SPSA

IDEAL = {
    "federation.num_devices": 3,
    "optimizer.rounds": 6,
    "optimizer.batch_size": 12,
    "optimizer.clip": math.inf,
    "optimizer.learning_rate": 3e-4,
    "model.trainable": "all",
    "radio.backend": "ideal",
    "privacy.enabled": False,
    "task.validation_examples": 8,
    "task.max_tokens": 20,
    "run.seed": 11,
}


def sha256_word(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class PlainSpsa:
    """Federated SPSA from the equations, sharing no arithmetic with the packages.

    w <- w - sum_q step_q z_q,
    step_q = (eta(t)/Q) mean_k (1/b) sum_i (l_i(w + mu z_q) - l_i(w - mu z_q)) / (2 mu),
    or one-sided (l_i(w + mu z_q) - l_i(w)) / mu
    """

    MU = 2.0**-10
    ROUNDING_KEY = int.from_bytes(b"rounding", "big")
    DIRECTION_KEY = int.from_bytes(b"z-direct", "big")

    def __init__(self, plain_graphs, num_directions, is_one_sided):
        self.num_directions, self.is_one_sided = num_directions, is_one_sided
        manifest = json.loads((BUNDLED_MODEL_FOLDER / "manifest.json").read_text())
        stored = load_file(BUNDLED_MODEL_FOLDER / "weights.safetensors")
        self.exponents = {t["name"]: t["quantum_exponent"] for t in manifest["tensors"]}
        self.weights = {
            name: (np.round(stored[name].astype(np.float64) / 2.0**e) * 2.0**e).astype(np.float32)
            for name, e in self.exponents.items()
        }
        self.graphs = {name: (BUNDLED_MODEL_FOLDER / name).read_bytes() for name in GRAPH_FILES}
        self.plain_graphs = plain_graphs
        self.num_layers = manifest["architecture"]["num_hidden_layers"]
        self.label_token_ids = np.array(manifest["label_token_ids"], dtype=np.int64)
        task, folder = load_task("snips")
        tokenizer = Tokenizer.from_file(str(BUNDLED_MODEL_FOLDER / "tokenizer.json"))
        self.parts = [
            [(self.tokens(tokenizer, task, e.text), e.label_index) for e in part]
            for part in split_iid(
                read_examples(folder / task.train, task),
                IDEAL["federation.num_devices"], IDEAL["run.seed"],
            )
        ]  # fmt: skip

    @staticmethod
    def tokens(tokenizer, task, text):
        ids = tokenizer.encode(task.template.format(text=text)).ids
        most = IDEAL["task.max_tokens"]
        return ids if len(ids) <= most else ids[:1] + ids[-(most - 1) :]

    def direction(self, seed, tensor_index, shape):
        """Bit j mod 64 of word j div 64 is set: -1."""
        size = math.prod(shape)
        counter = np.array([0, tensor_index, 0, 0], dtype=np.uint64)
        key = np.array([seed, self.DIRECTION_KEY], dtype=np.uint64)
        words = np.random.Philox(counter=counter, key=key).random_raw(-(-size // 64))
        bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        return (1.0 - 2.0 * bits.reshape(-1)[:size].astype(np.float64)).reshape(shape)

    def losses(self, weights, examples):
        """Losses of each example; batches of eight of similar length, as the devices cut them.

        A lone one runs beside a copy of itself.
        """
        examples = sorted(examples, key=lambda example: len(example[0]))
        found = []
        for start in range(0, len(examples), 8):
            rows = examples[start : start + 8]
            num_rows, rows = len(rows), rows * 2 if len(rows) == 1 else rows
            width = max(len(ids) for ids, _ in rows)
            padded = [ids + [1] * (width - len(ids)) for ids, _ in rows]
            loss = self.plain_graphs(
                self.graphs,
                weights,
                {
                    "label_token_ids": self.label_token_ids,
                    "input_ids": np.array(padded, dtype=np.int64),
                    "answer_position": np.array(
                        [row * width + len(ids) - 1 for row, (ids, _) in enumerate(rows)]
                    ),
                    "target": np.array([label for _, label in rows]),
                },
                self.num_layers,
            )["loss"]
            found += loss.tolist()[:num_rows]
        return found

    def moved(self, direction_seed, distance):
        return {
            name: (w + distance * self.direction(direction_seed, index, w.shape)).astype(np.float32)
            for index, (name, w) in enumerate(self.weights.items())
        }

    def mean_slope(self, batches, there, here, distance):
        """The mean over the devices of their batches' losses there less those here."""
        scalars = []
        for batch in batches:
            pairs = zip(self.losses(there, batch), self.losses(here, batch), strict=True)
            slopes = ((a - b) / distance for a, b in pairs)
            scalars.append(math.fsum(slopes) / IDEAL["optimizer.batch_size"])
        return math.fsum(scalars) / len(scalars)

    def play_round(self, round_index, release):
        rounds, seed = IDEAL["optimizer.rounds"], IDEAL["run.seed"]
        first = sha256_word(f"pairzero/direction/{seed}/{round_index}")
        more = (f"pairzero/direction-of-round/{first}/{q}" for q in range(1, self.num_directions))
        seeds = [first, *map(sha256_word, more)]
        batches = []
        for device_index, part in enumerate(self.parts):
            private = PrivateRandom(PrivateRandom.simulated_key(seed, device_index))
            rate = IDEAL["optimizer.batch_size"] / len(part)
            batches.append([part[i] for i in private.poisson_batch(release, len(part), rate)])
        means = []
        for direction_seed in seeds:
            there = self.moved(direction_seed, self.MU)
            if self.is_one_sided:
                means.append(self.mean_slope(batches, there, self.weights, self.MU))
            else:
                opposite = self.moved(direction_seed, -self.MU)
                means.append(self.mean_slope(batches, there, opposite, 2 * self.MU))
        cosine = 0.5 * (1 + math.cos(math.pi * round_index / rounds))
        rate = IDEAL["optimizer.learning_rate"] * (0.05 + (1.0 - 0.05) * cosine)
        steps = [round(rate * mean / len(seeds) / 2.0**-40) for mean in means]
        for direction_seed, step in zip(seeds, steps, strict=True):
            self.take_step(direction_seed, step)
        return tuple(means), tuple(steps)

    def take_step(self, direction_seed, step_integer):
        for index, (name, exponent) in enumerate(self.exponents.items()):
            counter = np.array([0, index, 0, 0], dtype=np.uint64)
            key = np.array([direction_seed, self.ROUNDING_KEY], dtype=np.uint64)
            quanta_per_step = 2 ** (exponent + 40)
            dither = int(np.random.Philox(counter=counter, key=key).random_raw()) % quanta_per_step
            step = (step_integer + dither) // quanta_per_step * 2.0**exponent
            w = self.weights[name]
            self.weights[name] = (w - step * self.direction(direction_seed, index, w.shape)).astype(
                np.float32
            )

    def digest(self):
        sha = hashlib.sha256()
        for name, weights in self.weights.items():
            sha.update(name.encode() + weights.tobytes())
        return sha.hexdigest()


@pytest.mark.parametrize(
    ("num_directions", "difference"), [(1, "two_sided"), (2, "two_sided"), (3, "one_sided")]
)
def test_the_ideal_link_equals_plain_federated_spsa_bit_for_bit(
    tmp_path, monkeypatch, plain_graphs, num_directions, difference
):
    # Which release a round was decides the batches, and nothing else is taken from the run.
    releases, carry = [], CoherentAir.carry

    def note_and_carry(self, control, plan, *rest):
        releases.append(plan.release)
        return carry(self, control, plan, *rest)

    monkeypatch.setattr(CoherentAir, "carry", note_and_carry)
    settings = {"optimizer.directions": num_directions, "optimizer.difference": difference}
    run = Experiment.start(load_config("snips", IDEAL | settings), tmp_path / "ideal")
    try:
        assert run.run()
        rows, digest = run.store.rounds(), run.store.meta("parameter_digest")
    finally:
        run.close()
    plain = PlainSpsa(plain_graphs, num_directions, difference == "one_sided")
    untouched = plain.digest()
    for row in rows:
        assert plain.play_round(row.round_index, releases[row.round_index]) == (
            row.mean_estimates,
            row.step_integers,
        )
        assert row.true_means == row.mean_estimates
    assert plain.digest() == digest != untouched


# The radio is as noisy as the formulas say, and no noisier


def predicted_variances(rows, config):
    """Per round: (without, with the largest possible channel estimation error)."""
    noise_power = 10 ** (-config.radio.snr_db / 10)
    gain_variance = noise_power / config.radio.pilot_symbols
    low, high = [], []
    for row in rows:
        receiver = noise_power / (2 * config.radio.payload_symbols) / row.receive_scale**2
        variance = row.artificial_noise_std**2 + receiver / row.num_speakers**2
        # sum_k abs(s_k)^2 v / (2 abs(h_k)^2), with abs(s_k)^2 at most clip^2 plus its noise.
        scalars = config.optimizer.clip**2 + 2 * row.artificial_noise_std**2 * row.num_speakers
        csi = scalars * gain_variance / (2 * row.weakest_gain**2) / row.num_speakers
        low.append(variance)
        high.append(variance + 1.1 * csi)
    return np.array(low), np.array(high)


def check_error_is_as_predicted(rows, config, factor=1.0):
    """H0: errors are independent N(0, predicted variance). Chi square, n rounds, alpha 1e-6.

    ``factor`` scales the prediction, for the negative controls.
    """
    low, high = (factor * v for v in predicted_variances(rows, config))
    errors = np.array([row.mean_estimates[0] - row.true_means[0] for row in rows])
    n = len(rows)
    return (
        np.sum(errors**2 / high) <= stats.chi2.isf(ALPHA / 2, n)
        and np.sum(errors**2 / low) >= stats.chi2.ppf(ALPHA / 2, n)
    )  # fmt: skip


RADIO = {
    "optimizer.rounds": 100,
    "optimizer.directions": 1,
    "optimizer.difference": "two_sided",
    "optimizer.batch_size": 4,
    "optimizer.learning_rate": 6e-2,
    "optimizer.clip": 20.0,
    "radio.payload_symbols": 64,
    "privacy.epsilon": 8.0,
    "federation.num_devices": NUM_DEVICES,
    "task.validation_examples": 80,
    "task.max_tokens": 16,
    "run.evaluation_interval": 100,
}


def run_noisy(folder, **changes):
    config = load_config(
        "snips", {**RADIO, **{k.replace("__", "."): v for k, v in changes.items()}}
    )
    run = Experiment.start(config, folder)
    try:
        assert run.run()
        rows = [row for row in run.store.rounds() if row.num_speakers]
        return config, folder, rows, run.store.evaluations()
    finally:
        run.close()


@pytest.fixture(scope="module")
def awgn_run(tmp_path_factory):
    """Receiver noise alone."""
    return run_noisy(
        tmp_path_factory.mktemp("runs") / "awgn", radio__channel="awgn", radio__snr_db=0.0,
        privacy__enabled=False, optimizer__learning_rate=2e-2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rayleigh_run(tmp_path_factory):
    """Receiver noise and artificial noise."""
    return run_noisy(
        tmp_path_factory.mktemp("runs") / "rayleigh", radio__channel="rayleigh",
        radio__snr_db=15.0, privacy__epsilon=12.0,
    )  # fmt: skip


@pytest.fixture(params=["awgn_run", "rayleigh_run"])
def noisy_run(request):
    return request.getfixturevalue(request.param)


def test_nmse_lies_within_the_predicted_interval(noisy_run):
    config, folder, rows, _ = noisy_run
    assert len(rows) > 80
    # An estimate at the clip would hide its error.
    assert max(abs(row.mean_estimates[0]) for row in rows) < config.optimizer.clip
    assert check_error_is_as_predicted(rows, config)
    # Negative controls: noise of twice or half the standard deviation would be noticed.
    assert not check_error_is_as_predicted(rows, config, factor=4.0)
    assert not check_error_is_as_predicted(rows, config, factor=0.25)

    low, high = predicted_variances(rows, config)
    power = math.fsum(row.true_means[0] ** 2 for row in rows)
    # Largest weight first: a weighted chi square is no wider than one of n_effective degrees.
    spread = stats.chi2.isf(ALPHA / 2, math.floor(high.sum() / high.max()))
    spread /= math.floor(high.sum() / high.max())
    shrink = stats.chi2.ppf(ALPHA / 2, math.floor(low.sum() / low.max()))
    shrink /= math.floor(low.sum() / low.max())
    nmse_db = summary_of(folder)["nmse_db"]
    assert 10 * math.log10(low.sum() * shrink / power) <= nmse_db
    assert nmse_db <= 10 * math.log10(high.sum() * spread / power)


def test_measured_receiver_noise_is_that_of_the_configuration(noisy_run):
    """H0: each of n measurements averages 256 samples; chi square of 512 n degrees, alpha 1e-6."""
    config, _, rows, _ = noisy_run
    noise_power = 10 ** (-config.radio.snr_db / 10)
    degrees = 512 * len(rows)
    ratios = [
        2 * config.radio.payload_symbols * (r.receiver_noise_std * r.num_speakers * r.receive_scale)
        ** 2 / noise_power
        for r in rows
    ]  # fmt: skip
    statistic = 512 * math.fsum(ratios)
    assert stats.chi2.ppf(ALPHA / 2, degrees) < statistic < stats.chi2.isf(ALPHA / 2, degrees)


def test_loss_falls_over_the_air(awgn_run):
    evaluations = awgn_run[-1]
    assert [evaluation.num_rounds for evaluation in evaluations] == [0, 100]
    assert evaluations[-1].loss < 0.9 * evaluations[0].loss


# What a promise costs the curious, and what ends when it is spent


def test_a_private_run_writes_no_scalar_down_before_its_noise(stopped_system_run, stopped):
    """The report of a promise must not print what the promise hides; a simulation may."""
    for folder, is_known in ((stopped_system_run, False), (stopped, True)):
        store = RunStore.open(folder)
        try:
            rows = store.rounds()
        finally:
            store.close()
        assert rows
        assert all((row.true_means is not None) is is_known for row in rows)
        assert all((row.share_clipped is not None) is is_known for row in rows)
        assert (summary_of(folder)["nmse_db"] is not None) is is_known


def test_a_run_out_of_budget_stops_by_itself_and_keeps_what_it_learnt(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = Experiment.start(load_config("snips", SETTINGS), folder)
    honest, at = run.pricing.price, 9

    def too_dear(self, planned, release):
        price = honest(planned, release)
        if planned.round_index < at:
            return price
        # As if everybody's noise had been far less in the rounds before.
        return tuple(
            msgspec.structs.replace(r, certified_noise_std=r.certified_noise_std / 2.5)
            for r in price
        )

    monkeypatch.setattr(type(run.pricing), "price", too_dear)
    try:
        assert not run.run()
        assert run.store.meta("outcome") == "budget_exhausted"
        assert run.store.num_rounds() == at
        assert run.store.evaluations()[-1].num_rounds == at
        assert run.store.meta("parameter_digest") == run.loop.replica.digest()
        assert run.store.meta("epsilon_spent") <= run.config.privacy.epsilon
    finally:
        run.close()
    report.write_runs(report.read_runs(folder))
    summary = summary_of(folder)
    assert (summary["complete"], summary["outcome"]) == (False, "budget_exhausted")
    assert "stopped" in (folder / "report.html").read_text()


FIVE = {
    **SHORT, "federation.num_devices": 5, "optimizer.rounds": 3, "run.evaluation_interval": 3,
    "privacy.epsilon": 1.0, "radio.channel": "awgn",
}  # fmt: skip


def fail_in_round(monkeypatch, round_index, devices):
    """These devices' radios refuse to send in one round."""
    send = CoherentUplink.send_scalars

    def send_or_fail(self, noisy_scalars, order, plan):
        if plan.round_index == round_index and order.device_index in devices:
            raise RadioUnavailableError("unplugged")
        return send(self, noisy_scalars, order, plan)

    monkeypatch.setattr(CoherentUplink, "send_scalars", send_or_fail)


def test_dropouts_beyond_the_budget_have_a_name_and_an_exit_code(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    fail_in_round(monkeypatch, 2, {1, 2, 3, 4})
    assert cli.main(arguments(FIVE, "--out", folder)) == 4
    printed = capsys.readouterr()
    assert "More than the privacy budget was spent: epsilon " in printed.err
    summary = json.loads(printed.out)
    assert (summary["outcome"], summary["complete"]) == ("budget_exceeded", False)
    assert summary["rounds"] == 2
    assert summary["epsilon"] > 5 * summary["epsilon_budget"]
    page = (folder / "report.html").read_text()
    assert "More than the budget was spent" in page
    assert f"{summary['epsilon']:.3f}" in page

    # A resume reports the same and puts nothing on the air.
    monkeypatch.setattr(CoherentUplink, "send_scalars", None)
    monkeypatch.setattr(CoherentUplink, "send_pilot", None)
    assert run_cli("run", "--resume", folder, "--json") == (4, summary)


def test_a_run_that_died_right_after_the_correction_ends_on_resume(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fail_in_round(monkeypatch, 1, {1, 2, 3, 4})
    with monkeypatch.context() as patch:
        patch.setattr(pricing.Pricing, "check_not_exceeded", die)
        run = Experiment.start(load_config("snips", FIVE), folder)
        with pytest.raises(DiedError):
            finish(run)
    run = Experiment.resume(folder)
    try:
        monkeypatch.setattr(ControlChannel, "ask", no_radio)
        assert not run.run()
        assert run.store.outcome == "budget_exceeded"
    finally:
        run.close()


def die(self):
    if self._ledger.records():
        raise DiedError


def no_radio(self, message, *asked, ask=ControlChannel.ask):
    """Digests are compared in the end, and keys destroyed; all else would make a device speak."""
    assert isinstance(message, DigestRequest | RunEnded)
    return ask(self, message, *asked)


def test_an_infinite_price_is_written_in_a_way_that_every_reader_understands(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    settings = {**FIVE, "federation.num_devices": 64, "privacy.epsilon": 8.0}
    fail_in_round(monkeypatch, 0, set(range(1, 64)))
    assert cli.main(arguments(settings, "--out", folder)) == 4
    summary = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert summary["epsilon"] == "infinity"
    assert float(summary["epsilon"]) == math.inf
    assert "Spent epsilon inf of 8" in (folder / "report.html").read_text()


def test_a_device_of_a_private_run_speaks_under_no_noiseless_order(tmp_path):
    run = Experiment.start(load_config("snips", SHORT), tmp_path / "run")
    try:
        channel = run.loop.channel_for(0)
        power = run.pricing.plan_round(0, channel).power
        loop = run.loop
        ask(run.loop.control, loop.make_plan(0, power))  # the control: an honest plan
        quiet = dict.fromkeys(power.participants, 0.0)
        silenced = dataclasses.replace(power, artificial_noise_std=quiet)
        loop.take_step(RoundResult(loop.run_id, 0, 0, (0,)))
        answers = ask(run.loop.control, loop.make_plan(1, silenced))
        assert answers.reports == []
        with pytest.raises(PlanRefusedError, match="noise of 0 times the sensitivity"):
            those_who(Participation.TRANSMITTED, answers)
    finally:
        run.close()


def test_resume_refuses_a_processor_with_other_bits(stopped_copy, monkeypatch):
    monkeypatch.setattr(experiment, "probe", lambda *_: "other bits")
    check_refused(stopped_copy, RunStoreError, "probe was .*same bits cannot be promised")
