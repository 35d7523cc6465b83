"""What is said with every epsilon, wherever one is printed."""

import json

import pytest
from whole_runs import carry_out

from server import report
from server.cli import main
from server.config import load_config
from server.experiment import Experiment
from server.privacy_statement import assumed_receiver_noise, assumption, promise

SHORT = {
    "optimizer.rounds": 2, "optimizer.directions": 1, "optimizer.batch_size": 2,
    "task.max_tokens": 16, "task.validation_examples": 5, "federation.num_devices": 2,
}  # fmt: skip


def test_the_promise_names_unit_relation_and_access():
    text = promise(load_config("snips", {"privacy.unit": "device"}))
    assert text == "epsilon 1 at delta 1e-05, zero out one device, superposed access"


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({}, 4 * 2.0**-34 * 20.0 / 16),
        ({"radio.waveform": "coherent_vote", "privacy.vote_noise": "after_sign"}, 4 * 2.0**-34),
        ({"radio.waveform": "coherent_vote"}, None),
        ({"radio.waveform": "energy"}, None),
        ({"privacy.enabled": False}, None),
    ],
)
def test_a_receiver_noise_is_assumed_where_devices_cover_one_another(changes, noise):
    config = load_config("snips", changes)
    assert assumed_receiver_noise(config) == noise
    assert (assumption(config) is None) is (noise is None)


def test_what_is_counted_of_the_receiver_stands_there_too(tmp_path, capsys):
    settings = {**SHORT, "privacy.trusted_noise_fraction": 0.5, "privacy.missing_devices": 1}
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    folder = tmp_path / "run"
    assert main(["run", "snips", *changes, "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "without the noise of any 1 others, 50% of the receiver noise counted" in out
    assert "assumed and 50% of it counted)" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["trusted_noise_fraction"], summary["missing_devices"]) == (0.5, 1)
    assert "50% of the receiver noise counted." in (folder / "report.html").read_text()


def test_it_stands_wherever_epsilon_does(tmp_path, capsys):
    folder = tmp_path / "run"
    assert carry_out(Experiment.start(load_config("snips", SHORT), folder))
    (first,) = report.read_runs(folder)
    report.write_runs([first])
    wanted = 4 * 2.0**-34 * 20.0 / 2
    assert first.summary["assumed_receiver_noise"] == wanted
    assert json.loads((folder / "summary.json").read_text())["assumed_receiver_noise"] == wanted
    figure = f"at least {wanted:.1e}"
    assert figure in (folder / "report.html").read_text()
    assert (folder / "report.html").read_text().count(figure) >= 2  # notes, and below the plot
    assert main(["report", str(folder)]) == 0
    assert figure in capsys.readouterr().out
    assert main(["list", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert figure in listed
    assert "(1)*" in listed
    settings = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    assert main(["plan", "snips", *settings]) == 0
    assert figure in capsys.readouterr().out
    assert main(["run", *settings, "--out", str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert out.count(figure) == 2  # before the rounds, and below the table
