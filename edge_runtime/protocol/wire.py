"""Messages as bytes: framed, versioned, checked and limited in size.

::

    magic "pAZ0" | version u16 | length u32 | body (msgpack) | blake2b-128 of all before

Integers are big endian. Whatever was flipped, cut, lengthened or made by another version ends in a
WireError, never in a wrong record. The digest finds damage; it proves no sender.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TypeVar

import msgspec

from edge_runtime.protocol.errors import WireError
from edge_runtime.protocol.orders import Answer, Order
from edge_runtime.protocol.rounds import PROTOCOL_VERSION, RoundResult

Message = Order | Answer

_T = TypeVar("_T")

MAX_BODY_BYTES = 1 << 20
_MAGIC = b"pAZ0"
_HEADER = struct.Struct(">4sHI")
_DIGEST_BYTES = 16

MAX_MESSAGE_BYTES = _HEADER.size + MAX_BODY_BYTES + _DIGEST_BYTES
"""With its frame: what a network has to take at once."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_step_decoder: msgspec.msgpack.Decoder[RoundResult] = msgspec.msgpack.Decoder(RoundResult)


def encode(message: Message) -> bytes:
    """A message as bytes.

    Raises:
        WireError: the message is larger than the limit.
    """
    return pack(_encoder.encode(message))


def decode(data: bytes) -> Message:
    """Bytes as a message, or a WireError that says what is wrong with them."""
    return decode_body(unpack(data), _decoder)


def encode_step(result: RoundResult) -> bytes:
    """A step by itself, as logs and journals hold it."""
    return pack(_encoder.encode(result))


def decode_step(data: bytes) -> RoundResult:
    """Bytes as a step, or a WireError that says what is wrong with them."""
    return decode_body(unpack(data), _step_decoder)


def decode_body(body: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    """What stands in a frame, or a WireError that says what is wrong with it."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"message: {error}") from error


def pack(body: bytes) -> bytes:
    """A body in its frame.

    Raises:
        WireError: it is larger than the limit.
    """
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"message: {len(body)} bytes, at most {MAX_BODY_BYTES} may travel.")
    framed = _HEADER.pack(_MAGIC, PROTOCOL_VERSION, len(body)) + body
    return framed + _digest(framed)


def unpack(data: bytes) -> bytes:
    """The body of a frame, or a WireError that says what is wrong with it."""
    smallest = _HEADER.size + _DIGEST_BYTES
    if not smallest <= len(data) <= smallest + MAX_BODY_BYTES:
        raise WireError(f"message: {len(data)} bytes, wanted {smallest} to 1 MiB.")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise WireError(f"message: starts with {magic!r}, wanted {_MAGIC!r}: not from pairzero.")
    if version != PROTOCOL_VERSION:
        raise WireError(
            f"message: protocol version {version}, this side speaks {PROTOCOL_VERSION}. "
            "Install the same pairzero everywhere."
        )
    framed, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(framed) != _HEADER.size + length:
        raise WireError(
            f"message: body of {len(framed) - _HEADER.size} bytes, header says {length}."
        )
    if digest != _digest(framed):
        raise WireError("message: digest differs, it was damaged on its way.")
    return framed[_HEADER.size :]


def _digest(framed: bytes) -> bytes:
    return hashlib.blake2b(framed, digest_size=_DIGEST_BYTES).digest()
