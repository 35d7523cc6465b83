"""How a radio is named, and what an error of the way to it means. Needs no library at all."""

from __future__ import annotations

import errno
import re
import socket

from radio.errors import RadioConfigurationError

_URI = re.compile(
    r"ip:(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"|usb:[0-9]+\.[0-9]+(\.[0-9]+)?"
    r"|serial:[0-9A-Za-z-]+"
)

_DEFAULT_PORT = 30431

_HINTS = {
    errno.ECONNREFUSED: "nothing listens there: is it plugged in, and is the port right?",
    errno.EHOSTUNREACH: "no way to that address: look at the network of the radio's USB adapter.",
    errno.ENETUNREACH: "no way to that network: look at the network of the radio's USB adapter.",
    errno.ETIMEDOUT: "nobody answers at that address.",
    errno.ENXIO: "no such host: use the radio's address instead of its name.",
    errno.ENODEV: "no such USB device: `pairzero-radio doctor` lists what is there.",
    errno.EACCES: "permission denied: install the udev rule that firmware_notes names, replug.",
    errno.EBUSY: "another program has it open.",
    errno.EIO: "input/output error: often too little USB power; use a powered hub.",
    errno.EPIPE: "it took the connection and said nothing: is this a Pluto? Unplug and replug it.",
    errno.EINVAL: "what answers there does not speak the protocol of libiio.",
    errno.ENOSYS: "this libiio was built without that kind of connection.",
}


def check_uri(uri: str) -> str:
    """``uri`` itself, if it names one radio.

    Raises:
        RadioConfigurationError: it does not. A search for "some Pluto" is refused: with two of them
            on a desk it is the wrong one every other time.
    """
    match = _URI.fullmatch(uri)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise RadioConfigurationError(
            f"uri: got {uri!r}, wanted ip:ADDRESS, ip:ADDRESS:PORT, usb:BUS.DEVICE.INTERFACE or "
            "serial:SERIAL. `pairzero-radio doctor` lists the radios that are there."
        )
    return uri


def check_answers(uri: str, timeout_s: float) -> None:
    """Return if somebody answers at a radio's network address, or if that cannot be told.

    libiio waits five seconds for each of several answers; whoever has a radio to silence and others
    that wait wants to know sooner.

    Raises:
        OSError: nobody does, within ``timeout_s`` for the connection and again for the answer.
    """
    match = _URI.fullmatch(uri)
    if match is None or match["host"] is None:
        return
    address = match["host"].strip("[]"), int(match["port"] or _DEFAULT_PORT)
    try:
        connection = socket.create_connection(address, timeout_s)
    except socket.gaierror:
        return  # libiio may know the name
    with connection:
        connection.sendall(b"VERSION\r\n")
        connection.recv(64)


def hint(error: OSError) -> str:
    """What to do about an error of a connection."""
    known = _HINTS.get(error.errno or 0, "see firmware_notes for errors by name.")
    return f"{error.strerror or error} (errno {error.errno}): {known}"
