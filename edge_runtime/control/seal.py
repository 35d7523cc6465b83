"""Ed25519 signatures over what is said through a broker, so that the broker cannot forge it.

::

    signature (64 bytes) | data,    signed: "pairzero/1" 0 context 0 data

The context is the subject, or, of an answer, the SHA-256 of what was asked, signature included:
what was said in one place, or to one question, is no word in another. Old words are told by what
they say: epoch and sequence of an order, which only rise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from edge_runtime.protocol.errors import LinkError, WireError

try:
    from nacl.exceptions import BadSignatureError, CryptoError
    from nacl.signing import SigningKey, VerifyKey
except ImportError as error:
    raise LinkError(f"credentials need pynacl ({error}): pip install 'pairzero[hosts]'.") from error

SERVER = "server"
"""The one end that hears all others; no host is called so."""

SEAL_BYTES = 64
_DOMAIN = b"pairzero/1\0"


class Seal:
    """One end's key, and the public keys of those it hears.

    Args:
        own_key: 32 bytes, hex.
        others: name -> public key, 32 bytes, hex.

    Raises:
        LinkError: what is no key.
    """

    def __init__(self, own_key: str, others: Mapping[str, str]) -> None:
        try:
            self._own = SigningKey(bytes.fromhex(own_key))
            self._others = {name: VerifyKey(bytes.fromhex(key)) for name, key in others.items()}
        except (ValueError, TypeError, CryptoError) as error:
            raise LinkError(
                f"credentials: no signing keys ({error}). Copy the file again."
            ) from error

    def sender_at(self, subject: str) -> str:
        """Who speaks on a subject, or answers there: a host hears the server alone."""
        if SERVER in self._others:
            return SERVER
        return (subject.split(".") + [""] * 4)[3]

    def sign(self, context: str, data: bytes) -> bytes:
        """Data with its signature before it."""
        return self._own.sign(_signed(context, data)).signature + data

    def check(self, context: str, sender: str, sealed: bytes) -> bytes:
        """The data, if a sender has signed it in this context.

        Raises:
            WireError: it has not.
        """
        signature, data = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
        key = self._others.get(sender)
        if key is None:
            raise WireError(f"message: nobody knows a key of {sender!r}.")
        try:
            key.verify(_signed(context, data), signature)
        except (BadSignatureError, ValueError) as error:
            raise WireError(f"message: not signed by {sender}.") from error
        return data


def answer_context(asked: bytes) -> str:
    """The context of an answer."""
    return f"answer {hashlib.sha256(asked).hexdigest()}"


def _signed(context: str, data: bytes) -> bytes:
    return _DOMAIN + context.encode() + b"\0" + data
