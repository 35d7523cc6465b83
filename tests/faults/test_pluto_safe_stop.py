"""However a program with a transmitter ends, the transmitter ends with it, or can be found.

The radios are served by a process of their own and outlive the program, as hardware does.
"""

import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from radio.cli import main
from radio.pluto_settings import PlutoSettings, Role
from radio.pluto_transceiver import PlutoTransceiver

HOLD = """
import os, signal, sys, time
import numpy as np
from radio.pluto_transceiver import PlutoTransceiver
from radio.pluto_settings import PlutoSettings, Role

radio = PlutoTransceiver(PlutoSettings(sys.argv[1], Role.TRANSMITTER, tx_attenuation_db=10.0))
radio.hold(np.full(256, 0.5, dtype=np.complex64))
print("on the air", flush=True)
"""
ENDINGS = {
    "returns": ("", None, 0),
    "raises": ("raise RuntimeError('by design')", None, 1),
    "exits": ("sys.exit(3)", None, 3),
    "is interrupted": ("time.sleep(30)", signal.SIGINT, -signal.SIGINT),
    "is terminated": ("time.sleep(30)", signal.SIGTERM, -signal.SIGTERM),
}


def start(uri, ending):
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD + ending, uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "on the air\n", program.stderr.read()
    return program


def finish(program):
    program.communicate(timeout=600)
    return program.returncode


@pytest.fixture
def hear(start_virtual_plutos):
    """Two radios, and a receiver that says how loud the other one is, in dBFS."""
    uris = start_virtual_plutos(2, "--path-loss-db", "20", "--clock", "stepped").uris
    with PlutoTransceiver(PlutoSettings(uris[0], Role.RECEIVER, rx_gain_db=20.0)) as receiver:

        def level_dbfs():
            power = np.mean(np.abs(receiver.capture(4096, timeout_s=5.0)) ** 2)
            return 10 * np.log10(power + 1e-12)

        level_dbfs.uri = uris[1]
        yield level_dbfs


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda name: name.replace(" ", "-"))
def test_a_program_that_ends_leaves_nothing_on_the_air(hear, ending):
    code, number, wanted = ENDINGS[ending]
    program = start(hear.uri, code)
    if number is not None:
        # 0.5 of 2^14, 10 dB of attenuation, 20 of path, 20 of gain.
        assert hear() == pytest.approx(-22.0, abs=0.5)
        program.send_signal(number)
    assert finish(program) == wanted
    assert hear() < -70
    assert main(["silence", hear.uri]) == 0


def test_negative_control_a_killed_program_leaves_its_burst_until_it_is_silenced(hear, capsys):
    program = start(hear.uri, "time.sleep(30)")
    program.kill()
    assert finish(program) == -signal.SIGKILL
    time.sleep(0.1)
    assert hear() == pytest.approx(-22.0, abs=0.5)
    assert main(["silence", hear.uri]) == 0
    assert "was on the air: local oscillator on at 915" in capsys.readouterr().out
    assert hear() < -70
    assert main(["silence", hear.uri]) == 0
    assert "was on the air" not in capsys.readouterr().out


def test_the_next_start_finds_and_ends_what_a_killed_program_left(hear):
    program = start(hear.uri, "time.sleep(30)")
    program.kill()
    finish(program)
    settings = PlutoSettings(hear.uri, Role.TRANSMITTER)
    with PlutoTransceiver(settings) as transmitter:
        assert "attenuation 10 dB" in transmitter.found_radiating[0]
        assert hear() < -70


def test_silence_goes_on_to_the_next_radio(hear, capsys):
    assert main(["silence", "ip:127.0.0.1:1", hear.uri]) == 1
    captured = capsys.readouterr()
    assert "nothing listens there" in captured.err
    assert f"{hear.uri}: silent, read back" in captured.out
    assert main(["silence", "nowhere"]) == 2


def test_a_program_that_handles_sigterm_itself_is_left_to_it(hear):
    program = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
            + HOLD
            + "time.sleep(30)",
            hear.uri,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "on the air\n"
    program.terminate()
    assert finish(program) == 7
    assert hear() < -70


def test_a_hundred_times_opened_and_closed_leaves_nothing_behind(start_virtual_plutos):
    plutos = start_virtual_plutos(1, "--clock", "stepped")
    settings = PlutoSettings(plutos.uris[0], Role.TRANSMITTER)
    burst = np.full(64, 0.5, dtype=np.complex64)

    def open_once():
        with PlutoTransceiver(settings) as radio:
            radio.hold(burst)
        del radio
        gc.collect()

    def num_files(process):
        return len(os.listdir(f"/proc/{process}/fd"))

    def num_threads(process):
        return len(os.listdir(f"/proc/{process}/task"))

    open_once()
    time.sleep(0.2)
    own, theirs = num_files("self"), num_files(plutos.process.pid)
    threads = num_threads(plutos.process.pid)
    for _ in range(100):
        open_once()
    time.sleep(0.2)
    assert num_files("self") <= own
    assert num_files(plutos.process.pid) <= theirs
    assert num_threads(plutos.process.pid) <= threads
