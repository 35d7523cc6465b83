"""Runs by digital packets: what is read is exact, what is not is reported and in no mean."""

import numpy as np
import pytest
from whole_runs import SMALL, configured, looked_at

from edge_runtime.protocol.rounds import Access
from radio.waveforms import WaveformName
from radio.waveforms.slotted import SlottedWaveform
from server.config.files import load_config
from server.errors import ConfigurationError
from server.report.page import read_runs, write_runs
from server.run.experiment import Experiment
from server.store.run_store import RunStore

ROUNDS, DEVICES = 6, 3
SETTINGS = {
    **SMALL, "radio.waveform": "slotted", "radio.channel": "awgn",
    "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS, "optimizer.directions": 4,
    "run.evaluation_interval": 3, "radio.coherence_rounds": 2,
}  # fmt: skip


def carry_out(folder, should_stop=lambda: False, **changes):
    run = Experiment.start(configured(SETTINGS, **changes), folder)
    try:
        run.run(should_stop=should_stop)
    finally:
        run.close()


@pytest.fixture(scope="module", params=["time", "frequency"])
def slots(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory, slots):
    folder = tmp_path_factory.mktemp("slotted") / "run"
    carry_out(folder, radio__slots=slots)
    return folder


def test_what_is_read_is_exact_to_half_a_step(whole):
    rows, records, _, epsilon = looked_at(whole)
    assert [row.num_speakers for row in rows] == [DEVICES] * ROUNDS
    assert sum(row.num_erased for row in rows) == 0
    for row in rows:
        assert row.receiver_noise_std < 1e-3
        # Cut at the range counts as the radio's error: 3.2e-5 a number, not seen here.
        assert row.squared_error_of_radio < 4 * (5 * row.receiver_noise_std) ** 2
    assert {(r.access, r.waveform) for r in records} == {(Access.SLOTTED, WaveformName.SLOTTED)}
    assert 0 < epsilon <= 8.0


def test_erasures_are_counted_shown_and_part_of_no_mean(tmp_path, slots):
    """At 0 dB per sample a Rayleigh channel erases a good part of the packets."""
    folder = tmp_path / "run"
    carry_out(folder, radio__slots=slots, radio__channel="rayleigh", radio__snr_db=0.0)
    rows, records, _, _ = looked_at(folder)
    erased = sum(row.num_erased for row in rows)
    assert 0 < erased < ROUNDS * DEVICES
    assert len(records) == ROUNDS * DEVICES  # they spoke, and paid
    store = RunStore.open(folder)
    store.close()
    run = read_runs(folder)[0]
    assert run.summary["erasures"] == erased
    write_runs([run])
    assert f"{erased} packets could not be read" in (folder / "report.html").read_text()
    for row in rows:
        if row.num_erased == DEVICES:
            assert row.mean_estimates == (0.0,) * 4
            assert row.step_integers == (0,) * 4
        else:
            assert row.receiver_noise_std > 0


def test_a_mean_is_of_those_that_were_read(tmp_path, monkeypatch):
    read = SlottedWaveform.demodulate

    def lose_device_one(waveform, capture, *, sender, round_index):
        if sender == 1:
            return None
        return read(waveform, capture, sender=sender, round_index=round_index)

    monkeypatch.setattr(SlottedWaveform, "demodulate", lose_device_one)
    folder = tmp_path / "run"
    carry_out(folder, privacy__enabled=False)
    rows, _, _, _ = looked_at(folder)
    assert [row.num_erased for row in rows] == [1] * ROUNDS
    # Not two thirds of the mean: the sum is divided by the two that were read.
    heard = np.array([row.mean_estimates for row in rows])
    true = np.array([row.true_means for row in rows])
    assert np.sum(heard * true) / np.sum(true * true) > 0.7


def test_an_interrupted_run_ends_with_the_same_bits(whole, tmp_path, slots):
    asked = []
    carry_out(tmp_path / "stopped", lambda: asked.append(0) or len(asked) > 3, radio__slots=slots)
    run = Experiment.resume(tmp_path / "stopped")
    try:
        assert run.run()
    finally:
        run.close()
    assert looked_at(tmp_path / "stopped") == looked_at(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy.access": "superposed"}, 'does not hold for radio.waveform = "slotted"'),
        ({"radio.snr_db": -20.0}, "of the packets would be erased"),
        ({"radio.carrier_hz": 2.4e9}, "packets are read within 46000 Hz"),
        ({"radio.sample_rate_hz": 1e5}, "wanted below half of the symbol rate"),
        (
            {"radio.slots": "frequency", "radio.sample_rate_hz": 1e6},
            "got 3 devices, and 2 find a place",
        ),
        ({"radio.slots": "frequency", "radio.snr_db": -20.0}, "of the packets would be erased"),
        ({"radio.slots": "band"}, "radio.slots"),
    ],
)
def test_what_cannot_be_promised_or_read_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config("snips", {**SETTINGS, **changes})


def test_crystals_as_the_factory_promises_them_will_do(tmp_path, slots):
    carry_out(tmp_path / "run", radio__slots=slots, radio__impairments="uncorrected")
    rows, _, _, _ = looked_at(tmp_path / "run")
    assert sum(row.num_erased for row in rows) == 0
