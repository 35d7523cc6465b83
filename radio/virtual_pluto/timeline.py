"""What was in force when: a buffer that was filled a while ago holds the world of that while."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Generic, TypeVar

State = TypeVar("State")


class Timeline(Generic[State]):
    """A state that changes at moments.

    Args:
        first: in force from the beginning.
    """

    def __init__(self, first: State) -> None:
        self._moments_s = [-math.inf]
        self._states = [first]

    @property
    def latest(self) -> State:
        """In force since the last change."""
        return self._states[-1]

    def change(self, moment_s: float, state: State) -> None:
        """From ``moment_s`` on; moments never go back."""
        if moment_s <= self._moments_s[-1]:
            self._states[-1] = state
            return
        self._moments_s.append(moment_s)
        self._states.append(state)

    def at(self, moment_s: float) -> State:
        """In force at a moment."""
        return self._states[bisect.bisect_right(self._moments_s, moment_s) - 1]

    def between(self, start_s: float, end_s: float) -> Iterator[tuple[float, float, State]]:
        """Every state in force within [start_s, end_s), with its part of it."""
        index = bisect.bisect_right(self._moments_s, start_s) - 1
        while start_s < end_s:
            is_last = index + 1 == len(self._states)
            until_s = end_s if is_last else min(end_s, self._moments_s[index + 1])
            yield start_s, until_s, self._states[index]
            start_s, index = until_s, index + 1

    def forget_before(self, moment_s: float) -> None:
        """Drop what is no longer in force at ``moment_s``."""
        index = bisect.bisect_right(self._moments_s, moment_s) - 1
        del self._moments_s[:index], self._states[:index]
        self._moments_s[0] = -math.inf
