"""Radios that are there: surveyed, measured with known numbers, and told about by the commands."""

import datetime
import json
import math

import numpy as np
import pytest

from radio.commands import cli
from radio.errors import RadioCalibrationError, RadioConfigurationError, RadioUnavailableError
from radio.measurement import Setting, measure_over_the_air, survey
from radio.pluto import usb
from radio.recordings.sigmf import load_recording
from radio.software_air.channel_models import AwgnChannel
from radio.software_air.impairments import Impairments
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.virtual_pluto.server import Bench, VirtualPlutoServer
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_offset import MAX_SEARCH_HZ, estimate_offset_hz

WAVEFORM = EnergyWaveform(plateau_samples=16384)


def capture_of_pilot(offset_hz, snr_db=30.0, waveform=WAVEFORM, seed=0):
    rng = np.random.default_rng(seed)
    pilot = np.roll(waveform.pilot(1.0, rng), int(rng.integers(waveform.plateau_samples)))
    moments = np.arange(pilot.size) / waveform.sample_rate_hz
    noise_power = waveform.full_power_amplitude**2 * 10 ** (-snr_db / 10)
    noise = rng.standard_normal(2 * pilot.size).view(np.complex128) * math.sqrt(noise_power / 2)
    return (pilot * np.exp(2j * np.pi * offset_hz * moments) + noise).astype(np.complex64)


# Offsets


@pytest.mark.parametrize("snr_db", [30.0, 0.0, -5.0])
@pytest.mark.parametrize("offset_hz", [0.0, 137.0, -9150.0, 21_900.0, -44_000.0, 46_000.0])
def test_an_offset_is_found_to_a_few_bins(offset_hz, snr_db):
    errors = [
        estimate_offset_hz(WAVEFORM, capture_of_pilot(offset_hz, snr_db, seed=seed)) - offset_hz
        for seed in range(5)
    ]
    bins = {30.0: 6, 0.0: 12, -5.0: 60}[snr_db]
    assert np.abs(errors).max() <= bins * WAVEFORM.bin_hz


def test_an_offset_beyond_the_search_is_not_taken_for_a_small_one():
    found_hz = estimate_offset_hz(WAVEFORM, capture_of_pilot(70e3))
    assert abs(found_hz) > 0.9 * MAX_SEARCH_HZ


def test_an_unlikely_offset_needs_evidence():
    def share_beyond(offset_hz, snr_db):
        found = [
            estimate_offset_hz(
                WAVEFORM, capture_of_pilot(offset_hz, snr_db, seed=seed), likely_hz=22e3
            )
            for seed in range(40)
        ]
        return np.mean(np.abs(found) > 22e3)

    assert share_beyond(0.0, -100.0) == 0.0  # noise alone is no carrier far away
    assert share_beyond(21e3, -20.0) == 0.0
    assert share_beyond(21.9e3, 20.0) == 0.0
    assert share_beyond(30e3, 5.0) == 1.0


def test_an_offset_is_sought_in_a_whole_plateau_only():
    with pytest.raises(RadioConfigurationError, match="one period"):
        estimate_offset_hz(WAVEFORM, capture_of_pilot(0.0)[:-1])


# Surveys and measurements, on the software air where everything is known


def make_radios(gains, offsets_hz=None, noise_power=1e-6):
    medium = SoftwareMedium(
        num_devices=len(gains), sample_rate_hz=1e6, noise_power=noise_power,
        noise_rng=np.random.default_rng(0),
    )  # fmt: skip
    medium.set_gains(gains)
    medium.set_carrier_offsets_hz(np.zeros(len(gains)) if offsets_hz is None else offsets_hz)
    devices = [LoopbackTransceiver(medium, index) for index in range(len(gains))]
    return LoopbackTransceiver(medium, None), devices


def test_a_survey_says_what_is_so():
    receiver, devices = make_radios([0.5, 0.1, 1e-4], [3000.0, -12_000.0, 0.0], noise_power=1e-5)
    found = survey(WAVEFORM, receiver, devices, num_pilots=4, seed=1)
    near, far, deaf = found.devices
    assert near.gain_a_db == pytest.approx(-6.02, abs=0.2)
    assert far.gain_b_db == pytest.approx(-20.0, abs=0.4)
    assert near.offset_hz == pytest.approx(3000.0, abs=400.0)
    assert far.offset_hz == pytest.approx(-12_000.0, abs=400.0)
    assert near.is_heard
    assert far.is_heard
    assert not deaf.is_heard
    assert 0.0 < near.spread_db < 0.5
    # A pilot has the waveform's full power, 12 dB below full scale.
    assert near.level_dbfs == pytest.approx(-12.0 - 6.02, abs=0.2)
    assert not near.is_overloaded
    assert found.silence_dbfs == pytest.approx(-50.0, abs=0.2)
    assert found.num_pilots == 4


def setting(**changes):
    values = {"channel": AwgnChannel(), "snr_db": 0.0, "num_trials": 40, "seed": 0, **changes}
    return Setting(**values)


def test_what_is_measured_meets_the_formula_made_of_what_is_measured():
    receiver, devices = make_radios([0.5, 0.2, 0.3], [3000.0, -12_000.0, 0.0])
    heard, done = [], []
    measurement = measure_over_the_air(
        WAVEFORM, setting(on_capture=heard.append, on_trial=done.append), receiver, devices
    )
    assert abs(measurement.deviation_std) < measurement.deviation_limit_std
    assert measurement.simulated_nmse_db < -22
    assert (measurement.num_devices, len(heard), len(done)) == (3, 40, 40)
    # The weakest at 0.2, 12 dB below full scale, over 1e-6.
    assert measurement.snr_db == pytest.approx(60 - 14 - 12, abs=1.0)


def test_negative_control_a_gain_that_moves_is_seen():
    receiver, devices = make_radios([0.5, 0.2, 0.3])
    medium = receiver._medium

    def move(trial):
        if trial == 5:
            medium.set_gains([0.5, 0.3, 0.3])

    measurement = measure_over_the_air(
        WAVEFORM, setting(num_trials=20, on_trial=move), receiver, devices
    )
    assert measurement.deviation_std > measurement.deviation_limit_std


def test_who_cannot_be_used_is_named():
    receiver, devices = make_radios([0.5, 1e-5])
    with pytest.raises(RadioCalibrationError, match="device 1: not heard"):
        measure_over_the_air(WAVEFORM, setting(), receiver, devices)
    receiver, devices = make_radios([0.5, 0.5], [0.0, 30_000.0])
    with pytest.raises(RadioConfigurationError, match="carrier offset"):
        measure_over_the_air(WAVEFORM, setting(), receiver, devices)
    with pytest.raises(RadioConfigurationError, match="number of transmitters"):
        measure_over_the_air(WAVEFORM, setting(), receiver, [])


# The commands, through the real client stack


@pytest.fixture
def start():
    servers = []

    def start_bench(hw_model=None, **options):
        options = {"num_radios": 3, "path_spread_db": 6.0, **options}
        plutos = Bench(is_stepped=True, **options).build()
        for pluto in plutos if hw_model else ():
            pluto.context_attributes["hw_model"] = hw_model
        server = VirtualPlutoServer(plutos, base_port=0)
        servers.append(server)
        receiver, *devices = server.uris
        words = ["--receiver", receiver, *(w for uri in devices for w in ("--device", uri))]
        return server, [*words, "--settling-s", "0.002", "--max-hold-s", "600"]

    yield start_bench
    for server in servers:
        server.close()


LEVELS = ["--tx-attenuation-db", "10", "--rx-gain-db", "50", "--plateau-samples", "16384"]


def test_calibrate_tells_gains_and_offsets_and_a_correction_that_corrects(start, capsys):
    server, radios = start(impairments=Impairments(crystal_ppm=10.0), seed=1)
    assert cli.main(["calibrate", *radios, *LEVELS, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # 6 dB for 2^14, 10 of attenuation, 50 of path, 50 of gain.
    assert told["devices"][0]["gain_a_db"] == pytest.approx(-16.0, abs=0.2)
    assert told["devices"][1]["gain_a_db"] == pytest.approx(-22.0, abs=0.2)
    assert told["source"].startswith("virtual-pluto+")
    offsets = [device["offset_hz"] for device in told["devices"]]
    assert max(map(abs, offsets)) > 3000
    plutos = [s.pluto for s in server._servers]
    for pluto, device in zip(plutos[1:], told["devices"], strict=True):
        pluto.phy.attributes["xo_correction"].write(str(device["xo_correction"]))
    cli.main(["calibrate", *radios, *LEVELS, "--json"])
    corrected = json.loads(capsys.readouterr().out)["devices"]
    assert max(abs(device["offset_hz"]) for device in corrected) < 400


def test_calibrate_says_what_to_change(start, capsys):
    server, radios = start()
    server._servers[1].pluto.radio.crystal.error_ppm = 30.0
    loud = ["--tx-attenuation-db", "0", "--rx-gain-db", "71", "--plateau-samples", "16384"]
    assert cli.main(["calibrate", *radios, *loud]) == 1
    assert "overloads the receiver" in capsys.readouterr().out
    quiet = ["--tx-attenuation-db", "85", "--rx-gain-db", "0", "--plateau-samples", "16384"]
    assert cli.main(["calibrate", *radios, *quiet]) == 1
    out = capsys.readouterr().out
    assert out.count("not heard") == 2
    assert "nan" not in out
    assert cli.main(["calibrate", *radios, *LEVELS]) == 1
    assert "the bands have room for 22 kHz. Set the xo_correction" in capsys.readouterr().out


def snr_and_advice(radios, capsys, attenuation_db, gain_db):
    levels = ["--tx-attenuation-db", str(attenuation_db), "--rx-gain-db", str(gain_db)]
    cli.main(["calibrate", *radios, *levels, "--plateau-samples", "16384", "--json"])
    told = json.loads(capsys.readouterr().out)
    (device,) = told["devices"]
    noise = 10 ** (max(told["silence_dbfs"], -74.0) / 10)
    signal = max(10 ** (device["level_dbfs"] / 10) - noise, 1e-12)
    return 10 * math.log10(signal / noise), " ".join(device["advice"])


def test_calibrate_advises_what_helps_where_the_antenna_brings_the_noise(start, capsys):
    """Levels of its own defaults: the noise is 9 dB above the converter's, and grows with it."""
    _, radios = start(num_radios=2)
    before_db, advice = snr_and_advice(radios, capsys, 40.0, 40.0)
    assert before_db < 10
    assert "lower --tx-attenuation-db" in advice
    assert "--rx-gain-db" not in advice
    gained_db, advice = snr_and_advice(radios, capsys, 40.0, 60.0)
    assert gained_db - before_db < 1.0
    assert "lower --tx-attenuation-db" in advice
    louder_db, advice = snr_and_advice(radios, capsys, 20.0, 40.0)
    assert louder_db - before_db > 19.0
    assert advice == ""
    _, radios = start(num_radios=2, path_loss_db=90.0)
    _, advice = snr_and_advice(radios, capsys, 0.0, 40.0)
    assert "full power: take attenuators out" in advice


def test_calibrate_advises_what_helps_where_the_converter_brings_the_noise(start, capsys):
    _, radios = start(num_radios=2, noise_dbfs=-115.0)
    before_db, advice = snr_and_advice(radios, capsys, 20.0, 20.0)
    assert before_db < 10
    assert "raise --rx-gain-db" in advice
    gained_db, advice = snr_and_advice(radios, capsys, 20.0, 40.0)
    assert gained_db - before_db > 10.0
    assert advice == ""


def test_measure_over_virtual_radios_is_no_radio_measurement(start, capsys):
    _, radios = start()
    assert cli.main(["measure", *radios, *LEVELS, "--trials", "10"]) == 0
    out = capsys.readouterr().out
    assert "NMSE simulated" in out
    assert "not a radio measurement" in out


def test_measure_over_radios_says_measured_and_draws(start, tmp_path, capsys):
    _, radios = start(hw_model="Analog Devices PlutoSDR Rev.C")
    words = ["measure", *radios, *LEVELS, "--trials", "10", "--plot", str(tmp_path / "p")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "NMSE measured" in out
    assert "simulated" not in out.replace("simulated error", "")
    assert "not a radio measurement" not in out
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "spectrum.png", "constellation.png"
    }  # fmt: skip


def test_record_and_replay(start, tmp_path, capsys):
    _, radios = start()
    receiver = radios[:2]
    words = ["record", *receiver, str(tmp_path / "x"), "--captures", "2", "--samples", "4096"]
    assert cli.main([*words, "--label", "silence"]) == 0
    assert "virtual-pluto" in capsys.readouterr().out
    recording = load_recording(tmp_path / "x")
    assert recording.labels == ("silence 0", "silence 1")
    age = datetime.datetime.now(datetime.UTC) - recording.moments[0]
    assert datetime.timedelta() < age < datetime.timedelta(hours=1)
    assert recording.rx_gain_db == pytest.approx(40.0)
    assert cli.main(words) == 2  # it is there already
    assert "Name another file" in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "x"), "--plot", str(tmp_path / "p")]) == 0
    out = capsys.readouterr().out
    assert "replay of virtual-pluto" in out
    assert f"{recording.moments[0]:%Y-%m-%d %H:%M:%S} UTC, gain 40 dB" in out
    assert "silence 1" in out
    assert (tmp_path / "p" / "spectrum.png").stat().st_size > 1000
    assert cli.main(["replay", str(tmp_path / "nothing")]) == 2


def test_requests_without_a_receiver_or_with_one_radio_twice_are_refused(capsys):
    assert cli.main(["calibrate", "--device", "ip:127.0.0.1"]) == 2
    assert "--receiver: none" in capsys.readouterr().err
    assert cli.main(["measure", "--receiver", "ip:127.0.0.1", "--device", "ip:127.0.0.1"]) == 2
    assert "name each once" in capsys.readouterr().err
    assert cli.main(["calibrate", "--receiver", "ip:127.0.0.1"]) == 2


def test_a_radio_that_is_pulled_out_of_a_command_is_an_error(start, capsys):
    server, radios = start()
    server.unplug(2)
    assert cli.main(["calibrate", *radios, *LEVELS]) == 2
    assert "nothing listens there" in capsys.readouterr().err
    assert not any(s.pluto.radio.is_radiating() for s in server._servers[:2])


# The doctor


def plug_in(root, name, *, vendor="0456", product="b673", device=7):
    folder = root / "devices" / name
    folder.mkdir(parents=True)
    for file, text in (("idVendor", vendor), ("idProduct", product), ("serial", f"s{device}"),
                       ("busnum", "1"), ("devnum", str(device))):  # fmt: skip
        (folder / file).write_text(f"{text}\n")
    node = root / "nodes" / "001" / f"{device:03d}"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.touch()
    return node


def test_plutos_at_usb_are_found_by_what_the_kernel_says(tmp_path, monkeypatch):
    plug_in(tmp_path, "1-1")
    plug_in(tmp_path, "1-2", product="ffff", device=8)
    (tmp_path / "devices" / "1-0:1.0").mkdir()
    locked = plug_in(tmp_path, "1-3", device=9)
    can_write = usb.os.access
    monkeypatch.setattr(
        usb.os, "access", lambda path, mode: path != locked and can_write(path, mode)
    )
    found = usb.usb_plutos(tmp_path / "devices", tmp_path / "nodes")
    assert [(p.serial, p.bus, p.device, p.is_usable) for p in found] == [
        ("s7", 1, 7, True), ("s9", 1, 9, False)
    ]  # fmt: skip
    assert usb.usb_plutos(tmp_path / "none", tmp_path) == []


def test_the_doctor_tells_a_radio_that_may_not_be_used(monkeypatch, capsys):
    radio = usb.UsbPluto("abc", 1, 7, is_usable=False)
    monkeypatch.setattr("radio.commands.doctor.usb_plutos", lambda: [radio])
    monkeypatch.setattr("radio.commands.doctor.found_uris", lambda: {"usb:1.7.5": "PlutoSDR"})
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "usb:1.7.5, serial:abc" in out
    assert "53-adi-plutosdr-usb.rules" in out
    assert "usermod -aG plugdev" in out
    assert "found: usb:1.7.5  PlutoSDR" in out


def test_the_doctor_names_versions_or_what_to_install(monkeypatch, capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "pyadi-iio 0.0.21, pylibiio 0.25, sigmf 1." in out
    assert "a Pluto is driven by pyadi-iio 0.0.21+libiio 0.2" in out

    def fail():
        raise RadioUnavailableError("no libiio. Install it.")

    monkeypatch.setattr("radio.commands.doctor.describe_libraries", fail)
    assert cli.main(["doctor"]) == 1
    assert "no Pluto can be driven: no libiio. Install it." in capsys.readouterr().out
