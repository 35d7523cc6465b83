"""What is said with every epsilon, wherever one is printed."""

import json
import math

import pytest
from whole_runs import carry_out

from server.commands.cli import main
from server.config.files import load_config
from server.planning.privacy_statement import (
    assumed_as_planned,
    assumed_receiver_noise,
    assumption,
    largest_sum_noise_std,
    promise,
)
from server.planning.privacy_terms import plan_privacy_terms
from server.report import page as report
from server.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("outlined_pictures", "looked_at_once")

SHORT = {
    "optimizer.rounds": 2, "optimizer.directions": 1, "optimizer.batch_size": 2,
    "task.max_tokens": 16, "task.validation_examples": 5, "federation.num_devices": 2,
}  # fmt: skip


def test_the_promise_names_unit_relation_and_access():
    config = load_config("snips", {"privacy.unit": "device"})
    text = promise(config.privacy, config.access)
    assert text == "epsilon 1 at delta 1e-05, zero out one device, superposed access"


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"optimizer.clip": 20.0}, 20.0 / 16),
        ({"radio.waveform": "coherent_vote", "privacy.vote_noise": "after_sign"}, 1.0),
        ({"radio.waveform": "coherent_vote"}, None),
        ({"radio.waveform": "energy"}, None),
        ({"privacy.enabled": False}, None),
    ],
)
def test_a_receiver_noise_is_assumed_where_devices_cover_one_another(changes, step):
    config = load_config("snips", changes)
    if step is None:
        assert assumed_receiver_noise(config, 1.0) is None
        assert assumption(config.largest_number, None) is None
        return
    assert assumed_receiver_noise(config, 0.0) == 4 * 2.0**-34 * step
    assumed = assumed_receiver_noise(config, 1.0)
    assert 4 * 2.0**-34 * step < assumed < 1e-6 * step
    assert f"at least {assumed:.1e}" in assumption(config.largest_number, assumed)


def test_the_noise_of_a_sum_is_that_of_the_loudest_round():
    config = load_config("snips", {"privacy.trusted_noise_fraction": 0.25})
    loudest = largest_sum_noise_std(
        config.privacy.counted_noise_fraction, [1.0, 3.0, 9.0], [2.0, 8.0, 9.0], [5, 2, 0]
    )
    assert loudest == pytest.approx(2.0 * math.hypot(3.0, 0.5 * 8.0))
    assert largest_sum_noise_std(config.privacy.counted_noise_fraction, [], [], []) == 0.0


def test_a_run_is_told_of_the_most_that_its_rounds_may_need():
    config = load_config("snips", {"privacy.missing_devices": 1})
    commitments = tuple(f"{index:08x}" for index in range(5))
    terms = plan_privacy_terms(config, [400] * 5, commitments)
    required = max(terms.noise_multipliers) * terms.sensitivity
    planned = assumed_as_planned(config, terms)
    assert planned == assumed_receiver_noise(config, required * math.sqrt(5 / 4))


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
    config = load_config("snips", SHORT)
    assert carry_out(Experiment.start(config, folder))
    (first,) = report.read_runs(folder)
    report.write_runs([first])
    wanted = max(
        assumed_receiver_noise(config, row.artificial_noise_std * row.num_speakers)
        for row in first.rows
    )
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
    assert "assumes a receiver noise of at least " in capsys.readouterr().out
    assert main(["run", *settings, "--out", str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert out.count("a receiver noise of at least ") == 2  # before the rounds, below the table
    assert figure in out.split("epsilon  wall s")[1]
