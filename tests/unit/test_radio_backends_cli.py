import dataclasses
import json
import subprocess
import sys

import pytest

from radio import backends
from radio.commands import cli
from radio.errors import (
    RadioConfigurationError,
    RadioError,
    RadioSaturationError,
    RadioTimeoutError,
    RadioUnavailableError,
)
from radio.measurement import Setting, measure_coherent
from radio.software_air.channel_models import AwgnChannel, RayleighBlockFading
from radio.software_air.loopback import LoopbackTransceiver
from radio.waveforms.coherent import CoherentWaveform


@pytest.mark.parametrize(
    "error",
    [RadioUnavailableError, RadioConfigurationError, RadioTimeoutError, RadioSaturationError],
)
def test_every_error_is_a_radio_error_and_lists_examples(error):
    assert issubclass(error, RadioError)
    assert "Examples:" in error.__doc__


def test_resolve_loopback():
    assert backends.resolve_backend("loopback") is LoopbackTransceiver


def test_unknown_backend_names_the_nearest():
    with pytest.raises(RadioUnavailableError, match="Did you mean 'loopback'"):
        backends.resolve_backend("lopback")
    with pytest.raises(
        RadioUnavailableError, match=r"wanted one of \['loopback', 'pluto', 'replay'\]\.$"
    ):
        backends.resolve_backend("zzz")


def test_missing_driver_says_what_to_install(monkeypatch):
    missing = backends.Backend("radio.no_such_module", "Nothing", "Install the driver.")
    monkeypatch.setitem(backends.BACKENDS, "missing", missing)
    with pytest.raises(
        RadioUnavailableError, match=r"cannot be loaded.*Install the driver"
    ) as info:
        backends.resolve_backend("missing")
    assert isinstance(info.value.__cause__, ImportError)


def test_radio_loads_numpy_alone():
    script = (
        "import sys, radio.commands.cli, radio.software_air.loopback\n"
        "heavy = {'scipy', 'torch', 'onnxruntime', 'msgspec', 'edge_runtime', 'server', 'adi'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_doctor_passes_here(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "loopback: available" in out
    assert "passed" in out


def test_doctor_reports_a_missing_backend(monkeypatch, capsys):
    missing = backends.Backend("radio.no_such_module", "Nothing", "Install the driver.")
    monkeypatch.setitem(backends.BACKENDS, "missing", missing)
    assert cli.main(["doctor"]) == 1
    assert "Install the driver" in capsys.readouterr().out


@pytest.mark.parametrize("channel", ["awgn", "rayleigh"])
def test_measure_json_has_formula_beside_simulation(channel, capsys):
    request = ["measure", "--devices", "3", "--snr-db", "20", "--channel", channel, "--json"]
    assert cli.main([*request, "--trials", "200"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["source"] == f"loopback+{channel}"
    assert abs(result["simulated_nmse_db"] - result["predicted_nmse_db"]) < 2.0


def test_eight_numbers_are_heard_as_well_as_one_and_take_longer(capsys):
    results = []
    for numbers in ("1", "8"):
        request = ["measure", "--numbers", numbers, "--channel", "rayleigh", "--json"]
        assert cli.main(request) == 0
        results.append(json.loads(capsys.readouterr().out))
    one, eight = results
    assert eight["num_scalars"] == 8
    assert abs(eight["simulated_nmse_db"] - one["simulated_nmse_db"]) < 1.0
    assert eight["airtime_s"] - one["airtime_s"] == pytest.approx(7 * 64 / 1e6)


def test_the_energy_waveform_is_measured_beside_its_formula(capsys):
    request = ["measure", "--waveform", "energy", "--plateau-samples", "4096", "--json"]
    results = []
    for more in ([], ["--calibration-error-db", "0"], ["--impairments", "pluto-stock"]):
        assert cli.main([*request, "--snr-db", "20", "--trials", "200", *more]) == 0
        results.append(json.loads(capsys.readouterr().out))
    pilots, told, stock = results
    assert [r["waveform"] for r in results] == ["energy"] * 3
    assert stock["source"] == "loopback+awgn+pluto-stock"
    assert pilots["airtime_s"] == pytest.approx((2 + 6) * 4096 / 1e6)
    assert told["airtime_s"] == pytest.approx(2 * 4096 / 1e6)
    for result in results:
        assert abs(result["simulated_nmse_db"] - result["predicted_nmse_db"]) < 1.5
        assert result["simulated_nmse_db"] < -20


def test_the_coherent_waveform_is_seen_to_fail_on_radios_of_their_own(capsys):
    request = ["measure", "--impairments", "pluto-stock", "--trials", "50", "--seed", "1"]
    assert cli.main(request) == 2
    assert "every device was silent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["coherent", "energy", "vote", "coherent_vote", "slotted", "slotted --slots frequency"]
)
def test_pictures_and_figures_of_every_waveform(words, tmp_path, capsys):
    waveform = words.split()[0]
    request = ["measure", "--numbers", "3", "--waveform", *words.split()]
    if "frequency" in words:
        request += ["--sample-rate-hz", "5e6", "--impairments", "pluto-stock"]
    if waveform in ("energy", "vote"):
        request += ["--plateau-samples", "4096"]
    request += ["--trials", "40", "--snr-db", "20", "--plot", str(tmp_path / "pictures")]
    assert cli.main(request) == 0
    out, err = capsys.readouterr()
    assert f"waveform        {waveform}\n" in out
    assert ("majority" in out) is (waveform in ("vote", "coherent_vote"))
    assert ("erasures" in out) is (waveform == "slotted")
    for name in ("spectrum.png", "constellation.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")
        assert name in err


def test_pictures_without_their_library_are_a_named_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "radio.recordings.pictures", None)
    assert cli.main(["measure", "--trials", "5", "--plot", str(tmp_path)]) == 2
    assert "Pictures need matplotlib" in capsys.readouterr().err


def test_a_terminal_sees_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["measure", "--trials", "4"]) == 0
    err = capsys.readouterr().err
    assert "[" + "." * 40 + "] 0/4 trials" in err
    assert "3/4 trials" in err
    assert err.endswith("\r\033[K")


def test_erasures_are_near_their_formula(capsys):
    request = ["measure", "--waveform", "slotted", "--snr-db", "-2", "--trials", "60", "--json"]
    assert cli.main(request) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    assert 0.05 < result["predicted_erased_share"] < 0.3
    # 300 packets: five deviations are 0.1.
    assert abs(result["erased_share"] - result["predicted_erased_share"]) < 0.1


def test_a_majority_of_few_votes_in_much_noise_is_wrong_now_and_then(capsys):
    request = ["measure", "--waveform", "vote", "--plateau-samples", "1024", "--snr-db", "-15"]
    assert cli.main([*request, "--trials", "60", "--calibration-error-db", "0", "--json"]) in (0, 1)
    result = json.loads(capsys.readouterr().out)
    assert 0.0 < result["wrong_majorities"] < 0.5


def test_measure_text_says_it_is_software(capsys):
    assert cli.main(["measure", "--trials", "20"]) == 0
    assert "not a radio measurement" in capsys.readouterr().out


def test_disagreement_is_exit_code_one(capsys):
    # Rounding to complex64 is not in the formula and is all there is at 200 dB.
    assert cli.main(["measure", "--snr-db", "200", "--trials", "10"]) == 1
    assert "standard deviations apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_words", "message"),
    [
        (["measure", "--devices", "0"], "num_devices: got 0"),
        (["measure", "--carrier-hz", "2e9"], "and nothing reads it without --receiver"),
        (["measure", "--max-hold-s", "1"], "--max-hold-s: got 1.0, and nothing reads it"),
        (["measure", "--plateau-samples", "4096"], "nothing reads it with --waveform coherent"),
        (
            ["measure", "--waveform", "energy", "--slots", "frequency"],
            "--slots: got frequency, and nothing reads it without --waveform slotted",
        ),
        (
            ["measure", "--waveform", "slotted", "--slots", "frequency"],
            "got 5 devices, and 2 find a place",
        ),
        (
            ["measure", "--receiver", "ip:a", "--device", "ip:b", "--channel", "rayleigh"],
            "--channel: got rayleigh, and nothing reads it over radios",
        ),
        (
            ["measure", "--receiver", "ip:a", "--device", "ip:b", "--waveform", "slotted"],
            "--waveform: got slotted, and nothing reads it over radios",
        ),
        (["measure", "--trials", "1"], "num_trials: got 1"),
        (["measure", "--numbers", "0"], "num_scalars: got 0"),
        (["measure", "--waveform", "energy", "--numbers", "0"], "num_scalars: got 0"),
        (["measure", "--waveform", "energy", "--plateau-samples", "9"], "plateau_samples: got 9"),
        (["measure", "--waveform", "smoke"], "invalid choice"),
        (["measure", "--impairments", "none"], "invalid choice"),
        (
            ["measure", "--waveform", "energy", "--impairments", "uncorrected"],
            "up to 45750 Hz, the guards",
        ),
        (
            ["measure", "--waveform", "energy", "--calibration-error-db", "-1"],
            "calibration_error_db: got -1",
        ),
        (["measure", "--numbers", "2000"], "2000 numbers of 64 symbols are 128000"),
        (["measure", "--snr-db", "nan"], "snr_db: got nan"),
        (["measure", "--seed", "-1"], "seed: got -1"),
        (["measure", "--channel", "moon"], "invalid choice"),
        (["measure", "--devices", "many"], "invalid int value"),
        ([], "required"),
    ],
)
def test_bad_input_is_exit_code_two_with_a_message(request_words, message, capsys):
    assert cli.main(request_words) == 2
    assert message in capsys.readouterr().err


def test_help_is_exit_code_zero(capsys):
    assert cli.main(["--help"]) == 0
    assert "measure" in capsys.readouterr().out


def test_equal_seeds_give_equal_measurements_and_weak_devices_are_silent():
    waveform = CoherentWaveform(num_devices=1)
    setting = Setting(
        channel=RayleighBlockFading(), snr_db=10.0, num_trials=30, min_gain=1.0, seed=4
    )
    first = measure_coherent(waveform, setting)
    assert first == measure_coherent(waveform, setting)
    assert first != measure_coherent(waveform, dataclasses.replace(setting, seed=5))
    assert 0 < first.num_silent_trials < 30
    with pytest.raises(RadioConfigurationError, match="every device was silent"):
        measure_coherent(
            waveform, dataclasses.replace(setting, channel=AwgnChannel(), min_gain=9.0)
        )


@pytest.mark.parametrize("snr_db", ["3000", "-3000", "nan", "inf"])
def test_an_snr_beyond_all_numbers_is_refused(capsys, snr_db):
    assert cli.main(["measure", f"--snr-db={snr_db}"]) == 2
    assert "snr_db" in capsys.readouterr().err


@pytest.mark.parametrize("snr_db", ["250", "-100"])
def test_the_ends_of_the_range_can_be_measured(capsys, snr_db):
    assert cli.main(["measure", f"--snr-db={snr_db}", "--trials", "20"]) in (0, 1)
    assert "NMSE simulated" in capsys.readouterr().out
