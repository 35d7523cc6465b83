"""A broker, a server and two hosts with a radio each, all processes that may be killed; and an ear.

The radios are virtual Plutos of a process of their own, which outlives the others as hardware does.
"""

import contextlib
import signal
import subprocess
import sys

import numpy as np
from asking import asked_with
from killable_broker import KillableBroker

from edge_runtime.task_spec import load_task
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.transceiver import PlutoTransceiver

MAX_HOLD_S = 2.5
LOUD_DBFS = -60.0
CONFIG = {
    "federation.num_devices": 2, "federation.deadline_s": 20.0, "optimizer.rounds": 50,
    "optimizer.batch_size": 4, "optimizer.directions": 2, "privacy.enabled": False,
    "task.validation_examples": 20, "task.max_tokens": 24, "radio.max_hold_s": MAX_HOLD_S,
    # As long as they may, so that there is time to kill somebody meanwhile.
    "pluto.settling_s": 1.0, "pluto.tx_attenuation_db": 0.0, "pluto.rx_gain_db": 20.0,
}  # fmt: skip
SLOTTED = {"radio.waveform": "slotted", "radio.sample_rate_hz": 1e6}
ENERGY = {
    "radio.waveform": "energy", "radio.min_band_gain": 1e-4, "radio.sample_rate_hz": 20e6,
}  # fmt: skip


def _to_hosts(number):
    # Which one is on the air is not told: both, so that it is one of them.
    return lambda site: [host.send_signal(number) for host in site.hosts.values()]


DEATHS = {
    "server": lambda site: site.server.kill(),
    "broker": lambda site: site.broker.kill(),
    "host": _to_hosts(signal.SIGKILL),
    "host that hangs": _to_hosts(signal.SIGSTOP),
}
"""What may die in a hold -> how."""


class Site:
    """A broker, a server and two hosts with a radio each, all processes; and who listens."""

    def __init__(self, folder, uris, settings):
        self.folder, self.uris = folder, uris[1:3]
        rate_hz = settings["radio.sample_rate_hz"]
        self.listener = PlutoTransceiver(
            PlutoSettings(
                uris[3], Role.RECEIVER, sample_rate_hz=rate_hz, rf_bandwidth_hz=rate_hz,
                rx_gain_db=20.0,
            )
        )  # fmt: skip
        self.broker = KillableBroker(folder / "broker")
        spec, task_folder = load_task("snips")
        lines = (task_folder / spec.train).read_text("utf-8").splitlines(keepends=True)
        self._settings = {
            **CONFIG, "radio.backend": "pluto", "pluto.receiver": uris[0], **settings,
        }  # fmt: skip
        self.hosts = {}
        self.logs = []
        self.server = self.serve(*asked_with(self._settings), "--out", folder / "run", "--force")
        for number, (name, uri) in enumerate(zip(("pi1", "pi2"), self.uris, strict=True)):
            (folder / f"{name}.tsv").write_text("".join(lines[number:200:2]), "utf-8")
            self.hosts[name] = self._start(
                "edge_runtime.cli", "join", self.broker.url, "--name", name, "--wait", 600,
                "--data", folder / f"{name}.tsv", "--state", folder / f"state-{name}",
                "--radio", uri,
            )  # fmt: skip

    def serve(self, *more):
        return self._start("server.commands.cli", "serve", *more, "--broker", self.broker.url)

    def _start(self, module, *arguments):
        log = (self.folder / f"log-{len(self.logs)}").open("wb")
        self.logs.append(log)
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], stdout=log, stderr=log
        )

    def is_loud(self):
        power = np.mean(np.abs(self.listener.capture(4096, timeout_s=5.0)) ** 2)
        return 10.0 * np.log10(power + 1e-12) > LOUD_DBFS

    def said(self):
        return "".join((self.folder / f"log-{n}").read_text() for n in range(len(self.logs)))

    def close(self):
        for process in (self.server, *self.hosts.values()):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(60)
        with contextlib.suppress(Exception):
            self.broker.kill()
        self.listener.close()
        for log in self.logs:
            log.close()
