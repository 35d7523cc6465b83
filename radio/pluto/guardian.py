"""The program's end of its guardian: a small process that silences radios when it cannot.

Signals, exceptions and the end of the interpreter are the program's own to handle
(`radio.pluto.safe_stop`). SIGKILL, an abort, a segmentation fault and a program that hangs leave
nobody to handle anything; the guardian is who is left (`radio.pluto.guardian_process`).

What ties it to the program is a pipe that no child inherits. Lines are written before what they
announce: a burst is armed before it is held, and where that fails nothing is transmitted. Each hold
arms anew for a fixed time, and no timer ever renews it: a thread would beat for a hung loop, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

from radio.errors import RadioUnavailableError
from radio.pluto.guardian_process import READY

_READY_S = 60.0
_END_S = 5.0
_PACKAGES = Path(__file__).parents[2]
# -P: what lies in the folder where a program is started must not be taken for these packages; the
# guardian's are those of the program.
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from radio.pluto.guardian_process import main; main(int(sys.argv[2]))"
)


class Guardian:
    """Starts the process; it is there, with its library loaded, when this returns.

    Raises:
        RadioUnavailableError: it did not start.
    """

    def __init__(self) -> None:
        theirs, ours = os.pipe()
        os.set_blocking(ours, False)
        self._pipe: int | None = ours
        self._owner = os.getpid()
        try:
            # A session of its own: it outlives the terminal.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(_PACKAGES), str(os.getpid())],
                stdin=theirs,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            is_there, _, _ = select.select([answers], [], [], _READY_S)
            answer = answers.readline() if is_there else b""
        if answer != READY:
            self.let_go()
            self._process.kill()
            self._process.wait()
            raise RadioUnavailableError(
                "pluto: the guardian of the radios did not start; what it says is above. Without "
                "one nothing is transmitted."
            )
        # A child that is forked without exec would keep the pipe open beyond the program's end.
        os.register_at_fork(after_in_child=self.let_go)

    @property
    def is_there(self) -> bool:
        """Whether the process lives, and is this process's own."""
        return self._owner == os.getpid() and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._process.pid

    def watch(self, uri: str) -> None:
        """A radio is this program's.

        Raises:
            RadioUnavailableError: the guardian is gone, as from all of these.
        """
        self._write(f"watch {uri}")

    def arm(self, uri: str, max_hold_s: float) -> None:
        """A burst is about to be held, for so long at most."""
        self._write(f"arm {uri} {max_hold_s!r}")

    def disarm(self, uri: str) -> None:
        """It has ended, as read back."""
        self._write(f"disarm {uri}")

    def forget(self, uri: str) -> None:
        """A radio is closed, and silent as read back."""
        self._write(f"forget {uri}")

    def let_go(self) -> None:
        """Close the pipe: the process ends, or does what it is there for. Idempotent."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(OSError):
                os.close(pipe)

    def wait(self) -> None:
        """A moment, for a process that has nothing left to do."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            # So short a write is whole or none at all, from whatever thread or signal handler.
            if self._pipe is None or os.write(self._pipe, data) != len(data):
                raise BrokenPipeError("its pipe is closed")
        except OSError as error:
            raise RadioUnavailableError(
                f"pluto: the guardian of the radios is gone ({error}); without one nothing is "
                "transmitted. Start the program again."
            ) from error
