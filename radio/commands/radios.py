"""Options that name radios, and the radios that they open, for the commands that need some."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from radio.errors import RadioConfigurationError
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.transceiver import PlutoTransceiver

RADIO_OPTIONS = (
    "carrier_hz", "sample_rate_hz", "tx_attenuation_db", "rx_gain_db", "settling_s", "max_hold_s",
)  # fmt: skip
"""What is set of radios, whichever they are."""


def add_radio_options(parser: argparse.ArgumentParser, *, needs_devices: bool) -> None:
    """A receiver, transmitters, and their levels.

    Args:
        parser: that is told.
        needs_devices: whether there have to be transmitters.
    """
    group = parser.add_argument_group("radios")
    group.add_argument("--receiver", metavar="URI", help="of the Pluto that hears")
    group.add_argument(
        "--device",
        metavar="URI",
        action="append",
        default=[],
        dest="transmitters",
        required=needs_devices,
        help="of a Pluto that transmits; once for each",
    )
    group.add_argument("--carrier-hz", type=float, default=915e6, help="default 915e6")
    group.add_argument("--sample-rate-hz", type=float, default=1e6, help="default 1e6")
    group.add_argument(
        "--tx-attenuation-db",
        type=float,
        default=40.0,
        help="of transmitters; begin with much (default 40)",
    )
    group.add_argument("--rx-gain-db", type=float, default=40.0, help="of the receiver, default 40")
    group.add_argument(
        "--settling-s",
        type=float,
        default=0.05,
        help="waited for before every capture (default 0.05)",
    )
    group.add_argument(
        "--max-hold-s",
        type=float,
        default=10.0,
        help="longest that a burst is held before the program is taken for hung (default 10)",
    )


@contextlib.contextmanager
def open_radios(
    arguments: argparse.Namespace,
) -> Iterator[tuple[PlutoTransceiver, list[PlutoTransceiver]]]:
    """The receiver and the transmitters; silent and closed afterwards, whatever happens.

    Raises:
        RadioError: one of them cannot be opened.
    """
    if not arguments.receiver:
        raise RadioConfigurationError("--receiver: none, wanted the URI of the Pluto that hears.")
    uris = [arguments.receiver, *arguments.transmitters]
    if len(set(uris)) != len(uris):
        raise RadioConfigurationError(
            f"--receiver, --device: got {uris}; a radio has one task, name each once."
        )
    settings = [
        PlutoSettings(
            uri=uri,
            role=Role.TRANSMITTER if index else Role.RECEIVER,
            sample_rate_hz=arguments.sample_rate_hz,
            carrier_hz=arguments.carrier_hz,
            tx_attenuation_db=arguments.tx_attenuation_db,
            rx_gain_db=arguments.rx_gain_db,
            settling_s=arguments.settling_s,
            max_hold_s=arguments.max_hold_s,
        )
        for index, uri in enumerate(uris)
    ]
    with contextlib.ExitStack() as opened:
        receiver, *transmitters = (
            opened.enter_context(PlutoTransceiver(each)) for each in settings
        )
        yield receiver, transmitters
