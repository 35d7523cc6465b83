"""A device's end of an air that the server plays: for rehearsals, where no radio is there.

Everything sent names the order that it is sent during, so that what comes late is refused and not
heard in another round. The server sees what each device sends by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining import messages
from edge_runtime.joining.messages import NumbersSent
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.orders import AtHand
from radio.errors import RadioUnavailableError

_SEND_S = 30.0


@dataclass(frozen=True, slots=True)
class PlayedAir:
    """The way to the server's air.

    Attributes:
        link: to the broker.
        subject: where the server listens.
        at_hand: the order that is being carried out.
    """

    link: NatsLink
    subject: str
    at_hand: AtHand

    def send(self, message: NumbersSent) -> None:
        """Have it heard.

        Raises:
            RadioUnavailableError: it was not, for all that is known here.
        """
        try:
            reply = self.link.request(self.subject, messages.encode(message), _SEND_S)
            reason = "nobody plays the air" if reply is None else refusal(reply)
        except (LinkError, WireError) as error:
            raise RadioUnavailableError(str(error)) from error
        if reason:
            raise RadioUnavailableError(f"{self.subject}: {reason}")


def refusal(reply: bytes) -> str:
    """Why the server refuses; empty if it does not."""
    return messages.refusal_of(messages.decode(reply))


@dataclass(frozen=True, slots=True)
class PlayedBox:
    """One device's end of the ideal link (`edge_runtime.uplink.ScalarBox`)."""

    air: PlayedAir
    device_index: int

    def put(self, scalars: Iterable[float]) -> None:
        """Add the device's numbers to the sums.

        Raises:
            RadioUnavailableError: they were not added, for all that is known here.
        """
        now = self.air.at_hand
        self.air.send(NumbersSent(now.epoch, now.sequence, self.device_index, tuple(scalars)))
