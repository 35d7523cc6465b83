"""Runs by majority: a sign for each direction, priced by where the noise came in."""

import math

import pytest
from whole_runs import configured, looked_at

from edge_runtime.guard.sensitivity import SUM_SHIFT_GROWTH, vote_sensitivity
from edge_runtime.number_grid import SHIFT_GROWTH
from edge_runtime.protocol.rounds import Access, Vote
from server.config.files import load_config
from server.errors import ConfigurationError
from server.planning.round_plan import CALIBRATION_SLACK
from server.privacy.accountant import Accountant
from server.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROUNDS, DIRECTIONS, DEVICES, BATCH, CLIP = 6, 4, 3, 4, 20.0
SETTINGS = {
    "radio.waveform": "vote", "radio.plateau_samples": 4096, "radio.coherence_rounds": 3,
    "radio.channel": "awgn", "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS,
    "optimizer.directions": DIRECTIONS, "optimizer.batch_size": BATCH, "optimizer.clip": CLIP,
    "optimizer.vote_value": 0.5, "privacy.epsilon": 8.0, "task.validation_examples": 20,
    "task.max_tokens": 24, "run.evaluation_interval": 6,
    "impairments.distance_ratio": 1.0,  # else the weak weigh less, and a majority is theirs no more
}  # fmt: skip


def carry_out(folder, should_stop=lambda: False, **changes):
    run = Experiment.start(configured(SETTINGS, **changes), folder)
    try:
        run.run(should_stop=should_stop)
        return run
    finally:
        run.close()


CASES = [
    ("vote", "before_sign", Access.SLOTTED),
    ("vote", "after_sign", Access.SLOTTED),
    ("coherent_vote", "before_sign", Access.SLOTTED),
    ("coherent_vote", "after_sign", Access.SUPERPOSED),
]


@pytest.mark.parametrize(("waveform", "placed", "access"), CASES)
def test_each_is_accounted_as_what_it_is(tmp_path, waveform, placed, access):
    folder = tmp_path / "run"
    run = carry_out(folder, radio__waveform=waveform, privacy__vote_noise=placed)
    rows, records, _, epsilon = looked_at(folder)
    assert len(rows) == ROUNDS
    assert records
    vote = Vote.NOISE_BEFORE if placed == "before_sign" else Vote.NOISE_AFTER
    assert {(r.waveform, r.vote, r.access) for r in records} == {(waveform, vote, access)}
    # One record moves a number by clip / batch, and turns every sign.
    of_number = SHIFT_GROWTH * CLIP / BATCH
    of_sign = vote_sensitivity(DIRECTIONS)
    if access is Access.SUPERPOSED:
        of_sign *= SUM_SHIFT_GROWTH
    sensitivity = of_number if vote is Vote.NOISE_BEFORE else of_sign
    assert {r.sensitivity for r in records} == {sensitivity}
    own = run.terms.noise_multiplier(0) * sensitivity * (1 + CALIBRATION_SLACK)
    for row, speakers in ((row, row.num_speakers) for row in rows):
        if access is Access.SLOTTED:
            # Weights are equal as far as gains are known.
            assert row.artificial_noise_std == pytest.approx(own / math.sqrt(speakers), rel=1e-3)
        else:
            assert row.artificial_noise_std >= own / speakers
    csi_delta = 1e-6 if access is Access.SUPERPOSED else 0.0
    accounts = Accountant(epsilon=8.0, delta=1e-5, csi_delta=csi_delta)
    accounts.compose_all(records)
    assert accounts.worst_spent() == pytest.approx(epsilon, rel=1e-9)
    assert 0 < epsilon <= 8.0


@pytest.mark.parametrize("waveform", ["vote", "coherent_vote"])
def test_a_majority_moves_every_direction_by_the_same_and_a_soft_vote_by_less(tmp_path, waveform):
    for decision in ("majority", "soft"):
        folder = tmp_path / decision
        carry_out(folder, radio__waveform=waveform, optimizer__vote_decision=decision)
        rows, _, _, _ = looked_at(folder)
        estimates = [abs(e) for row in rows if row.num_speakers for e in row.mean_estimates]
        assert max(estimates) <= 0.5
        if decision == "majority":
            assert set(estimates) == {0.5}
        else:
            assert len({round(e, 3) for e in estimates}) > 3


def test_without_noise_the_radio_carries_the_majority(tmp_path):
    """Over radios with marks of their own the votes that are heard are those that were cast."""
    folder = tmp_path / "run"
    carry_out(folder, privacy__enabled=False, federation__num_devices=3)
    rows, records, _, _ = looked_at(folder)
    assert records == ()
    turned = 0
    for row in rows:
        assert row.squared_error_of_noise == 0.0
        for estimate, true in zip(row.mean_estimates, row.true_means, strict=True):
            assert abs(true) <= 0.5
            turned += estimate * true < 0  # with an even number speaking there are ties
    assert turned == 0


def test_an_interrupted_vote_ends_with_the_same_bits(tmp_path):
    carry_out(tmp_path / "whole")
    asked = []
    carry_out(tmp_path / "stopped", lambda: asked.append(0) or len(asked) > 4)
    run = Experiment.resume(tmp_path / "stopped")
    try:
        assert run.run()
    finally:
        run.close()
    assert looked_at(tmp_path / "stopped") == looked_at(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy.access": "superposed"}, 'does not hold for radio.waveform = "vote"'),
        (
            {"radio.waveform": "coherent_vote", "privacy.access": "superposed"},
            "does not hold for noise before a sign",
        ),
        ({"optimizer.vote_value": 0.0}, "optimizer.vote_value: got 0.0"),
        ({"optimizer.vote_decision": "loud"}, "vote_decision"),
        ({"privacy.vote_noise": "later"}, "vote_noise"),
        (
            {
                "radio.waveform": "coherent_vote", "privacy.vote_noise": "after_sign",
                "radio.impairments": "desk-cabled",
            },
            "the superposed statement does not hold then",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_promised_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config("snips", {**SETTINGS, **changes})
