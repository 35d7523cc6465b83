"""A run that has ended goes on: on the old ledger, with fresh keys, within the new budget."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from whole_runs import configured

from edge_runtime.guard.keys import KEYS_FILE
from server.commands import cli
from server.config.files import load_config
from server.errors import ConfigurationError
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.run.continuation import plan_more_rounds
from server.run.experiment import Experiment
from server.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("outlined_pictures")

SETTINGS = {
    "federation.num_devices": 2, "optimizer.rounds": 6, "optimizer.batch_size": 4,
    "task.validation_examples": 20, "task.max_tokens": 24, "run.evaluation_interval": 3,
    "radio.coherence_rounds": 4, "privacy.epsilon": 4.0,
}  # fmt: skip
MORE = {"optimizer.rounds": 10, "privacy.epsilon": 6.0}


def finish(run, should_stop=lambda: False):
    try:
        return run.run(should_stop=should_stop)
    finally:
        run.close()


def ended_run(folder, **changes):
    assert finish(Experiment.start(configured(SETTINGS, **changes), folder))
    return folder


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return ended_run(tmp_path_factory.mktemp("runs") / "ended")


@pytest.fixture(scope="module")
def ended_with_keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "keys"
    return ended_run(folder, **{"privacy__noise_source": "system"})


@pytest.fixture
def copy_of(tmp_path):
    count = iter(range(100))
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"copy-{next(count)}"))


def looked_at(folder):
    """(rows, ledger records, outcome, epsilon spent, digest) of a run."""
    store = RunStore.open(folder)
    try:
        rows = [dataclasses.replace(row, wall_s=None) for row in store.rounds()]
        records = PrivacyLedger(store.connection).records()
        return rows, records, store.outcome, store.meta("epsilon_spent"), store.meta(
            "parameter_digest"
        )  # fmt: skip
    finally:
        store.close()


def test_more_rounds_are_priced_on_top_of_the_old_ledger(ended, copy_of):
    folder = copy_of(ended)
    before_rows, before_records, _, before_spent, before_digest = looked_at(folder)
    plan_more_rounds(folder, MORE)
    assert finish(Experiment.resume(folder))
    rows, records, outcome, spent, digest = looked_at(folder)
    assert outcome == "complete"
    assert len(rows) == 10
    assert rows[:6] == before_rows
    assert records[: len(before_records)] == before_records
    assert {record.round_index for record in records[len(before_records) :]} == {6, 7, 8, 9}
    assert digest != before_digest
    assert before_spent <= 4.0 < spent <= 6.0
    # Independently: the whole ledger, with twice the part of delta that channels may use.
    accounts = Accountant(epsilon=6.0, delta=1e-5, csi_delta=2 * 1e-6)
    accounts.compose_all(records)
    assert accounts.worst_spent() == pytest.approx(spent, rel=1e-9)
    assert spent > 0.98 * 6.0  # and the budget is used: no more noise than needed


def test_what_more_rounds_may_cost_and_are_worth_is_said_before_they_are_carried_out(
    ended, copy_of, capsys
):
    folder = copy_of(ended)
    spent = looked_at(folder)[3]
    planned = plan_more_rounds(folder, MORE)
    assert (planned.first_round, planned.num_rounds) == (6, 4)
    assert (planned.spent, planned.epsilon) == (pytest.approx(spent, rel=0.1), 6.0)
    assert 0.0 < planned.outlook.effective_rounds <= 4.0
    said = str(planned)
    assert said.startswith("Going on for 4 rounds, from 6 on. They may spend the whole budget")
    assert f"becomes up to 6. What they are worth without noise: {planned.outlook.worth}" in said
    # Half a round of them for the same budget is worth no more, and less noise is worth more.
    other = copy_of(ended)
    more = plan_more_rounds(other, {**MORE, "privacy.epsilon": 12.0})
    assert more.outlook.effective_rounds > planned.outlook.effective_rounds
    words = ["--rounds", "10", "--set", "privacy.epsilon=6"]
    assert cli.main(["run", "--resume", str(copy_of(ended)), *words]) == 0
    assert said in capsys.readouterr().err


def test_an_interruption_does_not_show_here_either(ended, copy_of):
    results = []
    for is_interrupted in (False, True):
        folder = copy_of(ended)
        plan_more_rounds(folder, MORE)
        if is_interrupted:
            run = Experiment.resume(folder)
            assert not finish(run, lambda run=run: run.store.num_rounds() == 8)
            assert looked_at(folder)[2] == "interrupted"
        assert finish(Experiment.resume(folder))
        results.append(looked_at(folder))
    assert results[0] == results[1]


def test_the_devices_draw_fresh_keys_and_they_go_again(ended_with_keys, copy_of):
    folder = copy_of(ended_with_keys)
    assert not (folder / KEYS_FILE).exists()
    before = looked_at(folder)[1]
    plan_more_rounds(folder, MORE)
    assert (folder / KEYS_FILE).exists()
    assert finish(Experiment.resume(folder))
    records = looked_at(folder)[1]
    assert not {r.noise_stream for r in before} & {r.noise_stream for r in records[len(before) :]}
    assert not (folder / KEYS_FILE).exists()


def test_the_command_line_goes_on_and_so_does_the_reference(tmp_path):
    def call(*argv):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            return cli.main([*map(str, argv), "--json"]), json.loads(out.getvalue())

    pairs = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    settings = [a for pair in pairs for a in ("--set", pair)]
    folder = tmp_path / "run"
    assert call("run", *settings, "--out", folder, "--compare")[0] == 0
    argv = ["run", "--resume", folder, "--rounds", 8, "--set", "privacy.epsilon=6", "--compare"]
    code, summary = call(*argv)
    assert code == 0
    assert (summary["rounds"], summary["reference"]["rounds"]) == (8, 8)
    assert summary["epsilon_budget"] == 6.0


def test_without_privacy_there_is_only_more_to_learn(tmp_path):
    folder = ended_run(tmp_path / "plain", **{"privacy__enabled": False})
    plan_more_rounds(folder, {"optimizer.rounds": 8, "optimizer.learning_rate": 1e-3})
    assert finish(Experiment.resume(folder))
    store = RunStore.open(folder)
    try:
        assert store.num_rounds() == 8
        assert store.rounds()[7].learning_rate < 1e-3
    finally:
        store.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.rounds": 6, "privacy.epsilon": 6.0}, "has 6 rounds already"),
        ({"optimizer.rounds": 8}, "is spent .*need a larger one"),
        ({"optimizer.rounds": 8, "privacy.epsilon": 3.0}, "cannot be lowered"),
        ({**MORE, "optimizer.clip": 1.0}, r"optimizer\.clip: cannot change"),
        ({**MORE, "privacy.delta": 1e-4}, r"privacy\.delta: cannot change"),
        ({**MORE, "optimizer.rounds": "many"}, "rounds"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(ended, copy_of, changes, words):
    folder = copy_of(ended)
    before = looked_at(folder)
    with pytest.raises(ConfigurationError, match=words):
        plan_more_rounds(folder, changes)
    assert looked_at(folder) == before
    assert not (folder / KEYS_FILE).exists()


def test_a_run_that_has_not_ended_goes_on_as_it_was_planned(tmp_path):
    run = Experiment.start(load_config("snips", SETTINGS), tmp_path / "run")
    assert not finish(run, lambda: run.store.num_rounds() == 2)
    with pytest.raises(ConfigurationError, match="takes no other settings"):
        plan_more_rounds(tmp_path / "run", MORE)
    assert cli.main(["destroy-keys", str(tmp_path / "run")]) == 0
    with pytest.raises(ConfigurationError, match="ended on request"):
        plan_more_rounds(tmp_path / "run", MORE)
