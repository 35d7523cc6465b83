"""``pairzero-radio silence``: take radios off the air, whoever put them there."""

from __future__ import annotations

import argparse
import sys

from radio.errors import RadioNotSilentError, RadioUnavailableError
from radio.pluto.silence import AS_READ_BACK, silence


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "silence", help="stop what a radio transmits: after a crash, a kill, a pulled cable"
    )
    parser.add_argument("uris", nargs="+", metavar="URI", help="ip:, usb: or serial:")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Silence all; 1 if one of them is not known to be silent."""
    code = 0
    for uri in arguments.uris:
        try:
            report = silence(uri)
        except (RadioUnavailableError, RadioNotSilentError) as error:
            # The others must not wait for this one.
            print(f"pairzero-radio: {error}", file=sys.stderr)
            code = 1
            continue
        for line in report.found:
            print(f"{uri}: was on the air: {line}")
        print(f"{uri}: silent, read back: {AS_READ_BACK}")
    return code
