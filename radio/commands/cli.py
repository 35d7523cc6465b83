"""``pairzero-radio``: radios and the software air, from the command line.

Exit code 0: all is well. 1: the command ran and found a problem. 2: the request is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from radio.commands import (
    calibrate,
    doctor,
    measure,
    record,
    replay,
    silence,
    virtual_pluto,
)
from radio.errors import RadioError

_COMMANDS = (doctor, calibrate, measure, record, replay, virtual_pluto, silence)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="pairzero-radio", description="Check and try the radio layer of pairzero."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        # argparse has printed its message already: 2 for a bad request, 0 for --help.
        return stop.code if isinstance(stop.code, int) else 2
    try:
        code: int = arguments.run(arguments)
    except RadioError as error:
        print(f"pairzero-radio: {error}", file=sys.stderr)
        return 2
    return code
