"""Where requests of hosts are answered one by one, in a thread of their own."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.joining import messages
from edge_runtime.joining.messages import JoiningMessage, Refused
from edge_runtime.protocol.errors import LinkError, WireError

_logger = logging.getLogger(__name__)

Answer = Callable[[str, JoiningMessage], JoiningMessage]
"""What is said to a message; before it comes the last part of the subject that it came by."""


class Desk:
    """Answers what comes by some subjects; what is no message is refused with the reason.

    Not in the thread of the link's loop, which must not wait for itself.

    Args:
        link: to the broker; it stays its owner's.
        name: for the log.
        answer: what is said to a message; a WireError of it is a refusal.
    """

    def __init__(self, link: NatsLink, name: str, answer: Answer) -> None:
        self._link, self._name, self._answer = link, name, answer
        self._asked: queue.SimpleQueue[tuple[str, bytes, Reply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._answer_all, name=name, daemon=True)
        self._thread.start()

    def listen(self, subject: str) -> None:
        """Answer what comes by a subject from here on.

        Raises:
            LinkError: the broker was not reached.
        """
        self._link.subscribe(subject, self._take)

    def close(self) -> None:
        """Answer nothing any more. Idempotent."""
        self._asked.put(None)
        self._thread.join()

    def _take(self, subject: str, data: bytes, reply: Reply | None) -> None:
        if reply is not None:
            self._asked.put((subject.rsplit(".", 1)[-1], data, reply))

    def _answer_all(self) -> None:
        while (asked := self._asked.get()) is not None:
            asker, data, reply = asked
            try:
                answer = self._answer(asker, messages.decode(data))
            except WireError as error:
                # Of another version, perhaps: whoever it is reads ours, or which version we are.
                answer = Refused(str(error))
            try:
                reply(messages.encode(answer))
            except LinkError as error:
                _logger.warning("%s: %s is not answered: %s", self._name, asker, error)
