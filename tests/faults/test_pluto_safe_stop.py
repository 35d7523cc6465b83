"""However a program with a transmitter ends, the transmitter ends with it, or can be found.

The radios are served by a process of their own and outlive the program, as hardware does.
"""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from radio.commands.cli import main
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.silence import silence
from radio.pluto.transceiver import PlutoTransceiver
from radio.virtual_pluto.process import VirtualPlutoProcess
from radio.virtual_pluto.server import Bench

HOLD = """
import os, signal, sys, time
import numpy as np
from radio.pluto import safe_stop
from radio.pluto.transceiver import PlutoTransceiver
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.silence import silence

radio = PlutoTransceiver(
    PlutoSettings(sys.argv[1], Role.TRANSMITTER, tx_attenuation_db=10.0, max_hold_s=MAX_HOLD_S)
)
radio.hold(np.full(256, 0.5, dtype=np.complex64))
print("on the air, guarded by", safe_stop.guardian().pid, flush=True)
"""
SLEEP = "\nwhile True: time.sleep(1)"
ENDINGS = {
    "returns": ("", 0),
    "raises": ("raise RuntimeError('by design')", 1),
    "exits": ("sys.exit(3)", 3),
    "aborts": ("os.abort()", -signal.SIGABRT),
    "goes without a word": ("os._exit(7)", 7),
}
FATAL = [
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR, signal.SIGXCPU,
    signal.SIGSTKFLT, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGSYS, signal.SIGRTMIN,
]  # fmt: skip


def start(uri, ending=SLEEP, max_hold_s=600.0, before="", **options):
    """A program that holds a burst; and the number of its guardian's process."""
    program = subprocess.Popen(
        [sys.executable, "-c", before + HOLD.replace("MAX_HOLD_S", str(max_hold_s)) + ending, uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group whose parent is in the session: the kernel stops no orphan (CI may make us one).
        process_group=0,
        **options,
    )
    said = program.stdout.readline()
    assert said.startswith("on the air"), program.stderr.read()
    return program, int(said.split()[-1])


def finish(program):
    """Its exit code and what it said; its guardian has its standard error, and is done then."""
    _, errors = program.communicate(timeout=600)
    return program.returncode, errors


@pytest.fixture(scope="module")
def uris():
    """Two radios that outlive every program here, and every test."""
    with VirtualPlutoProcess(Bench(num_radios=2, path_loss_db=20.0, is_stepped=True)) as served:
        yield served.uris


@pytest.fixture
def hear(uris):
    """A receiver that says how loud the other radio is, in dBFS."""
    with PlutoTransceiver(PlutoSettings(uris[0], Role.RECEIVER, rx_gain_db=20.0)) as receiver:

        def level_dbfs():
            power = np.mean(np.abs(receiver.capture(4096, timeout_s=5.0)) ** 2)
            return 10 * np.log10(power + 1e-12)

        level_dbfs.uri = uris[1]
        yield level_dbfs
    silence(uris[1])  # whatever a test that failed has left there


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda name: name.replace(" ", "-"))
def test_a_program_that_ends_leaves_nothing_on_the_air(hear, ending):
    code, wanted = ENDINGS[ending]
    program, _ = start(hear.uri, code)
    assert finish(program)[0] == wanted
    assert hear() < -70
    assert not silence(hear.uri).was_radiating


@pytest.mark.parametrize("number", FATAL, ids=lambda number: number.name)
def test_a_signal_that_ends_a_program_leaves_nothing_on_the_air(hear, number):
    program, _ = start(hear.uri)
    # 0.5 of 2^14, 10 dB of attenuation, 20 of path, 20 of gain.
    assert hear() == pytest.approx(-22.0, abs=0.5)
    program.send_signal(number)
    code, errors = finish(program)
    assert code == -number
    assert hear() < -70
    assert not silence(hear.uri).was_radiating
    if number in (signal.SIGKILL, signal.SIGSEGV):
        assert f"{hear.uri}: on the air was: local oscillator on at 915" in errors
        assert "silent now, as read back: 89.75 dB, oscillator off, no tones" in errors


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_a_signal_that_stops_a_program_silences_its_radios_first(hear, number):
    again = "\ntry:\n    radio.hold(np.full(9, 0.5, dtype=np.complex64))"
    again += "\nexcept Exception as error: print(error)"
    program, _ = start(hear.uri, "\nwhile not radio.is_closed: time.sleep(0.01)" + again)
    program.send_signal(number)
    wait_until_stopped(program)
    assert hear() < -70
    program.send_signal(signal.SIGCONT)
    assert "hold after close()" in program.stdout.readline()
    assert finish(program)[0] == 0


def wait_until_stopped(program):
    while Path(f"/proc/{program.pid}/stat").read_text().split()[2] != "T":
        assert program.poll() is None
        time.sleep(0.01)


def test_under_nohup_a_hang_up_stays_ignored(hear):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program, _ = start(hear.uri, before=ignore)
    program.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert program.poll() is None
    assert hear() == pytest.approx(-22.0, abs=0.5)
    program.terminate()
    assert finish(program)[0] == -signal.SIGTERM
    assert hear() < -70


def test_a_program_that_hangs_with_a_burst_is_ended(hear):
    began = time.monotonic()
    program, _ = start(hear.uri, SLEEP, max_hold_s=5.0)
    code, errors = finish(program)
    assert time.monotonic() - began >= 5.0
    assert code == -signal.SIGKILL
    assert f"hung with a burst on the air at {hear.uri}" in errors
    assert hear() < -70


def test_a_stopped_program_is_not_spared(hear):
    program, _ = start(hear.uri, SLEEP, max_hold_s=5.0)
    program.send_signal(signal.SIGSTOP)
    assert finish(program)[0] == -signal.SIGKILL
    assert hear() < -70


@pytest.mark.takes_long
def test_each_hold_has_its_time_and_a_burst_that_ended_has_none(hear):
    holds = "\nfor _ in range(3): time.sleep(2.0); radio.hold(np.ones(9, np.complex64) / 2)"
    silent = "\nradio.fall_silent()\ntime.sleep(5.5)\nprint('well')"
    program, _ = start(hear.uri, holds + silent, max_hold_s=5.0)
    assert program.stdout.readline() == "well\n"
    assert finish(program) == (0, "")


def test_a_child_that_outlives_the_program_does_not_keep_it_on_the_air(hear):
    fork = "\nif os.fork() == 0:\n    time.sleep(5)\n    os._exit(0)" + SLEEP
    program, guardian = start(hear.uri, fork)
    program.kill()
    program.wait()
    while os.path.exists(f"/proc/{guardian}"):
        time.sleep(0.01)
    assert hear() < -70
    finish(program)


def test_a_guardian_outlives_its_terminal_and_heeds_nobody(hear):
    program, guardian = start(hear.uri)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
        os.kill(guardian, number)
    assert os.getsid(guardian) != os.getsid(program.pid)
    program.kill()
    finish(program)
    assert hear() < -70


def test_a_guardian_is_small(hear):
    program, guardian = start(hear.uri)
    maps = Path(f"/proc/{guardian}/maps").read_text()
    assert "libiio" in maps
    for heavy in ("onnxruntime", "numpy", "torch"):
        assert heavy not in maps
    program.terminate()
    finish(program)


def test_without_a_guardian_that_can_be_had_nothing_is_held(hear):
    """Ended beside its program; the next hold starts another one, which cannot start here."""
    break_it = "\nimport subprocess\nsubprocess.Popen = None"
    hold = "\nradio.fall_silent()\nos.kill(safe_stop.guardian().pid, 9)\ntime.sleep(0.5)"
    hold += break_it + "\nradio.hold(np.ones(9, np.complex64) / 2)"
    program, _ = start(hear.uri, hold)
    code, errors = finish(program)
    assert code == 1
    assert "NoneType" in errors
    assert hear() < -70


def test_negative_control_without_a_guardian_a_killed_program_leaves_its_burst(hear, capsys):
    kill_both(*start(hear.uri))
    assert hear() == pytest.approx(-22.0, abs=0.5)
    assert main(["silence", hear.uri]) == 0
    assert "was on the air: local oscillator on at 915" in capsys.readouterr().out
    assert hear() < -70
    assert main(["silence", hear.uri]) == 0
    assert "was on the air" not in capsys.readouterr().out


def kill_both(program, guardian):
    os.kill(guardian, signal.SIGKILL)
    program.kill()
    assert finish(program)[0] == -signal.SIGKILL


def test_the_next_start_finds_and_ends_what_a_killed_program_left(hear):
    kill_both(*start(hear.uri))
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
    own = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    program, _ = start(hear.uri, before=own)
    program.terminate()
    assert finish(program)[0] == 7
    assert hear() < -70


def test_a_hundred_times_opened_and_closed_leaves_nothing_behind(start_virtual_plutos, request):
    plutos = start_virtual_plutos(1, "--clock", "stepped")
    settings = PlutoSettings(plutos.uris[0], Role.TRANSMITTER, max_hold_s=600.0)
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
    gc.freeze()  # what other tests have loaded into this process need not be looked through
    request.addfinalizer(gc.unfreeze)
    time.sleep(0.2)
    own, theirs = num_files("self"), num_files(plutos.process.pid)
    threads = num_threads(plutos.process.pid)
    for _ in range(100):
        open_once()
    time.sleep(0.2)
    assert num_files("self") <= own
    assert num_files(plutos.process.pid) <= theirs
    assert num_threads(plutos.process.pid) <= threads
