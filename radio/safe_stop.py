"""However a process ends, its radios go silent first - as far as a process has a say in it.

SIGINT comes out of the program as KeyboardInterrupt, and everything that is not closed by then is
closed at the exit of the interpreter. SIGTERM would end the process on the spot: its handler closes
the radios and lets the signal do its work. A program that handles SIGTERM itself is left to it.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import weakref
from types import FrameType

from radio.errors import RadioError
from radio.transceiver import Transceiver

_logger = logging.getLogger(__name__)

_open_radios: weakref.WeakSet[Transceiver] = weakref.WeakSet()
_registered: list[bool] = []


def watch(radio: Transceiver) -> None:
    """Close ``radio`` when the process ends, if it is still open then."""
    _open_radios.add(radio)
    if _registered:
        return
    _registered.append(True)
    atexit.register(silence_all)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def forget(radio: Transceiver) -> None:
    """It is closed."""
    _open_radios.discard(radio)


def silence_all() -> None:
    """Close every open radio; what fails is logged, and the others are closed all the same."""
    for radio in list(_open_radios):
        try:
            radio.close()
        except RadioError as error:
            _logger.error("%s", error)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    silence_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
