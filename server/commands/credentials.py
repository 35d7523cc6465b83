"""``pairzero credentials``: who may take part in runs over a network."""

from __future__ import annotations

import argparse
import datetime

from edge_runtime.control.credentials import SUFFIX
from edge_runtime.control.seal import SERVER
from server.errors import HostsError
from server.hosts.broker import CONFIGURATION_FILE
from server.hosts.credentials import write_credentials

_MOST_PORT = 65535


def credentials(args: argparse.Namespace) -> int:
    """Write the files of a broker, a server and every host; returns the exit code."""
    if not 1 <= args.port <= _MOST_PORT:
        raise HostsError(f"--port: got {args.port}, wanted 1 to {_MOST_PORT}.")
    names = [name.strip() for name in args.devices.split(",")]
    now = datetime.datetime.now(datetime.UTC)
    addresses = write_credentials(args.out, names, args.address, args.port, now)
    print(
        f"{args.out}: for a broker at port {args.port} of {', '.join(addresses)}\n"
        f"  here:         pairzero serve CONFIG --credentials {args.out}\n"
        f"  on each host: its own {names[0]}{SUFFIX}, and\n"
        f"                pairzero-device join {names[0]}{SUFFIX} --data FILE\n"
        f"{CONFIGURATION_FILE} and {SERVER}{SUFFIX} stay here. Nobody can be added later."
    )
    return 0
