import math

import msgspec
import numpy as np
import pytest

from edge_runtime.guard.cover import ArtificialNoise, certified_noise_stds
from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.errors import PromiseError
from edge_runtime.protocol.rounds import Access, Vote
from radio.waveforms import WaveformName
from server.errors import PrivacyError, UnknownMechanismError
from server.privacy.mechanism import (
    RECORD_VERSION,
    MechanismRecord,
)


def make_record(**changes):
    fields = {
        "version": RECORD_VERSION,
        "kind": "poisson_subsampled_gaussian",
        "round_index": 3,
        "device_index": 1,
        "access": Access.SUPERPOSED,
        "waveform": WaveformName.COHERENT,
        "vote": Vote.NONE,
        "unit": PrivacyUnit.EXAMPLE,
        "relation": NeighbouringRelation.ZERO_OUT_ONE,
        "sensitivity": 0.5,
        "sampling_probability": 0.01,
        "certified_noise_std": 0.4,
        "receiver_noise_std": 0.0,
        "num_missing": 0,
        "amplitude_error_bound": 0.0,
        "noise_stream": "00ff00ff00ff00ff",
    }
    return MechanismRecord(**{**fields, **changes})


def test_noise_multiplier_is_noise_over_sensitivity_rounded_down():
    multiplier = make_record().noise_multiplier
    assert multiplier < 0.8
    assert multiplier == pytest.approx(0.8, rel=1e-14)


def test_amplitude_error_grows_the_shift_and_shrinks_the_noise():
    record = make_record(amplitude_error_bound=0.1)
    assert record.noise_multiplier == pytest.approx(0.8 * 0.9 / 1.1, rel=1e-14)


@pytest.mark.parametrize(
    "changes",
    [
        {"sensitivity": 0.0},
        {"sensitivity": math.nan},
        {"sensitivity": math.inf},
        {"certified_noise_std": 0.0},
        {"certified_noise_std": -1.0},
        {"certified_noise_std": math.inf},
        {"certified_noise_std": 1e308, "sensitivity": 1e-308},
        {"certified_noise_std": 1e-308, "sensitivity": 1e308},
        {"amplitude_error_bound": 1.0},
        {"amplitude_error_bound": -0.1},
        {"amplitude_error_bound": math.nan},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.5},
        {"sampling_probability": math.nan},
        {"round_index": -1},
        {"round_index": 2**63},
        {"device_index": -1},
        {"device_index": True},
        {"noise_stream": ""},
        {"noise_stream": "not hex at all"},
        {"access": "superposed by hand"},
        {"access": None},
        {"waveform": "coherently"},
    ],
)
def test_a_release_nobody_can_mean_is_refused_at_birth(changes):
    with pytest.raises(PrivacyError):
        make_record(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": True},
        {"kind": "laplace"},
        {"kind": "gaussian"},
        {"unit": PrivacyUnit.DEVICE},
        {"relation": NeighbouringRelation.REPLACE_ONE},
    ],
)
def test_a_mechanism_without_a_proof_is_unknown_not_free(changes):
    with pytest.raises(UnknownMechanismError):
        make_record(**changes)


def test_decode_reads_encode_back():
    record = make_record(amplitude_error_bound=0.05)
    assert MechanismRecord.decode(record.encode()) == record


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: {**d, "version": 2},
        lambda d: {**d, "waveform": "semaphore"},
        lambda d: {**d, "waveform": "energy"},
        lambda d: {k: v for k, v in d.items() if k != "waveform"},
        lambda d: {**d, "kind": "exponential"},
        lambda d: {**d, "discount": 0.5},
        lambda d: {**d, "access": "telepathic"},
        lambda d: {**d, "certified_noise_std": -1.0},
        lambda d: {**d, "certified_noise_std": "0.4"},
        lambda d: {k: v for k, v in d.items() if k != "access"},
        lambda d: {k: v for k, v in d.items() if k != "sensitivity"},
        lambda d: dict(reversed(d.items())),
    ],
)
def test_decode_refuses_what_it_does_not_fully_understand(damage):
    good = msgspec.json.decode(make_record().encode())
    with pytest.raises(UnknownMechanismError):
        MechanismRecord.decode(msgspec.json.encode(damage(good)))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe", b"{}"])
def test_decode_refuses_bytes_that_are_no_record(data):
    with pytest.raises(UnknownMechanismError):
        MechanismRecord.decode(data)


def test_a_waveform_whose_devices_can_be_told_apart_is_never_accounted_as_superposed():
    with pytest.raises(UnknownMechanismError, match="carriers and timing tell its devices apart"):
        make_record(waveform=WaveformName.ENERGY)
    record = make_record(waveform=WaveformName.ENERGY, access=Access.SLOTTED)
    assert MechanismRecord.decode(record.encode()) == record
    # Negative control: nor can the bytes of a record say so.
    forged = record.encode().replace(b'"slotted"', b'"superposed"')
    with pytest.raises(UnknownMechanismError):
        MechanismRecord.decode(forged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"waveform": WaveformName.COHERENT_VOTE, "vote": Vote.NOISE_BEFORE},
            "a sign carries no noise",
        ),
        ({"waveform": WaveformName.COHERENT_VOTE}, "contradict each other"),
        ({"vote": Vote.NOISE_AFTER}, "contradict each other"),
        ({"waveform": WaveformName.VOTE, "vote": Vote.NOISE_AFTER}, "tell its devices apart"),
    ],
)
def test_votes_are_superposed_only_with_noise_on_them_and_where_devices_are_alike(changes, message):
    with pytest.raises(UnknownMechanismError, match=message):
        make_record(**changes)


def test_votes_that_can_be_accounted():
    for waveform, vote, access in (
        (WaveformName.COHERENT_VOTE, Vote.NOISE_AFTER, Access.SUPERPOSED),
        (WaveformName.COHERENT_VOTE, Vote.NOISE_BEFORE, Access.SLOTTED),
        (WaveformName.VOTE, Vote.NOISE_BEFORE, Access.SLOTTED),
        (WaveformName.VOTE, Vote.NOISE_AFTER, Access.SLOTTED),
    ):
        record = make_record(waveform=waveform, vote=vote, access=access)
        assert MechanismRecord.decode(record.encode()) == record


NOISE = {0: 0.3, 1: 0.4, 2: 1.2}


def certify(access, noise, device_index=0, noise_stds=NOISE):
    certified = certified_noise_stds(access=access, artificial_noise=noise, noise_stds=noise_stds)
    assert set(certified) == set(noise_stds)
    return certified[device_index]


def test_slotted_access_counts_only_the_devices_own_noise():
    assert certify(Access.SLOTTED, ArtificialNoise.CIRCULAR) == 0.3
    assert certify(Access.SLOTTED, ArtificialNoise.IN_PHASE, 2) == 1.2


def test_superposed_circular_noise_adds_in_squares_rounded_down():
    value = certify(Access.SUPERPOSED, ArtificialNoise.CIRCULAR)
    assert value < 1.3
    assert value == pytest.approx(1.3, rel=1e-14)


def test_superposed_in_phase_noise_counts_only_the_devices_own():
    assert certify(Access.SUPERPOSED, ArtificialNoise.IN_PHASE) == 0.3


def loss_of_one_device(phase_errors, noise_stds, device_index, *, circular):
    """shift^2 u' S^-1 u of a receiver with both quadratures and no noise, for a shift of 1."""
    directions = np.stack([np.cos(phase_errors), np.sin(phase_errors)])
    variances = np.square(noise_stds)
    if circular:
        covariance = np.sum(variances) * np.eye(2)
    else:
        covariance = (directions * variances) @ directions.T
    shift = directions[:, device_index]
    return shift @ np.linalg.solve(covariance, shift)


@pytest.mark.parametrize("phase_scale_rad", [0.3, 1e-2, 1e-4])
def test_why_in_phase_noise_of_the_others_does_not_count(phase_scale_rad):
    rng = np.random.default_rng(1)
    phases = phase_scale_rad * rng.standard_normal(5)
    stds = np.ones(5)
    promised = 1.0 / 5.0
    losses = [loss_of_one_device(phases, stds, k, circular=False) for k in range(5)]
    # The errors may be tiny: the loss is twice the naive one on average all the same.
    assert np.mean(losses) == pytest.approx(2 * promised, rel=1e-6)
    assert max(losses) > 2 * promised
    assert max(losses) <= 1.0 + 1e-6
    for k in range(5):
        circular = loss_of_one_device(phases, stds, k, circular=True)
        assert circular == pytest.approx(promised, rel=1e-12)


def test_two_devices_with_in_phase_noise_are_separated_completely():
    loss = loss_of_one_device(np.array([0.0, 1e-3]), np.array([0.5, 2.0]), 0, circular=False)
    assert loss == pytest.approx(1 / 0.5**2, rel=1e-6)


@pytest.mark.parametrize("bad", [{0: math.nan}, {0: -1.0}, {0: math.inf}])
def test_certified_noise_std_refuses_doubtful_noise(bad):
    with pytest.raises(PromiseError):
        certify(Access.SUPERPOSED, ArtificialNoise.CIRCULAR, 0, bad)


def test_certified_noise_std_refuses_an_unknown_access():
    with pytest.raises(PromiseError, match="members"):
        certify("superposed?", ArtificialNoise.CIRCULAR)
