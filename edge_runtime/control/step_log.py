"""The steps of a run on the broker's disk: what a host that was away catches up from.

A stream ``pz_RUN`` on the subject ``pz.RUN.log``; the step of round t is its message t + 1. The
server's store is the truth, and the log a copy: whatever is missing of it is written again, and a
host that has read it proves by its digest that it holds the server's weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

# Whoever comes here has loaded the link before, which says what to install where they are missing.
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from edge_runtime.control.broker_disk import ASK_S, read_batches
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.rounds import RoundResult

_logger = logging.getLogger(__name__)

_BATCH = 500
_MOST_TRIES = 3
_WHOLE_LOG_S = 600.0


def _stream(run_id: str) -> str:
    return f"pz_{run_id}"


def _subject(run_id: str) -> str:
    return f"pz.{run_id}.log"


class StepLog:
    """The server's end: writes.

    Guarantees: a step is in the log once, at its place, or not at all; what could not be written is
    written before the next.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        steps: all steps that the store holds, the first that is wanted given.

    Raises:
        LinkError: the broker keeps nothing on its disk, or the log is that of another run.
    """

    def __init__(
        self, link: NatsLink, run_id: str, steps: Callable[[int], Sequence[RoundResult]]
    ) -> None:
        self._link, self._run_id, self._steps = link, run_id, steps
        self._num_written = -1
        self.bring_up()

    def append(self, result: RoundResult) -> None:
        """Write a step that the store holds; where it fails it is told, and made up for later."""
        try:
            if self._num_written == result.round_index:
                self._write([result])
            else:
                self.bring_up()
        except LinkError as error:
            _logger.warning("round %d is not in the log yet: %s", result.round_index, error)

    def bring_up(self) -> None:
        """Look what the log holds, and write what the store holds beside.

        Raises:
            LinkError: that failed, or the log holds more than the store.
        """
        written = self._link.on_disk(self._open, ASK_S)
        # From the last one that is written on: the store is read once, and is not behind.
        held = self._steps(max(written - 1, 0))
        if written > 0 and not held:
            raise LinkError(
                f"{_stream(self._run_id)}: the broker's log has {written} rounds, the run's own "
                "store has fewer. Restore the run folder from a later copy, or start a new run."
            )
        self._num_written = written
        self._write(held[1:] if written > 0 else held)

    def remove(self) -> None:
        """The run is over; nobody catches up with it any more.

        Raises:
            LinkError: it is still there.
        """
        name = _stream(self._run_id)
        self._link.on_disk(lambda disk: disk.delete_stream(name), ASK_S)
        self._num_written = -1

    async def _open(self, disk: JetStreamContext) -> int:
        """How many steps the log holds; a new one is made if there is none."""
        try:
            info = await disk.stream_info(_stream(self._run_id))
        except NotFoundError:
            info = await disk.add_stream(
                StreamConfig(
                    name=_stream(self._run_id),
                    subjects=[_subject(self._run_id)],
                    storage=StorageType.FILE,
                    deny_delete=True,
                    deny_purge=True,
                )
            )
        return int(info.state.last_seq)

    def _write(self, results: Sequence[RoundResult]) -> None:
        async def write(disk: JetStreamContext) -> None:
            for result in results:
                # Stored, and answered too late, is stored all the same: twice does nothing.
                headers = {
                    "Nats-Msg-Id": str(result.round_index),
                    "Nats-Expected-Last-Sequence": str(result.round_index),
                }
                data = wire.encode_step(result)
                await disk.publish(_subject(self._run_id), data, timeout=ASK_S, headers=headers)

        written, self._num_written = self._num_written, -1
        self._link.on_disk(write, ASK_S if len(results) < 2 else _WHOLE_LOG_S)
        # Where that failed something may be stored all the same: it is looked up before the next.
        self._num_written = written + len(results)


def num_steps(link: NatsLink, run_id: str) -> int:
    """How many steps the log of a run holds; none where there is no log.

    Raises:
        LinkError: no broker, or it does not answer.
    """

    async def look(disk: JetStreamContext) -> int:
        try:
            info = await disk.stream_info(_stream(run_id))
        except NotFoundError:
            return 0
        return int(info.state.last_seq)

    return link.on_disk(look, ASK_S)


def read_steps(link: NatsLink, run_id: str, first: int, end: int) -> Iterator[RoundResult]:
    """Steps of the rounds first to end - 1, in order.

    What arrives is taken in batches, each with a limit of its own, and is never trusted for its
    order: a step counts by the round that it names. Where a batch is not what it should be, the
    reader is made anew.

    Args:
        link: to the broker.
        run_id: of the run.
        first: round of the first.
        end: one more than the last.

    Raises:
        LinkError: the log does not give them.
        WireError: what it gives is none.
    """
    wanted, tries = first, 0
    reason: Exception | None = None
    while wanted < end:
        if tries >= _MOST_TRIES or num_steps(link, run_id) < end:
            raise LinkError(
                f"log of {run_id}: it does not give the step of round {wanted}, and those up to "
                f"{end - 1} are wanted. The server writes it again when it goes on."
            ) from reason
        tries += 1
        try:
            for batch in read_batches(
                link,
                stream=_stream(run_id),
                subject=_subject(run_id),
                first=wanted + 1,
                number=end - wanted,
                batch=_BATCH,
            ):
                for result in map(wire.decode_step, batch):
                    if result.run_id != run_id:
                        raise WireError(f"log of {run_id}: a step of run {result.run_id!r}.")
                    if result.round_index == wanted < end:
                        yield result
                        wanted, tries = wanted + 1, 0
        except LinkError as error:
            _logger.warning("log of %s: %s", run_id, error)
            reason = error
