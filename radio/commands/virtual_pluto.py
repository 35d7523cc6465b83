"""``pairzero-radio virtual-pluto``: radios without hardware, for real clients."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import threading

from radio.software_air.impairments import IMPAIRMENTS, impairments_from_name
from radio.virtual_pluto.server import DEFAULT_BASE_PORT, Bench, VirtualPlutoServer

_LOOK_S = 0.2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Say what can be asked for."""
    parser = commands.add_parser(
        "virtual-pluto", help="serve virtual Plutos that libiio and pyadi-iio connect to"
    )
    parser.add_argument("--nodes", type=int, default=2, help="radios on one air (default 2)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument(
        "--base-port",
        type=int,
        default=DEFAULT_BASE_PORT,
        help=f"of the first; the others follow; 0 takes free ones (default {DEFAULT_BASE_PORT})",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "stepped"),
        default="wall",
        help="wall: as slow as hardware; stepped: time passes when somebody listens",
    )
    parser.add_argument("--impairments", choices=sorted(IMPAIRMENTS), default="ideal")
    parser.add_argument(
        "--ppm", type=float, help="largest error of a crystal, in place of the impairments'"
    )
    parser.add_argument(
        "--path-loss-db",
        type=float,
        default=50.0,
        help="full scale at no attenuation to full scale at 0 dB gain (default 50)",
    )
    parser.add_argument(
        "--path-spread-db", type=float, default=0.0, help="further loss of the last node"
    )
    parser.add_argument(
        "--own-path-db",
        type=float,
        default=70.0,
        help="from a radio's transmitter to its own receiver (default 70, over the board; a cable "
        "with attenuators has 30)",
    )
    parser.add_argument(
        "--noise-dbfs",
        type=float,
        default=-105.0,
        help="of a receiver at 0 dB gain, in its sample rate (default -105)",
    )
    parser.add_argument(
        "--stops-when-lost",
        action="store_true",
        help="a cyclic buffer ends with its connection, as with the network daemon; without it a "
        "lost client leaves it on the air",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    impairments = impairments_from_name(arguments.impairments)
    if arguments.ppm is not None:
        impairments = dataclasses.replace(impairments, crystal_ppm=arguments.ppm)
    bench = Bench(
        num_radios=arguments.nodes,
        path_loss_db=arguments.path_loss_db,
        path_spread_db=arguments.path_spread_db,
        own_path_db=arguments.own_path_db,
        noise_dbfs=arguments.noise_dbfs,
        impairments=impairments,
        is_stepped=arguments.clock == "stepped",
        seed=arguments.seed,
    )
    is_over = threading.Event()
    with VirtualPlutoServer(
        bench.build(),
        host=arguments.host,
        base_port=arguments.base_port,
        stops_when_lost=arguments.stops_when_lost,
    ) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: is_over.set())
        for index, uri in enumerate(server.uris):
            print(f"node {index}  {uri}", flush=True)
        print("Virtual radios: nothing here is hardware. Stop with Ctrl-C.", file=sys.stderr)
        # Now and then: a signal that another thread was given does not wake this one.
        while not is_over.wait(_LOOK_S):
            pass
    return 0
