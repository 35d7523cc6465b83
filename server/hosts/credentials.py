"""Who may say what on a run's broker: certificates, a configuration, one file for each end.

Everything is made at once, and the authority's key is thrown away: nobody can add anybody later.
What a host may say carries its own name, in the subject; the broker sees to it.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_runtime.control.credentials import FORMAT, SUFFIX
from edge_runtime.control.seal import SERVER
from edge_runtime.protocol.members import is_token
from edge_runtime.protocol.wire import MAX_MESSAGE_BYTES
from server.errors import HostsError
from server.files import new_folder
from server.hosts.broker import CONFIGURATION_FILE

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.x509.oid import NameOID
except ImportError as error:
    raise HostsError(
        f"credentials: cryptography makes them ({error}): pip install 'pairzero[broker]'."
    ) from error

_BEFORE = datetime.timedelta(days=730)
"""A computer without a clock begins in the past."""
_AFTER = datetime.timedelta(days=3650)


def write_credentials(
    out: Path, devices: Sequence[str], addresses: Sequence[str], port: int, now: datetime.datetime
) -> tuple[str, ...]:
    """Write a folder with everything that a broker, a server and devices need.

    Args:
        out: the folder; it appears whole or not at all.
        devices: names of the hosts.
        addresses: names and IP addresses that hosts reach the broker by, beside this machine's own.
        port: of the broker.
        now: on the wall.

    Returns:
        The addresses that the broker's certificate is for.

    Raises:
        HostsError: a name or an address is none; or something is there already.
    """
    for name in devices:
        if not is_token(name) or name in (SERVER, "any"):
            raise HostsError(
                f"--devices: got {name!r}, wanted names of 1 to 64 letters, digits, - and _, and "
                'none called "server" or "any".'
            )
    if not devices or len(set(devices)) < len(devices):
        raise HostsError(f"--devices: got {', '.join(devices)!r}, wanted names, each once.")
    names = tuple(dict.fromkeys([*addresses, *_own_addresses()]))
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("pairzero", authority_key, "pairzero", authority_key, [], now, is_ca=True)
    with new_folder(out, HostsError) as folder:
        (folder / "authority.pem").write_text(_pem(authority), "ascii")
        key = ec.generate_private_key(ec.SECP256R1())
        broker = _sign("broker", key, "pairzero", authority_key, [_as_name(n) for n in names], now)
        _write_secret(folder / "broker.pem", _pem(broker) + _key_pem(key))
        configuration = _broker_configuration(devices, port)
        (folder / CONFIGURATION_FILE).write_text(configuration, "utf-8")
        signing = {n: ed25519.Ed25519PrivateKey.generate() for n in (SERVER, *devices)}
        for name in (SERVER, *devices):
            heard = devices if name == SERVER else [SERVER]
            key = ec.generate_private_key(ec.SECP256R1())
            identity = [x509.RFC822Name(_user(name))]
            certificate = _sign(name, key, "pairzero", authority_key, identity, now)
            own = ("127.0.0.1", *names) if name == SERVER else names
            text = _file_of(name, own, port, certificate, key, authority)
            text += _signing_part(signing[name], {n: signing[n] for n in heard})
            _write_secret(folder / f"{name}{SUFFIX}", text)
    return names


def _user(name: str) -> str:
    return f"{name}@pairzero"


def _own_addresses() -> list[str]:
    """Names and addresses that this machine knows of itself."""
    name = socket.gethostname()
    found = [name, f"{name.partition('.')[0]}.local"]
    for target in ("192.0.2.1", "2001:db8::1"):  # for documentation: nothing is sent to them
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found.append(probe.getsockname()[0])
        except OSError:
            continue
    return [*dict.fromkeys(found), "localhost", "127.0.0.1"]


def _as_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        if not address or any(c.isspace() or c in '/:"' for c in address):
            raise ValueError(address)
        return x509.DNSName(address)
    except ValueError as error:
        raise HostsError(
            f"--address: got {address!r}, wanted a name or an IP address, without a port."
        ) from error


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    now: datetime.datetime,
    is_ca: bool = False,
) -> x509.Certificate:
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
        .add_extension(_usage(is_ca), True)
    )
    if names:
        built = built.add_extension(x509.SubjectAlternativeName(names), False)
    return built.sign(issuer_key, hashes.SHA256())


def _usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def _file_of(
    name: str,
    addresses: Sequence[str],
    port: int,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
) -> str:
    at = json.dumps([f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses])
    return (
        f"# The credentials of {name}: for this machine alone, and secret.\n"
        f'format = {FORMAT}\nname = "{name}"\naddresses = {at}\n'
        f"certificate = '''\n{_pem(certificate)}'''\nkey = '''\n{_key_pem(key)}'''\n"
        f"authority = '''\n{_pem(authority)}'''\n"
    )


def _signing_part(
    own: ed25519.Ed25519PrivateKey, heard: Mapping[str, ed25519.Ed25519PrivateKey]
) -> str:
    lines = [
        f'"{name}" = "{key.public_key().public_bytes_raw().hex()}"\n' for name, key in heard.items()
    ]
    secret = own.private_bytes_raw().hex()
    return f'signing_key = "{secret}"\n\n[verify_keys]\n{"".join(lines)}'


def _broker_configuration(devices: Sequence[str], port: int) -> str:
    users = [f'    {{ user: "{_user(SERVER)}" }}']
    users += [
        f'    {{ user: "{_user(name)}", permissions: {{\n'
        f"        publish: {{ allow: {json.dumps(_may_say(name))} }},\n"
        f"        subscribe: {{ allow: {json.dumps(_may_hear(name))} }},\n"
        # An answer goes where the question said, once: nobody answers for another.
        '        allow_responses: { max: 1, expires: "10m" } } }'
        for name in devices
    ]
    return (
        "# A broker for pairzero. In this folder: nats-server -c broker.conf\n"
        f'listen: "0.0.0.0:{port}"\n'
        f"max_payload: {2 * MAX_MESSAGE_BYTES}\nwrite_deadline: 10s\n"
        'jetstream { store_dir: "disk", sync_interval: always }\n'
        'tls { cert_file: "broker.pem", key_file: "broker.pem", ca_file: "authority.pem",\n'
        "    verify_and_map: true, timeout: 5 }\n"
        "authorization { users: [\n" + ",\n".join(users) + "\n] }\n"
    )


def _may_say(name: str) -> list[str]:
    """What a host may publish: what carries its name, and questions about logs and bundles."""
    own = ["knock", "hello", "answer", "alive", "air", "radio"]
    return [
        *(f"pz.*.{what}.{name}" for what in own),
        "pz.*.server",
        "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.MSG.GET.*",
        "$JS.API.DIRECT.GET.>",
        "$JS.API.CONSUMER.CREATE.>",
        "$JS.API.CONSUMER.MSG.NEXT.>",
        "$JS.API.CONSUMER.DELETE.>",
    ]


def _may_hear(name: str) -> list[str]:
    """What a host may subscribe to."""
    own = [f"pz.*.{what}.{name}" for what in ("order", "start")]
    return ["pz.*.order", *own, f"pz.*.here.{name}.*", f"_INBOX.{name}.>"]


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
