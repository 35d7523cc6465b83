"""``pairzero-radio``: radios and the software air, from the command line.

Exit code 0: all is well. 1: the command ran and found a problem. 2: the request is wrong.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence

from radio.command_line import ShowVersion, answered
from radio.errors import RadioError

_COMMANDS = ("doctor", "calibrate", "measure", "record", "replay", "virtual_pluto", "silence")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return answered(
        "pairzero-radio",
        functools.partial(_carry_out, argv),
        (RadioError,),
        installs="pip install '.[pluto]', or '.[server]' for pictures.",
    )


def _carry_out(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="pairzero-radio", description="Check and try the radio layer of pairzero."
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"radio.commands.{name}").add_parser(commands)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        # argparse has printed its message already: 2 for a bad request, 0 for --help.
        return stop.code if isinstance(stop.code, int) else 2
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
