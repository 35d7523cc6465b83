"""What a person is told while something takes long: how far it is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

PLAIN_LINE_EVERY_S = 30.0
"""Where nothing can be rewritten (a file, a log of CI), a line so often."""


def in_words(seconds: float) -> str:
    """A duration as a person says it, in one or two units."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 10 else f"{hours} h"


class CountedWork:
    """Trials, one after the other: a bar on a terminal, plain lines elsewhere.

    The first call tells at once how much there is to do, so that nothing starts in silence.

    Args:
        total: how many there are.
        unit: what they are, in the plural.
        out: where it is told; standard error leaves a command's result to itself.
        clock: monotonic seconds.
    """

    def __init__(
        self, total: int, unit: str, out: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._unit = total, unit
        self._out, self._clock = out, clock
        self._is_terminal = out.isatty()
        self._started_s: float | None = None
        self._told_s = 0.0

    def __call__(self, done: int) -> None:
        """Told before each trial how many are done."""
        now = self._clock()
        if self._started_s is None:
            self._started_s = self._told_s = now
            if not self._is_terminal:
                self._say(f"{self._total} {self._unit} ...\n")
        text = f"{done}/{self._total} {self._unit}"
        if done:
            left_s = (now - self._started_s) / done * (self._total - done)
            text += f", {in_words(left_s)} left"
        if self._is_terminal:
            filled = 40 * done // self._total
            self._say(f"\r\033[K[{'#' * filled}{'.' * (40 - filled)}] {text}")
        elif now - self._told_s >= PLAIN_LINE_EVERY_S:
            self._told_s = now
            self._say(f"{text}\n")

    def end(self) -> None:
        """Leave nothing of the bar on the terminal."""
        if self._is_terminal and self._started_s is not None:
            self._say("\r\033[K")

    def _say(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
