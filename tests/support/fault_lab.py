"""A run over hosts whose processes, disks, networks and clocks fail, and what is left of it.

A broker, a server and three hosts with policies and ledgers of their own, each a process behind a
piece of network of its own. Three kinds of labs: SECURED has credentials, so that what is spoilt on
the way is noticed by TLS; PLAIN has none, so that single messages are doubled and spoilt; RADIOS is
SECURED with a virtual Pluto for each host, which is listened to.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asking import asked_with
from killable_broker import free_port
from network import Network

from edge_runtime.guard.keys import KEYS_FILE
from edge_runtime.guard.ledger import DeviceLedger
from edge_runtime.task_spec import load_task
from radio.pluto.context import PlutoContext
from radio.pluto.silence import may_radiate
from radio.virtual_pluto.process import VirtualPlutoProcess
from radio.virtual_pluto.server import Bench
from server.hosts.broker import find_program
from server.hosts.own_radios import SILENT_WITHIN_S
from server.privacy.ledger import PrivacyLedger
from server.store.records import STORE_FILE
from server.store.run_store import RunStore

HOSTS = ("pi1", "pi2", "pi3")
ENDS = ("server", *HOSTS)
_CLOCK = Path(__file__).with_name("jumping_clock.c")
_BETWEEN_S = (2.0, 8.0)
_AWAY_S = (0.0, 0.5, 3.0, 8.0)
_BROKEN_S = (1.0, 9.0)
_END_S = 300.0
_MAX_HOLD_S = 2.0
_DAY_S = 86400
_LITTLE_ROOM = 4096
"""Bytes of any file that may be written on a disk that is full: no page of any database but one."""

SETTINGS = {
    "radio.waveform": "energy", "radio.plateau_samples": 8192, "radio.sample_rate_hz": 1e6,
    "federation.num_devices": len(HOSTS), "federation.min_speakers": 2,
    "federation.deadline_s": 6.0, "optimizer.batch_size": 4, "optimizer.directions": 2,
    "optimizer.learning_rate": 1e-6, "task.validation_examples": 20,
    "task.validation_is_public": True, "task.max_tokens": 24, "privacy.epsilon": 8.0,
    "privacy.noise_source": "system",
}  # fmt: skip
PLAYED = {"radio.channel": "awgn", "radio.snr_db": 30.0}
OWN_RADIOS = {
    "radio.backend": "pluto", "radio.min_band_gain": 1e-4, "radio.max_hold_s": _MAX_HOLD_S,
    "pluto.rx_gain_db": 20.0,
}  # fmt: skip


BENCH = Bench(num_radios=1 + len(HOSTS), path_loss_db=30.0, is_stepped=True)


class Kind(enum.StrEnum):
    """Of a lab; see the module."""

    SECURED = "secured"
    PLAIN = "plain"
    RADIOS = "radios"


ROUNDS_A_FAULT = {Kind.SECURED: 400, Kind.PLAIN: 400, Kind.RADIOS: 100}
"""More than pass between two faults, so that the last one is over before the end."""


class Lab:
    """The processes of one run, in a folder.

    Args:
        folder: of everything.
        num_rounds: of the run.
        kind: of lab.
    """

    def __init__(self, folder: Path, num_rounds: int, kind: Kind = Kind.SECURED) -> None:
        self.folder, self.run, self.kind = folder, folder / "run", kind
        self.num_rounds = num_rounds
        self.heard_after_death = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._served: VirtualPlutoProcess | None = None
        self._radios: dict[str, str] = {}
        settings = {**SETTINGS, **PLAYED, "optimizer.rounds": num_rounds}
        if kind is Kind.RADIOS:
            self._served = VirtualPlutoProcess(BENCH)
            receiver, *uris = self._served.uris
            self._radios = dict(zip(HOSTS, uris, strict=True))
            settings = {
                **SETTINGS, **OWN_RADIOS, "pluto.receiver": receiver,
                "optimizer.rounds": num_rounds,
            }  # fmt: skip
        self._asked = asked_with(settings)
        self._port = free_port()
        is_plain = kind is Kind.PLAIN
        self.networks = {end: Network(self._port, has_messages=is_plain) for end in ENDS}
        spec, task_folder = load_task("snips")
        lines = (task_folder / spec.train).read_text("utf-8").splitlines(keepends=True)
        for number, name in enumerate(HOSTS):
            (folder / f"{name}.tsv").write_text("".join(lines[number :: len(HOSTS)][:500]), "utf-8")
        for end in ENDS:
            (folder / f"clock-{end}").write_bytes(struct.pack("q", 0))
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", folder / "clock.so", _CLOCK], check=True
        )
        self._carry_out("policy", *self._asked, "--records", "500", "--out", folder / "policy.toml")
        self._write_broker()

    def start(self, who: str) -> None:
        """Start the broker, the server or a host; the server goes on with what there is."""
        if who == "broker":
            self._start(who, find_program(), "-c", "broker.conf", at=self.folder / "lab")
            return
        is_plain, port = self.kind is Kind.PLAIN, self.networks[who].port
        if who == "server":
            goes_on = (self.run / STORE_FILE).exists()
            what = ("--resume", self.run) if goes_on else (*self._asked, "--out", self.run)
            where = (f"nats://127.0.0.1:{port}",) if is_plain else (
                f"tls://127.0.0.1:{port}", "--credentials", self.folder / "lab"
            )  # fmt: skip
            self._start(who, sys.executable, "-m", "server.commands.cli", "serve", *what,
                        "--force", "--wait", 120, "--broker", *where)  # fmt: skip
            return
        where = (f"nats://127.0.0.1:{port}", "--name", who) if is_plain else (
            self.folder / "lab" / f"{who}.pairzero",
        )  # fmt: skip
        radio = ("--radio", self._radios[who]) if self._radios else ()
        self._start(who, sys.executable, "-m", "edge_runtime.cli", "join", *where,
                    "--data", self.folder / f"{who}.tsv", "--policy", self.folder / "policy.toml",
                    "--state", self.state_of(who), "--wait", 120, *radio)  # fmt: skip

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

    def fill_disk(self, who: str) -> None:
        """Nothing more can be written by one, as on a full disk, until `make_room`."""
        self._limit_files(who, _LITTLE_ROOM)

    def make_room(self, who: str) -> None:
        """Its disk has room again."""
        self._limit_files(who, resource.RLIM_INFINITY)

    def set_clock(self, who: str, ahead_s: int) -> None:
        """The wall clock of one jumps; the other clocks do not."""
        with (self.folder / f"clock-{who}").open("r+b") as file:
            file.write(struct.pack("q", ahead_s))

    def listen_after(self, who: str, waited_s: float) -> None:
        """Count who is still on the air though it, or all who tell it, are dead so long."""
        if not self._radios:
            return
        time.sleep(max(0.0, _MAX_HOLD_S + SILENT_WITHIN_S - waited_s))
        for host in HOSTS if who in ("server", "broker") else (who,):
            self.heard_after_death += bool(may_radiate(PlutoContext(self._radios[host], 5.0)))

    def wait(self, who: str, timeout_s: float) -> int | None:
        """Its exit code; None if it does not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._processes[who].wait(timeout_s)
        return None

    def close(self) -> None:
        """Nobody is left."""
        for who in self._processes:
            self.kill(who)
        for network in self.networks.values():
            network.close()
        if self._served is not None:
            self._served.close()

    def log_of(self, who: str) -> str:
        """What it has said."""
        return (self.folder / f"{who}.log").read_text("utf-8", "replace")

    def _limit_files(self, who: str, most_bytes: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            hard = resource.RLIM_INFINITY
            resource.prlimit(self._processes[who].pid, resource.RLIMIT_FSIZE, (most_bytes, hard))

    def _start(self, who: str, *command: Any, at: Path | None = None) -> None:
        environment = dict(os.environ)
        if who in ENDS:
            environment["LD_PRELOAD"] = str(self.folder / "clock.so")
            environment["JUMPING_CLOCK"] = str(self.folder / f"clock-{who}")
        with (self.folder / f"{who}.log").open("ab") as log:
            self._processes[who] = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=subprocess.STDOUT,
                cwd=at or self.folder, env=environment,
            )  # fmt: skip

    def _write_broker(self) -> None:
        at = self.folder / "lab"
        if self.kind is Kind.PLAIN:
            at.mkdir()
            (at / "broker.conf").write_text(
                f"listen: 127.0.0.1:{self._port}\nmax_payload: 2MB\n"
                'jetstream { store_dir: "disk", sync_interval: always }\n'
            )
            return
        self._carry_out("credentials", "--devices", ",".join(HOSTS), "--out", at,
                        "--port", self._port)  # fmt: skip
        for host in HOSTS:  # each by its own way, as through a tunnel
            file = at / f"{host}.pairzero"
            here = f'addresses = ["127.0.0.1:{self.networks[host].port}"]'
            file.write_text(re.sub(r"addresses = .*", here, file.read_text("ascii")), "ascii")

    def _carry_out(self, *command: Any) -> None:
        words = [sys.executable, "-m", "server.commands.cli", *map(str, command)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


def kill(lab: Lab, who: str, rng: random.Random, spoil: Callable[[], None] = lambda: None) -> None:
    """Kill, perhaps spoil what it left, and start again after a while."""
    lab.kill(who)
    spoil()
    away_s = rng.choice(_AWAY_S)
    time.sleep(away_s)
    lab.listen_after(who, away_s)
    lab.start(who)


def stop(lab: Lab, who: str, rng: random.Random) -> None:
    """Neither dead nor alive for some seconds."""
    lab.send(who, signal.SIGSTOP)
    stopped_s = rng.uniform(*_BROKEN_S)
    time.sleep(stopped_s)
    if who != "broker":  # which is not missed so soon: whoever holds goes on until it is told
        lab.listen_after(who, stopped_s)
    lab.send(who, signal.SIGCONT)


def lose_journal(lab: Lab, who: str, rng: random.Random) -> None:
    """A host is killed and its journal is gone."""
    journal = lab.state_of(who) / f"journal-{who}.sqlite"
    kill(lab, who, rng, lambda: journal.unlink(missing_ok=True))


def lose_disk(lab: Lab, who: str, rng: random.Random) -> None:
    """The broker is killed and its disk is gone."""
    disk = lab.folder / "lab" / "disk"
    kill(lab, who, rng, lambda: shutil.rmtree(disk, ignore_errors=True))


def break_network(lab: Lab, who: str, rng: random.Random, how: Callable[[Network], None]) -> None:
    """A link fails for some seconds, and is whole again."""
    how(lab.networks[who])
    broken_s = rng.uniform(*_BROKEN_S)
    time.sleep(broken_s)
    lab.networks[who].heal()


def cut(lab: Lab, who: str, rng: random.Random) -> None:
    """Every connection is reset, and there is no new one for some seconds."""
    break_network(lab, who, rng, Network.cut)


def freeze(lab: Lab, who: str, rng: random.Random) -> None:
    """Nothing arrives for some seconds, and then all of it."""
    break_network(lab, who, rng, Network.freeze)


def drop(lab: Lab, who: str, rng: random.Random) -> None:
    """A connection that passes nothing any more, though nobody says so."""
    break_network(lab, who, rng, Network.drop)


def double(lab: Lab, who: str, rng: random.Random) -> None:
    """Some messages arrive twice."""
    break_network(lab, who, rng, lambda network: network.double(rng.randint(1, 20)))


def spoil(lab: Lab, who: str, rng: random.Random) -> None:
    """Some messages, or pieces of what is encrypted, have a wrong bit."""
    break_network(lab, who, rng, lambda network: network.spoil(rng.randint(1, 3)))


def fill_disk(lab: Lab, who: str, rng: random.Random) -> None:
    """A disk is full for some seconds."""
    lab.fill_disk(who)
    time.sleep(rng.uniform(*_BROKEN_S))
    lab.make_room(who)


def jump(lab: Lab, who: str, rng: random.Random) -> None:
    """A clock jumps by up to 300 days, and stays there."""
    lab.set_clock(who, rng.randint(-300, 300) * _DAY_S)


Act = Callable[[Lab, str, random.Random], None]
_EVERYWHERE = frozenset(Kind)
_NO_RADIOS = _EVERYWHERE - {Kind.RADIOS}

FAULTS: dict[str, tuple[Act, tuple[str, ...], frozenset[Kind]]] = {
    "host killed": (kill, HOSTS, _EVERYWHERE),
    "host stopped": (stop, HOSTS, _EVERYWHERE),
    "host killed, journal gone": (lose_journal, HOSTS, _NO_RADIOS),
    "host's disk full": (fill_disk, HOSTS, _EVERYWHERE),
    "host's clock jumps": (jump, HOSTS, _NO_RADIOS),
    "server killed": (kill, ("server",), _EVERYWHERE),
    "server stopped": (stop, ("server",), _EVERYWHERE),
    "server's disk full": (fill_disk, ("server",), _NO_RADIOS),
    "server's clock jumps": (jump, ("server",), _NO_RADIOS),
    "broker killed": (kill, ("broker",), _EVERYWHERE),
    "broker stopped": (stop, ("broker",), _EVERYWHERE),
    "broker killed, disk gone": (lose_disk, ("broker",), _NO_RADIOS),
    "network cut": (cut, ENDS, _EVERYWHERE),
    "network frozen": (freeze, ENDS, _EVERYWHERE),
    "network drops": (drop, ENDS, _EVERYWHERE),
    "messages doubled": (double, ENDS, frozenset({Kind.PLAIN})),
    "messages spoilt": (spoil, ENDS, frozenset({Kind.PLAIN, Kind.SECURED})),
}


def run_with_faults(
    folder: Path, kind: Kind, seed: int, num_faults: int, haste: float = 1.0
) -> dict[str, Any]:
    """A run with so many faults, drawn by a seed, and what is left of it.

    Args:
        folder: of everything.
        kind: of lab.
        seed: of which faults come when.
        num_faults: of those that may come before the run ends.
        haste: by which faults come sooner, and a run is shorter.
    """
    rng = random.Random(f"{kind} {seed}")
    able = [name for name, (_, _, kinds) in FAULTS.items() if kind in kinds]
    deck: list[str] = []
    done: list[str] = []
    num_rounds = round(ROUNDS_A_FAULT[kind] * num_faults / haste)
    with contextlib.closing(Lab(folder, num_rounds, kind)) as lab:
        for who in ("broker", *ENDS):
            lab.start(who)
            time.sleep(1.0)
        begun_s = time.monotonic()
        while len(done) < num_faults and lab.ended("server") != 0:
            time.sleep(rng.uniform(*_BETWEEN_S) / haste)
            start_those_who_ended(lab)
            if lab.ended("server") == 0:
                break
            if not deck:
                deck = rng.sample(able, len(able))  # all of them, before any comes again
            name = deck.pop()
            act, whom, _ = FAULTS[name]
            act(lab, rng.choice(whom), rng)
            done.append(name)
        until_s = time.monotonic() + _END_S + lab.num_rounds
        while lab.ended("server") != 0 and time.monotonic() < until_s:
            time.sleep(1.0)
            start_those_who_ended(lab)
        hosts = {host: lab.wait(host, 60.0) for host in HOSTS}
        said = {} if lab.ended("server") == 0 else {"said": lab.log_of("server")[-3000:]}
        return {
            "kind": str(kind),
            "seed": seed,
            "faults": dict(collections.Counter(done)),
            "wall_s": round(time.monotonic() - begun_s, 1),
            "server_ended": lab.ended("server"),
            "hosts_ended": hosts,
            **said,
            **what_is_left(lab),
        }


def start_those_who_ended(lab: Lab) -> None:
    """As an operator does; not the server once its run is over, nor its hosts then."""
    for who in ("broker", *ENDS):
        if lab.ended(who) not in (None, 0):
            lab.start(who)


MUST_BE_NONE = (
    "lost_rounds", "unpaid_releases", "releases_made_twice", "releases_not_counted",
    "heard_after_death", "keys_left",
)  # fmt: skip


def what_is_left(lab: Lab) -> dict[str, Any]:
    """Counts of what must not be, beside how the rounds went."""
    store = RunStore.open_to_read(lab.run)
    try:
        rows, outcome = store.rounds(), str(store.outcome)
        records = PrivacyLedger(store.connection).records()
        lives = (store.meta("epoch") or 0) + 1
    finally:
        store.close()
    left: collections.Counter[str] = collections.Counter()
    for index, host in enumerate(HOSTS):
        paid = {r.round_index for r in records if r.device_index == index}
        with contextlib.closing(DeviceLedger(lab.state_of(host))) as ledger:
            counted = [release.round_index for release in ledger.releases(host)]
        left["unpaid_releases"] += len(set(counted) - paid)
        left["releases_made_twice"] += len(counted) - len(set(counted))
        # Rounds in which all were heard: each must have counted its own.
        heard = {row.round_index for row in rows if row.num_speakers == len(HOSTS)}
        left["releases_not_counted"] += len((heard & paid) - set(counted))
        left["keys_left"] += (lab.state_of(host) / KEYS_FILE).exists()
    left["lost_rounds"] = lab.num_rounds - len(rows)
    left["heard_after_death"] = lab.heard_after_death
    return {
        "outcome": outcome,
        "rounds": len(rows),
        "rounds_of_all": sum(row.num_speakers == len(HOSTS) for row in rows),
        "rounds_passed_over": sum(row.is_skipped for row in rows),
        "server_lives": lives,
        "messages_doubled": sum(n.num_doubled for n in lab.networks.values()),
        "messages_spoilt": sum(n.num_spoilt for n in lab.networks.values()),
        **{what: left[what] for what in MUST_BE_NONE},
    }
