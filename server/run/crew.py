"""The devices of a run, as far as they may go and come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge_runtime.protocol.rounds import RoundResult
from server.hosts.standing import HostStanding


class Crew(Protocol):
    """Whoever carries out a run's orders."""

    def note(self, result: RoundResult) -> None:
        """A step stands in the store; whoever misses it has to find it later."""

    def gather(
        self, num_rounds: int, digest: Callable[[], str], should_stop: Callable[[], bool]
    ) -> bool:
        """Take back whoever has come back; wait while too few are there.

        Args:
            num_rounds: that the run has had.
            digest: of the weights after them.
            should_stop: asked while too few are there; then they are still too few.

        Returns:
            Whether somebody has come back.

        Raises:
            HostsMissingError: too few are there, and have not come.
        """

    def end(self, num_rounds: int) -> None:
        """There are no more rounds."""

    @property
    def standing(self) -> tuple[HostStanding, ...]:
        """How each host stands; none where all devices are in this process. From any thread."""

    @property
    def is_pausing(self) -> bool:
        """Whether too few are there. From any thread."""


class SteadyCrew:
    """Those who are there from the first round to the last."""

    standing: tuple[HostStanding, ...] = ()
    is_pausing = False

    def note(self, result: RoundResult) -> None:
        """Nobody asks for it."""

    def gather(
        self, num_rounds: int, digest: Callable[[], str], should_stop: Callable[[], bool]
    ) -> bool:
        """Nobody goes."""
        return False

    def end(self, num_rounds: int) -> None:
        """All have been told."""
