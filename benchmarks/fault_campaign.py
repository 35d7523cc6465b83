r"""Faults without end in a run over hosts: what is left is whole, or it is said what is not.

A broker with credentials, a server, three hosts with policies and ledgers of their own, each a
process; every few seconds one of them, drawn by a seed, is killed (kill -9) and started again after
a while, or stopped for some seconds, or its disk is spoilt: a host loses its journal, the broker
everything. Whoever ends by itself is started again, as an operator would. At the end:

* the run has all of its rounds, and the server's digest is that of every host that is there;
* every release that a device has counted is paid for by the server, and none is made twice;
* keys are destroyed, and nobody is left running.

Leaves out so far: networks that drop, freeze, double or corrupt; full disks; clocks that jump.

    python benchmarks/fault_campaign.py faults.jsonl --json faults.json   # 200 faults, 40 minutes
    python benchmarks/fault_campaign.py quick.jsonl --quick               # 4 faults
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from study import Study

from edge_runtime.guard.keys import KEYS_FILE
from edge_runtime.guard.ledger import DeviceLedger
from edge_runtime.task_spec import load_task
from server.hosts.broker import find_program
from server.privacy.ledger import PrivacyLedger
from server.store.records import STORE_FILE
from server.store.run_store import RunStore

HOSTS = ("pi1", "pi2", "pi3")
FAULTS, QUICK_FAULTS = 40, 4
RUNS = 5
_BETWEEN_S = (2.0, 8.0)
_AWAY_S = (0.0, 0.5, 3.0, 8.0)
_STOPPED_S = (1.0, 9.0)
_END_S = 300.0
_ROUNDS_A_FAULT = 60
"""More than pass between two faults, so that the last one comes before the end."""

SETTINGS = {
    "radio.waveform": "energy", "radio.plateau_samples": 8192, "radio.sample_rate_hz": 1e6,
    "radio.channel": "awgn", "radio.snr_db": 30.0, "federation.num_devices": len(HOSTS),
    "federation.min_speakers": 2, "federation.deadline_s": 6.0, "optimizer.batch_size": 4,
    "optimizer.directions": 2, "optimizer.learning_rate": 1e-6, "task.validation_examples": 20,
    "task.validation_is_public": True, "task.max_tokens": 24, "privacy.epsilon": 8.0,
    "privacy.noise_source": "system",
}  # fmt: skip


class Lab:
    """The processes of one run, in a folder.

    Args:
        folder: of everything.
        num_rounds: of the run.
    """

    def __init__(self, folder: Path, num_rounds: int) -> None:
        self.folder, self.run = folder, folder / "run"
        settings = {**SETTINGS, "optimizer.rounds": num_rounds}
        pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        self._asked = ["snips", *(part for pair in pairs for part in ("--set", pair))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        spec, task_folder = load_task("snips")
        lines = (task_folder / spec.train).read_text("utf-8").splitlines(keepends=True)
        for number, name in enumerate(HOSTS):
            (folder / f"{name}.tsv").write_text("".join(lines[number :: len(HOSTS)][:500]), "utf-8")
        self._carry_out("policy", *self._asked, "--records", "500", "--out", folder / "policy.toml")
        self._carry_out("credentials", "--devices", ",".join(HOSTS), "--out", folder / "lab",
                        "--port", self._port)  # fmt: skip
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, who: str) -> None:
        """Start the broker, the server or a host; the server goes on with what there is."""
        pairzero = (sys.executable, "-m", "server.commands.cli")
        if who == "broker":
            self._start(who, find_program(), "-c", "broker.conf", at=self.folder / "lab")
        elif who == "server":
            goes_on = (self.run / STORE_FILE).exists()
            what = ("--resume", self.run) if goes_on else (*self._asked, "--out", self.run)
            where = (
                "--credentials",
                self.folder / "lab",
                "--broker",
                f"tls://127.0.0.1:{self._port}",
            )
            self._start(who, *pairzero, "serve", *what, "--force", "--wait", 120, *where)
        else:
            self._start(who, sys.executable, "-m", "edge_runtime.cli", "join",
                        self.folder / "lab" / f"{who}.pairzero", "--data",
                        self.folder / f"{who}.tsv", "--policy", self.folder / "policy.toml",
                        "--state", self.state_of(who), "--wait", 120)  # fmt: skip

    def state_of(self, host: str) -> Path:
        """The host's own folder."""
        return self.folder / f"state-{host}"

    def ended(self, who: str) -> int | None:
        """The exit code of one that has ended by itself."""
        return self._processes[who].poll()

    def send(self, who: str, number: int) -> None:
        """A signal, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            self._processes[who].send_signal(number)

    def kill(self, who: str) -> None:
        """With SIGKILL."""
        self._processes[who].kill()
        self._processes[who].wait()

    def wait(self, who: str, timeout_s: float) -> int | None:
        """Its exit code; None if it does not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._processes[who].wait(timeout_s)
        return None

    def close(self) -> None:
        """Nobody is left."""
        for who in self._processes:
            self.kill(who)

    def _start(self, who: str, *command: Any, at: Path | None = None) -> None:
        with (self.folder / f"{who}.log").open("ab") as log:
            self._processes[who] = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, cwd=at or self.folder
            )

    def _carry_out(self, *command: Any) -> None:
        words = [sys.executable, "-m", "server.commands.cli", *map(str, command)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


def kill(lab: Lab, who: str, rng: random.Random, spoil: Callable[[], None] = lambda: None) -> None:
    """Kill, perhaps spoil what it left, and start again after a while."""
    lab.kill(who)
    spoil()
    time.sleep(rng.choice(_AWAY_S))
    lab.start(who)


def stop(lab: Lab, who: str, rng: random.Random) -> None:
    """Neither dead nor alive for some seconds."""
    lab.send(who, signal.SIGSTOP)
    time.sleep(rng.uniform(*_STOPPED_S))
    lab.send(who, signal.SIGCONT)


def lose_journal(lab: Lab, who: str, rng: random.Random) -> None:
    """A host is killed and its journal is gone."""
    journal = lab.state_of(who) / f"journal-{who}.sqlite"
    kill(lab, who, rng, lambda: journal.unlink(missing_ok=True))


def lose_disk(lab: Lab, who: str, rng: random.Random) -> None:
    """The broker is killed and its disk is gone."""
    disk = lab.folder / "lab" / "disk"
    kill(lab, who, rng, lambda: shutil.rmtree(disk, ignore_errors=True))


KINDS: dict[str, tuple[Callable[[Lab, str, random.Random], None], tuple[str, ...]]] = {
    "host killed": (kill, HOSTS),
    "host stopped": (stop, HOSTS),
    "host killed, journal gone": (lose_journal, HOSTS),
    "server killed": (kill, ("server",)),
    "server stopped": (stop, ("server",)),
    "broker killed": (kill, ("broker",)),
    "broker stopped": (stop, ("broker",)),
    "broker killed, disk gone": (lose_disk, ("broker",)),
}


def one_run(seed: int, num_faults: int) -> dict[str, Any]:
    """A run with so many faults, and what is left of it."""
    rng, num_rounds = random.Random(seed), _ROUNDS_A_FAULT * num_faults
    done: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        lab = opened.enter_context(contextlib.closing(Lab(folder, num_rounds)))
        for who in ("broker", "server", *HOSTS):
            lab.start(who)
            time.sleep(1.0)
        begun_s = time.monotonic()
        while done.total() < num_faults and lab.ended("server") != 0:
            time.sleep(rng.uniform(*_BETWEEN_S))
            start_those_who_ended(lab)
            if lab.ended("server") == 0:
                break
            kind = rng.choice(list(KINDS))
            act, whom = KINDS[kind]
            act(lab, rng.choice(whom), rng)
            done[kind] += 1
        until_s = time.monotonic() + _END_S + num_rounds
        while lab.ended("server") != 0 and time.monotonic() < until_s:
            time.sleep(1.0)
            start_those_who_ended(lab)
        hosts = {host: lab.wait(host, 60.0) for host in HOSTS}
        if lab.ended("server") != 0:
            print((folder / "server.log").read_text("utf-8")[-3000:], file=sys.stderr)
        return {
            "seed": seed,
            "faults": dict(done),
            "wall_s": round(time.monotonic() - begun_s, 1),
            "server_ended": lab.ended("server"),
            "hosts_ended": hosts,
            **what_is_left(lab, num_rounds),
        }


def start_those_who_ended(lab: Lab) -> None:
    """As an operator does; not the server once its run is over, nor its hosts then."""
    for who in ("broker", "server", *HOSTS):
        if lab.ended(who) not in (None, 0):
            lab.start(who)


def what_is_left(lab: Lab, num_rounds: int) -> dict[str, Any]:
    """Counts of what must not be, beside how the rounds went."""
    store = RunStore.open_to_read(lab.run)
    try:
        rows, outcome = store.rounds(), str(store.outcome)
        records = PrivacyLedger(store.connection).records()
        lives = (store.meta("epoch") or 0) + 1
    finally:
        store.close()
    unpaid = twice = keys = 0
    for index, host in enumerate(HOSTS):
        paid = {r.round_index for r in records if r.device_index == index}
        with contextlib.closing(DeviceLedger(lab.state_of(host))) as ledger:
            counted = [release.round_index for release in ledger.releases(host)]
        unpaid += len(set(counted) - paid)
        twice += len(counted) - len(set(counted))
        keys += (lab.state_of(host) / KEYS_FILE).exists()
    return {
        "outcome": outcome,
        "rounds": len(rows),
        "lost_rounds": num_rounds - len(rows),
        "rounds_of_all": sum(row.num_speakers == len(HOSTS) for row in rows),
        "rounds_passed_over": sum(row.is_skipped for row in rows),
        "server_lives": lives,
        "unpaid_releases": unpaid,
        "releases_made_twice": twice,
        "keys_left": keys,
    }


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = Study(__doc__, quick="one run with few faults")
    args = study.begin()
    wanted = [(0, QUICK_FAULTS)] if args.quick else [(seed, FAULTS) for seed in range(RUNS)]
    for seed, number in study.missing(wanted, lambda row: (row["seed"], row["wanted"])):
        row = {"wanted": number, **one_run(seed, number)}
        study.add(row, json.dumps(row))
    totals: collections.Counter[str] = collections.Counter()
    for row in study.rows:
        totals.update(row["faults"])
    must_be_none = ("lost_rounds", "unpaid_releases", "releases_made_twice", "keys_left")
    sums = {what: sum(row[what] for row in study.rows) for what in must_be_none}
    unequal = sum(row["outcome"] != "complete" for row in study.rows)
    print(f"{totals.total()} faults ({', '.join(f'{n} {k}' for k, n in sorted(totals.items()))}): "
          f"{unequal} runs that are not complete with equal weights, {sums}")  # fmt: skip
    study.finish(faults=totals, not_complete=unequal, **sums, rows=study.rows)
    if unequal or any(sums.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
