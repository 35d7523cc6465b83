"""A connection to a NATS broker with a synchronous face: one event loop in one background thread.

Forward passes may keep the main thread busy for minutes; the loop's thread answers pings meanwhile
and takes messages in. Nothing is retried silently: what cannot be sent now is an error now, for a
message that goes out seconds later, after a reconnection, is an order of a round that is over.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from edge_runtime.control.credentials import Credentials, first_line
from edge_runtime.control.seal import SEAL_BYTES, answer_context
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.wire import MAX_MESSAGE_BYTES

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error as NatsError
    from nats.errors import NoRespondersError
    from nats.js import JetStreamContext
    from nats.js.errors import ServiceUnavailableError
except ImportError as error:
    raise LinkError(
        f"devices on hosts of their own need nats-py ({error}): pip install 'pairzero[hosts]'."
    ) from error

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def _is_no_end_of_tls(record: logging.LogRecord) -> bool:
    """At the end of every connection with TLS asyncio warns of something that is not so."""
    return "eof_received" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_is_no_end_of_tls)

MIN_BROKER = (2, 10, 25)
"""Older ones do not know how to keep a log safe against a power cut (`sync_interval`)."""

_DEFAULT_PORT = 4222
_CONNECT_S = 5.0
_SEND_S = 30.0
_CLOSE_S = 2.0
_THERE_S = 0.5

OnMessage = Callable[[str, bytes, "Reply | None"], None]
"""Called in the loop's thread with (subject, data, how to reply); it must not wait for anything."""

GivenUp = concurrent.futures.Future[str]
"""Of something that is waited for: why it is not, any longer."""


def give_up(waiting: GivenUp, reason: str) -> None:
    """Something is not waited for any longer; once, from any thread."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        waiting.set_result(reason)


class Reply:
    """Where an answer to a request goes."""

    def __init__(self, link: NatsLink, subject: str, asked: bytes) -> None:
        self._link, self._subject, self._asked = link, subject, asked

    def __call__(self, data: bytes) -> None:
        """Send the answer, from any thread but the loop's.

        Raises:
            LinkError: it cannot be sent.
        """
        self._link.publish(self._subject, data, self._asked)


class NatsLink:
    """One connection, under a name of its own.

    Args:
        url: nats://HOST:PORT on this machine; None with credentials, which say where.
        name: of this end, for the broker's log.
        on_lost: called in the loop's thread when the broker is lost; the link tries to come back by
            itself.
        credentials: of this end; without them only a broker on this machine is reached.

    Raises:
        LinkError: no broker there, or one that will not do; at once.
    """

    def __init__(
        self,
        url: str | None,
        name: str,
        on_lost: Callable[[], None] = lambda: None,
        credentials: Credentials | None = None,
    ) -> None:
        if credentials is not None:
            url = credentials.find_broker()
        else:
            _check_somebody_is_there(url := url or "")
        self._url = url
        self._seal = None if credentials is None else credentials.seal
        self.on_lost = on_lost
        self._is_closing = False
        self._last_failure = ""
        self._waiting: set[GivenUp] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"link {name}", daemon=True
        )
        self._thread.start()

        async def lost() -> None:
            if self._is_closing:
                return
            _logger.warning("%s: the broker is lost", url)
            self._give_up("the broker was lost meanwhile")
            self.on_lost()

        async def back() -> None:
            _logger.warning("%s: the broker is back", url)

        async def failed(error: Exception) -> None:
            if not self._nats.is_connected:
                await self._hang_up()
            if self._is_closing:
                return
            # The only place that tells of a missing permission; while it tries to come back it
            # fails every second, which is said once.
            if (text := str(error)) != self._last_failure:
                self._last_failure = text
                _logger.warning("%s: %s", url, text)
            if "permissions violation" in text.lower():
                self._give_up(f"no permission: {text}")

        self._nats = Client()
        connecting = self._nats.connect(
            url,
            name=name,
            # By its own name, so that nobody else's answers may be heard.
            inbox_prefix=f"_INBOX.{name}".encode(),
            tls=None if credentials is None else credentials.context,
            connect_timeout=int(_CONNECT_S),
            disconnected_cb=lost,
            reconnected_cb=back,
            error_cb=failed,
            # What cannot be sent now is an error, and does not go out later.
            pending_size=0,
            # A network that swallows everything is noticed within three seconds, not minutes.
            ping_interval=1,
            max_outstanding_pings=2,
            reconnect_time_wait=1,
            max_reconnect_attempts=-1,
            allow_reconnect=True,
        )
        try:
            self._wait(connecting, 2 * _CONNECT_S)
            self._check_broker()
        except BaseException:
            self.close()
            raise

    @property
    def is_up(self) -> bool:
        """Whether the broker is there now."""
        return bool(self._nats.is_connected)

    def publish(self, subject: str, data: bytes, asked: bytes | None = None) -> None:
        """Send, signed where there are credentials.

        Args:
            subject: where.
            data: what.
            asked: what it is the answer to, as it came.

        Raises:
            LinkError: it was not sent, and will not be.
        """
        if self._seal is not None:
            data = self._seal.sign(subject if asked is None else answer_context(asked), data)
        self._wait(self._connected().publish(subject, data), _SEND_S)

    def subscribe(self, subject: str, on_message: OnMessage) -> None:
        """Have messages of a subject brought; the broker knows when this returns.

        Raises:
            LinkError: the broker was not reached.
        """

        async def bring(message: Msg) -> None:
            data = message.data
            if self._seal is not None:
                try:
                    sender = self._seal.sender_at(message.subject)
                    data = self._seal.check(message.subject, sender, data)
                except WireError as error:
                    _logger.warning("%s: %s", message.subject, error)
                    return
            reply = Reply(self, message.reply, message.data) if message.reply else None
            on_message(message.subject, data, reply)

        self._listen(subject, bring)

    def request(
        self, subject: str, data: bytes, timeout_s: float, given_up: GivenUp | None = None
    ) -> bytes | None:
        """Ask; the answer, or None if nobody is there to answer.

        Args:
            subject: where somebody listens.
            data: what is asked.
            timeout_s: how long an answer is waited for.
            given_up: set by another thread to the reason, and it is not waited for any longer.

        Raises:
            LinkError: somebody is there, and has not answered in time; or somebody else has; or the
                broker is not there; or it was given up.
        """
        if self._seal is not None:
            data = self._seal.sign(subject, data)
        asking = self._connected().request(subject, data, timeout=timeout_s)
        try:
            answer: bytes = self._wait(asking, timeout_s + _SEND_S, given_up).data
        except LinkError as error:
            if isinstance(error.__cause__, NoRespondersError):
                return None
            raise
        if self._seal is None:
            return answer
        try:
            return self._seal.check(answer_context(data), self._seal.sender_at(subject), answer)
        except WireError as error:
            raise LinkError(f"{self._url}: an answer from {subject}: {error}") from error

    def is_anybody_at(self, subject: str) -> bool:
        """Whether somebody listens to a subject, who may be too busy to answer."""
        asking = self._connected().request(subject, b"", timeout=_THERE_S)
        try:
            self._wait(asking, _THERE_S + _SEND_S)
        except LinkError as error:
            return not isinstance(error.__cause__, NoRespondersError)
        return True

    def be_at(self, subject: str) -> None:
        """Listen to a subject, so that somebody is there; nothing is ever answered.

        Raises:
            LinkError: the broker was not reached.
        """

        async def nothing(message: Msg) -> None:
            pass

        self._listen(subject, nothing)

    def _listen(self, subject: str, take: Callable[[Msg], Coroutine[Any, Any, None]]) -> None:
        self._wait(self._connected().subscribe(subject, cb=take), _SEND_S)
        self._wait(self._connected().flush(int(_SEND_S)), 2 * _SEND_S)

    def on_disk(
        self, doing: Callable[[JetStreamContext], Coroutine[Any, Any, _T]], timeout_s: float
    ) -> _T:
        """Something with what the broker keeps on its disk.

        Args:
            doing: makes what is awaited in the loop's thread.
            timeout_s: for all of it.

        Raises:
            LinkError: it failed, takes too long, or this broker keeps nothing on a disk.
        """
        try:
            return self._wait(doing(self._connected().jetstream(timeout=timeout_s)), timeout_s)
        except LinkError as error:
            if isinstance(error.__cause__, ServiceUnavailableError | NoRespondersError):
                raise LinkError(
                    f"{self._url}: the broker keeps nothing on its disk (JetStream is off or "
                    "full). Start it with -js, or have `pairzero serve` start one."
                ) from error
            raise

    def close(self) -> None:
        """Let the connection go. Idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        # The client's own end waits for a broker that is gone.
        for end in (self._nats.close, self._end_tasks, self._hang_up):
            with contextlib.suppress(LinkError):
                self._wait(end(), _CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SEND_S)
        if not self._loop.is_running():
            self._loop.close()

    async def _end_tasks(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _hang_up(self) -> None:
        # The client leaves open what it was just opening, and forgets it with the next attempt.
        if (transport := getattr(self._nats, "_transport", None)) is not None:
            transport.close()

    def _connected(self) -> Any:
        if self._is_closing:
            raise LinkError(f"{self._url}: the link is closed.")
        return self._nats

    def _wait(
        self, doing: Coroutine[Any, Any, _T], timeout_s: float, given_up: GivenUp | None = None
    ) -> _T:
        """The result of a coroutine in the loop's thread.

        Raises:
            LinkError: it failed, or takes too long.
        """
        # What is given up is left to itself: the client does not bear that it is cancelled.
        given_up = given_up or concurrent.futures.Future()
        self._waiting.add(given_up)
        future = asyncio.run_coroutine_threadsafe(doing, self._loop)
        try:
            either: list[concurrent.futures.Future[Any]] = [future, given_up]
            concurrent.futures.wait(either, timeout_s, concurrent.futures.FIRST_COMPLETED)
            if given_up.done() and not future.done():
                raise LinkError(f"{self._url}: {given_up.result()}.")
            return future.result(0.0)
        except (concurrent.futures.TimeoutError, TimeoutError) as error:
            raise LinkError(
                f"{self._url}: no answer in {timeout_s:g} s. See whether the broker and the "
                "network are up."
            ) from error
        except (NatsError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise LinkError(f"{self._url}: {reason}.") from error
        finally:
            self._waiting.discard(given_up)

    def _give_up(self, reason: str) -> None:
        """Whoever waits for an answer would wait to the end of its time: it will not come."""
        for waiting in tuple(self._waiting):
            give_up(waiting, reason)

    def _check_broker(self) -> None:
        """Return if the broker can do what is needed.

        Raises:
            LinkError: it is too old, or takes too little at once.
        """
        client = self._connected()
        found = client.connected_server_version
        version = (found.major, found.minor, found.patch)
        if version < MIN_BROKER:
            raise LinkError(
                f"{self._url}: a broker of version {'.'.join(map(str, version))}, wanted "
                f"{'.'.join(map(str, MIN_BROKER))} or later: pip install 'pairzero[broker]'."
            )
        if client.max_payload < MAX_MESSAGE_BYTES + SEAL_BYTES:
            raise LinkError(
                f"{self._url}: the broker takes {client.max_payload:,} bytes at once, wanted "
                f"{MAX_MESSAGE_BYTES + SEAL_BYTES:,}. Set max_payload in its configuration."
            )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_somebody_is_there(url: str) -> None:
    """Fail at once: the client would try again and again, and say nothing.

    Raises:
        LinkError: not an address, or nobody listens there.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not url.startswith("nats://") or not host:
        raise LinkError(
            f"broker: got {url!r}, wanted nats://HOST:PORT. `pairzero serve` prints the right line."
        )
    if not _is_this_machine(host):
        raise LinkError(
            f"broker: {host} is another machine, and nothing protects what goes there. Join with "
            "a file of credentials (`pairzero credentials` writes them), or through a tunnel: ssh "
            f"-N -L {port}:127.0.0.1:{port} {host}, and nats://127.0.0.1:{port}."
        )
    try:
        with socket.create_connection((host, port), _CONNECT_S) as connection:
            said = first_line(connection)
    except OSError as error:
        raise LinkError(
            f"broker: nobody answers at {host}:{port} ({error.strerror or error}). "
            "`pairzero serve` starts one and prints the line that devices join with."
        ) from error
    if not said.startswith("INFO "):
        raise LinkError(f"broker: somebody answers at {host}:{port} who is no NATS broker.")
    if '"tls_required":true' in said:
        raise LinkError(
            f"broker: the one at {host}:{port} takes nobody without credentials. Join with this "
            "host's own file, NAME.pairzero."
        )
