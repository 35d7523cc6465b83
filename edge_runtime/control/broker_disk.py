"""What a broker keeps on its disk, read in batches, each with a limit of its own.

Consumers that are pushed to are not used: they hang where a heartbeat is lost, and wait a quarter
of a second for every flow control.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

# Whoever comes here has loaded the link before, which says what to install where they are missing.
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.protocol.errors import LinkError

ASK_S = 20.0
"""For a question to the broker's disk."""

_BATCH_S = 30.0
_FORGET_READER_S = 60.0


def read_batches(
    link: NatsLink, *, stream: str, subject: str, first: int, number: int, batch: int
) -> Iterator[Sequence[bytes]]:
    """Once through a stream, as far as it gives anything: at most so many messages, in its order.

    Args:
        link: to the broker.
        stream: its name.
        subject: of the messages.
        first: sequence of the first, from 1 on.
        number: how many are wanted.
        batch: how many at once.

    Raises:
        LinkError: the broker does not give them.
    """

    async def begin(disk: JetStreamContext) -> Any:
        return await disk.pull_subscribe(
            subject,
            stream=stream,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=first,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=_FORGET_READER_S,
            ),
        )

    async def fetch(disk: JetStreamContext) -> Sequence[bytes]:
        messages = await reader.fetch(min(batch, number), timeout=_BATCH_S)
        return [message.data for message in messages]

    reader = link.on_disk(begin, ASK_S)
    try:
        while number > 0 and (messages := link.on_disk(fetch, _BATCH_S + ASK_S)):
            number -= len(messages)
            yield messages
    finally:
        with contextlib.suppress(LinkError):  # the broker forgets it by itself
            link.on_disk(lambda disk: reader.unsubscribe(), ASK_S)
