"""What is closed at the end of a ``with`` block, whatever ends it."""

from __future__ import annotations

import functools
import logging
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from radio.errors import RadioError, RadioNotSilentError

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_MOST_THREADS = 256
"""As many radios as there may be; virtual devices wait for nothing, and may be thousands."""


class SelfClosing(ABC):
    """A context manager that is its own resource."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def all_at_once(acts: Sequence[Callable[[], _T]]) -> list[_T]:
    """Call all of them side by side, a thread each, so that none waits for another's radio.

    Returns:
        What they return, in their order.

    Raises:
        What the first of them raises, when all have been called.
    """
    if len(acts) < 2:
        return [act() for act in acts]
    with ThreadPoolExecutor(max_workers=min(len(acts), _MOST_THREADS)) as side_by_side:
        answers = [side_by_side.submit(act) for act in acts]
    return [answer.result() for answer in answers]


def silence_each(silencers: Sequence[Callable[[], None]]) -> None:
    """Call all of them side by side: one radio that does not answer delays no other.

    Raises:
        RadioNotSilentError: of all radios that are not known to be silent. Other errors of radios
            are logged; anything else is raised when all have been called.
    """
    failures = all_at_once([functools.partial(_failure_of, act) for act in silencers])
    loud = [str(failure) for failure in failures if isinstance(failure, RadioNotSilentError)]
    others = [f for f in failures if f is not None and not isinstance(f, RadioError)]
    for failure in failures:
        if isinstance(failure, RadioError) and not isinstance(failure, RadioNotSilentError):
            _logger.warning("%s", failure)
    if loud:
        raise RadioNotSilentError(" ".join(loud)) from next(iter(others), None)
    if others:
        raise others[0]


def _failure_of(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def end_with_its_input(what: str, process: subprocess.Popen[Any], stop_s: float) -> None:
    """End a child process that goes when its input ends; one that does not is killed.

    Args:
        what: it is, for the log.
        process: with a pipe to its input; it may have ended already.
        stop_s: how long it is waited for.
    """
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(stop_s)
    except subprocess.TimeoutExpired:
        _logger.warning("%s: process %d does not end; killed", what, process.pid)
        process.kill()
        process.wait()
