"""Whatever is wrong with a promise, the antenna stays silent, and the message says what it is."""

import dataclasses
import json
import sqlite3

import msgspec
import pytest
from whole_runs import carry_out, looked_at

from radio.software_air.loopback import LoopbackTransceiver
from server.commands.cli import main
from server.config.files import load_config
from server.errors import LedgerCorruptError, PrivacyError, RunStoreError, UnknownMechanismError
from server.power import receding_horizon
from server.power.schedule import InfeasiblePlanError
from server.privacy.mechanism import MechanismRecord
from server.run import pricing
from server.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROUNDS, AT = 6, 3
SETTINGS = {
    "federation.num_devices": 3, "optimizer.rounds": ROUNDS, "optimizer.directions": 1,
    "optimizer.batch_size": 2, "task.validation_examples": 10, "task.max_tokens": 16,
    "run.evaluation_interval": ROUNDS, "radio.channel": "awgn", "radio.snr_db": 30.0,
    "optimizer.learning_rate": 1e-4, "privacy.epsilon": 2.0, "radio.coherence_rounds": ROUNDS,
}  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """The first position of every burst that went out since."""
    bursts = []
    transmit = LoopbackTransceiver.transmit

    def count(self, samples, *, start_sample):
        bursts.append(start_sample)
        return transmit(self, samples, start_sample=start_sample)

    monkeypatch.setattr(LoopbackTransceiver, "transmit", count)
    return bursts


def started(folder, **changes):
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return Experiment.start(load_config("snips", settings), folder)


def stopped_after(folder, num_rounds):
    """A run that was interrupted between two rounds."""
    stops = iter([False] * num_rounds + [True])
    assert not carry_out(started(folder), should_stop=lambda: next(stops))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.clip=0", "optimizer.clip"),
        ("privacy.delta=0.5", "wanted 0 < delta < 1 / 13784"),
        ("privacy.delta=7.3e-5", "wanted 0 < delta < 1 / 13784"),
        ("privacy.epsilon=0", "privacy.epsilon"),
        ("privacy.access=slotted", "privacy.access"),
        ("power.policy=paper", "keeps no promise"),
        ("privacy.epsilon=1e-9", "wanted at least 0.001"),
    ],
)
def test_a_promise_that_cannot_be_made_starts_no_run(tmp_path, capsys, sent, setting, message):
    folder = tmp_path / "run"
    settings = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    changes = [part for one in [*settings, setting] for part in ("--set", one)]
    assert main(["run", "snips", *changes, "--out", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not sent
    assert not folder.exists()


def test_a_spent_budget_sends_nothing_more(tmp_path, monkeypatch, sent):
    run = started(tmp_path / "run")
    honest = run.pricing.price

    def dearer(self, planned, release):
        price = honest(planned, release)
        if planned.round_index < AT:
            return price
        return tuple(
            msgspec.structs.replace(r, certified_noise_std=r.certified_noise_std / 2) for r in price
        )

    monkeypatch.setattr(pricing.Pricing, "price", dearer)
    assert not carry_out(run)
    # Three pilots, and three devices' numbers in each round that was paid.
    assert len(sent) == 3 + 3 * AT
    assert len(looked_at(tmp_path / "run").rows) == AT


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE privacy_ledger SET record = replace(record, 'superposed', 'slotted') "
        "WHERE sequence = 2",
        "DELETE FROM privacy_ledger WHERE sequence = 2",
        "UPDATE ledger_head SET count = count - 1",
        "DROP TABLE privacy_ledger",
    ],
)
def test_a_corrupt_ledger_sends_nothing(tmp_path, sent, damage):
    folder = tmp_path / "run"
    stopped_after(folder, AT)
    sent.clear()
    with sqlite3.connect(folder / "run.sqlite3") as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises((LedgerCorruptError, RunStoreError), match="ledger"):
        carry_out(Experiment.resume(folder))
    assert not sent


@pytest.mark.parametrize(
    ("was", "becomes"),
    [('"unit": "example"', '"unit": "device"'), ('"epsilon": 2.0', '"epsilon": 9.0'),
     ('"delta": 1e-05', '"delta": 1e-06'), ('"batch_size": 2', '"batch_size": 3')],
)  # fmt: skip
def test_a_configuration_that_is_not_the_one_that_was_priced_sends_and_shows_nothing(
    tmp_path, capsys, sent, was, becomes
):
    """Prices of single examples must not come out as a promise to whole devices."""
    folder = tmp_path / "run"
    stopped_after(folder, AT)
    sent.clear()
    with sqlite3.connect(folder / "run.sqlite3") as connection:
        query = "UPDATE meta SET value = replace(value, ?, ?) WHERE key = 'config' AND value LIKE ?"
        assert connection.execute(query, (was, becomes, f"%{was}%")).rowcount == 1
    connection.close()
    with pytest.raises(LedgerCorruptError, match="under another configuration"):
        carry_out(Experiment.resume(folder))
    assert not sent
    assert main(["report", str(folder)]) == 2
    assert "under another configuration" in capsys.readouterr().err


def test_a_mechanism_that_nobody_knows_sends_nothing(tmp_path, monkeypatch, sent):
    """Its record cannot even be made, so that it is never free."""
    run = started(tmp_path / "run")
    honest = run.pricing.price

    def unknown(self, planned, release):
        (record, *_) = honest(planned, release)
        values = {**msgspec.structs.asdict(record), "kind": "laplace"}
        return (MechanismRecord(**values),)

    monkeypatch.setattr(pricing.Pricing, "price", unknown)
    with pytest.raises(UnknownMechanismError, match="never counted as free"):
        carry_out(run)
    assert len(sent) == 3  # pilots, which hold no data
    assert looked_at(tmp_path / "run").records == ()


def test_devices_that_are_told_to_add_less_noise_than_was_charged_say_nothing(
    tmp_path, monkeypatch, sent
):
    """The server charges honestly and orders less; every device holds its own least noise."""
    run = started(tmp_path / "run")
    make_plan = type(run.loop).make_plan

    def quieter(self, round_index, power):
        quiet = {k: std / 3 for k, std in power.artificial_noise_std.items()}
        return make_plan(self, round_index, dataclasses.replace(power, artificial_noise_std=quiet))

    monkeypatch.setattr(type(run.loop), "make_plan", quieter)
    with pytest.raises(Exception, match="what is left of the allowed rounds needs"):
        carry_out(run)
    assert len(sent) == 3


def test_a_receiver_without_noise_is_sent_nothing(tmp_path, monkeypatch, sent):
    run = started(tmp_path / "run")
    hear = type(run.loop.air).learn_channel

    def noiseless(self, *arguments):
        return dataclasses.replace(hear(self, *arguments), noise_power=0.0)

    monkeypatch.setattr(type(run.loop.air), "learn_channel", noiseless)
    with pytest.raises(PrivacyError, match="told apart by their grids"):
        carry_out(run)
    assert len(sent) == 3


def test_a_solver_that_fails_is_an_error_and_never_a_plan(tmp_path, monkeypatch, sent):
    run = started(
        tmp_path / "run", privacy__unit="device", privacy__delta=1e-3, power__limits__max_duty=0.5
    )

    def fail(*arguments, **options):
        raise InfeasiblePlanError("convex plan: the solver ended with 'optimal_inaccurate'")

    monkeypatch.setattr(receding_horizon, "plan_limited", fail)
    with pytest.raises(InfeasiblePlanError, match="'optimal_inaccurate'"):
        carry_out(run)
    assert len(sent) == 3
    assert looked_at(tmp_path / "run").records == ()
