"""Calls that several threads share: passes over the weights, in pieces."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


class SharedWork:
    """Makes calls, ``num_threads`` at a time; with 1 the caller's own thread makes them all."""

    def __init__(self, num_threads: int) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if num_threads > 1:
            self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pairzero-move")
            weakref.finalize(self, self._pool.shutdown, wait=False)

    def do(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make every call; returns when all are made."""
        if self._pool is None or len(calls) == 1:
            for call in calls:
                call()
            return
        for done in [self._pool.submit(call) for call in calls]:
            done.result()

    def close(self) -> None:
        """Let the threads go; later calls are made by the caller's own. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
