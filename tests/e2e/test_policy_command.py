"""``pairzero policy``: a file that a device keeps to, proved where it is written."""

import pytest

from edge_runtime.guard.ledger import DeviceLedger
from edge_runtime.guard.policy import Cover, load_policy
from server.commands.cli import main
from server.config.files import load_config
from server.planning.device_policy import proved_epsilon
from server.run.experiment import Experiment

SHORT = ["policy", "snips", "--rounds", "20"]


def test_what_is_written_is_read_checked_and_proved(tmp_path, capsys):
    path = tmp_path / "policy.toml"
    assert main([*SHORT, "--records", "1300", "--out", str(path)]) == 0
    assert "20 rounds come to epsilon 0.99" in capsys.readouterr().out
    policy = load_policy(path)
    assert policy.cover is Cover.FEDERATION
    assert policy.num_rounds == 20
    assert 0.95 < proved_epsilon(policy) <= 1.0
    assert main([*SHORT, "--records", "1300"]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert main(["policy", "--check", str(path)]) == 0
    assert "trusts the server to say who they are" in capsys.readouterr().out


def test_one_that_is_covered_by_its_own_noise_trusts_nobody(tmp_path, capsys):
    path = tmp_path / "policy.toml"
    arguments = [*SHORT, "--set", "radio.waveform=energy", "--records", "1300"]
    assert main([*arguments, "--out", str(path)]) == 0
    assert "covered by its own noise alone" in capsys.readouterr().out
    assert load_policy(path).cover is Cover.OWN


def test_a_file_that_promises_more_than_it_keeps_is_found_out(tmp_path, capsys):
    path = tmp_path / "policy.toml"
    assert main([*SHORT, "--records", "1300", "--out", str(path)]) == 0
    path.write_text(path.read_text().replace("number = 20", "number = 2000"))
    assert main(["policy", "--check", str(path)]) == 2
    assert "its 2000 rounds come to epsilon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--records: how many records the device holds"),
        (["--records", "3"], "--records: got 3, wanted 16"),
        (["--records", "1300", "--set", "privacy.enabled=false"], "promises nothing"),
        (["--records", "1300", "--spent", "missing"], "--spent: there is no device_ledger.sqlite"),
        (["--records", "1300", "--out", "missing/policy.toml"], "No such file or directory"),
        (["--check", "missing.toml"], "missing.toml: cannot be read"),
    ],
)
def test_what_cannot_be_proved_is_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SHORT, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_rounds_on_top_of_a_devices_own_ledger_are_proved_with_them(tmp_path, capsys):
    short = {"optimizer.rounds": 3, "task.validation_examples": 20, "privacy.epsilon": 8.0}
    run = Experiment.start(load_config("snips", short), tmp_path / "run")
    try:
        assert run.run()
    finally:
        run.close()
    ledger = DeviceLedger(tmp_path / "run")
    assert [len(ledger.releases(owner)) for owner in ledger.owners] == [3] * 5
    ledger.close()
    more = [*SHORT, "--records", "2600", "--spent", str(tmp_path / "run")]
    assert main(more) == 2
    assert "--device: wanted one of the devices of that ledger: 0, 1" in capsys.readouterr().err
    arguments = [*more, "--device", "1", "--set", "privacy.epsilon=12"]
    assert main([*arguments, "--out", str(tmp_path / "p.toml")]) == 0
    policy = load_policy(tmp_path / "p.toml")
    assert policy.num_rounds == 23
    assert 11.0 < proved_epsilon(policy) <= 12.0
