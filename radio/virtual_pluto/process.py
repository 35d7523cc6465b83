"""Virtual radios in a process of their own, which ends when the one that started it does."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

from radio.errors import RadioUnavailableError
from radio.self_closing import SelfClosing, end_with_its_input
from radio.software_air.impairments import Impairments
from radio.virtual_pluto.server import Bench, VirtualPlutoServer

_STOP_S = 5.0
# -P: what lies in the folder where a run is started must not be taken for these packages.
_PROGRAM = [sys.executable, "-P", "-c", "from radio.virtual_pluto.process import serve; serve()"]


class VirtualPlutoProcess(SelfClosing):
    """Serves a bench at free ports of this machine.

    Args:
        bench: which radios.

    Raises:
        RadioUnavailableError: it did not start.
    """

    def __init__(self, bench: Bench) -> None:
        # A session of its own: Ctrl-C is for the run, which still has to silence its radios.
        self._process = subprocess.Popen(
            _PROGRAM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(bench)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            raise RadioUnavailableError(
                "virtual pluto: the process that serves the radios ended before they were there; "
                "what it says is above."
            )
        self._uris: list[str] = json.loads(answer)

    @property
    def uris(self) -> list[str]:
        """The radios' URIs, in the bench's order."""
        return list(self._uris)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def close(self) -> None:
        """End the process. Idempotent."""
        end_with_its_input("virtual pluto", self._process, _STOP_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def serve() -> None:
    """The other side: a bench from the first line of the input, radios until its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    values = json.loads(sys.stdin.readline())
    bench = Bench(**{**values, "impairments": Impairments(**values["impairments"])})
    with VirtualPlutoServer(bench.build(), base_port=0) as server:
        sys.stdout.write(json.dumps(server.uris) + "\n")
        sys.stdout.flush()
        # The end of the input is the end of whoever started this, however it came.
        while sys.stdin.readline():
            pass
