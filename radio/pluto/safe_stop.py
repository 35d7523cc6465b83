"""However a process ends or is stopped, its radios go silent first.

Four ways lead here, and each is the net below the one before:

* a ``with`` block or ``close`` silences its radio, whatever the reason;
* what is still open at the end of the interpreter is closed then;
* a signal that would end the process or stop it (Ctrl-Z too) closes the radios and then does what
  it does. SIGINT comes out of the program as KeyboardInterrupt. A signal that the program handles
  itself is left to it, one that is ignored stays so, as a hang-up under nohup;
* where the process has no say any more - SIGKILL, SIGSEGV, an abort, a loop that hangs while a
  burst is held - its guardian does it (`radio.pluto.guardian`).

Radios are silenced side by side: one that does not answer delays no other. Each has a thread of its
own, waiting from the beginning, because at the end of the interpreter none can be started. What
fails is reported, whatever it was, and its radio is left to the guardian.

A process that is continued after a stop finds its radios closed: what they would have captured in
the meantime is nobody's number.
"""

from __future__ import annotations

import abc
import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType

from radio.errors import RadioConfigurationError
from radio.pluto.guardian import Guardian
from radio.pluto.silence import not_silent

_logger = logging.getLogger(__name__)

_DEADLINE_S = 20.0
_STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_ENDING = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR, signal.SIGXCPU,
    signal.SIGXFSZ, signal.SIGSTKFLT,
)  # fmt: skip


class Silenceable(abc.ABC):
    """What can be watched: a radio that is on the air until it is closed."""

    @property
    @abc.abstractmethod
    def uri(self) -> str:
        """Where a new connection would find it."""

    @property
    @abc.abstractmethod
    def serial(self) -> str:
        """By which it is the same radio whatever its address; empty where it has none."""

    @property
    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Whether nobody uses it any more, be it silent or not."""

    @abc.abstractmethod
    def close_for(self, thread: int) -> None:
        """Close it, from any thread, though that thread may be in the middle of a call to it.

        That thread makes no further step meanwhile.
        """


class _Watched:
    """A radio, and the thread that waits to silence it."""

    def __init__(self, radio: Silenceable) -> None:
        self.radio = radio
        self.failure: BaseException | None = None
        self._is_wanted = threading.Event()
        self._on_behalf_of: int | None = None
        self._is_done = threading.Event()
        threading.Thread(target=self._wait, name=f"silence {radio.uri}", daemon=True).start()

    def begin(self, thread: int | None) -> None:
        """Silence it; None: it has been, and nobody has to wait any longer."""
        if not self._is_wanted.is_set():
            self._on_behalf_of = thread
            self._is_wanted.set()

    def is_done_by(self, deadline_s: float) -> bool:
        return self._is_done.wait(max(0.0, deadline_s - time.monotonic()))

    def _wait(self) -> None:
        self._is_wanted.wait()
        if self._on_behalf_of is not None:
            try:
                self.radio.close_for(self._on_behalf_of)
            except BaseException as error:  # reported by whoever asked; there is nobody above
                self.failure = error
        self._is_done.set()


class _Program:
    """The radios of this process. There is one, as there is one table of signals."""

    def __init__(self) -> None:
        self.watched: dict[Silenceable, _Watched] = {}
        self.guardian: Guardian | None = None
        self.lock = threading.RLock()
        self.process = 0

    def prepare(self) -> Guardian:
        """The guardian; on the first call of a process, handlers as well."""
        if self.process != os.getpid():  # a fork has its parent's radios, not their guardian
            self.process, self.watched, self.guardian = os.getpid(), {}, None
            atexit.register(_at_exit)
            if threading.current_thread() is threading.main_thread():
                for number in (*_ENDING, *_STOPPING):
                    if signal.getsignal(number) is signal.SIG_DFL:
                        signal.signal(number, _on_signal)
        if self.guardian is None or not self.guardian.is_there:
            self.guardian = Guardian()
            for radio in list(self.watched):
                self.guardian.watch(radio.uri)
        return self.guardian


_program = _Program()


def guardian() -> Guardian:
    """This process's, started if there is none.

    Raises:
        RadioUnavailableError: it does not start.
    """
    with _program.lock:
        return _program.prepare()


def watch(radio: Silenceable) -> None:
    """From here on ``radio`` is closed when the process ends, if it is still open then.

    Raises:
        RadioConfigurationError: it is open already, be it under another address.
        RadioUnavailableError: there is no guardian.
    """
    with _program.lock:
        keeper = _program.prepare()
        for other in list(_program.watched):
            if other.uri != radio.uri and (not radio.serial or other.serial != radio.serial):
                continue
            if other.is_closed:  # and was not silent then; it is being opened again for that
                forget(other)
            else:
                raise RadioConfigurationError(
                    f"{radio.uri}: this is the radio of serial number {radio.serial or '?'}, which "
                    f"is open as {other.uri} already. A radio has one task: name each once."
                )
        keeper.watch(radio.uri)
        _program.watched[radio] = _Watched(radio)


def forget(radio: Silenceable) -> None:
    """It is closed, and silent as read back."""
    # No lock: this may be the thread that a signal handler waits for.
    watched = _program.watched.pop(radio, None)
    if watched is not None:
        watched.begin(None)
        if _program.guardian is not None and _program.guardian.is_there:
            _program.guardian.forget(radio.uri)


def silence_all(radios: Iterable[Silenceable] | None = None) -> list[str]:
    """Close every open radio, all at once; what fails is logged.

    Args:
        radios: of this process; all that are open unless told.

    Returns:
        URIs of those that are not known to be silent; the guardian tries on when the process ends.
    """
    chosen = list(_program.watched if radios is None else radios)
    watched = [w for radio in chosen if (w := _program.watched.get(radio)) is not None]
    for each in watched:
        each.begin(threading.get_ident())
    deadline_s = time.monotonic() + _DEADLINE_S
    loud = []
    for each in watched:
        if not each.is_done_by(deadline_s):
            loud.append(each.radio.uri)
            _logger.error("%s", not_silent(each.radio.uri, f"no answer within {_DEADLINE_S:g} s"))
        elif each.failure is not None:
            loud.append(each.radio.uri)
            _logger.error("%s", each.failure)
    return loud


def _at_exit() -> None:
    if _program.process != os.getpid():
        return
    loud = silence_all()
    keeper, _program.guardian = _program.guardian, None
    if keeper is not None:
        keeper.let_go()
        if not loud:
            keeper.wait()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _program.process == os.getpid():
        silence_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Stopped until here, and continued. A signal that ends the process does not come back.
    signal.signal(number, _on_signal)
