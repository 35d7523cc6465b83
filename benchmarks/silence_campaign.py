"""Does every way out of a program leave its radios silent?

A program holds rounds over two transmitters and a receiver: virtual Plutos in a process of their
own, which outlive it as hardware does, behind a network that can fail. At one of ten moments of a
round it is stopped, and something happens to it: a signal, an exception, a hang, a connection that
is cut, or two of these. Then the radios are read over connections that nobody tampers with, until
they are silent - oscillator off or 89.75 dB, no tones - or time is up. Resumes; all ways at all
moments take a quarter of an hour::

    python benchmarks/silence_campaign.py silence.jsonl
    python benchmarks/silence_campaign.py silence.jsonl --show --json silence.json
    python benchmarks/silence_campaign.py quick.jsonl --quick
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study import Study

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from tcp_proxy import TcpProxy  # noqa: E402

from radio.errors import RadioError  # noqa: E402
from radio.pluto.context import PlutoContext  # noqa: E402
from radio.pluto.silence import may_radiate, silence  # noqa: E402

MAX_HOLD_S = 1.5
WITHIN_S = 3.0
"""After the program was hit, or its hold outlasted its time."""

GIVE_UP_S = 30.0

PROGRAM = """
import contextlib, os, signal, sys, time
import numpy as np
from radio.errors import RadioError
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.transceiver import PlutoTransceiver
from radio.self_closing import silence_each

wanted, what, max_hold_s, receiver, *devices = sys.argv[1:]
wanted, met = int(wanted), 0

def moment(number):
    # Stopped here, in the middle of whatever is under way, while something happens outside.
    global met
    if number != wanted or met:
        return
    met = 1
    print("moment", flush=True)
    sys.stdin.readline()
    if what == "raises": raise RuntimeError("by design")
    if what == "is interrupted": raise KeyboardInterrupt
    if what == "exits": sys.exit(3)
    if what == "has no memory": raise MemoryError
    if what == "goes without a word": os._exit(7)
    if what == "aborts": os.abort()
    if what == "hangs":
        while True: pass

def before(owner, name, number, only_nth=None):
    act, calls = getattr(owner, name), [0]
    def interrupted(self, *arguments, **named):
        calls[0] += 1
        if only_nth is None or calls[0] == only_nth:
            moment(number)
        return act(self, *arguments, **named)
    setattr(owner, name, interrupted)

before(PlutoTransceiver, "_attenuate", 3, only_nth=3)    # the first burst is out, behind 90 dB
before(PlutoTransceiver, "_blocks_behind", 6)            # in the middle of a capture
before(PlutoTransceiver, "_fall_silent", 8)              # all are told to end

def opened(uri, role):
    return PlutoTransceiver(PlutoSettings(
        uri, role, tx_attenuation_db=10.0, rx_gain_db=20.0, max_hold_s=float(max_hold_s)))

burst = np.full(1024, 0.5, dtype=np.complex64)
with contextlib.ExitStack() as stack:
    hears = stack.enter_context(opened(receiver, Role.RECEIVER))
    speak = [stack.enter_context(opened(uri, Role.TRANSMITTER)) for uri in devices]
    moment(1)                                            # open, and nothing held
    for turn in range(3):
        for number in range(3):
            for k, one in enumerate(speak):
                with contextlib.suppress(RadioError):
                    one.hold(burst)
                if k == 0 and number == 0: moment(4)     # one is loud
            if number == 0: moment(5)                    # both are
            if number == 1: moment(7)                    # and still, with the next number
            hears.capture(4096, timeout_s=5.0)
            if number == 0: moment(2)                    # captured
        speak[0].fall_silent()
        moment(9)                                        # one is silent, one loud
        silence_each([one.fall_silent for one in speak])
        moment(10)                                       # between rounds
"""
MOMENTS = tuple(range(1, 11))
ENDING = [
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGVTALRM",
    "SIGPROF", "SIGIO", "SIGPWR", "SIGXCPU", "SIGXFSZ", "SIGSTKFLT", "SIGTRAP", "SIGSYS", "SIGILL",
    "SIGFPE", "SIGBUS", "SIGSEGV", "SIGABRT", "SIGKILL", "SIGRTMIN", "SIGRTMAX",
]  # fmt: skip
STOPPING = ["SIGTSTP", "SIGTTIN", "SIGTTOU"]
OWN = [
    "raises", "is interrupted", "exits", "has no memory", "goes without a word", "aborts", "hangs"
]  # fmt: skip
NETWORK = [f"{way} {which}" for way in ("cut", "reset", "freeze") for which in (0, 1, 2, "all")]
PAIRS = [
    "SIGTERM SIGKILL", "SIGHUP SIGTERM", "SIGTERM SIGTERM", "SIGSTOP", "cut 1 SIGKILL",
    "cut all SIGTERM", "reset 2 SIGHUP", "freeze 1 SIGTERM", "freeze all SIGKILL", "cut 1 raises",
]  # fmt: skip
WAYS = [*ENDING, *STOPPING, *OWN, *NETWORK, *PAIRS]


@dataclass
class Bench:
    """Virtual radios in a process of their own, and the networks in front of them."""

    process: subprocess.Popen[str]
    uris: list[str]
    proxies: list[TcpProxy] = field(default_factory=list)

    def renew_networks(self) -> list[str]:
        """Whole ones; the URIs behind them."""
        for proxy in self.proxies:
            proxy.close()
        self.proxies = [TcpProxy(uri) for uri in self.uris]
        return [proxy.uri for proxy in self.proxies]


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    program = "import sys; from radio.commands.cli import main; sys.exit(main())"
    words = ["virtual-pluto", "--nodes", "3", "--base-port", "0", "--clock", "stepped"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    running = Bench(process, [process.stdout.readline().split()[-1] for _ in range(3)])
    try:
        yield running
    finally:
        for proxy in running.proxies:
            proxy.close()
        process.terminate()
        process.wait()
        process.stdout.close()


def one_trial(running: Bench, way: str, moment: int) -> dict[str, Any]:
    """A program that something happens to, and when its radios were silent."""
    uris = running.renew_networks()
    words = way.split()
    own = next((name for name in OWN if way.endswith(name)), "nothing")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(moment), own, str(MAX_HOLD_S), *uris],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdin is not None
        if program.stdout.readline() != "moment\n":
            raise RuntimeError(program.communicate()[1])
        contexts = [PlutoContext(uri) for uri in running.uris]
        was_loud = loud(contexts)
        began = time.monotonic()
        for name in words:
            happen(program, running, name, words)
        with contextlib.suppress(BrokenPipeError):
            program.stdin.write("\n")
            program.stdin.flush()
        stands_still = "hangs" in way or "SIGSTOP" in way
        # Where nothing is held nobody ends a program that stands still.
        silent_s = until_silent(program, contexts, began, may_live=stands_still and not was_loud)
        with contextlib.suppress(ProcessLookupError):
            program.send_signal(signal.SIGKILL if stands_still else signal.SIGCONT)
        try:
            _, errors = program.communicate(timeout=GIVE_UP_S)
        except subprocess.TimeoutExpired:
            program.kill()
            _, errors = program.communicate()
        still_loud = loud(contexts)
    for uri in running.uris:
        silence(uri)
    return {
        "way": way, "moment": moment, "was_loud": len(was_loud),
        "silent_s": None if silent_s is None else round(silent_s, 3),
        "loud_at_the_end": len(still_loud), "exit_code": program.returncode,
        "guardian": errors.count("pairzero guardian"),
    }  # fmt: skip


def happen(program: subprocess.Popen[str], running: Bench, name: str, words: list[str]) -> None:
    if name.startswith("SIG"):
        with contextlib.suppress(ProcessLookupError):
            program.send_signal(getattr(signal, name))
        time.sleep(0.01)
    elif name in ("cut", "reset", "freeze"):
        which = words[words.index(name) + 1]
        chosen = running.proxies if which == "all" else [running.proxies[int(which)]]
        for proxy in chosen:
            fail: Callable[[], None] = getattr(proxy, name)
            fail()


def loud(contexts: list[PlutoContext]) -> list[str]:
    """Radios that are on the air."""
    return [context.uri for context in contexts if may_radiate(context)]


def until_silent(
    program: subprocess.Popen[str], contexts: list[PlutoContext], began: float, *, may_live: bool
) -> float | None:
    """Seconds until the program had ended, or was stopped, with all radios silent.

    None if that never came to be.
    """
    while time.monotonic() - began < GIVE_UP_S:
        try:
            is_loud = bool(loud(contexts))
        except (OSError, RadioError):
            is_loud = True
        if (may_live or has_ended(program)) and not is_loud:
            return time.monotonic() - began
        time.sleep(0.02)
    return None


def has_ended(program: subprocess.Popen[str]) -> bool:
    """Whether it is gone, or stopped by a signal that it heeded."""
    if program.poll() is not None:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{program.pid}/stat").read_text("utf-8").split()[2] == "T"
    return True


def allowed_s(way: str) -> float:
    """Until silence; what waits for a frozen connection may wait for several answers."""
    if "hangs" in way or "SIGSTOP" in way:
        return MAX_HOLD_S + WITHIN_S
    is_network = any(word in way for word in ("cut", "reset", "freeze"))
    return GIVE_UP_S if is_network else WITHIN_S


def is_well(row: dict[str, Any]) -> bool:
    return (
        row["silent_s"] is not None
        and row["silent_s"] <= allowed_s(row["way"])
        and row["loud_at_the_end"] == 0
    )


def main() -> int:
    study = Study(__doc__, quick="every way at one moment")
    args = study.begin()
    wanted = [(way, moment) for way in WAYS for moment in MOMENTS]
    if args.quick:
        wanted = [(way, MOMENTS[(3 * k + 3) % len(MOMENTS)]) for k, way in enumerate(WAYS)]
    todo = study.missing(wanted, lambda row: (row["way"], row["moment"]))
    if todo:
        with bench() as running:
            for number, (way, moment) in enumerate(todo, 1):
                row = one_trial(running, way, moment)
                mark = "" if is_well(row) else "   LOUD"
                study.add(row, f"{number}/{len(todo)} {way}, moment {moment}{mark}")
    rows = study.rows
    print(f"{'way out':24s}{'trials':>7s}{'loud':>6s}{'silent':>8s}{'slowest s':>11s}")
    for way in dict.fromkeys(row["way"] for row in rows):
        of_way = [row for row in rows if row["way"] == way]
        slowest = max((row["silent_s"] or float("inf")) for row in of_way)
        began_loud = sum(row["was_loud"] > 0 for row in of_way)
        well = sum(map(is_well, of_way))
        print(f"{way:24s}{len(of_way):7d}{began_loud:6d}{well:8d}{slowest:11.2f}")
    well = sum(map(is_well, rows))
    num_loud = sum(row["was_loud"] > 0 for row in rows)
    print(
        f"{len(rows)} trials, {num_loud} of them hit with a burst on the air: "
        f"{well} silent in time, {len(rows) - well} not"
    )
    study.finish(max_hold_s=MAX_HOLD_S, within_s=WITHIN_S, trials=rows)
    return 0 if well == len(rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
