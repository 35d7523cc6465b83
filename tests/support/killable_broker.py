"""A broker with a disk of its own that a test may kill and start again at the same place."""

import json
import socket
import subprocess
import time

from server.hosts.broker import find_program


def free_port():
    """One that nobody listens at, a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class KillableBroker:
    """Args: folder: of its disk; keeps: whether it has one."""

    def __init__(self, folder, keeps=True):
        self.folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        disk = json.dumps(str(folder / "disk"))
        (folder / "broker.conf").write_text(
            f"listen: 127.0.0.1:{self.port}\nmax_payload: 2MB\n"
            + (f"jetstream {{ store_dir: {disk}, sync_interval: always }}\n" if keeps else "")
        )
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [find_program(), "-c", self.folder / "broker.conf", "-l", self.folder / "log"]
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the broker does not start")

    def kill(self):
        self._process.kill()
        self._process.wait(30)
