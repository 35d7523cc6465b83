"""Whole runs through libiio and pyadi-iio: on virtual Plutos of their own, and on served ones."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tcp_proxy import TcpProxy
from whole_runs import SMALL, carry_out, configured, looked_at

from radio.errors import RadioConfigurationError, RadioNotSilentError, RadioUnavailableError
from radio.pluto.context import PlutoContext
from radio.pluto.silence import may_radiate, silence
from radio.virtual_pluto.server import Bench, VirtualPlutoServer
from server.air import link as radio_link
from server.air.base import HeldAir
from server.commands import cli
from server.config.files import load_config
from server.errors import ConfigurationError, PrivacyError
from server.run.experiment import Experiment
from server.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("outlined_pictures")

ROUNDS = 6
SETTINGS = {
    **SMALL,
    "radio.plateau_samples": 8192, "radio.coherence_rounds": 3, "optimizer.rounds": ROUNDS,
    "optimizer.directions": 3, "run.evaluation_interval": 3,
    "radio.max_hold_s": 600.0,  # a busy machine is no hung program
}  # fmt: skip


def config(**changes):
    return configured(SETTINGS, "virtual-pluto", **changes)


def on_served(uris, **changes):
    """The same configuration on radios that somebody else serves: the way of real ones."""
    return config(
        radio__backend="pluto", pluto__receiver=uris[0], pluto__devices=tuple(uris[1:]), **changes
    )


def rows_of(folder):
    store = RunStore.open(folder)
    try:
        return store.rounds()
    finally:
        store.close()


def test_a_run_on_virtual_plutos_names_its_stack_and_hears_what_was_sent(tmp_path, capsys):
    words = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    assert cli.main(["run", "virtual-pluto", "--out", str(tmp_path / "run"), "--json", *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"virtual-pluto\+pyadi-iio 0\.0\.21\+libiio 0\.2\d", summary["source"])
    assert (summary["waveform"], summary["access"]) == ("energy", "slotted")
    assert summary["mean_speakers"] == 4
    assert summary["outcome"] == "complete"  # the replicas' digests were compared for that
    assert summary["epsilon"] <= 8.0
    assert summary["wall_s"] > 0
    # An eighth of the preset's plateau, so 9 dB above its -34 or better.
    assert summary["radio_nmse_db"] < -20
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "virtual-pluto" in page
    assert "no number on this page was measured on hardware" in page


def test_nothing_is_left_behind_by_a_run_of_its_own_radios(tmp_path):
    run = Experiment.start(config(), tmp_path / "run")
    served = run.components.link.served
    uris, pid = served.uris, served.pid
    assert carry_out(run)
    assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(RadioUnavailableError):
        silence(uris[0])


@pytest.fixture
def bench():
    plutos = Bench(num_radios=5, is_stepped=True, path_spread_db=6.0).build()
    with VirtualPlutoServer(plutos, base_port=0) as server:
        yield plutos, server


def test_the_same_path_runs_on_served_radios_and_leaves_them_silent(tmp_path, bench):
    plutos, server = bench
    assert carry_out(Experiment.start(on_served(server.uris), tmp_path / "run"))
    rows = rows_of(tmp_path / "run")
    assert [row.num_speakers for row in rows] == [4] * ROUNDS
    assert not any(pluto.radio.is_radiating() for pluto in plutos)
    assert sum(row.squared_error_of_radio for row in rows) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"radio__waveform": "vote"},
        {"radio__waveform": "slotted"},
        {"radio__waveform": "slotted", "radio__slots": "frequency"},
    ],
)
def test_other_waveforms_without_a_common_clock_run_too(tmp_path, bench, changes):
    _, server = bench
    changed = on_served(server.uris, optimizer__rounds=2, **changes)
    assert carry_out(Experiment.start(changed, tmp_path / "run"))
    assert {row.num_speakers for row in rows_of(tmp_path / "run")} == {4}
    assert {row.num_erased for row in rows_of(tmp_path / "run")} == {0}


def test_a_radio_that_is_pulled_out_falls_silent_and_the_run_goes_on(tmp_path, bench, caplog):
    plutos, server = bench
    run = Experiment.start(on_served(server.uris, optimizer__rounds=9), tmp_path / "run")

    def pull(progress):
        if progress.rounds_done == 4:
            server.unplug(2)

    # What was learnt is kept; in the end nobody can say whether that radio's oscillator is off.
    with pytest.raises(RadioNotSilentError, match=f"pairzero-radio silence {server.uris[2]}$"):
        carry_out(run, on_progress=pull)
    assert looked_at(tmp_path / "run").digest is not None
    speakers = [row.num_speakers for row in rows_of(tmp_path / "run")]
    assert speakers == [4] * 4 + [3] * 5
    assert "device 1" in caplog.text
    assert "the radio failed during hold" in caplog.text
    assert "the pilot of device 1 was not heard" in caplog.text
    # The others are silent, and say so.
    for index in (0, 1, 3, 4):
        assert not plutos[index].radio.is_radiating()


@pytest.fixture
def in_mid_round(monkeypatch):
    """in_mid_round(round_index, act): acts while the numbers of a round are on the air."""

    def arrange(round_index, act):
        capture = HeldAir.capture
        seen = []

        def interrupted(self, num_samples, label):
            seen.extend([label] if label == "numbers" else [])
            if label == "numbers" and len(seen) == round_index + 1:
                act()
            return capture(self, num_samples, label)

        monkeypatch.setattr(HeldAir, "capture", interrupted)

    return arrange


def behind_a_proxy(server, index):
    proxy = TcpProxy(server.uris[index])
    return proxy, [*server.uris[:index], proxy.uri, *server.uris[index + 1 :]]


def test_a_connection_that_is_cut_in_mid_round_leaves_nothing_on_the_air_and_the_run_goes_on(
    tmp_path, bench, in_mid_round, caplog
):
    plutos, server = bench
    proxy, uris = behind_a_proxy(server, 1)
    in_mid_round(1, proxy.cut)
    run = Experiment.start(on_served(uris), tmp_path / "run")
    silences = []

    def look(progress):
        silences.append([p.radio.sending.latest.amplitude < 1e-4 for p in plutos])

    assert carry_out(run, on_progress=look)
    assert all(all(silent) for silent in silences)  # between rounds: 89.75 dB, or no oscillator
    assert not any(pluto.radio.is_radiating() for pluto in plutos)
    assert "the connection failed" in caplog.text
    assert "open again, and set up as before" in caplog.text
    # Out of the round in which it was lost, back in the next one.
    assert [row.num_speakers for row in rows_of(tmp_path / "run")] == [4] * ROUNDS
    proxy.close()


def test_a_radio_that_cannot_be_silenced_ends_the_run_by_name_and_the_others_are_silent(
    tmp_path, bench, in_mid_round
):
    plutos, server = bench
    proxy, uris = behind_a_proxy(server, 1)

    def lose():
        proxy.is_dead_for_new = True
        proxy.freeze()

    in_mid_round(1, lose)
    run = Experiment.start(on_served(uris), tmp_path / "run")
    with pytest.raises(RadioNotSilentError, match=f"pairzero-radio silence {proxy.uri}"):
        carry_out(run)
    assert len(rows_of(tmp_path / "run")) <= 2
    assert [pluto.radio.is_radiating() for pluto in plutos] == [False, True, False, False, False]
    proxy.close()
    silence(server.uris[1])


def test_a_radio_is_not_two_devices(tmp_path, bench):
    _, server = bench
    twice = server.uris[2].replace("127.0.0.1", "localhost")
    for uris in ([*server.uris[:4], twice], [twice, *server.uris[1:]]):
        with pytest.raises(RadioConfigurationError, match=r"is open as ip:\S+ already"):
            Experiment.start(on_served(uris), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_without_its_receiver_a_run_ends_with_an_error_and_can_be_resumed(tmp_path, bench):
    plutos, server = bench
    run = Experiment.start(on_served(server.uris), tmp_path / "run")

    def pull(progress):
        if progress.rounds_done == 4:
            server.unplug(0)

    with pytest.raises(RadioUnavailableError):
        carry_out(run, on_progress=pull)
    assert not any(pluto.radio.is_radiating() for pluto in plutos[1:])
    assert len(rows_of(tmp_path / "run")) == 4


def test_a_radio_that_is_not_there_opens_no_run_and_leaves_the_others_silent(tmp_path, bench):
    plutos, server = bench
    uris = [*server.uris[:4], "ip:127.0.0.1:1"]
    with pytest.raises(RadioUnavailableError, match="nothing listens there"):
        Experiment.start(on_served(uris), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not any(pluto.radio.is_radiating() for pluto in plutos[:4])


def start_run(folder, *words):
    """A run in a process and a session of its own, which says every round."""
    program = "import sys; from server.commands.cli import main; sys.exit(main())"
    changed = {**SETTINGS, "optimizer.rounds": 60, "run.evaluation_interval": 1}
    settings = [f"--set={key}={value}" for key, value in changed.items()]
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program, "run", *words, "--out", str(folder), *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_round(run, number):
    for line in run.stdout:
        if line.split()[:1] == [str(number)]:
            return
    pytest.fail(f"the run ended: {run.stderr.read()}")


def served_words(uris):
    devices = json.dumps(uris[1:])
    return ["virtual-pluto", '--set=radio.backend="pluto"', f'--set=pluto.receiver="{uris[0]}"',
            f"--set=pluto.devices={devices}"]  # fmt: skip


def what_may_radiate(uris):
    """At the transmitters, in the words of `pairzero-radio silence`, without silencing them."""
    return " ".join(line for uri in uris[1:] for line in may_radiate(PlutoContext(uri)))


def test_a_killed_run_is_silenced_by_its_guardian_and_goes_on(tmp_path, start_virtual_plutos):
    uris = start_virtual_plutos(5, "--clock", "stepped").uris
    folder = tmp_path / "run"
    run = start_run(folder, *served_words(uris))
    wait_for_round(run, 2)
    for _ in range(200):  # until it is stopped while all four hold a number
        run.send_signal(signal.SIGSTOP)
        num_loud = what_may_radiate(uris).count("attenuation 10 dB")
        if num_loud == 4:
            break
        run.send_signal(signal.SIGCONT)
        time.sleep(0.007)
    assert num_loud == 4
    run.kill()
    _, errors = run.communicate(timeout=600)
    assert errors.count("silent now, as read back") == 5  # the receiver, too
    assert not what_may_radiate(uris)
    # The next start goes on; the round that was under way is passed over.
    resumed = Experiment.resume(folder)
    done = resumed.store.num_rounds()
    carry_out(resumed, should_stop=iter([False, False, True]).__next__)
    rows = rows_of(folder)
    assert len(rows) == done + 2
    # It was stopped while numbers were on the air, so that round was paid for and never repeated.
    assert [row.is_skipped for row in rows] == [False] * done + [True, False]
    for uri in uris[1:]:
        assert not silence(uri).was_radiating


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_silences_its_radios(tmp_path, start_virtual_plutos, number):
    uris = start_virtual_plutos(5, "--clock", "stepped").uris
    folder = tmp_path / "run"
    run = start_run(folder, *served_words(uris))
    wait_for_round(run, 1)
    run.send_signal(number)
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 130, errors
    for uri in uris[1:]:
        assert not silence(uri).was_radiating


def test_ctrl_c_leaves_a_run_its_virtual_radios_until_they_are_silent(tmp_path):
    run = start_run(tmp_path / "run", "virtual-pluto")
    wait_for_round(run, 1)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to everybody in the foreground
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 130, errors
    assert "not known to be silent" not in errors


# Requests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radio__waveform": "coherent"}, r"needs one carrier and one clock.*\"energy\""),
        ({"radio__impairments": "uncorrected"}, "carrier offset"),
        ({"pluto__devices": ("ip:a",)}, "starts radios of its own"),
        ({"pluto__tx_attenuation_db": 91.0}, "tx_attenuation_db: got 91"),
        ({"pluto__settling_s": 2.0}, "pluto.settling_s"),
        ({"radio__carrier_hz": 100e6}, "carrier_hz: got 1"),
        (
            {"radio__sample_rate_hz": 62e6},
            r"sample_rate_hz: got 6.*wanted 521000 to 6\.144e\+07 Hz",
        ),
        ({"radio__sample_rate_hz": 1e6, "optimizer__directions": 20}, "At that rate 8 fit"),
        ({"pluto__rf_bandwidth_hz": 1e6}, "the numbers of a round fill 1.8e.07 Hz"),
        ({"pluto__rf_bandwidth_hz": 56e6}, r"rf_bandwidth_hz: got 5.*wanted 200000 to 4e\+07 Hz"),
        ({"virtual_pluto__path_loss_db": -1.0}, r"\[virtual_pluto\]: path_loss_db"),
        ({"radio__backend": "pluto"}, "got 0 URIs"),
    ],
)
def test_a_request_that_no_pluto_can_meet_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        config(**changes)


def test_radios_have_one_task_each():
    uris = [f"ip:10.0.0.{n}" for n in range(5)]
    on_served(uris)
    on_served(
        uris, pluto__xo_corrections=(40_000_001,) * 4, pluto__receiver_xo_correction=39_999_990
    )
    for changed, message in (
        ([*uris[:4], uris[0]], "named twice"),
        (uris[:4], "got 3 URIs"),
        ([*uris[:4], "pluto"], "wanted ip:ADDRESS"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            on_served(changed)
    with pytest.raises(ConfigurationError, match="xo_corrections: got 1"):
        on_served(uris, pluto__xo_corrections=(40_000_001,))
    with pytest.raises(ConfigurationError, match="xo_correction: got 1"):
        on_served(uris, pluto__xo_corrections=(1,) * 4)


def test_keys_from_the_seed_are_refused_on_a_real_radio(bench, monkeypatch, tmp_path):
    plutos, server = bench
    for pluto in plutos:
        pluto.context_attributes["hw_model"] = "Analog Devices PlutoSDR"
    with pytest.raises(PrivacyError, match=r'privacy\.noise_source: "simulation" with pluto'):
        Experiment.start(on_served(server.uris), tmp_path / "run")
    assert not any(pluto.radio.is_radiating() for pluto in plutos)
    assert not (tmp_path / "run").exists()


def test_software_radios_need_none_of_a_plutos_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "radio.pluto.driver", None)
    link = radio_link.build_radio_link(load_config("snips", {}))
    link.close()


def test_a_receiver_that_is_too_loud_is_told_every_round(tmp_path, bench, caplog):
    _, server = bench
    loud = {"pluto__rx_gain_db": 71.0, "pluto__tx_attenuation_db": 0.0, "optimizer__rounds": 2}
    carry_out(Experiment.start(on_served(server.uris, **loud), tmp_path / "loud"))
    told = [record for record in caplog.records if "at the end of its converter" in record.message]
    assert len(told) == 2
    assert "lower pluto.rx_gain_db" in caplog.text
    caplog.clear()
    carry_out(Experiment.start(on_served(server.uris, optimizer__rounds=2), tmp_path / "fine"))
    assert "at the end of its converter" not in caplog.text


def test_the_configuration_of_the_notes_runs(tmp_path, start_virtual_plutos):
    """On virtual radios in place of the two; what it promises, it promises with real keys."""
    receiver, device = start_virtual_plutos(2, "--clock", "stepped").uris
    notes = Path(__file__).parents[2] / "firmware_notes" / "two-plutos.toml"
    fast = {key: SETTINGS[key] for key in ("radio.plateau_samples", "task.validation_examples")}
    changed = load_config(
        str(notes),
        {**fast, "optimizer.rounds": 3, "pluto.receiver": receiver, "pluto.devices": (device,)},
    )
    assert changed.privacy.has_system_keys
    assert carry_out(Experiment.start(changed, tmp_path / "run"))
    assert [row.num_speakers for row in rows_of(tmp_path / "run")] == [1, 1, 1]
    assert (tmp_path / "run" / "captures" / "round-000000.sigmf-meta").exists()
    assert not silence(device).was_radiating
