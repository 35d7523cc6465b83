"""Whole runs whose rounds have different noise: the budget, the ledger, a resume, and requests."""

import numpy as np
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from server.errors import ConfigurationError
from server.power.policies.subsampled import subsampled_offsets
from server.privacy.accountant import Accountant
from server.privacy.calibration import calibrate_noise_multiplier, calibrate_noise_schedule
from server.run.experiment import Experiment

ROUNDS = 20
SETTINGS = {
    **SMALL, "privacy.epsilon": 1.0, "federation.num_devices": 3, "optimizer.rounds": ROUNDS,
    "run.evaluation_interval": ROUNDS, "radio.snr_db": 20.0, "power.contraction": 0.85,
}  # fmt: skip


def config(**changes):
    return configured(SETTINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power") / "run"
    assert carry_out(Experiment.start(config(), folder))
    return folder


def test_the_last_rounds_have_the_least_noise_and_the_budget_holds(whole):
    rows, records, _, spent = looked_at(whole)
    multipliers = np.array([row.noise_multiplier for row in rows if row.num_speakers])
    assert np.all(np.diff(multipliers) <= 1e-9 * multipliers[:-1])
    assert multipliers[0] > 1.1 * multipliers[-1]
    accounts = Accountant(epsilon=1.0, delta=1e-5, csi_delta=1e-6)
    accounts.compose_all(records)
    assert accounts.worst_spent() <= 1.0
    assert spent == pytest.approx(accounts.worst_spent(), rel=1e-9)
    # Nearly all of it is used, rounding of classes included.
    assert spent > 0.9


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, whole):
    folder = tmp_path / "run"
    stops = iter([False] * 8 + [True])
    assert not carry_out(Experiment.start(config(), folder), should_stop=lambda: next(stops))
    assert carry_out(Experiment.resume(folder))
    assert looked_at(folder) == looked_at(whole)


@pytest.mark.parametrize(
    "waveform",
    [{"radio__waveform": "energy", "radio__plateau_samples": 4096}, {"radio__waveform": "slotted"}],
    ids=lambda waveform: waveform["radio__waveform"],
)
def test_devices_that_are_covered_alone_follow_the_plan_too(tmp_path, waveform):
    changed = config(**waveform, optimizer__rounds=20)
    assert carry_out(Experiment.start(changed, tmp_path / "run"))
    _, records, _, spent = looked_at(tmp_path / "run")
    assert spent <= 1.0
    assert len({record.certified_noise_std for record in records}) >= 3
    stds = [max(r.certified_noise_std for r in records if r.round_index == t) for t in (0, 19)]
    assert stds[0] > 1.05 * stds[1]


def test_without_forgetting_every_round_is_as_before(tmp_path):
    same = [config(power__contraction=1.0), config(power__policy="static")]
    digests = []
    for number, one in enumerate(same):
        run = Experiment.start(
            config(
                power__policy=one.power.policy, power__contraction=one.power.contraction,
                optimizer__rounds=3,
            ),
            tmp_path / str(number),
        )  # fmt: skip
        assert len(set(run.terms.noise_multipliers)) == 1
        carry_out(run)
        digests.append([row.step_integers for row in looked_at(tmp_path / str(number))[0]])
    assert digests[0] == digests[1]


def test_a_schedule_has_less_noise_where_it_matters_than_equal_rounds():
    request = {
        "epsilon": 1.0, "delta": 1e-5, "sampling_probability": 0.05, "num_records": 1000
    }  # fmt: skip
    equal = calibrate_noise_multiplier(num_rounds=100, **request)
    offsets = subsampled_offsets(0.95, 100, sampling_probability=0.05, mu=0.3)
    schedule = calibrate_noise_schedule(offsets=offsets, **request)
    assert min(schedule) < equal < max(schedule)
    weights = 0.95 ** np.arange(99, -1, -1.0)
    weighed = np.sum(weights * np.square(schedule)) / np.sum(weights)
    assert weighed < 0.95 * equal**2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power__policy": "optimum"}, "Did you mean 'optimal'"),
        ({"power__policy": "perfect"}, "keeps no promise"),
        ({"power__policy": "optimal"}, "does not plan rounds with Poisson batches"),
        ({"power__policy": "selection", "radio__waveform": "energy"}, "covered by their own"),
        ({"power__contraction": 1.1}, "power.contraction"),
        ({"power__contraction": 0.6}, r"models do not forget like that. Wanted at least 0\.70"),
    ],
)
def test_policies_that_cannot_plan_this_run_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        config(**changes)
