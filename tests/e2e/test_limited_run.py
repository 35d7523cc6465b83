"""Whole runs with batteries, duty cycles and caps, planned as they go."""

import json

import numpy as np
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from server.commands.cli import main
from server.config.files import parse_config
from server.errors import ConfigurationError
from server.power import receding_horizon
from server.power.schedule import InfeasiblePlanError
from server.run.continuation import plan_more_rounds
from server.run.experiment import Experiment

ROUNDS, DEVICES = 12, 4
SETTINGS = {
    **SMALL, "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS,
    "run.evaluation_interval": ROUNDS, "radio.snr_db": 20.0, "radio.coherence_rounds": 2,
    "privacy.unit": "device", "privacy.delta": 1e-3, "optimizer.learning_rate": 1e-3,
    "power.limits.max_energy": [0.002, 0.1, 0.1, 0.1], "power.limits.max_duty": 0.75,
    "power.limits.max_peak_db": -3.0,
}  # fmt: skip


def config(**changes):
    return configured(SETTINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limited") / "run"
    assert carry_out(Experiment.start(config(), folder))
    return looked_at(folder)


def test_no_device_sends_more_or_more_often_than_it_may(whole):
    energies = np.array([row.energies for row in whole.rows])
    assert energies.shape == (ROUNDS, DEVICES)
    assert np.all(energies.sum(axis=0) <= [0.002, 0.1, 0.1, 0.1])
    assert np.all((energies > 0).sum(axis=0) <= 0.75 * ROUNDS)
    assert (energies > 0).any(axis=1).sum() >= ROUNDS / 2
    for row in whole.rows:
        assert row.num_speakers == sum(energy > 0 for energy in row.energies)
    assert whole.epsilon <= 8.0


def test_an_interrupted_run_goes_on_with_what_its_batteries_have_left(tmp_path, whole):
    folder = tmp_path / "run"
    stops = iter([False] * 5 + [True])
    assert not carry_out(Experiment.start(config(), folder), should_stop=lambda: next(stops))
    assert carry_out(Experiment.resume(folder))
    assert looked_at(folder) == whole


def test_a_run_that_goes_on_has_the_batteries_it_ended_with(tmp_path):
    folder = tmp_path / "run"
    assert carry_out(Experiment.start(config(), folder))
    before = np.array([row.energies for row in looked_at(folder).rows]).sum(axis=0)
    plan_more_rounds(folder, {"optimizer.rounds": ROUNDS + 6, "privacy.epsilon": 12.0})
    assert carry_out(Experiment.resume(folder))
    energies = np.array([row.energies for row in looked_at(folder).rows])
    assert np.all(energies.sum(axis=0) <= [0.002, 0.1, 0.1, 0.1])
    assert np.all((energies > 0).sum(axis=0) <= 0.75 * (ROUNDS + 6))
    assert np.all(energies.sum(axis=0) >= before)
    assert (energies[ROUNDS:] > 0).any()


def test_a_solver_that_fails_ends_the_run_before_anything_is_paid_or_sent(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run = Experiment.start(config(), folder)
    sent = []
    carry = run.loop.air.carry

    def fail(*arguments, **options):
        raise InfeasiblePlanError("convex plan: the solver ended with 'infeasible'")

    monkeypatch.setattr(receding_horizon, "plan_limited", fail)
    monkeypatch.setattr(type(run.loop.air), "carry", lambda *a: sent.append(a) or carry(*a))
    with pytest.raises(InfeasiblePlanError, match="'infeasible'"):
        carry_out(run)
    assert not sent
    rows, records, _, spent = looked_at(folder)
    assert (rows, records, spent) == ([], (), 0.0)


def test_the_table_of_policies_has_the_one_that_keeps_them(capsys):
    arguments = [part for k, v in SETTINGS.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    assert main(["plan", "snips", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["policy"] == "limited"
    planned = [entry["policy"] for entry in document["policies"] if "refusal" not in entry]
    assert planned == ["limited"]
    (limited,) = (entry for entry in document["policies"] if entry["policy"] == "limited")
    assert limited["epsilon"] <= 8.0
    assert limited["silent_share_of_devices"] >= 0.2
    (other,) = (entry for entry in document["policies"] if entry["policy"] == "optimal")
    assert "does not keep them" in other["refusal"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"power": {"limits": {"max_duty": 0.0}}}, "max_duty"),
        ({"power": {"limits": {"max_duty": 0.5, "min_duty": 0.6}}}, "min_duty"),
        ({"power": {"limits": {"max_energy": -1.0}}}, "max_energy"),
        ({"power": {"limits": {"max_energy": float("nan")}}}, "wanted numbers"),
        ({"power": {"limits": {"max_energy": [1.0, 2.0]}}}, "one for each of 4 devices"),
        ({"power": {"limits": {"max_peak_db": 1.0}}}, "0 dB over full scale"),
        ({"power": {"limits": {"max_mean_power_db": 0.1}}}, "0 dB over full scale"),
        ({"power": {"policy": "limited"}}, "without limits"),
        ({"power": {"policy": "optimal", "limits": {"max_duty": 0.5}}}, "does not keep them"),
        (
            {"power": {"limits": {"max_duty": 0.5}}, "privacy": {"unit": "example"}},
            "does not plan rounds with Poisson batches",
        ),
        (
            {"power": {"limits": {"max_duty": 0.5}}, "radio": {"waveform": "energy"}},
            "levels and shared noises",
        ),
        (
            {"power": {"limits": {"max_duty": 0.5}}, "privacy": {"enabled": False}},
            "plan no power",
        ),
    ],
)
def test_limits_that_nobody_keeps_are_refused(section, message):
    base = {"federation": {"num_devices": 4}, "privacy": {"unit": "device"}}
    with pytest.raises(ConfigurationError, match=message):
        parse_config({**base, **section}, source="test")
