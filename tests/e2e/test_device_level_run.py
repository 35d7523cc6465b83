"""Whole runs that promise something to a whole device: every round is paid in full."""

import math

import numpy as np
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from edge_runtime.guard.sensitivity import SUM_SHIFT_GROWTH, PrivacyUnit
from edge_runtime.number_grid import SHIFT_GROWTH
from server.errors import ConfigurationError, PrivacyError
from server.planning.privacy_terms import plan_privacy_terms
from server.privacy.gaussian import epsilon_of
from server.privacy.mechanism import GAUSSIAN
from server.run.continuation import plan_more_rounds
from server.run.experiment import Experiment

ROUNDS, DEVICES, CLIP = 12, 6, 20.0
SETTINGS = {
    **SMALL, "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS,
    "run.evaluation_interval": ROUNDS, "radio.snr_db": 40.0, "power.contraction": 0.9,
    "privacy.unit": "device", "privacy.delta": 1e-3, "optimizer.clip": CLIP,
    "optimizer.learning_rate": 6e-2,
}  # fmt: skip


def config(**changes):
    return configured(SETTINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "run"
    assert carry_out(Experiment.start(config(), folder))
    return folder


def test_every_round_is_a_gaussian_release_of_the_whole_clip(whole):
    rows, records, _, _ = looked_at(whole)
    assert len(records) == sum(row.num_speakers for row in rows) > 0
    for record in records:
        assert record.kind == GAUSSIAN
        assert record.unit is PrivacyUnit.DEVICE
        assert record.sensitivity == SUM_SHIFT_GROWTH * SHIFT_GROWTH * CLIP
        assert record.sampling_probability == 1.0


def test_what_the_run_says_it_spent_is_the_closed_form_of_its_records(whole):
    _, records, _, spent = looked_at(whole)
    squares = {
        k: math.fsum(1.0 / r.noise_multiplier**2 for r in records if r.device_index == k)
        for k in range(DEVICES)
    }
    # A tenth of delta covers the channel estimates.
    exact = epsilon_of(math.sqrt(max(squares.values())), 0.9e-3)
    assert exact <= spent <= 1.002 * exact
    assert 7.9 < spent <= 8.0


def test_late_rounds_have_less_noise_as_the_contraction_says_or_all_the_same_or_more():
    def multipliers(policy):
        commitments = [f"{k:08x}" for k in range(DEVICES)]
        one = config(power__policy=policy)
        return plan_privacy_terms(one, [100] * DEVICES, commitments).noise_multipliers

    planned = np.array(multipliers("optimal"))
    # b = sqrt(omega), y ~ b, and the multiplier is y to the minus one half.
    assert np.allclose(planned[1:] / planned[:-1], 0.9**0.25, atol=2e-3)
    assert len(set(multipliers("static"))) == 1
    assert multipliers("reversed") == multipliers("optimal")[::-1]


def test_a_device_with_own_noise_pays_for_itself(tmp_path):
    one = config(
        radio__waveform="slotted", radio__impairments="pluto-stock", power__policy="static"
    )
    assert carry_out(Experiment.start(one, tmp_path / "run"))
    _, records, _, spent = looked_at(tmp_path / "run")
    own = min(record.noise_multiplier for record in records)
    most = max(sum(r.device_index == k for r in records) for k in range(DEVICES))
    assert most == ROUNDS
    assert spent == pytest.approx(epsilon_of(math.sqrt(most) / own, 1e-3), rel=2e-3)


def test_one_more_stretch_is_paid_on_top(tmp_path):
    folder = tmp_path / "run"
    assert carry_out(Experiment.start(config(), folder))
    plan_more_rounds(folder, {"optimizer.rounds": ROUNDS + 4, "privacy.epsilon": 11.0})
    assert carry_out(Experiment.resume(folder))
    rows, _, _, spent = looked_at(folder)
    assert len(rows) == ROUNDS + 4
    assert 10.8 < spent <= 11.0


def test_delta_is_held_against_the_number_of_devices(tmp_path):
    with pytest.raises(ConfigurationError, match=r"1 / 6 = 0\.167"):
        Experiment.start(config(privacy__delta=0.2), tmp_path / "run")


def test_a_budget_without_a_priceable_round_is_refused(tmp_path):
    with pytest.raises(PrivacyError, match="noise multiplier"):
        Experiment.start(
            config(optimizer__rounds=1, privacy__epsilon=500.0, power__contraction=1.0),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
