"""``pairzero up`` and ``pairzero-device join``: one run over processes, and who may not join."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter

import msgspec
import pytest

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.cli import main as device_main
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.guard.ledger import HEAD_FILE, LEDGER_FILE, DeviceLedger
from edge_runtime.guard.policy import AllowedRounds
from edge_runtime.joining.host import join
from edge_runtime.joining.host_settings import HostSettings
from edge_runtime.joining.messages import RunTerms
from edge_runtime.joining.preparation import check_radios
from edge_runtime.protocol.errors import EdgeError, LinkError
from edge_runtime.protocol.rounds import Access
from edge_runtime.task_spec import load_task
from radio.errors import RadioError
from server.commands.cli import main
from server.commands.serve import air_terms
from server.config.files import load_config
from server.hosts.broker import Broker
from server.hosts.roster import Roster
from server.run.experiment import Experiment
from server.run.round_loop import example_plan
from tests.support.asking import asked_with
from tests.support.federation import until
from tests.support.killable_broker import free_port
from tests.support.policies import make_policy
from tests.support.stored_bundles import store_again
from tests.support.whole_runs import carry_out, looked_at

pytestmark = pytest.mark.usefixtures("outlined_pictures")

SETTINGS = {
    "radio.backend": "ideal", "privacy.enabled": False, "federation.num_devices": 5,
    "optimizer.rounds": 4, "optimizer.batch_size": 4, "optimizer.directions": 2,
    "task.validation_examples": 20, "task.max_tokens": 24,
}  # fmt: skip


def arguments(*more, **changes):
    settings = {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
    return [*asked_with(settings), *more]


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """ours() -> command lines of this test's brokers and devices that are running."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def running(columns="args"):
        listed = subprocess.run(
            ["ps", "-ww", "-eo", columns], capture_output=True, text=True, check=True
        )
        return [line for line in listed.stdout.splitlines() if str(scratch) in line]

    return running


@pytest.mark.parametrize("kept_as", ["float32", "int16"])
def test_a_run_over_processes_is_the_run_in_one(tmp_path, capsys, ours, kept_as):
    """In 16 bits with all weights moving, which is one word and no pattern; or prefixes kept."""
    changes, kept = {}, {}
    if kept_as == "int16":
        store_again(open_bundle(BUNDLED_MODEL_FOLDER), tmp_path / "bundle", kept_as)
        changes = {
            "model.bundle": str(tmp_path / "bundle"),
            "model.trainable": "all",
            "optimizer.learning_rate": 1e-4,
        }
    else:
        kept = {"model.prefix_cache_mb": 20}
    in_one = tmp_path / "one"
    assert carry_out(Experiment.start(load_config("snips", SETTINGS | changes), in_one))
    in_one_process = looked_at(in_one)
    folder = tmp_path / "run"
    asked = arguments("--processes", "3", "--out", str(folder), "--json", **changes, **kept)
    assert main(["up", *asked]) == 0
    summary = json.loads(capsys.readouterr().out)
    left = looked_at(folder)
    assert left.digest == in_one_process.digest == summary["parameter_digest"]
    assert [row.step_integers for row in left.rows] == [
        row.step_integers for row in in_one_process.rows
    ]
    assert [row.num_speakers for row in left.rows] == [5] * 4
    # What a device measured before its noise has not left it.
    assert {row.true_means for row in left.rows} == {None}
    assert ours() == []


SHORT_ENERGY = {"radio.plateau_samples": 8192, "radio.sample_rate_hz": 1e6}
WAVEFORMS = {
    "coherent": {},
    "energy": SHORT_ENERGY,
    "slotted": {"radio.slots": "frequency"},
}


@pytest.mark.parametrize("name", WAVEFORMS)
def test_over_an_air_that_the_server_plays_the_bits_are_the_same(tmp_path, name, capsys):
    """With policies, ledgers and simulated keys of the hosts' own."""
    settings = {
        **SETTINGS, **WAVEFORMS[name], "radio.waveform": name,
        "federation.num_devices": 3, "optimizer.rounds": 3, "privacy.epsilon": 8.0,
    }  # fmt: skip
    del settings["radio.backend"], settings["privacy.enabled"]
    config = load_config("snips", settings)
    assert carry_out(Experiment.start(config, tmp_path / "one"))
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    asked = ["snips", *(part for pair in pairs for part in ("--set", pair))]
    folder = tmp_path / "run"
    assert main(["up", *asked, "--processes", "2", "--out", str(folder), "--json", "--force"]) == 0
    capsys.readouterr()
    one, over = looked_at(tmp_path / "one"), looked_at(folder)
    assert over.digest == one.digest
    assert over.records == one.records
    assert over.epsilon == one.epsilon
    counted = [DeviceLedger(folder / f"host-{h}") for h in (0, 1)]
    # Who is too weak in a round is told nothing, and counts nothing.
    own = {int(owner): len(c.releases(owner)) for c in counted for owner in c.owners}
    assert own == Counter(record.device_index for record in over.records)
    for ledger in counted:
        ledger.close()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--processes", "0"], "--processes: got 0, wanted 1 to 5"),
        (["--processes", "6"], "--processes: got 6, wanted 1 to 5"),
        (["--set", "federation.deadline_s=0"], "federation.deadline_s: got 0"),
        (["--devices", "1000000000"], "federation.num_devices: got 1000000000, wanted at most"),
        (["--devices", "40000"], "orders of a round to 40000 devices take 3,6"),
        (["--radio", "virtual-pluto"], 'radio.waveform: "coherent" needs one carrier and one'),
        (
            [
                "--radio",
                "pluto",
                "--set",
                'radio.waveform="energy"',
                "--set",
                'pluto.receiver="ip:10.0.0.1"',
            ],
            "pluto.devices: got 0 URIs and receiver 'ip:10.0.0.1', wanted one for each",
        ),
        (
            [
                "--set",
                'radio.backend="loopback"',
                "--set",
                "privacy.enabled=true",
                "--set",
                'privacy.noise_source="system"',
            ],
            "it sees each device alone",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path, more, words, capsys, ours):
    assert main(["up", *arguments(*more, "--out", str(tmp_path / "run"))]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert ours() == []


def test_in_one_process_nobody_is_waited_for(tmp_path, capsys):
    asked = arguments("--out", str(tmp_path / "run"), federation__deadline_s=5.0)
    assert main(["run", *asked]) == 2
    assert "federation.deadline_s: got 5, and in one process nobody is waited for" in (
        capsys.readouterr().err
    )


def test_a_host_that_ends_before_the_run_is_named_with_what_it_said(
    tmp_path, monkeypatch, capsys, ours
):
    from server.commands import up

    def spoilt(folder, dealt, task):
        folder.mkdir()
        (folder / "0.tsv").write_text("no label here\n")

    monkeypatch.setattr(up, "_write", spoilt)
    assert main(["up", *arguments("--processes", "2", "--out", str(tmp_path / "run"))]) == 2
    error = capsys.readouterr().err
    assert "host-" in error and "has ended (2)" in error and "0.tsv" in error
    assert not (tmp_path / "run").exists()
    assert ours() == []


# ---------------------------------------------------------------- a server, and devices that join

OWN_NOISE = {
    **SETTINGS, **SHORT_ENERGY, "radio.waveform": "energy", "federation.num_devices": 2,
    "optimizer.rounds": 2, "privacy.epsilon": 8.0, "privacy.noise_source": "system",
    "task.validation_is_public": True,
}  # fmt: skip
del OWN_NOISE["radio.backend"], OWN_NOISE["privacy.enabled"]


def started(module, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("is_secured", [False, True])
def test_devices_join_a_server_with_their_own_data_policies_and_keys(tmp_path, capsys, is_secured):
    spec, task_folder = load_task("snips")
    lines = (task_folder / spec.train).read_text("utf-8").splitlines(keepends=True)
    for number, name in enumerate(("pi1", "pi2")):
        (tmp_path / f"{name}.tsv").write_text("".join(lines[number:2000:2]), "utf-8")
    policy = tmp_path / "policy.toml"
    assert main(["policy", *asked_with(OWN_NOISE), "--records", "1000", "--out", str(policy)]) == 0
    files, more = tmp_path / "credentials", []
    if is_secured:
        asked = ["credentials", "--devices", "pi1,pi2", "--out", str(files)]
        assert main([*asked, "--port", str(free_port())]) == 0
        more = ["--credentials", files]
    server = started(
        "server.commands.cli", "serve", *asked_with(OWN_NOISE), "--force", "--json",
        "--out", tmp_path / "run", *more,
    )  # fmt: skip
    devices = []
    try:
        assert "waits for 2 devices" in server.stderr.readline()
        join_with = server.stderr.readline().split()[2]
        for name in ("pi1", "pi2"):
            who = [join_with, "--name", name]
            if is_secured:
                assert join_with == "NAME.pairzero"
                who = [files / f"{name}.pairzero"]
            devices.append(
                started(
                    "edge_runtime.cli", "join", *who,
                    "--data", tmp_path / f"{name}.tsv", "--policy", policy,
                    "--state", tmp_path / f"state-{name}",
                )
            )  # fmt: skip
        said, log = server.communicate(timeout=240)
        assert server.returncode == 0, log
        assert "pi1, 1 devices" in log and "pi2, 1 devices" in log
        for device in devices:
            out, err = device.communicate(timeout=60)
            assert device.returncode == 0, err
            assert out.splitlines()[-1] == "the run is over"
    finally:
        for process in (server, *devices):
            process.kill()
            process.wait(30)
            process.stdout.close()
            process.stderr.close()
    summary = json.loads(said)
    assert summary["outcome"] == "complete"
    assert 0.0 < summary["epsilon"] <= 8.0
    for name in ("pi1", "pi2"):
        state = tmp_path / f"state-{name}"
        assert {path.name for path in state.iterdir()} == {LEDGER_FILE, HEAD_FILE}
        ledger = DeviceLedger(state)
        assert len(ledger.releases(name)) == 2
        ledger.close()


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"privacy.noise_source": "simulation"}, [], "devices of others do not take part with it"),
        ({}, ["--radio", "virtual-pluto"], "starts radios for this machine alone: use pairzero up"),
        (
            {
                "radio.backend": "pluto",
                "pluto.receiver": "ip:10.0.0.1",
                "pluto.devices": ["ip:10.0.0.2", "ip:10.0.0.3"],
            },
            [],
            "each host names its own radio (pairzero-device join --radio URI",
        ),
        ({}, ["--wait", "0"], "--wait: got 0, wanted seconds"),
        ({}, ["--wait", "nan"], "--wait: got nan, wanted seconds"),
        ({}, ["--broker", ""], "wanted nats://HOST:PORT"),
        ({}, ["--wait", "0.2"], "0 of 2 devices have come in 0.2 s: nobody"),
        ({}, ["--broker", "nats://127.0.0.1:1"], "nobody answers at 127.0.0.1:1"),
        ({}, ["--broker", "nats://pi.example:4222"], "through a tunnel"),
        ({}, ["--credentials", "nowhere"], "nowhere/broker.conf: no such file, so no cred"),
        ({}, ["--credentials", "nowhere", "--broker", "tls://127.0.0.1:1"], "cannot be read"),
    ],
)
def test_a_server_that_cannot_serve_says_why_and_leaves_nothing(
    tmp_path, changes, more, words, capsys
):
    asked = asked_with({**OWN_NOISE, **changes})
    assert main(["serve", *asked, *more, "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- who may not join


def joins(url, data, *more):
    return device_main(["join", url, "--name", "pi", "--data", str(data), "--wait", "0.2", *more])


def test_no_address_no_broker_and_no_server_are_said_at_once(tmp_path, capsys):
    data = tmp_path / "data.tsv"
    data.write_text("AddToPlaylist\tadd this\n")
    for url, words in (
        ("nowhere", "wanted this end's file of credentials (or nats://HOST:PORT of a broker on"),
        ("http://127.0.0.1:1", "wanted nats://HOST:PORT. `pairzero serve` prints the right line"),
        ("nats://127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
    ):
        assert joins(url, data) == 2
        assert words in capsys.readouterr().err
    with Broker() as broker:
        assert joins(broker.url, data) == 2
        assert "no server has come to this broker in 0.2 s" in capsys.readouterr().err
        empty = tmp_path / "empty"
        empty.mkdir()
        assert joins(broker.url, empty) == 2
        assert "no file in it" in capsys.readouterr().err
        assert joins(broker.url, tmp_path / "missing.tsv") == 2
        assert "missing.tsv: no such file" in capsys.readouterr().err
        for wait in ("nan", "0", "-1", "inf"):
            assert joins(broker.url, data, "--wait", wait) == 2
            assert "--wait: got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("agreed", "words"),
    [
        (None, "there is no policy of the owner of its data"),
        ({"max_clip": 1.0}, "policy max_clip: 12 is asked for, at most 1 is allowed"),
        ({"access": Access.SLOTTED}, 'policy access: "superposed" is asked for, agreed is "slot'),
        ({"max_sampling_rate": 0.5}, "policy max_sampling_rate: a batch of 4 from 4 records is 1"),
        ({"rounds": (AllowedRounds(number=2, min_noise_multiplier=1.0),)},
         "policy rounds: 3 are asked for, 2 are allowed in all"),
        ({"max_clip": 12.0}, ""),
    ],
)  # fmt: skip
def test_a_host_whose_owners_do_not_agree_does_not_join(tmp_path, agreed, words):
    (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n" * 4)
    example = example_plan(load_config("snips", {"optimizer.batch_size": 4}), "run")
    terms = RunTerms(
        run_id="run", bundle_digest=open_bundle(BUNDLED_MODEL_FOLDER).digest,
        task=load_task("snips")[0], max_tokens=24, trainable=("*final_layer_norm*",),
        example=example, rounds=3, is_private=True,
    )  # fmt: skip
    policies = {} if agreed is None else {"pi": make_policy(**{"max_clip": 12.0, **agreed})}
    settings = HostSettings(
        host="pi", data={"pi": tmp_path / "data.tsv"}, bundle=BUNDLED_MODEL_FOLDER,
        state=tmp_path / "state", policies=policies,
    )  # fmt: skip
    is_over = threading.Event()
    with contextlib.ExitStack() as opened:
        broker = opened.enter_context(Broker())
        server, link = (
            opened.enter_context(contextlib.closing(NatsLink(broker.url, name)))
            for name in ("server", "pi")
        )
        roster = opened.enter_context(contextlib.closing(Roster(server, terms, 1)))
        if words:
            with pytest.raises(EdgeError, match=words):
                join(link, settings)
        else:
            join(link, settings, lambda text: "waiting" in text and is_over.set(), is_over)
        assert len(roster.members) == (0 if words else 1)
    # Keys that nothing was drawn with are gone.
    assert not list((tmp_path / "state").glob("*")) if (tmp_path / "state").exists() else True


@pytest.mark.parametrize("who", ["broker", "server"])
def test_a_host_that_nobody_is_there_for_ends_and_says_that_nothing_is_sent(tmp_path, who):
    (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n" * 4)
    terms = RunTerms(
        run_id="run", bundle_digest=open_bundle(BUNDLED_MODEL_FOLDER).digest,
        task=load_task("snips")[0], max_tokens=24, trainable=("*final_layer_norm*",),
        example=example_plan(load_config("snips", {"optimizer.batch_size": 4}), "run"), rounds=3,
        is_private=False,
    )  # fmt: skip
    settings = HostSettings(
        host="pi", data={"pi": tmp_path / "data.tsv"}, bundle=BUNDLED_MODEL_FOLDER,
        state=tmp_path / "state", gone_s=0.3,
    )  # fmt: skip
    with Broker() as broker, contextlib.closing(NatsLink(broker.url, "pi")) as link:
        server = NatsLink(broker.url, "server")
        roster = Roster(server, terms, 1)

        def then_no_more(text):
            if text.startswith("on the list"):
                roster.close()
                server.close()
                if who == "broker":
                    broker.close()

        with pytest.raises(LinkError, match=rf"the {who} has been gone.*Nothing is sent"):
            join(link, settings, then_no_more)
    assert not (tmp_path / "state").exists()


def test_devices_do_not_outlive_who_started_them(tmp_path):
    with Broker() as broker:
        (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n")
        device = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime.cli", "join", broker.url, "--name", "pi",
             "--data", tmp_path / "data.tsv", "--until-input-ends"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with contextlib.closing(NatsLink(broker.url, "test")):
            device.stdin.close()
            assert device.wait(60) in (0, 2)
        device.stdout.close()


def until_round(up, number):
    while not up.stdout.readline().split()[:1] == [number]:
        assert up.poll() is None


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path, ours):
    asked = arguments(
        "--processes", "2", "--out", str(tmp_path / "run"), optimizer__rounds=3000,
        run__evaluation_interval=20, optimizer__learning_rate=1e-6,
    )  # fmt: skip
    up = subprocess.Popen(
        [sys.executable, "-u", "-m", "server.commands.cli", "up", *asked],
        stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path / "scratch")}, text=True,
    )  # fmt: skip
    try:
        until_round(up, "20")
        assert len(ours()) >= 3
    finally:
        up.kill()
        up.wait(30)
        up.stdout.close()
    until(lambda: ours() == [])


@pytest.mark.takes_long
def test_a_run_that_a_process_of_was_killed_names_it_and_goes_on_with_resume(tmp_path, ours):
    folder = tmp_path / "run"
    asked = arguments(
        "--processes", "2", "--out", str(folder), optimizer__rounds=400,
        federation__num_devices=2, federation__min_speakers=2, federation__deadline_s=1.0,
        run__evaluation_interval=20, optimizer__learning_rate=1e-6,
    )  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    up = subprocess.Popen(
        [sys.executable, "-u", "-m", "server.commands.cli", "up", *asked],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        until_round(up, "20")
        (host,) = (line for line in ours("pid,args") if "--name host-1" in line)
        os.kill(int(host.split()[0]), signal.SIGKILL)
        _, log = up.communicate(timeout=120)
    finally:
        up.kill()
        up.wait(30)
    assert up.returncode == 2, log
    assert "host-1 has ended (-9)" in log
    assert ours() == []
    assert 20 <= len(looked_at(folder).rows) < 400
    assert main(["up", "--resume", str(folder), "--rounds", "500"]) == 2
    assert main(["up", "--resume", str(folder)]) == 0
    left = looked_at(folder)
    assert len(left.rows) == 400
    # The round in which it was killed, and no other, was not heard whole.
    assert sum(row.num_speakers < 2 for row in left.rows) <= 1
    assert ours() == []


# ---------------------------------------------------------------- radios of the hosts' own


@pytest.mark.parametrize("waveform", ["energy", "slotted"])
def test_hosts_with_a_radio_each_take_the_same_steps_and_leave_nothing_running(
    tmp_path, waveform, capsys, ours
):
    folder = tmp_path / "run"
    asked = [
        "up", "--devices", "3", "--processes", "2", "--radio", "virtual-pluto", "--rounds", "3",
        "--set", f'radio.waveform="{waveform}"', "--set", "task.validation_examples=20",
        "--set", "privacy.epsilon=50", "--out", str(folder), "--force", "--json",
    ]  # fmt: skip
    if waveform == "slotted":
        asked += ["--set", "radio.sample_rate_hz=1e6"]
    assert main(asked) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["outcome"] == "complete"
    assert summary["source"].startswith("virtual-pluto+pyadi-iio")
    assert [row.num_speakers for row in looked_at(folder).rows] == [3, 3, 3]
    counted = [DeviceLedger(folder / f"host-{h}") for h in (0, 1)]
    assert [len(c.releases(owner)) for c in counted for owner in c.owners] == [3, 3, 3]
    for ledger in counted:
        ledger.close()
    assert ours() == []


def over_radios(hold_s=2.0):
    """Terms of a run of slotted packets over hosts' own radios."""
    config = load_config(
        "snips",
        {
            "optimizer.batch_size": 4, "radio.waveform": "slotted", "radio.backend": "pluto",
            "pluto.receiver": "ip:10.0.0.1", "radio.max_hold_s": hold_s, "privacy.enabled": False,
            "radio.snr_db": 20.0,
        },
    )  # fmt: skip
    return RunTerms(
        run_id="run", bundle_digest=open_bundle(BUNDLED_MODEL_FOLDER).digest,
        task=load_task("snips")[0], max_tokens=24, trainable=("*final_layer_norm*",),
        example=example_plan(config, "run"), rounds=3, is_private=False, air=air_terms(config),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("radios", "hold_s", "agreed", "words"),
    [
        ({}, 2.0, {}, "device 'pi': run run is over real radios: --radio URI"),
        ({"pi": "ip:127.0.0.1:1"}, 2.0, {}, "ip:127.0.0.1:1"),
        ({"pi": "ip:127.0.0.1:1"}, 11.0, None,
         "policy max_hold_s: bursts of up to 11 s are asked for .*, at most 10 s are allowed"),
        ({"pi": "ip:127.0.0.1:1"}, 2.0, {"max_hold_s": 1.5}, "at most 1.5 s are allowed"),
    ],
)  # fmt: skip
def test_a_host_without_a_radio_that_its_owner_lets_it_use_so_does_not_join(
    tmp_path, radios, hold_s, agreed, words
):
    (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n" * 4)
    settings = HostSettings(
        host="pi", data={"pi": tmp_path / "data.tsv"}, bundle=BUNDLED_MODEL_FOLDER,
        state=tmp_path / "state", radios=radios,
        policies={} if agreed is None else {"pi": make_policy(**agreed)},
    )  # fmt: skip
    with Broker() as broker, contextlib.ExitStack() as opened:
        server, link = (
            opened.enter_context(contextlib.closing(NatsLink(broker.url, name)))
            for name in ("server", "pi")
        )
        roster = opened.enter_context(contextlib.closing(Roster(server, over_radios(hold_s), 1)))
        with pytest.raises((EdgeError, RadioError), match=words):
            join(link, settings)
        assert roster.members == ()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["--radio", "other=ip:10.0.0.1"], "--radio: got 'other=ip:10.0.0.1', wanted NAME=VALUE"),
        (["--radio", ""], "--radio: got '', wanted NAME=VALUE"),
        (["--radio", "ip:1", "--radio", "pi=ip:2"], "--radio: device 'pi' is named twice"),
        (["--xo-correction", "4e7"], "--xo-correction: got '4e7', wanted a crystal's frequency"),
    ],
)
def test_a_radio_is_one_devices(tmp_path, said, words, capsys):
    (tmp_path / "data.tsv").write_text("AddToPlaylist\tadd this\n")
    assert joins("nats://127.0.0.1:1", tmp_path / "data.tsv", *said) == 2
    assert words in capsys.readouterr().err


def test_a_radio_in_a_rehearsal_is_refused_because_nobody_would_hear_it(tmp_path):
    settings = HostSettings(
        host="pi", data={"pi": tmp_path}, state=tmp_path, radios={"pi": "ip:10.0.0.1"}
    )
    with pytest.raises(LinkError, match="is a rehearsal, whose air its server plays"):
        check_radios(settings, msgspec.structs.replace(over_radios(), air=None))
