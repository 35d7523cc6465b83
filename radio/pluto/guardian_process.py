"""The guardian's own process: when a program is gone, or hangs, its radios fall silent.

Its input is the one thing that ties it to the program, and has a line for whatever changes::

    watch URI         this radio is the program's
    arm URI SECONDS   a burst is about to be held, for so long at most
    disarm URI        it has ended, as read back
    forget URI        the radio is closed, and silent as read back

The end of the input is the end of the program, however it came: a radio that is watched then was
not closed. A hold that outlasts its seconds is a program that hangs. In both cases the program is
ended first, because a radio at USB has one owner; then all radios are silenced side by side, and
what was read back is said on standard error and in the system's log.

It takes no part in the terminal's life and heeds no request to end: it ends by itself when there is
nothing left to watch. It loads libiio and its binding, neither numpy nor pyadi-iio nor a model.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import syslog
import threading
import time
from collections.abc import Iterable

from radio.errors import RadioError
from radio.pluto.context import binding
from radio.pluto.silence import AS_READ_BACK, silence

READY = b"ready\n"
_RETRY_S = 0.5
_GIVE_UP_S = 30.0
"""After that a radio that cannot be reached is left to a person: somebody may be using it again."""

_END_OF_PROGRAM_S = 2.0
_UNHEEDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE,
)  # fmt: skip


class Watch:
    """Which radios there are, and which of them may be on the air until when."""

    def __init__(self) -> None:
        self.radios: set[str] = set()
        self._until_s: dict[str, float] = {}

    def take(self, line: str, now_s: float) -> None:
        """One line of the program's."""
        match line.split():
            case ["watch", uri]:
                self.radios.add(uri)
            case ["arm", uri, seconds]:
                self._until_s[uri] = now_s + float(seconds)
            case ["disarm", uri]:
                self._until_s.pop(uri, None)
            case ["forget", uri]:
                self._until_s.pop(uri, None)
                self.radios.discard(uri)
            case _:
                raise ValueError(f"guardian: {line!r} is none of its lines")

    def seconds_left(self, now_s: float) -> float | None:
        """Until the first hold has lasted too long; None if nothing is held."""
        return min(self._until_s.values()) - now_s if self._until_s else None

    def overdue(self, now_s: float) -> list[str]:
        """Radios whose hold has lasted too long."""
        return sorted(uri for uri, until_s in self._until_s.items() if until_s <= now_s)


def main(program: int) -> None:
    """Watch until there is nothing to watch.

    Args:
        program: the process that started this one.
    """
    for number in _UNHEEDED:
        signal.signal(number, signal.SIG_IGN)
    binding()
    handle = _handle(program)
    os.write(sys.stdout.fileno(), READY)
    watch, why = Watch(), "ended"
    overdue = _wait_for_the_end(watch, sys.stdin.fileno(), handle)
    if overdue:
        why = f"hung with a burst on the air at {', '.join(overdue)}"
    if not watch.radios:
        return
    # One that has let go of its pipe is about to end by itself, with an exit code of its own.
    was_alive = _end(handle, 0.0 if overdue else _END_OF_PROGRAM_S)
    if was_alive and not overdue:
        why = "let go of its guardian"
    uris = sorted(watch.radios)
    said = silence_all(uris)
    for uri in uris:
        _say(f"the program (process {program}) {why}; {said[uri] or f'{uri}: no answer yet'}")


def silence_all(uris: Iterable[str]) -> dict[str, str]:
    """Silence radios side by side, each again and again until it is or time is up.

    Returns:
        What became of each, in words.
    """
    said: dict[str, str] = {}

    def silence_until_silent(uri: str) -> None:
        deadline_s = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                report = silence(uri)
            except RadioError as error:
                said[uri] = str(error)
                is_refused = isinstance(error.__cause__, ConnectionRefusedError)
                if is_refused and uri.startswith("ip:127."):
                    said[uri] = f"{uri}: a virtual radio that has ended, as good as {AS_READ_BACK}"
                    return
            except Exception as error:  # nothing may keep it from trying again
                said[uri] = f"{uri}: not known to be silent ({error!r})"
            else:
                found = "; ".join(report.found) or "nothing"
                said[uri] = (
                    f"{uri}: on the air was: {found}; silent now, as read back: {AS_READ_BACK}"
                )
                return
            if time.monotonic() >= deadline_s:
                return
            time.sleep(_RETRY_S)

    threads = [
        threading.Thread(target=silence_until_silent, args=(uri,), daemon=True) for uri in uris
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_GIVE_UP_S + 30.0)
    return {uri: said.get(uri, "") for uri in uris}


def _wait_for_the_end(watch: Watch, source: int, handle: int | None) -> list[str]:
    """Until the program is gone, or holds too long: then the radios that it holds."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if handle is not None:
        # A child of the program that was forked without a word may keep the other end open.
        poll.register(handle, select.POLLIN)
    pending = b""
    while True:
        left_s = watch.seconds_left(time.monotonic())
        events = poll.poll(None if left_s is None else max(0.0, 1e3 * left_s))
        if any(number == source for number, _ in events):
            data = os.read(source, 1 << 16)
            if not data:
                return []
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                watch.take(line.decode(), time.monotonic())
        elif events:
            return []
        if overdue := watch.overdue(time.monotonic()):
            return overdue


def _handle(program: int) -> int | None:
    """A handle of the program, whoever gets its number later; None if it is gone already."""
    try:
        handle = os.pidfd_open(program)
    except OSError:
        return None
    if os.getppid() != program:
        os.close(handle)
        return None
    return handle


def _end(handle: int | None, patience_s: float) -> bool:
    """End the program unless it does so in time; whether it had to be. It is gone afterwards."""
    if handle is None:
        return False
    gone = select.poll()
    gone.register(handle, select.POLLIN)
    if gone.poll(1e3 * patience_s):
        return False
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    gone.poll(1e3 * _END_OF_PROGRAM_S)
    return True


def _say(text: str) -> None:
    """Where a person may look; a terminal that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        os.write(2, f"pairzero guardian: {text}\n".encode())
    with contextlib.suppress(OSError):
        syslog.syslog(syslog.LOG_WARNING, f"pairzero guardian: {text}")
