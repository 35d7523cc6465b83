"""The server plays the air of a rehearsal: what devices send it, it adds as the channel would."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.joining import messages
from edge_runtime.joining.messages import Agreed, JoiningMessage, NumbersSent, Refused
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.uplink import ScalarBox

_logger = logging.getLogger(__name__)


class PlayedAirServer:
    """Takes what hosts send during an order, as long as that order is waited for.

    What comes late is refused: in another round it would be heard as if it were of that one.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        control: through which the orders go.
        hosts: name of each host -> its devices.
        box: which adds the numbers of the ideal link.
    """

    def __init__(
        self,
        link: NatsLink,
        run_id: str,
        control: ControlChannel,
        hosts: Mapping[str, Sequence[int]],
        box: ScalarBox,
    ) -> None:
        self._control, self._box = control, box
        self._hosts = {host: frozenset(devices) for host, devices in hosts.items()}
        self._sent: queue.SimpleQueue[tuple[str, bytes, Reply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hear_all, name="played air", daemon=True)
        self._thread.start()
        link.subscribe(f"pz.{run_id}.air.*", self._take)

    def close(self) -> None:
        """Hear nothing any more. Idempotent."""
        self._sent.put(None)
        self._thread.join()

    def _take(self, subject: str, data: bytes, reply: Reply | None) -> None:
        if reply is not None:
            self._sent.put((subject.rsplit(".", 1)[-1], data, reply))

    def _hear_all(self) -> None:
        while (sent := self._sent.get()) is not None:
            host, data, reply = sent
            try:
                reply(messages.encode(self._hear(host, data)))
            except LinkError as error:
                _logger.warning("%s is not told that it was heard: %s", host, error)

    def _hear(self, host: str, data: bytes) -> JoiningMessage:
        try:
            message = messages.decode(data)
        except WireError as error:
            return Refused(str(error))
        if not isinstance(message, NumbersSent):
            return Refused(f"got {type(message).__name__}, wanted what a device sends")
        if message.device_index not in self._hosts.get(host, ()):
            return Refused(f"device {message.device_index} is none of {host}'s")
        if (message.epoch, message.sequence) != self._control.asking:
            return Refused("too late: its order is not waited for any more")
        self._box.put(message.numbers)
        return Agreed()
