"""The control channel within one process: an order is a call, an answer is its return value.

Does not model: delay, loss, reordering, duplication, a host that dies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.host_end import HostEnd


class InProcessChannel(ControlChannel):
    """Hands encoded orders straight to the hosts, in order.

    Args:
        run_id: of the run.
        ends: of the hosts.
    """

    def __init__(self, run_id: str, ends: Sequence[HostEnd]) -> None:
        super().__init__(run_id, {end.host: end.device_indices for end in ends})
        self._ends = {end.host: end for end in ends}
        self._replies: deque[bytes] = deque()

    def send(self, data: bytes, hosts: Sequence[str]) -> None:
        """Every host has carried the order out before this returns."""
        self._replies.clear()
        for host in hosts:
            reply = self._ends[host].answer(data)
            if reply is not None:
                self._replies.append(reply)

    def receive(self, timeout_s: float) -> bytes | None:
        """What was answered; nobody answers later."""
        return self._replies.popleft() if self._replies else None

    def close(self) -> None:
        """Close every host."""
        for end in self._ends.values():
            end.close()
