"""A piece of network between one program and a broker of this machine, which fails as it is told.

Needs no root. Does not model: delay, limited rate, packets that overtake each other.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

_CARRY = (b"PUB", b"HPUB", b"MSG", b"HMSG")
_LOOK_S = 0.05


class Network:
    """Forwards connections from a port of its own.

    Args:
        port: of the broker, at 127.0.0.1.
        has_messages: whether what passes is the broker's own protocol, and not encrypted: then
            single messages can be doubled and spoilt.
    """

    def __init__(self, port: int, *, has_messages: bool = False) -> None:
        self._target, self._has_messages = ("127.0.0.1", port), has_messages
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._guard = threading.Lock()
        self._pairs: list[_Pair] = []
        self._takes_new = True
        self.is_frozen = False
        self.num_to_double = self.num_to_spoil = 0
        self.num_doubled = self.num_spoilt = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection that there is, and take no new one until `heal`."""
        self._takes_new = False
        for pair in self._all():
            pair.reset()

    def freeze(self) -> None:
        """Nothing passes until `heal`, and then all that has waited, as on a real network."""
        self.is_frozen = True

    def drop(self) -> None:
        """What there is passes nothing any more, and nobody is told; new connections pass."""
        for pair in self._all():
            pair.is_swallowing = True

    def double(self, number: int) -> None:
        """So many of the next messages arrive twice."""
        with self._guard:
            self.num_to_double = number

    def spoil(self, number: int) -> None:
        """In so many of the next messages, or pieces of what is encrypted, a bit is another."""
        with self._guard:
            self.num_to_spoil = number

    def heal(self) -> None:
        """Everything passes again."""
        with self._guard:
            self._takes_new, self.is_frozen = True, False
            self.num_to_double = self.num_to_spoil = 0

    def close(self) -> None:
        """End."""
        self._listener.close()
        for pair in self._all():
            pair.close()

    def _all(self) -> list[_Pair]:
        with self._guard:
            pairs, self._pairs = self._pairs, [p for p in self._pairs if not p.has_ended]
        return pairs

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._takes_new:
                client.close()
                continue
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._guard:
                self._pairs.append(_Pair(self, client, broker))

    def pieces(self, data: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
        """What comes, in pieces that fail or pass as a whole, and whether each is a message."""
        if not self._has_messages:
            yield from ((some, True) for some in data)
            return
        kept = b""
        for some in data:
            kept += some
            while (end := kept.find(b"\r\n")) >= 0:
                words = kept[:end].split()
                is_message = bool(words) and words[0].upper() in _CARRY
                length = end + 2 + (int(words[-1]) + 2 if is_message else 0)
                if len(kept) < length:
                    break
                piece, kept = kept[:length], kept[length:]
                yield piece, is_message

    def fate(self, piece: bytes, is_message: bool) -> bytes:
        """What arrives of a piece."""
        if not is_message:
            return piece
        with self._guard:
            if self.num_to_double and self._has_messages:
                self.num_to_double -= 1
                self.num_doubled += 1
                return piece + piece
            if self.num_to_spoil and len(piece) > 8:
                self.num_to_spoil -= 1
                self.num_spoilt += 1
                return piece[:-5] + bytes([piece[-5] ^ 4]) + piece[-4:]
        return piece


class _Pair:
    def __init__(self, network: Network, client: socket.socket, broker: socket.socket) -> None:
        self._network, self._ends = network, (client, broker)
        self.is_swallowing = self.has_ended = False
        for source, sink in ((client, broker), (broker, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        network = self._network
        with contextlib.suppress(OSError, ValueError):
            for piece, is_message in network.pieces(self._arriving(source)):
                if not self.is_swallowing:
                    sink.sendall(network.fate(piece, is_message))
        if not self.is_swallowing:
            self.close()

    def _arriving(self, source: socket.socket) -> Iterator[bytes]:
        while not self.has_ended:
            if self._network.is_frozen:  # it waits where it is, as in the buffers of a network
                time.sleep(_LOOK_S)
            elif select.select([source], [], [], _LOOK_S)[0]:
                if self._network.is_frozen:
                    continue
                if not (data := source.recv(1 << 16)):
                    return
                yield data

    def reset(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.has_ended = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.close()
