"""What time it is among virtual radios: as on the wall, or only as far as somebody has listened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds since the radios were switched on."""

    def now_s(self) -> float:
        """Now; never earlier than at the call before."""

    def wait_until(self, moment_s: float) -> None:
        """Return when it is ``moment_s`` or later."""

    def spend_command(self) -> None:
        """A host has sent a command, which takes as long as it takes."""


class WallClock:
    """Real time: a capture takes as long as it would on hardware.

    Args:
        monotonic: seconds.
        sleep: for so many seconds.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._origin_s = monotonic()

    def now_s(self) -> float:
        """Since the clock was made."""
        return self._monotonic() - self._origin_s

    def wait_until(self, moment_s: float) -> None:
        """Sleep for the rest."""
        rest_s = moment_s - self.now_s()
        if rest_s > 0:
            self._sleep(rest_s)

    def spend_command(self) -> None:
        """The network has spent it already."""


class SteppedClock:
    """Time that passes only when somebody waits for it, and a little with every command.

    A round takes as long as it takes to compute, and one client's commands always meet the same
    moments. The little makes buffers stale here too.

    Args:
        command_s: seconds that a command takes.
    """

    def __init__(self, command_s: float = 1e-3) -> None:
        self._command_s = command_s
        self._now_s = 0.0
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """As late as anybody has waited for."""
        with self._lock:
            return self._now_s

    def wait_until(self, moment_s: float) -> None:
        """Be there at once."""
        with self._lock:
            self._now_s = max(self._now_s, moment_s)

    def spend_command(self) -> None:
        """Move on by the time of one command."""
        with self._lock:
            self._now_s += self._command_s
