"""ControlChannel: how orders reach the devices and answers come back. Never a scalar.

A message goes to every host; each may answer. The interface is the same within one process and,
later, across machines, and all of it is bytes of `edge_runtime.protocol.wire`, so the in-process
run exercises what a network would carry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from edge_runtime.protocol.wire import Message


class ControlChannel(ABC):
    """One server, many hosts."""

    @abstractmethod
    def broadcast(self, message: Message) -> None:
        """Send one message to every host.

        Raises:
            WireError: the message cannot be encoded.
        """

    @abstractmethod
    def collect(self) -> list[Message]:
        """The answers to the last broadcast that have arrived, in order of arrival."""

    @abstractmethod
    def close(self) -> None:
        """Let go of every host. Idempotent."""
