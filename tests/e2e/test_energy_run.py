"""Whole runs over radios without a common clock: they learn, repeat, keep promises, or refuse."""

import dataclasses
import json
import logging
import math
import shutil

import numpy as np
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol.rounds import Access
from edge_runtime.uplink import EnergyUplink
from radio.errors import RadioCalibrationError, RadioUnavailableError
from radio.recordings.sigmf import load_recording
from radio.waveforms import WaveformName
from server.air.base import HeldAir
from server.air.energy import EnergyAir
from server.commands import cli
from server.config.files import load_config
from server.errors import ConfigurationError
from server.planning.round_plan import CALIBRATION_SLACK
from server.privacy.accountant import Accountant
from server.run.continuation import plan_more_rounds
from server.run.experiment import Experiment
from server.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROUNDS = 8
SETTINGS = {
    **SMALL, "radio.waveform": "energy", "radio.plateau_samples": 16384,
    "radio.coherence_rounds": 3, "federation.num_devices": 3, "optimizer.rounds": ROUNDS,
    "optimizer.directions": 3, "run.evaluation_interval": 4,
}  # fmt: skip


def config(**changes):
    return configured(SETTINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("energy") / "whole"
    assert carry_out(Experiment.start(config(), folder))
    return folder


def test_every_release_is_accounted_by_the_devices_own_noise(whole):
    rows, records, *_ = looked_at(whole)
    assert len(records) == sum(row.num_speakers for row in rows) > ROUNDS
    assert {(r.access, r.waveform) for r in records} == {(Access.SLOTTED, WaveformName.ENERGY)}
    assert {r.amplitude_error_bound for r in records} == {0.0}
    # The noise on a mean of n is what one device has over sqrt(n), not over n; more, where the
    # devices have unequal weights.
    for row in rows:
        (std,) = {r.certified_noise_std for r in records if r.round_index == row.round_index}
        assert std / math.sqrt(row.num_speakers) * (1 - 1e-9) <= row.artificial_noise_std <= std
    accounts = Accountant(epsilon=8.0, delta=1e-5)
    accounts.compose_all(records)
    store = RunStore.open(whole)
    assert 0 < store.meta("epsilon_spent") <= 8.0
    assert store.meta("epsilon_spent") == pytest.approx(accounts.worst_spent(), rel=1e-9)
    store.close()


def test_a_device_speaks_with_no_less_than_the_noise_that_covers_it_alone(tmp_path):
    run = Experiment.start(config(), tmp_path / "run")
    try:
        required = run.terms.noise_multiplier(0) * run.terms.sensitivity
        power = run.pricing.plan_round(0, run.loop.channel_for(0)).power
        stds = set(power.artificial_noise_std.values())
        assert stds == {required * (1 + CALIBRATION_SLACK)}
    finally:
        run.close()


def check_radio_error(folder):
    """Errors of 24 sums, nearly Gaussian: their squares over their variances are about 1.

    A gain that is off by its pilot's few percent comes on top.
    """
    rows, *_ = looked_at(folder)
    expected = sum(3 * row.receiver_noise_std**2 for row in rows)
    measured = sum(row.squared_error_of_radio for row in rows)
    assert 0.3 * expected < measured < 3.0 * expected


EQUALLY_LOUD = {"radio__channel": "awgn", "impairments__distance_ratio": 1.0}
"""Else the weak weigh less, and the mean is not that of equals."""


def test_what_the_radio_adds_is_what_the_receiver_measured(tmp_path):
    assert carry_out(Experiment.start(config(**EQUALLY_LOUD), tmp_path / "run"))
    check_radio_error(tmp_path / "run")


def test_somebody_else_on_the_air_is_told_with_the_number_that_is_spoilt(
    tmp_path, monkeypatch, caplog
):
    capture = HeldAir.capture

    def with_a_tone(self, num_samples, label):
        samples = capture(self, num_samples, label)
        if label == "numbers":
            turns = -0.2 * np.arange(num_samples)
            samples = (samples + 0.1 * np.exp(2j * np.pi * turns)).astype(np.complex64)
        return samples

    caplog.set_level(logging.WARNING, logger="server.air.energy")
    assert carry_out(Experiment.start(config(optimizer__rounds=2), tmp_path / "clean"))
    assert "somebody else" not in caplog.text
    monkeypatch.setattr(HeldAir, "capture", with_a_tone)
    assert carry_out(Experiment.start(config(optimizer__rounds=2), tmp_path / "spoilt"))
    told = [r.message for r in caplog.records if "somebody else was on the air" in r.message]
    assert len(told) == 2
    begin = "round 1: somebody else was on the air: a tone "
    assert told[1].startswith(begin)
    assert float(told[1].removeprefix(begin).split()[0]) == pytest.approx(4000.0, abs=10.0)
    assert "kHz below the carrier, which moves the sum of number 1 by" in told[1]


def test_a_round_waits_for_three_orders_and_two_captures(tmp_path, monkeypatch):
    """Plan, hold, silence; what is silent is heard while devices compute."""
    run = Experiment.start(config(optimizer__rounds=2), tmp_path / "run")
    happened, capture = [], HeldAir.capture

    def ask(self, message, *asked, real=ControlChannel.ask):
        happened.append(type(message).__name__)
        return real(self, message, *asked)

    def noted(self, num_samples, label):
        happened.append(label)
        return capture(self, num_samples, label)

    monkeypatch.setattr(ControlChannel, "ask", ask)
    monkeypatch.setattr(HeldAir, "capture", noted)
    assert carry_out(run)
    begin = happened.index("RoundPlan")
    of_round = happened[min(begin, happened.index("silence", 2)) : happened.index("RoundResult")]
    assert sorted(of_round[:2]) == ["RoundPlan", "silence"]  # side by side
    assert of_round[2:] == ["NumbersHold", "numbers", "SilenceOrder"]


def test_over_a_channel_with_echoes_each_number_has_a_level_of_its_own(tmp_path):
    """1 MHz bands and echoes of 100 ns: some fade, and a device does not say what they carry."""
    echoes = config(
        radio__channel="multipath", radio__delay_spread_s=2e-7, radio__snr_db=25.0,
        optimizer__directions=8, impairments__distance_ratio=1.0, radio__min_band_gain=0.3,
        radio__plateau_samples=1 << 16,
    )  # fmt: skip
    run = Experiment.start(echoes, tmp_path / "run")
    assert run.source == "loopback+multipath+pluto-stock*"
    power = run.pricing.plan_round(0, run.loop.channel_for(0)).power
    assert max(power.levels) > 1.5 * min(power.levels)
    said = np.array([power.weights[k] for k in power.participants]) > 0
    assert said.any(axis=0).all()
    assert not said.all()
    assert carry_out(run)
    rows, records, *_ = looked_at(tmp_path / "run")
    assert len(rows) == ROUNDS
    assert all(math.isfinite(row.squared_error_of_radio) for row in rows)
    assert records


def test_the_other_mapping_runs_too(tmp_path):
    other = config(radio__energy_mapping="self_normalised", **EQUALLY_LOUD)
    run = Experiment.start(other, tmp_path / "run")
    assert carry_out(run)
    check_radio_error(tmp_path / "run")


@pytest.mark.parametrize("stop_after", [3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(whole, tmp_path, stop_after):
    folder = tmp_path / "stopped"
    asked = []
    assert not carry_out(
        Experiment.start(config(), folder),
        should_stop=lambda: asked.append(0) or len(asked) > stop_after,
    )
    assert carry_out(Experiment.resume(folder))
    assert looked_at(folder) == looked_at(whole)


def test_a_run_that_has_ended_goes_on(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "more")
    plan_more_rounds(folder, {"optimizer.rounds": ROUNDS + 2, "privacy.epsilon": 9.0})
    assert carry_out(Experiment.resume(folder))
    rows, records, *_ = looked_at(folder)
    assert len(rows) == ROUNDS + 2
    accounts = Accountant(epsilon=9.0, delta=1e-5)
    accounts.compose_all(records)
    assert accounts.worst_spent() <= 9.0


def test_an_old_calibration_is_replaced_and_never_used(tmp_path, monkeypatch):
    learn, learnt = EnergyAir.learn_channel, []

    def note(air, control, run_id, round_index):
        learnt.append(round_index)
        return learn(air, control, run_id, round_index)

    monkeypatch.setattr(EnergyAir, "learn_channel", note)
    run = Experiment.start(config(), tmp_path / "run")
    old = run.loop.channel_for(0)
    stale = dataclasses.replace(old, made=dataclasses.replace(old.made, clock_s=-1e9))
    with pytest.raises(RadioCalibrationError, match="s old, wanted at most 600 s"):
        run.loop.run_round(0, stale)
    with pytest.raises(RadioCalibrationError, match="3 rounds old"):
        run.loop.run_round(3, old)
    assert run.pricing.num_records == 0  # nothing was paid
    assert run.loop.channel_for(1, old) is old
    assert run.loop.channel_for(1, stale) is not stale
    learnt.clear()
    assert carry_out(run)
    assert learnt == [0, 3, 6]


def test_a_device_whose_pilot_fails_is_named_and_silent_and_the_others_go_on(
    tmp_path, monkeypatch, caplog
):
    hold = EnergyUplink.hold_pilot

    def fail(uplink, device_index, order):
        if device_index == 1:
            raise RadioUnavailableError("unplugged")
        hold(uplink, device_index, order)

    monkeypatch.setattr(EnergyUplink, "hold_pilot", fail)
    assert carry_out(Experiment.start(config(radio__channel="awgn"), tmp_path / "run"))
    rows, records, *_ = looked_at(tmp_path / "run")
    assert {record.device_index for record in records} == {0, 2}
    assert all(row.num_speakers == 2 for row in rows)
    assert "the pilot of device 1 was not heard" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy.access": "superposed"}, 'does not hold for radio.waveform = "energy"'),
        (
            {"radio.impairments": "uncorrected"},
            "up to 45750 Hz, the guards of the bands have room",
        ),
        ({"radio.impairments": "ideel"}, "got 'ideel', wanted one of"),
        ({"radio.snr_db": -30.0}, "nobody would be heard"),
        ({"radio.waveform": "energetic"}, "energetic"),
        ({"radio.plateau_samples": 100}, "plateau_samples: got 100"),
        ({"radio.sample_rate_hz": 2.5e5}, "3 numbers need two bands each.* At that rate 1 fit"),
        ({"radio.carrier_hz": 2.4e9}, "up to 50400 Hz"),
        (
            {"radio.waveform": "coherent", "radio.impairments": "pluto-stock"},
            "the superposed statement does not hold then",
        ),
    ],
)
def test_what_cannot_be_promised_or_heard_is_refused_before_anything_is_written(
    tmp_path, changes, message
):
    with pytest.raises(ConfigurationError, match=message):
        load_config("snips", {**SETTINGS, **changes})


def test_without_privacy_the_coherent_waveform_may_be_seen_to_fail(tmp_path):
    """Control of the whole idea: crystals of their own spoil its sums."""
    failing = config(
        radio__waveform="coherent", impairments__crystal_ppm=10.0, privacy__enabled=False,
        radio__channel="awgn",
    )  # fmt: skip
    run = Experiment.start(failing, tmp_path / "coherent")
    assert run.source == "loopback+awgn+ideal*"
    assert carry_out(run)
    working = config(privacy__enabled=False, **EQUALLY_LOUD)
    assert carry_out(Experiment.start(working, tmp_path / "energy"))
    errors, speakers = [], []
    for name in ("coherent", "energy"):
        rows, *_ = looked_at(tmp_path / name)
        power = sum(sum(mean**2 for mean in row.true_means) for row in rows)
        errors.append(sum(row.squared_error_of_radio for row in rows) / power)
        speakers.append(sum(row.num_speakers for row in rows))
    # Pilots of a millisecond hardly hear who is kilohertz off, and what is heard does not add up.
    assert speakers[0] < speakers[1]
    assert errors[0] > 0.2
    assert errors[1] < 0.1


def test_the_command_line_runs_it(tmp_path, capsys):
    settings = {**SETTINGS, "optimizer.rounds": 2}
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    sets = [a for pair in pairs for a in ("--set", pair)]
    assert cli.main(["run", *sets, "--out", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert "slotted access" in captured.err
    assert summary["access"] == "slotted"
    assert summary["epsilon"] <= 8.0


def test_a_carrier_beyond_the_guards_is_silent_and_told(tmp_path, caplog):
    """A software air would be refused with such crystals; a real one is not known beforehand."""
    loud = config(
        optimizer__rounds=4, radio__channel="awgn", radio__snr_db=30.0,
        radio__plateau_samples=1 << 16,
    )  # fmt: skip
    run = Experiment.start(loud, tmp_path / "run")
    crystals = run.loop.air.simulation._crystals
    own = crystals.offsets_hz
    crystals.offsets_hz = lambda t: own(t) * 0.0 + [0.0, 40e3 if t < 3 else 0.0, 0.0]
    assert carry_out(run)
    speakers = [row.num_speakers for row in looked_at(tmp_path / "run")[0]]
    assert speakers == [2, 2, 2, 3]  # a calibration serves three rounds
    assert "the carrier of device 1 is" in caplog.text
    assert "pairzero-radio calibrate" in caplog.text


def test_captures_of_chosen_rounds_are_kept_and_say_what_the_run_heard(tmp_path, whole):
    run = Experiment.start(config(radio__keep_captures=(0, 4, 99)), tmp_path / "run")
    assert carry_out(run)
    folder = tmp_path / "run" / "captures"
    assert sorted(path.name for path in folder.glob("*.sigmf-meta")) == [
        "calibration-000000.sigmf-meta", "round-000000.sigmf-meta", "round-000004.sigmf-meta",
    ]  # fmt: skip
    pilots = load_recording(folder / "calibration-000000")
    assert pilots.labels == ("silence", *(f"pilot of device {k}" for k in range(3)))
    rows, _, digest, _ = looked_at(tmp_path / "run")
    assert digest == looked_at(whole)[2]  # keeping changes nothing
    recording = load_recording(folder / "round-000004")
    assert recording.labels == ("silence", "numbers")
    assert recording.source == "loopback+rayleigh+pluto-stock"
    quiet, numbers = (run.config.energy_waveform.energies(c) for c in recording.captures)
    heard = numbers - quiet
    sums = heard[:, 0] - heard[:, 1]
    # Levels of numbers differ as far as their gains are known to; the clip was not in the way.
    factors = [m / s for m, s in zip(rows[4].mean_estimates, sums, strict=True)]
    assert max(abs(m) for m in rows[4].mean_estimates) < run.config.optimizer.clip
    assert factors == pytest.approx([factors[0]] * 3, rel=0.3)
    # They follow one another, and a software radio has no gain to tell.
    moments = [*pilots.moments, *recording.moments]
    assert None not in moments
    assert moments == sorted(moments)
    assert pilots.rx_gain_db is None


def test_captures_of_a_run_with_real_keys_do_not_say_when_they_were_made(tmp_path):
    """How long a round takes follows the sizes of secret batches."""
    changes = {"radio__keep_captures": (0, 1), "optimizer__rounds": 2}
    run = Experiment.start(config(**changes, privacy__noise_source="system"), tmp_path / "run")
    assert carry_out(run)
    for name in ("calibration-000000", "round-000000", "round-000001"):
        recording = load_recording(tmp_path / "run" / "captures" / name)
        assert recording.captures
        assert set(recording.moments) == {None}


def test_captures_that_cannot_be_kept_cost_the_run_nothing(tmp_path, caplog):
    run = Experiment.start(config(radio__keep_captures=(1,)), tmp_path / "run")
    (tmp_path / "run" / "captures").write_text("in the way")
    assert carry_out(run)
    assert "the captures of round-000001 are not kept" in caplog.text


def test_captures_are_for_radios_that_have_some():
    for changes in ({"radio__waveform": "coherent"}, {"radio__backend": "ideal"}):
        with pytest.raises(ConfigurationError, match=r"radio\.keep_captures"):
            config(radio__keep_captures=(1,), privacy__enabled=False, **changes)
