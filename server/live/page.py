"""A page of a run while it goes on, for a browser on this machine.

::

    /               the page
    /events         a status whenever it has changed (server-sent events)
    /status.json    the status now
    /metrics        the same for Prometheus

It answers at 127.0.0.1 alone, and only to whoever calls it so: a page of somebody else's that a
browser on this machine shows may not read it under another name. From elsewhere: ssh -L.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import threading
from collections.abc import Callable
from importlib import resources

import msgspec

from radio.self_closing import SelfClosing
from server.errors import ServerError
from server.live.metrics import exposition
from server.live.status import Status

_logger = logging.getLogger(__name__)

_STILL_HERE_S = 15.0
_MOST_READERS = 32
_MOST_PORTS = 65535
_NAMES = ("127.0.0.1", "localhost")
_MAY = "style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class LatestStatus:
    """The last status that was told, and a way to wait for the next."""

    def __init__(self, status: Status) -> None:
        self._changed = threading.Condition()
        self.status, self.number, self.is_over = status, 0, False
        self.is_read = False
        """Whether somebody has been told of it as it changes."""

    def tell(self, status: Status) -> None:
        """Here is another."""
        with self._changed:
            self.status, self.number = status, self.number + 1
            self._changed.notify_all()

    def end(self) -> None:
        """There is no other."""
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def after(self, number: int, timeout_s: float) -> int | None:
        """The number of a later one; None if there is none in time, or ever."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or self.number > number, timeout_s)
            return self.number if self.number > number else None


class Page(SelfClosing):
    """Answers browsers, from threads of its own.

    Args:
        latest: what it shows.
        port: at 127.0.0.1; 0 takes one that is free.

    Raises:
        ServerError: the port is taken.
    """

    def __init__(self, latest: LatestStatus, port: int) -> None:
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise _no_page(port, error) from error
        self._server.latest = latest
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="page", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        """Answer nobody any more. Idempotent."""
        self._server.latest.end()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def check_can_answer(port: int) -> None:
    """Return if a page can be there.

    Raises:
        ServerError: it cannot.
    """
    if not 0 <= port <= _MOST_PORTS:
        raise _no_page(port, f"ports are 0 to {_MOST_PORTS}")
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
    except OSError as error:
        raise _no_page(port, error) from error


def _no_page(port: int, why: object) -> ServerError:
    return ServerError(
        f"--page: cannot answer at 127.0.0.1:{port} ({why}). Name another port, or 0 for one "
        "that is free."
    )


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    latest: LatestStatus

    def __init__(
        self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]
    ) -> None:
        self.readers = threading.BoundedSemaphore(_MOST_READERS)
        super().__init__(address, handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def do_GET(self) -> None:
        """Answer."""
        if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES:
            self._send(403, "text/plain", b"This page answers at 127.0.0.1 alone.\n")
            return
        answers: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/": ("text/html; charset=utf-8", _page),
            "/status.json": ("application/json", self._json),
            "/metrics": ("text/plain; version=0.0.4", lambda: exposition(self._latest.status)),
        }
        if self.path == "/events":
            self._send_events()
        elif self.path in answers:
            kind, make = answers[self.path]
            self._send(200, kind, make())
        else:
            self._send(404, "text/plain", b"Nothing here: /, /events, /status.json, /metrics.\n")

    def log_message(self, format: str, *args: object) -> None:
        """For whoever asks for it."""
        _logger.debug(format, *args)

    @property
    def _latest(self) -> LatestStatus:
        return self.server.latest

    def _json(self) -> bytes:
        return msgspec.json.encode(self._latest.status)

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", f"default-src 'none'; {_MAY}")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _send_events(self) -> None:
        if not self.server.readers.acquire(blocking=False):
            self._send(503, "text/plain", b"Too many are reading.\n")
            return
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")
            self.end_headers()
            number: int | None = -1
            shown = -1
            while not self._latest.is_over:
                number = self._latest.after(shown, _STILL_HERE_S)
                if number is None:
                    self.wfile.write(b": still here\n\n")
                else:
                    shown = number
                    self.wfile.write(b"data: " + self._json() + b"\n\n")
                    self._latest.is_read = True
                self.wfile.flush()
        except OSError:  # the reader has gone
            pass
        finally:
            self.close_connection = True
            self.server.readers.release()


def _page() -> bytes:
    return resources.files("server.live").joinpath("page.html").read_bytes()
