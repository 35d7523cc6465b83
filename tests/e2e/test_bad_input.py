"""Whatever a person gives a command: one line, a documented code, nothing half-written.

A table over all commands. Each case runs in this process, in an empty folder; those that take more
than that (closed streams, full disks, signals) run in one of their own.
"""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge_runtime.cli as device
import radio.commands.cli as radio
import server.commands.cli as server
from server.store.records import STORE_FILE

PROGRAMS = {"pairzero": server.main, "pairzero-radio": radio.main, "pairzero-device": device.main}
LONG = "x" * 300
NUL = "a\\u0000b"

# What --set says, for `run` and for `plan`.
SETTINGS = [
    "optimizer.rounds=0", "optimizer.rounds=-1", "optimizer.rounds=1.5", "optimizer.rounds=many",
    "optimizer.rounds=2147483647", "optimizer.rounds=99999999999999999999", "optimizer.rounds=",
    "optimizer.rounds=[1]", "optimizer.rounds=" + "9" * 5000, "optimizer.rounds=" + "[" * 3000,
    "optimizer.directions=0", "optimizer.directions=100000", "optimizer.batch_size=0",
    "optimizer.batch_size=1000000", "optimizer.clip=0", "optimizer.clip=-1", "optimizer.clip=nan",
    "optimizer.clip=inf", "optimizer.learning_rate=0", "optimizer.learning_rate=inf",
    "optimizer.learning_rate=nan", "optimizer.learning_rate=1e9", "optimizer.difference=three",
    "optimizer.perturbation_scale_log2=-300", "optimizer.final_learning_rate_fraction=2",
    "optimizer.vote_value=0", "optimizer.typical_number=-1",
    "federation.num_devices=0", "federation.num_devices=-3", "federation.num_devices=100000",
    "federation.min_speakers=9", "federation.dropout_probability=1",
    "radio.backend=air", "radio.backend=pluto", "radio.waveform=sine", "radio.channel=nakagami",
    "radio.snr_db=nan", "radio.snr_db=-1000", "radio.min_gain=-1", "radio.pilot_symbols=1",
    "radio.pilot_symbols=100000000000", "radio.payload_symbols=0", "radio.coherence_rounds=0",
    "radio.max_amplitude=2", "radio.carrier_hz=-1", "radio.sample_rate_hz=0",
    "radio.impairments=none", "radio.keep_captures=[1]", "radio.plateau_samples=-5",
    "radio.max_hold_s=-1", "radio.calibration_max_age_s=0", "impairments.dac_bits=99",
    "impairments.crystal_ppm=-1", "impairments.nothing=1",
    "power.policy=nonsense", "power.policy=paper", "power.policy=sign", "power.policy=limited",
    "power.contraction=7", "power.min_participation=2", "power.limits.max_duty=0",
    "power.limits.nothing=1", "power.limits=1",
    "privacy.epsilon=0", "privacy.epsilon=-1", "privacy.epsilon=nan", "privacy.epsilon=1e-9",
    "privacy.delta=0", "privacy.delta=1", "privacy.delta=0.5", "privacy.unit=person",
    "privacy.relation=add", "privacy.access=open", "privacy.missing_devices=5",
    "privacy.trusted_noise_fraction=2", "privacy.csi_failure_fraction=0", "privacy.noise_source=me",
    "privacy.vote_noise=during", "privacy.enabled=maybe",
    "pluto.rx_gain_db=9999", "pluto.devices=5", "virtual_pluto.clock=sun",
    "task.name=nothing", f"task.name={LONG}.toml", f'task.name="{NUL}.toml"', "task.name=5",
    "task.train=missing.tsv", f"task.train={LONG}", f'task.train="{NUL}"', "task.max_tokens=3",
    "task.max_tokens=100000", "task.validation_examples=-1", "task.validation=missing.tsv",
    "task.train=pipe.tsv", "task.validation=pipe.tsv", "task.name=pipe.toml",
    "task.name=huge.toml",
    "model.prefix_cache_mb=-1", "model.prefix_cache_mb=1.5", "model.prefix_cache_mb=99999999",
    "model.bundle=missing", f"model.bundle={LONG}", f'model.bundle="{NUL}"', "model.trainable=[]",
    "model.trainable=nothing.*", "model.trainable=5", "run.seed=x", "run.workers=-1",
    "run.workers=100000", "run.intra_op_threads=0", "run.evaluation_interval=0",
    "run.digest_interval=-1", "run.nothing=1", "nothing.rounds=1", "rounds=1", "=1", ".=1",
    "radio.", "description.x=1", "a\nb.c=1", "radio.snr_db=0\nfoo=1",
]  # fmt: skip

# What a configuration file holds.
DOCUMENTS = {
    "empty section of another kind": b"radio = 5\n",
    "list for a section": b"radio = [1, 2]\n",
    "table for a value": b"[optimizer.rounds]\nx = 1\n",
    "not TOML": b"[radio\n",
    "not UTF-8": b'description = "\xe9"\n',
    "UTF-16": "[radio]\n".encode("utf-16"),
    "NUL": b"[radio]\x00\n",
    "binary": bytes(range(256)),
    "key twice": b"[run]\nseed = 1\nseed = 2\n",
    "deep": b"x = " + b"[" * 5000 + b"]" * 5000,
    "deep tables": b"x = " + b"{a=" * 3000 + b"1" + b"}" * 3000,
    "digits": b"[run]\nseed = " + b"9" * 5000 + b"\n",
    "date": b"[run]\nseed = 2026-01-01\n",
    "unknown section": b"[rdio]\nsnr_db = 1\n",
    "unknown key": b"[radio]\nsnr = 1\n",
    "unread key": b"[radio]\nplateau_samples = 4096\n",
    "data that is a folder": b'[task]\ntrain = "."\n',
    "bundle that is a file": b'[model]\nbundle = "config.toml"\n',
}

RADIO = [
    "measure --devices 0", "measure --devices 999999999", "measure --trials 0",
    "measure --trials 1",
    "measure --trials 99999999999", "measure --snr-db nan", "measure --snr-db 1e9",
    "measure --min-gain -1", "measure --seed -1", "measure --waveform energy --plateau-samples 3",
    "measure --waveform energy --plateau-samples 99999999999", "measure --directions 0",
    "measure --directions 999999999", "measure --channel nakagami", "measure --impairments none",
    f"measure --plot {__file__} --trials 2",
    "measure --device ip:127.0.0.1:1 --receiver ip:127.0.0.1:1",
    "measure --device nowhere --receiver nowhere", "measure --nothing", "calibrate",
    "calibrate --device nowhere --receiver nowhere",
    "calibrate --device ip:127.0.0.1:1 --receiver ip:127.0.0.1:2 --pilots 0",
    "record x --samples 0", "record x --captures 0 --receiver ip:127.0.0.1:1",
    "record x --receiver nowhere", "replay missing", f"replay {LONG}", f"replay {__file__}",
    "replay .", "virtual-pluto --nodes 0", "virtual-pluto --nodes -1",
    "virtual-pluto --nodes 99999999", "virtual-pluto --base-port 99999999",
    "virtual-pluto --base-port -1", "virtual-pluto --host nowhere.invalid",
    "virtual-pluto --ppm nan", "virtual-pluto --path-loss-db -1", "virtual-pluto --noise-dbfs 3",
    "virtual-pluto --clock sun", "silence", "silence nowhere",
    "nothing", "",
]  # fmt: skip

DEVICE = [
    "selftest missing", f"selftest {LONG}", f"selftest {__file__}", "selftest .",
    "selftest --devices 0", "selftest --devices -1", "selftest --devices 99999999",
    "selftest --task nothing", f"selftest --task {LONG}.toml", "selftest --task missing.toml",
    "selftest --nothing", "nothing", "",
    "profile missing", f"profile {LONG}", f"profile {__file__}", "profile .", "profile --batch x",
    "profile --batch 99999999", "profile --seq 99999999", "profile --directions 99999999",
    "profile --rounds 99999999", "profile --threads -1", "profile --difference many",
    f"profile --json {LONG}", "profile --json file/p.json", "profile --plot full",
    "profile --dimensions file", f"profile --dimensions {LONG}", "profile --dimensions garbage",
    "join nats://127.0.0.1:1", "join missing.pairzero --data file", "join file --data file",
    "join nats://127.0.0.1:1 --name pi --data file --radio",
    "join nats://127.0.0.1:1 --name pi --data file --radio x=y",
    "join nats://127.0.0.1:1 --name pi --data file --xo-correction x",
    "join nats://127.0.0.1:1 --name pi --data file --tx-attenuation x",
    "--log-format loud doctor", "--log-level loud doctor",
]  # fmt: skip

SERVER = [
    "run pipe.toml", "plan pipe.toml", "run huge.toml", "plan --rounds 2 --plot full",
    "run smollm2-mr", "plan smollm2-mr",
    "run missing.toml", "run nothing", "run .", "run ..toml", f"run {LONG}.toml", f"run {LONG}",
    "run --rounds x", "run --rounds 0", "run --rounds -5", "run --seed x", "run --set",
    "run --set radio", "run snips --nothing", "run snips snips", "run --resume missing",
    "run --resume .", f"run --resume {LONG}", "run --resume empty", "run snips --resume empty",
    "run --resume empty --out x", f"run --rounds 1 --out {LONG}", "run --rounds 1 --out file",
    "run --rounds 1 --out file/run", "run --rounds 1 --out full", "run --rounds 1 --out /dev/null",
    "plan missing.toml", "plan --plot x", "plan --plot x.jpg", "plan --rounds 0",
    "plan --rounds 2 --plot file/x.png", f"plan --rounds 2 --plot {LONG}.png",
    "report missing", "report file", "report empty", f"report {LONG}", "report garbage",
    "report folder_store", "report nothing_in_it", "list missing", "list file", f"list {LONG}",
    "save missing out", "save empty out", "save garbage out", "save garbage file",
    "save garbage out --rounds x", "save garbage out --rounds 1 --best", f"save {LONG} out",
    "predict missing -", "predict empty x", "predict garbage x", "predict file x",
    f"predict {LONG} x",
    "destroy-keys missing", "destroy-keys file", "destroy-keys garbage", "destroy-keys empty",
    "export missing out", "export missing out --task nothing", "export empty out --task snips",
    "export file out --task snips", f"export {LONG} out --task snips",
    f"export empty {LONG} --task snips", "export empty full --task snips",
    "export . out --task missing.toml", "nothing", "", "--nothing", "--log-level loud",
    "--log-format loud list", "status missing", "status file", "status empty", "status garbage",
    f"status {LONG}", "status nothing_in_it", "run --page x", "run --page -1",
    "run --page 99999999", "up --page 99999999", "serve --page 99999999", "run --radio nothing",
    "up --radio nothing", "up --radio pluto", "serve --radio virtual-pluto",
    "up --devices 0", "up --processes 0", "serve --wait x", "serve --credentials file",
]  # fmt: skip

CASES = [
    *(("pairzero", [command, "snips", "--set", setting])
      for command, setting in itertools.product(("run", "plan"), SETTINGS)),
    *(("pairzero", line.split(" ") if line else []) for line in SERVER),
    *(("pairzero-radio", line.split(" ") if line else []) for line in RADIO),
    *(("pairzero-device", line.split(" ") if line else []) for line in DEVICE),
]  # fmt: skip


def furnish(folder):
    """Things that are not what a command takes them for."""
    (folder / "file").write_text("nothing\n")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine\n")
    (folder / "garbage").mkdir()
    (folder / "garbage" / STORE_FILE).write_bytes(bytes(range(256)) * 40)
    (folder / "nothing_in_it").mkdir()
    (folder / "nothing_in_it" / STORE_FILE).write_bytes(b"")
    (folder / "folder_store").mkdir()
    (folder / "folder_store" / STORE_FILE).mkdir()
    for name in ("pipe.toml", "pipe.tsv"):
        os.mkfifo(folder / name)
    with (folder / "huge.toml").open("wb") as file:
        file.truncate(200 << 20)  # zeros that take no room


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and path.name != "huge.toml"
        else None
        for path in folder.rglob("*")
    }


def ended(program, words):
    try:
        return PROGRAMS[program](words)
    except SystemExit as stop:  # argparse's own
        return stop.code


def check_it_was_told(folder, before, code, said):
    assert code == 2, said
    assert "Traceback" not in said
    assert said.strip()
    assert contents(folder) == before


def name(case):
    text = " ".join([case[0], *case[1]])
    return text if len(text) < 90 else text[:80] + "..."


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_request_that_cannot_be_is_told_in_a_line(case, tmp_path, monkeypatch, capfd):
    program, words = case
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    before = contents(tmp_path)
    code = ended(program, words)
    check_it_was_told(tmp_path, before, code, capfd.readouterr().err)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_file_that_is_no_configuration_is_told_in_a_line(
    what, command, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_bytes(DOCUMENTS[what])
    before = contents(tmp_path)
    code = ended("pairzero", [command, "config.toml"])
    check_it_was_told(tmp_path, before, code, capfd.readouterr().err)


def test_the_table_is_as_long_as_it_was_promised_to_be():
    assert len(CASES) + 2 * len(DOCUMENTS) >= 200


# In processes of their own


def shell(line, folder, **environment):
    """A command line in a shell; what it left."""
    programs = Path(sys.executable).parent
    return subprocess.run(
        ["bash", "-c", line],
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("command", ["pairzero list", "pairzero-device doctor"])
def test_a_full_disk_under_the_output_is_told(command, tmp_path):
    done = shell(f"{command} > /dev/full", tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 2
    assert os.strerror(errno.ENOSPC) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "pairzero list >&-",
        "pairzero list 2>&-",
        "pairzero list <&-",
        "pairzero-device doctor >&- 2>&- <&-",
        "pairzero run snipz >&-",
    ],
)
def test_closed_streams_are_no_error(line, tmp_path):
    done = shell(line, tmp_path)
    assert done.returncode == (2 if "snipz" in line else 0)
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_gone_ends_a_command_quietly(tmp_path):
    for command in ("pairzero-radio doctor", "pairzero-device doctor", "pairzero run --help"):
        done = shell(f"set -o pipefail; {command} | true; echo $?", tmp_path)
        assert done.stdout.split()[-1] in (b"0", b"141")
        assert done.stderr == b""


@pytest.mark.parametrize(
    "command",
    ["pairzero-radio measure --trials 100000", "pairzero-radio virtual-pluto --base-port 0"],
)
def test_ctrl_c_is_answered_in_a_line(command, tmp_path):
    programs = Path(sys.executable).parent
    program, *words = command.split()
    process = subprocess.Popen(
        [programs / program, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(3.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    assert process.returncode in (0, 130)


def test_a_working_directory_that_is_gone_is_told(tmp_path):
    done = shell("mkdir gone && cd gone && rmdir ../gone && pairzero run --rounds 1", tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_a_terminal_cannot_show_is_shown_by_its_number(tmp_path):
    (tmp_path / "é.toml").write_text("[radio\n")
    done = shell("pairzero list é; pairzero run é.toml", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\\xe9.toml" in done.stderr
