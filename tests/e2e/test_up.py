"""``pairzero up`` and ``pairzero-device join``: one run over processes, and who may not join."""

import contextlib
import json
import subprocess
import sys
import tempfile

import pytest

from edge_runtime.cli import main as device_main
from edge_runtime.control.nats_link import NatsLink
from server.commands.cli import main
from server.config.files import load_config
from server.hosts.broker import Broker
from server.run.experiment import Experiment
from tests.support.whole_runs import carry_out, looked_at

SETTINGS = {
    "radio.backend": "ideal", "privacy.enabled": False, "federation.num_devices": 5,
    "optimizer.rounds": 4, "optimizer.batch_size": 4, "optimizer.directions": 2,
    "task.validation_examples": 20, "task.max_tokens": 24,
}  # fmt: skip


def arguments(*more, **changes):
    settings = {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return ["snips", *(part for pair in pairs for part in ("--set", pair)), *more]


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """ours() -> command lines of this test's brokers and devices that are running."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def running():
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        return [line for line in listed.stdout.splitlines() if str(scratch) in line]

    return running


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    assert carry_out(Experiment.start(load_config("snips", SETTINGS), folder))
    return looked_at(folder)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_over_processes_is_the_run_in_one(tmp_path, in_one_process, processes, capsys, ours):
    folder = tmp_path / "run"
    asked = arguments("--processes", str(processes), "--out", str(folder), "--json")
    assert main(["up", *asked]) == 0
    summary = json.loads(capsys.readouterr().out)
    left = looked_at(folder)
    assert left.digest == in_one_process.digest == summary["parameter_digest"]
    assert [row.step_integers for row in left.rows] == [
        row.step_integers for row in in_one_process.rows
    ]
    assert [row.num_speakers for row in left.rows] == [5] * 4
    # What a device measured before its noise has not left it.
    assert {row.true_means for row in left.rows} == {None}
    assert ours() == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--processes", "0"], "--processes: got 0, wanted 1 to 5"),
        (["--processes", "6"], "--processes: got 6, wanted 1 to 5"),
        (["--set", 'radio.backend="loopback"'], "hosts of their own carry the ideal link"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path, more, words, capsys, ours):
    assert main(["up", *arguments(*more, "--out", str(tmp_path / "run"))]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert ours() == []


def test_a_host_that_ends_before_the_run_is_named_with_what_it_said(
    tmp_path, monkeypatch, capsys, ours
):
    from server.commands import up

    def spoilt(folder, dealt, task):
        folder.mkdir()
        (folder / "0.tsv").write_text("no label here\n")

    monkeypatch.setattr(up, "_write", spoilt)
    assert main(["up", *arguments("--processes", "2", "--out", str(tmp_path / "run"))]) == 2
    error = capsys.readouterr().err
    assert "host-" in error and "has ended (2)" in error and "0.tsv" in error
    assert not (tmp_path / "run").exists()
    assert ours() == []


# ---------------------------------------------------------------- who may not join


def joins(url, data, *more):
    return device_main(["join", url, "--name", "pi", "--data", str(data), "--wait", "0.2", *more])


def test_no_address_no_broker_and_no_server_are_said_at_once(tmp_path, capsys):
    data = tmp_path / "data.tsv"
    data.write_text("AddToPlaylist\tadd this\n")
    for url, words in (
        ("nowhere", "wanted nats://HOST:PORT. `pairzero serve` prints the right line"),
        ("nats://127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
    ):
        assert joins(url, data) == 2
        assert words in capsys.readouterr().err
    with Broker() as broker:
        assert joins(broker.url, data) == 2
        assert "no server has come to this broker in 0.2 s" in capsys.readouterr().err
        empty = tmp_path / "empty"
        empty.mkdir()
        assert joins(broker.url, empty) == 2
        assert "no file in it" in capsys.readouterr().err


def test_devices_do_not_outlive_who_started_them(tmp_path):
    with Broker() as broker:
        (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n")
        device = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime.cli", "join", broker.url, "--name", "pi",
             "--data", tmp_path / "data.tsv", "--until-input-ends"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with contextlib.closing(NatsLink(broker.url, "test")):
            device.stdin.close()
            assert device.wait(60) in (0, 2)
        device.stdout.close()
