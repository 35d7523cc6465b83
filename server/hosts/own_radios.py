"""Hosts with radios of their own: who may send when, and until when somebody may still be heard.

A device asks for leave before it holds a burst, and gives it back when it is silent. Leave is given
while its order is waited for, and not after: what came late would be heard in another round. Who
has leave and is gone ends by a limit of its own (`edge_runtime.joining.own_radio`), and until then
nothing else is captured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining.messages import (
    Agreed,
    JoiningMessage,
    LeaveAsked,
    Refused,
    SilenceSent,
)
from edge_runtime.joining.own_radio import LEAVE_S
from server.hosts.desk import Desk

_logger = logging.getLogger(__name__)

SILENT_WITHIN_S = 3.0
"""After its longest hold, by which of its limits whatever: a guardian takes a moment longer."""


class OwnRadios:
    """Gives devices leave to send.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        control: through which the orders go.
        hosts: name of each host -> its devices.
        max_hold_s: longest that one burst is held.
        may_be_held: whether a server before this one may have given leave.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: NatsLink,
        run_id: str,
        control: ControlChannel,
        hosts: Mapping[str, Sequence[int]],
        *,
        max_hold_s: float,
        may_be_held: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control, self._clock = control, clock
        self._longest_s = LEAVE_S + max_hold_s + SILENT_WITHIN_S
        self._hosts = {host: frozenset(devices) for host, devices in hosts.items()}
        self._silence = threading.Condition()
        # Device -> when it is silent, whatever becomes of it.
        self._silent_at_s: dict[int, float] = {}
        if may_be_held:
            for devices in hosts.values():
                self._silent_at_s.update(dict.fromkeys(devices, clock() + self._longest_s))
        self._desk = Desk(link, "leave to send", self._hear)
        self._desk.listen(f"pz.{run_id}.air.*")

    def wait_until_silent(self) -> None:
        """Return when nobody can be heard any more who has had leave."""
        with self._silence:
            if (left_s := self._left_s()) > 0.0:
                _logger.warning(
                    "devices %s may still be heard: waiting for %.0f s at most",
                    sorted(self._silent_at_s),
                    left_s,
                )
            while (left_s := self._left_s()) > 0.0:
                self._silence.wait(left_s)
            self._silent_at_s.clear()

    def silence(self, hosts: Iterable[str]) -> None:
        """Nobody is silenced from here: whoever is gone ends by itself."""

    def close(self) -> None:
        """Give no more leave. Idempotent."""
        self._desk.close()

    def _left_s(self) -> float:
        return max(self._silent_at_s.values(), default=0.0) - self._clock()

    def _hear(self, host: str, message: JoiningMessage) -> JoiningMessage:
        if not isinstance(message, LeaveAsked | SilenceSent):
            return Refused(f"got {type(message).__name__}; this run's air is a real one")
        if message.device_index not in self._hosts.get(host, ()):
            return Refused(f"device {message.device_index} is none of {host}'s")
        with self._silence:
            if isinstance(message, SilenceSent):
                self._silent_at_s.pop(message.device_index, None)
                self._silence.notify()
            elif (message.epoch, message.sequence) != self._control.asking:
                return Refused("too late: its order is not waited for any more")
            else:
                self._silent_at_s[message.device_index] = self._clock() + self._longest_s
        return Agreed()
