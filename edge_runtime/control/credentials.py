"""One file for each end of a run: where the broker is, whom to trust there, and who one is.

A TOML file that holds the certificates and the key as PEM, where OpenSSL finds them by itself.
`pairzero credentials` writes it. Without one nobody leaves 127.0.0.1.
"""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import stat
from pathlib import Path

import msgspec

from edge_runtime.control.seal import Seal
from edge_runtime.protocol.errors import LinkError
from edge_runtime.protocol.members import is_token

FORMAT = 1
SUFFIX = ".pairzero"
_MOST_BYTES = 1 << 20
_CONNECT_S = 5.0
_CONNECT_LINE = b'CONNECT {"verbose":false,"pedantic":false,"lang":"pairzero"}\r\nPING\r\n'
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class CredentialsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in it.

    Attributes:
        format: meaning of these fields.
        name: of the host, or "server".
        addresses: of the broker, HOST:PORT each; the first that answers is taken.
        certificate: that one shows there, PEM.
        key: of it, PEM; secret.
        authority: that the broker's certificate is checked with, PEM.
        signing_key: of everything that is said, hex; secret.
        verify_keys: of those who are heard, name -> hex.
    """

    format: int
    name: str
    addresses: tuple[str, ...]
    certificate: str
    key: str
    authority: str
    signing_key: str
    verify_keys: dict[str, str]


class Credentials:
    """A file of credentials, opened.

    Args:
        path: of the file.
        addresses: of the broker, instead of those in the file.

    Raises:
        LinkError: it is none, or others can read it.
    """

    def __init__(self, path: Path, addresses: tuple[str, ...] = ()) -> None:
        content = _read(path)
        if content.format != FORMAT:
            raise LinkError(
                f"{path}: format {content.format}, this pairzero reads {FORMAT}. Have it written "
                "again by the same pairzero: pairzero credentials."
            )
        if not is_token(content.name) or not content.addresses:
            raise LinkError(f"{path}: name or addresses are none. Have it written again.")
        self.name, self._addresses = content.name, addresses or content.addresses
        self.seal = Seal(content.signing_key, content.verify_keys)
        try:
            self._context = ssl.create_default_context(cadata=content.authority)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._context.load_cert_chain(path)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise LinkError(
                f"{path}: its certificates cannot be read ({error}). Copy the file again."
            ) from error

    @property
    def context(self) -> ssl.SSLContext:
        """What a connection is made with."""
        return self._context

    def find_broker(self) -> str:
        """The first address that answers, and takes one in: tls://HOST:PORT.

        Tried by hand: the client would try again and again, and say nothing.

        Raises:
            LinkError: none does; why not, for each.
        """
        reasons = []
        for address in self._addresses:
            host, _, port = address.rpartition(":")
            host = host.strip("[]")
            try:
                reason = self._why_not(host, int(port))
            except ValueError:
                reason = "wanted HOST:PORT"
            if not reason:
                return f"tls://{address}"
            reasons.append(f"{address}: {reason}")
        raise LinkError("broker: " + "; ".join(reasons) + ".")

    def _why_not(self, host: str, port: int) -> str:
        try:
            with socket.create_connection((host, port), _CONNECT_S) as bare:
                info = first_line(bare)
                if not info.startswith("INFO "):
                    return "somebody answers who is no NATS broker"
                if not json.loads(info[5:]).get("tls_required"):
                    return "the broker has no TLS: start it with the broker.conf of the credentials"
                with self._context.wrap_socket(bare, server_hostname=host) as connection:
                    connection.sendall(_CONNECT_LINE)
                    while (line := first_line(connection)).startswith("INFO "):
                        pass
        except ssl.SSLCertVerificationError as error:
            return _about_certificate(error, host)
        except ssl.SSLError as error:
            return f"the broker does not take this file's certificate ({error.reason})"
        except (OSError, ValueError) as error:
            return f"nobody answers ({getattr(error, 'strerror', None) or error})"
        if line.startswith("-ERR"):
            return f"the broker does not know {self.name!r} ({line[4:].strip()})"
        return "" if line == "PONG" else "the broker does not take this file's certificate"


def _read(path: Path) -> CredentialsFile:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
            mode = path.stat().st_mode
    except OSError as error:
        raise LinkError(
            f"{path}: cannot be read ({error.strerror}), wanted this end's file of credentials (or "
            "nats://HOST:PORT of a broker on this machine). `pairzero credentials` writes one for "
            "each host; copy its own here."
        ) from error
    if mode & _READABLE_BY_OTHERS:
        raise LinkError(
            f"{path}: others on this machine can read it, and it holds a key. chmod 600 {path}"
        )
    try:
        return msgspec.toml.decode(data[:_MOST_BYTES], type=CredentialsFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"{path}: no credentials ({error}). Copy the file again.") from error


def first_line(connection: socket.socket) -> str:
    """Byte by byte, for what follows it belongs to whoever reads next."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _MOST_BYTES:
        piece = connection.recv(1)
        if not piece:
            break
        line += piece
    return line.decode("utf-8", "replace").strip()


def _about_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    said = error.verify_message
    if "not yet valid" in said or "expired" in said:
        today = datetime.datetime.now(datetime.UTC).date()
        return (
            f"the broker's certificate is of another time ({said}); this machine's date is "
            f"{today}. Set it: timedatectl set-time, or timedatectl set-ntp true"
        )
    if "match" in said.lower():
        return (
            f"the broker's certificate is not for {host} ({said}). Write the credentials again "
            f"with --address {host}"
        )
    return f"the broker's certificate is not of this file's authority ({said})"
