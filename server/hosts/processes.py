"""Hosts of devices as processes of this machine, which end when the one that started them does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from radio.self_closing import SelfClosing, end_with_its_input
from server.errors import HostsError

_STOP_S = 10.0
# -P: what lies in the folder where a run is started must not be taken for these packages.
_DEVICE = [sys.executable, "-P", "-m", "edge_runtime.cli"]


class HostProcesses(SelfClosing):
    """Started one by one; each ends at the end of its input, which is this process's end, too.

    Args:
        logs: folder of what they say.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, host: str, arguments: Sequence[str]) -> None:
        """Start one.

        Args:
            host: its name.
            arguments: of ``pairzero-device``.
        """
        with (self._logs / f"{host}.log").open("wb") as log:
            self._running[host] = subprocess.Popen(
                [*_DEVICE, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Return if all are there.

        Raises:
            HostsError: one has ended; with the last line that it said.
        """
        for host, process in self._running.items():
            if process.poll() is not None:
                raise HostsError(
                    f"{host} has ended ({process.returncode}): {self._last_line(host)}"
                )

    def wait(self) -> None:
        """Return when all have ended by themselves, or after some seconds."""
        for process in self._running.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                return

    def close(self) -> None:
        """End them. Idempotent."""
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()  # all of them first: they end side by side
        for host, process in self._running.items():
            end_with_its_input(host, process, _STOP_S)

    def _last_line(self, host: str) -> str:
        said = (self._logs / f"{host}.log").read_text("utf-8", "replace").strip()
        return said.splitlines()[-1] if said else "it said nothing."
