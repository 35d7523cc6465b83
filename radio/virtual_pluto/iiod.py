r"""One client's connection, in the text protocol of libiio 0.x.

A request is a line; an answer is a number, negative for an errno, and what the number announces::

    VERSION                              0.25.virtual
    PRINT                                length, XML
    TIMEOUT ms                           0
    READ dev [DEBUG|BUFFER] attr         length, text and a zero byte
    READ dev INPUT|OUTPUT channel attr   likewise
    WRITE ... attr n  + n bytes          n
    SET dev BUFFERS_COUNT n              0
    OPEN dev samples mask [CYCLIC]       0
    READBUF dev bytes                    pieces: length, (mask before the first), samples
    WRITEBUF dev bytes                   0; then, after so many bytes, their number
    CLOSE dev                            0
    GETTRIG dev, SETTRIG dev             no trigger
    EXIT                                 the end

What is a request but unknown is answered -EINVAL: newer clients ask for more and fall back. What is
none - no words, half a payload, a number that is none - is answered -EINVAL, too, and ends the
connection, because nobody knows where the next request begins.

Learnt from the exchanges of libiio 0.24 and 0.25 clients with their daemon.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import threading
from collections.abc import Sequence
from io import BufferedIOBase

import numpy as np

from radio.virtual_pluto.attributes import Attribute, Attributes, Device, IioError
from radio.virtual_pluto.buffers import BYTES_PER_NUMBER, ReceiveBuffer, TransmitBuffer
from radio.virtual_pluto.description import describe
from radio.virtual_pluto.pluto import VirtualPluto

_logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024
MAX_TEXT_BYTES = 1 << 16
_CLOSING_S = 0.05
_VERSION = b"0.25.virtual\n"  # the tag needs seven letters
_REQUEST = re.compile(rb"[A-Z]+(?: [\x21-\x7e]+)*")
_NUMBER = re.compile(r"[0-9]{1,10}")
_MASK = re.compile(r"[0-9a-f]{8}")


class MalformedRequestError(Exception):
    """What came is not a request; the connection cannot go on."""


class BufferOwners:
    """Which connection has which device's buffer open; shared by all of one radio."""

    def __init__(self) -> None:
        self._owners: dict[str, Session] = {}
        self._changed = threading.Condition()

    def take(self, device: Device, session: Session) -> None:
        """Own a device's buffer; for a moment wait for one that is about to be given back.

        Raises:
            IioError: EBUSY, another connection does, or this one already.
        """
        with self._changed:
            is_free = self._changed.wait_for(
                lambda: device.identifier not in self._owners, _CLOSING_S
            )
            if not is_free:
                raise IioError(errno.EBUSY)
            self._owners[device.identifier] = session

    def give_back(self, device: Device) -> None:
        """Own it no longer."""
        with self._changed:
            self._owners.pop(device.identifier, None)
            self._changed.notify_all()


class Session:
    """Requests in, answers out, until the client leaves.

    Args:
        pluto: that it is about.
        owners: of the radio's buffers.
        reader: of the client's bytes, blocking.
        writer: to the client.
        stops_when_lost: whether a transmit buffer ends when its connection breaks without CLOSE, as
            with the daemon on the network; otherwise it goes on until somebody opens the next one,
            as with a host that died on USB or a network that fell apart.
    """

    def __init__(
        self,
        pluto: VirtualPluto,
        owners: BufferOwners,
        reader: BufferedIOBase,
        writer: BufferedIOBase,
        *,
        stops_when_lost: bool = False,
    ) -> None:
        self._pluto = pluto
        self._owners = owners
        self._reader = reader
        self._writer = writer
        self._stops_when_lost = stops_when_lost
        self._receiving: tuple[ReceiveBuffer, str] | None = None
        self._sending: TransmitBuffer | None = None

    def serve(self) -> None:
        """Answer until EXIT, the end of the stream, or something that is no request."""
        try:
            while self._serve_one():
                self._writer.flush()
        except MalformedRequestError as error:
            _logger.warning("%s: connection closed: %s", self._pluto.serial, error)
            with contextlib.suppress(OSError):  # it may be gone already
                self._say(-errno.EINVAL)
                self._writer.flush()
        except OSError as error:
            _logger.debug("%s: connection lost: %r", self._pluto.serial, error)
        finally:
            self._let_go()

    def _serve_one(self) -> bool:
        line = self._reader.readline(MAX_LINE_BYTES)
        if not line:
            return False
        if not line.endswith(b"\n"):
            raise MalformedRequestError(f"{len(line)} bytes without the end of a line")
        line = line.strip(b" \r\n")
        if not line:
            return True
        if not _REQUEST.fullmatch(line):
            raise MalformedRequestError(f"{line[:40]!r} is no request")
        request, *words = line.decode("ascii").split(" ")
        _logger.debug("%s: %s %s", self._pluto.serial, request, words)
        if request == "EXIT":
            return False
        self._pluto.air.clock.spend_command()
        try:
            self._answer(request, words)
        except IioError as error:
            self._say(-error.code)
        return True

    def _answer(self, request: str, words: list[str]) -> None:
        match request, words:
            case "VERSION", []:
                self._writer.write(_VERSION)
            case "PRINT", []:
                self._say_text(describe(self._pluto).encode())
            case "TIMEOUT", [milliseconds]:
                _number(milliseconds)
                self._say(0)
            case "READ", [device, *path] if path:
                self._say_text(self._attribute(device, path).read().encode() + b"\0")
            case "WRITE", [device, *path, length] if path:
                self._write(device, path, length)
            case "SET", [device, "BUFFERS_COUNT", count]:
                self._pluto.set_kernel_buffers(self._device(device), _number(count))
                self._say(0)
            case (("GETTRIG" | "SETTRIG"), [device, *_]):
                self._device(device)
                raise IioError(errno.ENOENT)
            case "OPEN", [device, samples, mask, *options] if options in ([], ["CYCLIC"]):
                self._open(self._device(device), _number(samples), mask, bool(options))
                self._say(0)
            case "CLOSE", [device]:
                self._close(self._device(device))
                self._say(0)
            case "READBUF", [device, size]:
                self._read_buffer(self._device(device), _number(size))
            case "WRITEBUF", [device, size]:
                self._write_buffer(self._device(device), _number(size))
            case _ if request in _KNOWN:
                raise MalformedRequestError(f"{request} with {len(words)} words")
            case _:
                raise IioError(errno.EINVAL)

    # -- attributes

    def _device(self, identifier: str) -> Device:
        for device in self._pluto.devices.values():
            if identifier in (device.identifier, device.name):
                return device
        raise IioError(errno.ENODEV)

    def _attribute(self, identifier: str, path: Sequence[str]) -> Attribute:
        device = self._device(identifier)
        attributes: Attributes
        match list(path):
            case [("INPUT" | "OUTPUT") as way, channel, name]:
                attributes = device.channel(channel, is_output=way == "OUTPUT").attributes
            case ["DEBUG", name]:
                attributes = device.debug
            case ["BUFFER", name]:
                attributes = device.buffer
            case [name]:
                attributes = device.attributes
            case _:
                raise IioError(errno.EINVAL)
        if name not in attributes:
            raise IioError(errno.ENOENT)
        return attributes[name]

    def _write(self, device: str, path: Sequence[str], length: str) -> None:
        size = _number(length)
        if size > MAX_TEXT_BYTES:
            raise MalformedRequestError(f"a text of {size} bytes")
        # Whether it is wanted or not, the text has to be out of the way.
        text = self._read_exactly(size)
        self._attribute(device, path).write(text.decode("latin-1"))
        self._say(size)

    # -- buffers

    def _open(self, device: Device, num_samples: int, mask: str, is_cyclic: bool) -> None:
        if not _MASK.fullmatch(mask) or not device.buffer:
            raise IioError(errno.EINVAL)
        is_transmit = device is self._pluto.dac
        bits = int(mask, 16)
        if not 1 <= bits <= 3 or (is_cyclic and not is_transmit):
            raise IioError(errno.EINVAL)
        columns = _columns(bits)
        self._owners.take(device, self)
        try:
            if is_transmit:
                self._sending = self._pluto.open_transmit(
                    num_samples, is_cyclic=is_cyclic, columns=columns
                )
            else:
                self._receiving = self._pluto.open_receive(num_samples), mask
        except IioError:
            self._owners.give_back(device)
            raise

    def _close(self, device: Device) -> None:
        if device is self._pluto.dac and self._sending is not None:
            self._sending = None
            self._pluto.end_bursts()
        elif device is self._pluto.adc and self._receiving is not None:
            self._receiving[0].close()
            self._receiving = None
        else:
            raise IioError(errno.EBADF)
        self._owners.give_back(device)

    def _let_go(self) -> None:
        """The client is gone."""
        if self._receiving is not None:
            self._close(self._pluto.adc)
        if self._sending is not None:
            if self._stops_when_lost or not self._sending.is_cyclic:
                self._close(self._pluto.dac)
            else:
                _logger.warning(
                    "%s: its client left without closing the buffer; it goes on radiating",
                    self._pluto.serial,
                )
                self._owners.give_back(self._pluto.dac)

    def _read_buffer(self, device: Device, size: int) -> None:
        if self._receiving is None or device is not self._pluto.adc:
            raise IioError(errno.EBADF)
        buffer, mask = self._receiving
        columns = _columns(int(mask, 16))
        if not 0 < size <= buffer.num_samples * BYTES_PER_NUMBER * len(columns):
            raise IioError(errno.EINVAL)
        left, is_first = size, True
        for piece in buffer.read_block():
            data = np.ascontiguousarray(piece[:, columns]).tobytes()[:left]
            if not data:
                continue  # the rest of a block that was not asked for
            self._say(len(data))
            if is_first:
                self._writer.write(mask.encode() + b"\n")
                is_first = False
            self._writer.write(data)
            self._writer.flush()
            left -= len(data)

    def _write_buffer(self, device: Device, size: int) -> None:
        if self._sending is None or device is not self._pluto.dac:
            raise IioError(errno.EBADF)
        if not self._sending.fits(size):
            raise IioError(errno.EINVAL)
        self._say(0)
        self._writer.flush()
        self._sending.push(self._read_exactly(size))
        self._say(size)

    # -- bytes

    def _read_exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) != size:
            raise MalformedRequestError(f"{len(data)} bytes of {size}")
        return data

    def _say(self, number: int) -> None:
        self._writer.write(b"%d\n" % number)

    def _say_text(self, text: bytes) -> None:
        self._writer.write(b"%d\n%s\n" % (len(text), text))


_KNOWN = frozenset(
    "VERSION PRINT TIMEOUT READ WRITE SET GETTRIG SETTRIG OPEN CLOSE READBUF WRITEBUF".split()
)


def _columns(bits: int) -> tuple[int, ...]:
    """In phase and quadrature, as a mask asks for them."""
    return tuple(i for i in (0, 1) if bits >> i & 1)


def _number(word: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise MalformedRequestError(f"{word[:20]!r} is no number")
    return int(word)
