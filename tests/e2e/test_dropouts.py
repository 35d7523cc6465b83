"""Runs whose devices fall silent now and then: what was kept back for them is enough."""

import numpy as np
import pytest
from whole_runs import carry_out, looked_at

from edge_runtime.uplink import CoherentUplink
from radio.errors import RadioUnavailableError
from server.config.files import load_config, parse_config
from server.errors import ConfigurationError
from server.planning.privacy_terms import plan_privacy_terms
from server.privacy.accountant import Accountant
from server.report import page as report
from server.run import pricing
from server.run.experiment import Experiment

DEVICES, ROUNDS, PROBABILITY = 5, 40, 0.05
SETTINGS = {
    "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS, "optimizer.directions": 1,
    "optimizer.batch_size": 2, "task.validation_examples": 10, "task.max_tokens": 16,
    "run.evaluation_interval": ROUNDS, "radio.channel": "awgn", "radio.snr_db": 30.0,
    "privacy.unit": "device", "privacy.epsilon": 8.0, "privacy.delta": 1e-3,
    "optimizer.learning_rate": 1e-4,
}  # fmt: skip


@pytest.fixture
def dropping(monkeypatch):
    """Every device's radio refuses to send in a random round of twenty."""
    rng = np.random.default_rng(11)
    is_missing = rng.random((ROUNDS, DEVICES)) < PROBABILITY
    assert 5 < is_missing.sum() < 20
    assert not is_missing.all(axis=1).any()
    send = CoherentUplink.send_scalars

    def send_or_fail(self, noisy_scalars, order, plan):
        if is_missing[plan.round_index, order.device_index]:
            raise RadioUnavailableError("unplugged")
        return send(self, noisy_scalars, order, plan)

    monkeypatch.setattr(CoherentUplink, "send_scalars", send_or_fail)
    return is_missing


@pytest.mark.parametrize("policy", ["static", "optimal", "equal_split"])
def test_a_run_with_the_dropouts_it_was_told_of_ends_with_its_last_round(
    tmp_path, dropping, policy
):
    told = {"federation.dropout_probability": PROBABILITY, "power.policy": policy}
    folder = tmp_path / "told"
    assert carry_out(Experiment.start(load_config("snips", {**SETTINGS, **told}), folder))
    rows, records, _, spent = looked_at(folder)
    assert len(rows) == ROUNDS
    assert len(records) > ROUNDS * DEVICES  # some were corrected
    assert 4.0 < spent <= 8.0


def test_one_that_was_not_told_ends_before_its_last_round(tmp_path, dropping):
    """Negative control: the same dropouts, and nothing kept back."""
    folder = tmp_path / "untold"
    one = load_config("snips", {**SETTINGS, "power.policy": "static"})
    assert not carry_out(Experiment.start(one, folder))
    rows, _, _, _ = looked_at(folder)
    assert ROUNDS / 2 < len(rows) < ROUNDS


def test_one_that_holds_without_a_device_needs_no_reserve_for_it(tmp_path, monkeypatch):
    """At most one device is missing at a time, and the plan counts on one fewer."""
    send = CoherentUplink.send_scalars

    def send_or_fail(self, noisy_scalars, order, plan):
        if order.device_index == plan.round_index % DEVICES:
            raise RadioUnavailableError("unplugged")
        return send(self, noisy_scalars, order, plan)

    monkeypatch.setattr(CoherentUplink, "send_scalars", send_or_fail)
    holding = {**SETTINGS, "power.policy": "static", "privacy.missing_devices": 1}
    folder = tmp_path / "run"
    assert carry_out(Experiment.start(load_config("snips", holding), folder))
    rows, records, _, spent = looked_at(folder)
    assert len(rows) == ROUNDS
    assert {row.num_speakers for row in rows} == {DEVICES - 1}
    assert len(records) == ROUNDS * DEVICES
    assert 7.9 < spent <= 8.0


def test_the_reserve_is_more_noise_in_superposed_access_and_none_in_slotted():
    def multiplier(**changes):
        config = load_config("snips", changes)
        terms = plan_privacy_terms(config, [2617] * 5, [f"{k:08x}" for k in range(5)])
        return terms.least_noise_multiplier

    told = {"federation.dropout_probability": 0.02}
    assert 1.01 < multiplier(**told) / multiplier() < 1.3
    slotted = {"radio.waveform": "energy"}
    with pytest.raises(ConfigurationError, match=r"nothing reads it with privacy\.access"):
        multiplier(**slotted, **told)


def test_a_probability_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match=r"federation\.dropout_probability"):
        parse_config({"federation": {"dropout_probability": 1.0}}, source="test")


def test_a_death_between_transmission_and_correction_is_paid_for_when_the_run_goes_on(
    tmp_path, monkeypatch
):
    """One device spoke alone, the process died, and the resume would have sent all five.

    Both sums are known then: nobody's noise but its own covers the device that spoke twice.
    """

    class DiedError(Exception):
        pass

    def die_if_some_fell_silent(self, price, power, speakers, unknown):
        if len(speakers) < DEVICES:
            raise DiedError

    send = CoherentUplink.send_scalars

    def alone(self, noisy_scalars, order, plan):
        if plan.round_index == 1 and order.device_index != 0:
            raise RadioUnavailableError("unplugged")
        return send(self, noisy_scalars, order, plan)

    folder = tmp_path / "run"
    one = load_config("snips", {**SETTINGS, "power.policy": "static"})
    with monkeypatch.context() as patch:
        patch.setattr(CoherentUplink, "send_scalars", alone)
        patch.setattr(pricing.Pricing, "charge_correction", die_if_some_fell_silent)
        with pytest.raises(DiedError):
            carry_out(Experiment.start(one, folder))
    _, planned, _, _ = looked_at(folder)
    (before,) = [r for r in planned if (r.round_index, r.device_index) == (1, 0)]
    told = report.read_runs(folder)[0].summary["epsilon"]  # also of one that nobody goes on with
    assert not carry_out(Experiment.resume(folder))
    rows, records, _, spent = looked_at(folder)
    paid = [r for r in records if (r.round_index, r.device_index) == (1, 0)]
    # A fifth of the power covers it.
    least = min(record.certified_noise_std for record in paid)
    assert least == pytest.approx(before.certified_noise_std / DEVICES**0.5, rel=1e-6)
    accounts = Accountant(epsilon=8.0, delta=1e-3, csi_delta=1e-4)
    accounts.compose_all(record for record in records if record.round_index <= 1)
    assert told == pytest.approx(accounts.worst_spent(), rel=1e-9)
    # That is not in the plan of forty rounds: the budget ends the run before its last one.
    assert ROUNDS / 2 < len(rows) < ROUNDS
    assert spent <= 8.0


def test_a_death_while_numbers_are_computed_costs_nothing(tmp_path, monkeypatch):
    """Nothing was sent; the run that goes on ends with bits and ledger that it would have had."""

    class DiedError(Exception):
        pass

    def die(*_):
        raise DiedError

    short = {**SETTINGS, "optimizer.rounds": 4, "power.policy": "static"}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert carry_out(Experiment.start(load_config("snips", short), whole))
    with monkeypatch.context() as patch:
        patch.setattr(CoherentUplink, "send_scalars", die)
        with pytest.raises(DiedError):
            carry_out(Experiment.start(load_config("snips", short), folder))
    assert carry_out(Experiment.resume(folder))
    assert looked_at(folder) == looked_at(whole)
