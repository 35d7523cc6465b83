"""A piece of network between a client and a server of this machine, which can fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class TcpProxy:
    """Forwards connections to a virtual radio until it is told to fail them.

    Args:
        uri: of the radio, ip:ADDRESS:PORT.
    """

    def __init__(self, uri: str) -> None:
        host, port = uri.removeprefix("ip:").rsplit(":", 1)
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"ip:127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[_Pair] = []
        self.is_dead_for_new = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection that there is, as a cable does whose ends notice."""
        for pair in self._pairs:
            pair.close()
        self._pairs.clear()

    def reset(self) -> None:
        """The same with a reset instead of an end."""
        for pair in self._pairs:
            linger = struct.pack("ii", 1, 0)
            for end in pair.ends:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.cut()

    def freeze(self) -> None:
        """Nothing passes any more on what there is, and nobody is told; new ones pass."""
        for pair in self._pairs:
            pair.is_frozen = True

    def close(self) -> None:
        """End."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server)
            pair.is_frozen = self.is_dead_for_new
            self._pairs.append(pair)


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = client, server
        self.is_frozen = False
        for source, sink in (self.ends, self.ends[::-1]):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.is_frozen:
                    continue
                sink.sendall(data)
        if not self.is_frozen:
            self.close()

    def close(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                end.close()
