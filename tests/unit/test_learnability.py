"""What noise leaves of a run, and what is said where it leaves nothing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_runs import carry_out, looked_at

from server.config.files import load_config
from server.errors import ConfigurationError
from server.planning.learnability import (
    LEAST_ROUNDS,
    CannotLearnError,
    _least,
    check_can_learn,
    outlook,
    what_would_help,
)
from server.planning.policy_preview import preview_policies, preview_policy
from server.planning.scalar_rms import TypicalNumber
from server.power.catalogue import POLICIES
from server.power.feasibility import effective_rounds
from server.privacy.gaussian import epsilon_of, gdp_mu_of
from server.run.experiment import Experiment

TYPICAL = TypicalNumber(0.75, "a test")
RECORDS = [2600] * 5


def config(**changes):
    return load_config("snips", {k.replace("__", "."): v for k, v in changes.items()})


DEVICE = {"privacy__unit": "device", "privacy__delta": 1e-3, "power__policy": "static"}


@given(
    noise=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20),
    typical=st.floats(1e-3, 1e3),
)
def test_rounds_are_worth_at_most_themselves_and_less_with_more_noise(noise, typical):
    worth = effective_rounds(np.array(noise), typical)
    assert 0.0 < worth <= len(noise) * (1 + 1e-12)
    assert effective_rounds(2.0 * np.array(noise), typical) <= worth
    assert effective_rounds(np.array([*noise, math.inf]), typical) == pytest.approx(worth)


def test_rounds_are_worth_what_the_formula_says():
    assert effective_rounds(np.array([0.0, 1.0, 3.0]), 1.0) == pytest.approx(1.0 + 0.5 + 0.1)
    with pytest.raises(ConfigurationError, match="typical_number"):
        effective_rounds(np.ones(3), 0.0)
    with pytest.raises(ConfigurationError, match="mean_noise_std"):
        effective_rounds(np.array([math.nan]), 1.0)


def test_the_demo_can_learn_and_a_run_without_a_promise_is_not_asked():
    found = check_can_learn(config(), RECORDS, TYPICAL)
    assert found.can_learn
    assert 200 < found.effective_rounds < 450
    assert found.noise_to_typical == pytest.approx(found.noise_std / 0.75)
    assert found.noise_to_clip == pytest.approx(found.noise_std / config().optimizer.clip)
    assert check_can_learn(config(privacy__enabled=False), RECORDS, TYPICAL) is None


def test_a_bound_says_at_most_and_never_how_much():
    bound = TypicalNumber(0.75, "the largest that clipping allows", is_bound=True)
    found = check_can_learn(config(), RECORDS, bound)
    assert found.worth == f"unknown, at most {found.effective_rounds:.3g}"
    assert check_can_learn(config(), RECORDS, TYPICAL).worth == f"{found.effective_rounds:.3g}"
    # What is too little even then is refused all the same.
    with pytest.raises(CannotLearnError, match="worth at most "):
        check_can_learn(config(**DEVICE), RECORDS, bound)


def test_few_rounds_are_short_and_not_noisy():
    assert check_can_learn(config(optimizer__rounds=1), RECORDS, TYPICAL).can_learn


def test_five_devices_cannot_promise_themselves_anything_and_learn():
    with pytest.raises(CannotLearnError) as caught:
        check_can_learn(config(**DEVICE), RECORDS, TYPICAL)
    message = str(caught.value)
    for part in ('privacy.unit = "example"', "federation.num_devices = ", "privacy.epsilon = ",
                 "optimizer.rounds", "--force", "0.75: a test", "nats"):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("knob", ["federation.num_devices", "privacy.epsilon"])
def test_the_number_named_would_do_and_a_tenth_less_would_not(knob):
    """Negative control of the advice: it is neither too little nor far too much."""
    helps = what_would_help(config(**DEVICE), RECORDS, TYPICAL)
    (text,) = [text for text in helps if text.startswith(knob)]
    value = float(text.split("= ")[1])

    def can_learn(number):
        number = math.ceil(number) if knob == "federation.num_devices" else number
        one = config(**DEVICE, **{knob.replace(".", "__"): number})
        records = [2600] * one.federation.num_devices
        return outlook(one, preview_policy(one, "static", records), TYPICAL).can_learn

    assert can_learn(value)
    assert not can_learn(0.9 * value)


@pytest.mark.parametrize(("enough", "said"), [(12.0, True), (9.0, True), (1e9, False)])
def test_advice_is_searched_for_roughly_and_holds_exactly(enough, said):
    """The central limit alone would be off by some percent, on either side."""

    def works(value, how):
        return value >= (10.0 if how else enough)

    found = _least("privacy.epsilon", 3.0, works, most=1e5)
    assert bool(found) is said
    for text in found:
        assert max(10.0, enough) <= float(text.split("= ")[1]) * 1.005 <= 1.2 * max(10.0, enough)


def test_batches_are_a_knob_where_they_are_part_of_the_promise(monkeypatch):
    asked = []

    def largest(name, start, works, *, most):
        asked.append(name)
        is_knob = "batch" in name and works(256, {}) and not works(2, {})
        return [f"{name} would do"] if is_knob else []

    monkeypatch.setattr("server.planning.learnability._least", largest)
    small = TypicalNumber(0.02, "a test")
    drowned = config(optimizer__batch_size=2, optimizer__rounds=100, radio__snr_db=40.0)
    helps = what_would_help(drowned, RECORDS, small)
    assert helps[0] == "optimizer.batch_size would do"
    assert set(asked) == {
        "federation.num_devices", "optimizer.batch_size", "privacy.epsilon", "optimizer.rounds",
    }  # fmt: skip
    what_would_help(config(**DEVICE, optimizer__rounds=100), RECORDS, small)
    assert asked.count("optimizer.batch_size") == 1


@pytest.mark.parametrize(
    ("changes", "able"),
    [
        ({}, {"static", "subsampled", "perfect"}),
        ({"radio__waveform": "energy"}, {"static", "subsampled"}),
        (
            DEVICE,
            {"optimal", "static", "reversed", "constant_inversion", "truncated_inversion",
             "perfect", "paper", "selection", "equal_split"},
        ),
        ({**DEVICE, "radio__waveform": "slotted"}, {"optimal", "static", "reversed"}),
        (
            {**DEVICE, "radio__waveform": "coherent_vote", "privacy__vote_noise": "after_sign"},
            {"optimal", "static", "reversed", "constant_inversion", "truncated_inversion",
             "perfect", "paper", "selection", "equal_split", "sign"},
        ),
        ({"privacy__enabled": False}, {"perfect"}),
    ],
)  # fmt: skip
def test_every_policy_is_there_with_figures_or_a_reason(changes, able):
    previews = preview_policies(config(optimizer__rounds=60, **changes), RECORDS)
    assert [preview.name for preview in previews] == list(POLICIES)
    assert {preview.name for preview in previews if not preview.refusal} == able
    for preview in previews:
        if preview.refusal:
            continue
        assert len(preview.own_noise_std) == len(preview.num_speakers) == 60
        assert preview.power_db <= 0.0 or math.isnan(preview.power_db)
        if POLICIES[preview.name].promises:
            assert list(preview.epsilon) == sorted(preview.epsilon)
            assert 0.0 < preview.epsilon[-1] <= 1.0


def test_the_preview_predicts_the_noise_of_the_run_that_follows(tmp_path):
    """And not only its own arithmetic: every round of a real run is held against it."""
    one = config(
        federation__num_devices=6, optimizer__rounds=60, optimizer__directions=1,
        optimizer__batch_size=1, task__validation_examples=5, task__max_tokens=16,
        radio__coherence_rounds=1, radio__snr_db=0.0, power__policy="equal_split",
        optimizer__learning_rate=1e-6, run__evaluation_interval=60,
        privacy__unit="device", privacy__delta=1e-3, privacy__epsilon=8.0,
    )  # fmt: skip
    preview = preview_policy(one, "equal_split", [100] * 6)
    assert carry_out(Experiment.start(one, tmp_path / "run"))
    rows, _, _, spent = looked_at(tmp_path / "run")
    heard = [row for row in rows if row.num_speakers]
    spoken = preview.num_speakers > 0
    own = np.median([row.artificial_noise_std for row in heard])
    assert own == pytest.approx(np.median(preview.own_noise_std[spoken]), rel=0.15)
    radio = np.median([row.receiver_noise_std for row in heard])
    assert radio == pytest.approx(np.median(preview.radio_noise_std[spoken]), rel=0.4)
    assert spent == pytest.approx(preview.epsilon[-1], rel=0.01)


def test_epsilon_over_the_rounds_is_the_closed_form_of_their_prices():
    preview = preview_policy(config(**DEVICE, optimizer__rounds=40), "static", RECORDS)
    half, whole = preview.epsilon[preview.checkpoints.index(20)], preview.epsilon[-1]
    delta = 0.9e-3  # a tenth covers the channel estimates
    gdp_mu = gdp_mu_of(whole, delta)
    assert half == pytest.approx(epsilon_of(gdp_mu / math.sqrt(2.0), delta), rel=1e-6)


def test_the_papers_own_operating_point_is_reported_as_what_it_is():
    paper = load_config("paper")
    found = outlook(paper, preview_policy(paper, "optimal", [200] * 5), TypicalNumber(10.0, "kind"))
    assert not found.can_learn
    # theory.md, section 6: a total matched SNR of 0.14 at a typical number of 10, trusting the
    # receiver; here nothing is trusted, gains are estimated and replacing doubles the shift.
    assert found.effective_rounds < 0.2 < LEAST_ROUNDS
