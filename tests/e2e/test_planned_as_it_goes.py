"""Whole device-level runs whose powers follow the channel: budget, peaks, resumes, who pays."""

import itertools

import msgspec
import numpy as np
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from server.planning.online_run import plans_as_it_goes
from server.planning.policy_preview import preview_policy
from server.run.experiment import Experiment

ROUNDS, DEVICES = 16, 6
SETTINGS = {
    **SMALL, "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS,
    "run.evaluation_interval": ROUNDS, "radio.snr_db": 20.0, "radio.coherence_rounds": 2,
    "power.contraction": 0.93, "privacy.unit": "device", "privacy.delta": 1e-3,
    "optimizer.learning_rate": 1e-3,
}  # fmt: skip
POLICIES = (
    "optimal", "reversed", "selection", "equal_split", "constant_inversion", "truncated_inversion",
)  # fmt: skip


def config(**changes):
    return configured(SETTINGS, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each policy left."""
    left = {}
    for policy in POLICIES:
        folder = tmp_path_factory.mktemp(policy) / "run"
        assert carry_out(Experiment.start(config(power__policy=policy), folder))
        left[policy] = looked_at(folder)
    return left


@pytest.mark.parametrize("policy", POLICIES)
def test_the_budget_holds_and_is_put_to_use(runs, policy):
    rows, records, _, spent = runs[policy]
    assert spent <= 8.0
    # One level for all cannot give to others what a silent round leaves.
    assert spent > (3.0 if "inversion" in policy else 7.9)
    assert len(records) == sum(row.num_speakers for row in rows)
    assert sum(row.num_speakers > 0 for row in rows) > ROUNDS // 2


@pytest.mark.parametrize(("policy", "exponent"), [("optimal", 0.25), ("reversed", -0.25)])
def test_on_channels_that_are_all_alike_noise_follows_the_weights(tmp_path, policy, exponent):
    alike = config(power__policy=policy, radio__channel="awgn")
    assert carry_out(Experiment.start(alike, tmp_path / "run"))
    multipliers = np.array([row.noise_multiplier for row in looked_at(tmp_path / "run").rows])
    # b = sqrt(omega), y ~ b, and the multiplier is y to the minus one half; grids round it.
    assert np.allclose(multipliers[1:] / multipliers[:-1], 0.93**exponent, atol=5e-3)


def test_noise_that_is_dealt_out_by_room_arrives_louder_than_an_equal_split(runs):
    """Less receiver noise for the same promise: what the water filling is for."""
    filled, equal = (
        np.median([row.receiver_noise_std for row in runs[policy].rows if row.num_speakers])
        for policy in ("optimal", "equal_split")
    )
    assert filled < 0.8 * equal


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_has_the_noise_that_the_plan_showed(runs, policy):
    """To within what other draws of the channel do: a deep fade of who is silent sets no level."""
    preview = preview_policy(config(power__policy=policy), policy, [650] * DEVICES, spending=False)
    rows = [row for row in runs[policy].rows if row.num_speakers]
    for shown, had in (
        (preview.own_noise_std, [row.artificial_noise_std for row in rows]),
        (preview.radio_noise_std, [row.receiver_noise_std for row in rows]),
    ):
        ratio = np.median(had) / np.median(shown[preview.num_speakers > 0])
        assert 1 / 2.5 < ratio < 2.5


def test_an_equal_split_is_equal_and_a_level_constant(runs):
    records = runs["equal_split"].records
    for _, of_round in itertools.groupby(records, key=lambda record: record.round_index):
        assert len({record.certified_noise_std for record in of_round}) == 1
    scales = {row.receive_scale for row in runs["constant_inversion"].rows if row.num_speakers}
    # Noise is raised to the next point of the ledger's grid, and the level with it.
    assert max(scales) / min(scales) < 1.001


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, runs):
    folder = tmp_path / "run"
    stops = iter([False] * 5 + [True])
    first = Experiment.start(config(power__policy="optimal"), folder)
    assert not carry_out(first, should_stop=lambda: next(stops))
    assert carry_out(Experiment.resume(folder))
    assert looked_at(folder) == runs["optimal"]


def test_a_round_that_was_paid_is_planned_as_before(tmp_path):
    """A process dies between price and record; the next must come to the very same plan."""
    folder = tmp_path / "run"
    stops = iter([False] * 5 + [True])
    one = config(power__policy="selection")
    assert not carry_out(Experiment.start(one, folder), should_stop=lambda: next(stops))
    first = Experiment.resume(folder)
    try:
        channel = first.loop.channel_for(5)
        before = first.pricing.plan_round(5, channel)
        plan = first.loop.make_plan(5, before.power)
        first.pricing.charge(first.pricing.price(before, plan.release))
    finally:
        first.close()
    second = Experiment.resume(folder)
    try:
        assert second.pricing.was_charged_before(5)
        again = second.pricing.plan_round(5, second.loop.channel_for(5))
        assert again == before
    finally:
        second.close()


def test_where_power_is_short_the_weak_are_left_out_and_pay_nothing(tmp_path):
    weak = config(
        power__policy="selection", radio__snr_db=-5.0, radio__min_gain=0.05,
        radio__pilot_symbols=1 << 15, radio__payload_symbols=16, power__contraction=1.0,
        privacy__epsilon=100.0,
    )  # fmt: skip
    assert carry_out(Experiment.start(weak, tmp_path / "run"))
    rows, records, _, _ = looked_at(tmp_path / "run")
    counts = [sum(record.device_index == k for record in records) for k in range(DEVICES)]
    assert min(counts) < ROUNDS
    assert {row.num_speakers for row in rows} - {DEVICES}


def test_votes_with_noise_after_the_sign_have_a_policy_of_their_own(tmp_path):
    votes = config(
        radio__waveform="coherent_vote", privacy__vote_noise="after_sign", power__policy="sign",
        power__contraction=0.6, optimizer__directions=1, power__wrong_sign_probability=0.1,
        optimizer__rounds=10, privacy__epsilon=2.0,
    )  # fmt: skip
    assert carry_out(Experiment.start(votes, tmp_path / "run"))
    rows, _, _, spent = looked_at(tmp_path / "run")
    assert 1.9 < spent <= 2.0
    # Early votes are worth little at the end and would drown: not said, not paid.
    silent = [row.round_index for row in rows if row.num_speakers == 0]
    assert silent == list(range(len(silent)))
    assert len(silent) >= 1


def test_only_superposed_rounds_that_are_paid_in_full_follow_the_channel():
    assert plans_as_it_goes(config())
    assert not plans_as_it_goes(config(power__policy="static"))
    assert not plans_as_it_goes(config(privacy__unit="example", power__contraction=1.0))
    assert not plans_as_it_goes(config(radio__waveform="energy"))
    off = config(privacy__enabled=False)
    assert not plans_as_it_goes(msgspec.structs.replace(off))
