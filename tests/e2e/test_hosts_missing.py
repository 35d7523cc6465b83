"""Whole runs whose devices are not heard of: what is unknown is paid for, and part of no step."""

import pytest
from hostile_channel import HostileChannel, lost
from whole_runs import SMALL, configured, looked_at

from edge_runtime.protocol.rounds import (
    DigestRequest,
    NumbersHold,
    PacketHold,
    PilotHold,
    RoundPlan,
    RoundResult,
    SilenceOrder,
    SoundingOrder,
)
from server.errors import HostsMissingError, ReplicaMismatchError
from server.run import components
from server.run.experiment import Experiment
from server.run.names import token_of
from server.store.records import Outcome
from server.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROUNDS, DEVICES = 5, 3
SETTINGS = {
    **SMALL, "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS,
    "optimizer.directions": 2, "run.evaluation_interval": 5, "radio.coherence_rounds": 5,
    "radio.channel": "awgn", "radio.snr_db": 20.0,
}  # fmt: skip
ENERGY = {"radio__waveform": "energy", "radio__plateau_samples": 1 << 14}
PLAIN = {"privacy__enabled": False}


@pytest.fixture
def lose(monkeypatch):
    """Has the answers to an order of a round be lost; those of its n-th such order alone."""

    def those(kind, round_index, n=0):
        left = [n]

        class Losing(HostileChannel):
            def ask(self, message, *asked):
                if isinstance(message, kind) and message.round_index == round_index:
                    if left[0] == 0:
                        for host in self.hosts:
                            self.faults[host] = [lost]
                    left[0] -= 1
                return super().ask(message, *asked)

        monkeypatch.setattr(components, "InProcessChannel", Losing)

    return those


def run_of(folder, **changes):
    run = Experiment.start(configured(SETTINGS, **changes), folder)
    try:
        return run.run()
    finally:
        run.close()


def go_on(folder):
    run = Experiment.resume(folder)
    try:
        return run.run()
    finally:
        run.close()


def meta_of(folder, key):
    store = RunStore.open(folder)
    try:
        return store.meta(key)
    finally:
        store.close()


def least_noise(records, round_index):
    """By device, what covers its number in the dearest record of a round."""
    least = {}
    for record in records:
        if record.round_index == round_index:
            before = least.get(record.device_index, float("inf"))
            least[record.device_index] = min(before, record.certified_noise_std)
    return least


@pytest.mark.parametrize("changes", [PLAIN, PLAIN | ENERGY | {"radio__snr_db": 10.0}])
def test_a_run_without_a_word_of_anybody_pauses_and_ends_like_the_undisturbed_one(
    tmp_path, lose, monkeypatch, changes
):
    assert run_of(tmp_path / "whole", **changes)
    with monkeypatch.context():
        lose(RoundPlan, 2)
        with pytest.raises(HostsMissingError, match=r"round 2: no answer of in-process"):
            run_of(tmp_path / "run", **changes)
    assert meta_of(tmp_path / "run", "outcome") == Outcome.INTERRUPTED
    rows, *_ = looked_at(tmp_path / "run")
    assert [row.round_index for row in rows] == [0, 1]
    lose(RoundPlan, 99)
    assert go_on(tmp_path / "run")
    assert looked_at(tmp_path / "run") == looked_at(tmp_path / "whole")
    digests = [meta_of(tmp_path / name, "parameter_digest") for name in ("run", "whole")]
    assert digests[0] == digests[1]


def test_who_may_have_spoken_alone_pays_for_that(tmp_path, lose):
    """Three share the noise of a sum; each pays for its own third of the power.

    That is more than five rounds may cost: the run ends, and says so.
    """
    lose(RoundPlan, 1)
    assert not run_of(tmp_path / "run", power__policy="static")
    assert meta_of(tmp_path / "run", "outcome") == Outcome.BUDGET_EXCEEDED
    _, records, *_ = looked_at(tmp_path / "run")
    together, alone = least_noise(records, 0), least_noise(records, 1)
    for device in range(DEVICES):
        assert alone[device] == pytest.approx(together[device] / DEVICES**0.5, rel=1e-3)


def test_a_sum_that_may_hold_an_unknown_number_is_no_step(tmp_path, lose):
    lose(NumbersHold, 2)
    assert run_of(tmp_path / "run", **ENERGY)
    rows, records, *_ = looked_at(tmp_path / "run")
    assert [any(row.step_integers) for row in rows] == [True, True, False, True, True]
    assert [row.num_speakers for row in rows] == [3, 3, 0, 3, 3]
    # Their own noise covers them, whoever else was there: nothing more to pay.
    assert [sum(r.round_index == t for r in records) for t in range(ROUNDS)] == [3] * ROUNDS


def test_of_packets_the_unknown_one_alone_is_lost(tmp_path, lose):
    lose(PacketHold, 2, n=1)
    assert run_of(tmp_path / "run", radio__waveform="slotted")
    rows, *_ = looked_at(tmp_path / "run")
    assert [row.num_speakers for row in rows] == [3, 3, 2, 3, 3]
    assert all(any(row.step_integers) for row in rows)


def test_packets_side_by_side_of_nobody_known_are_no_step(tmp_path, lose):
    lose(NumbersHold, 2)
    assert run_of(tmp_path / "run", radio__waveform="slotted", radio__slots="frequency")
    rows, *_ = looked_at(tmp_path / "run")
    assert [row.num_speakers for row in rows] == [3, 3, 0, 3, 3]


@pytest.mark.parametrize("changes", [ENERGY, {"radio__waveform": "slotted"}])
def test_whoever_does_not_say_that_it_is_silent_stops_the_run(tmp_path, lose, changes):
    lose(SilenceOrder, 2)
    with pytest.raises(HostsMissingError, match="round 2: no answer of in-process"):
        run_of(tmp_path / "run", **changes)
    lose(SilenceOrder, 99)
    assert go_on(tmp_path / "run")


def test_a_pilot_that_nobody_confirms_is_listened_for_all_the_same(tmp_path, lose):
    lose(PilotHold, 0, n=1)
    assert run_of(tmp_path / "run", **ENERGY)
    lose(SoundingOrder, 0)
    assert run_of(tmp_path / "another")


def test_a_result_that_nobody_confirms_is_followed_or_the_digests_tell(tmp_path, lose):
    lose(RoundResult, 3)
    assert run_of(tmp_path / "run")
    lose(DigestRequest, ROUNDS)
    with pytest.raises(ReplicaMismatchError, match="no digest of in-process"):
        run_of(tmp_path / "another")


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("snips", "snips"), ("my data.v2", "my-data-v2"), ("kürzel>*", "k-rzel"), ("$", "run"),
        ("a" * 90, "a" * 40),
    ],
)  # fmt: skip
def test_the_name_of_a_run_can_be_part_of_an_address(name, token):
    assert token_of(name) == token
