"""Virtual radios at TCP ports, one each, on one air."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import socket
import socketserver
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from radio.checks import check_integer
from radio.errors import RadioConfigurationError, RadioUnavailableError
from radio.self_closing import SelfClosing
from radio.software_air.impairments import IMPAIRMENTS, Impairments
from radio.units import amplitude_ratio_from_db, power_ratio_from_db
from radio.virtual_pluto.air import Crystal, VirtualAir
from radio.virtual_pluto.clock import SteppedClock, WallClock
from radio.virtual_pluto.iiod import BufferOwners, Session
from radio.virtual_pluto.pluto import VirtualPluto

_logger = logging.getLogger(__name__)

DEFAULT_BASE_PORT = 30431
MAX_CONNECTIONS = 32
"""Of one radio."""

_INITIAL_RATE_HZ = 30.72e6
_POLL_S = 0.05


MAX_RADIOS = 256
"""Each has a port, a thread and a path to every other one."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A set of virtual radios: the first hears, the others are as far from it as they are.

    Attributes:
        num_radios: all of them, >= 1.
        path_loss_db: from full scale of a transmitter at no attenuation to full scale of a receiver
            at a gain of 0 dB, for the nearest: 50 dB of attenuators on a desk.
        path_spread_db: further loss of the farthest; the others lie between, evenly.
        own_path_db: likewise, from a radio's transmitter to its own receiver, over the board.
        noise_dbfs: of a receiver in its sample rate, at a gain of 0 dB.
        impairments: crystals, linewidth, mixers, amplifiers. Converters have 12 bits regardless,
            and path loss is told above.
        is_stepped: time passes only when somebody listens (`SteppedClock`).
        seed: of everything that is drawn.
    """

    num_radios: int = 2
    path_loss_db: float = 50.0
    path_spread_db: float = 0.0
    own_path_db: float = 70.0
    noise_dbfs: float = -105.0
    impairments: Impairments = IMPAIRMENTS["ideal"]
    is_stepped: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("num_radios", self.num_radios, minimum=1, maximum=MAX_RADIOS)
        for name in ("path_loss_db", "path_spread_db", "own_path_db"):
            value = getattr(self, name)
            if not 0.0 <= value <= 200.0:
                raise RadioConfigurationError(f"{name}: got {value}, wanted 0 to 200 dB.")
        if math.isnan(self.noise_dbfs) or self.noise_dbfs > 0.0:
            raise RadioConfigurationError(
                f"noise_dbfs: got {self.noise_dbfs}, wanted at most 0, or -inf for none."
            )

    def build(self) -> list[VirtualPluto]:
        """Radios on a new air."""
        rng = np.random.default_rng([self.seed, 0])
        clock = SteppedClock() if self.is_stepped else WallClock()
        air = VirtualAir(clock, noise_power=power_ratio_from_db(self.noise_dbfs), seed=self.seed)
        impairments = replace(
            self.impairments, dac_bits=12, adc_bits=12, adc_full_scale_db=0.0, distance_ratio=1.0
        )
        errors_ppm = self.impairments.crystal_ppm * rng.uniform(-1.0, 1.0, self.num_radios)
        radios = [
            air.add(
                Crystal(float(error), warming_ppm=self.impairments.drift_ppm),
                impairments,
                _INITIAL_RATE_HZ,
            )
            for error in errors_ppm
        ]
        losses_db = self.path_loss_db + np.linspace(
            0.0, self.path_spread_db, max(1, self.num_radios - 1)
        )
        for sender in radios:
            for receiver in radios:
                if sender is receiver:
                    continue
                # A path is as long as the farther end of it is away from the first radio.
                loss_db = losses_db[max(sender.index, receiver.index) - 1]
                phase = np.exp(2j * math.pi * rng.random())
                air.connect(sender, receiver, complex(amplitude_ratio_from_db(-loss_db) * phase))
        for radio in radios:
            phase = np.exp(2j * math.pi * rng.random())
            gain = complex(amplitude_ratio_from_db(-self.own_path_db) * phase)
            air.connect(radio, radio, gain)
        # Not of the seed: as with hardware, no two radios have one serial number.
        name = secrets.token_hex(4)
        return [VirtualPluto(air, radio, f"virtual-{name}-{radio.index:04d}") for radio in radios]


class VirtualPlutoServer(SelfClosing):
    """Serves radios, each at a port of its own, from threads of this process.

    Args:
        plutos: that are served.
        host: address to listen at.
        base_port: of the first; the others follow. 0 takes what is free.
        stops_when_lost: see `Session`.

    Raises:
        RadioUnavailableError: a port is taken.
    """

    def __init__(
        self,
        plutos: Sequence[VirtualPluto],
        *,
        host: str = "127.0.0.1",
        base_port: int = DEFAULT_BASE_PORT,
        stops_when_lost: bool = False,
    ) -> None:
        self._servers: list[_Server] = []
        self._threads: list[threading.Thread] = []
        for index, pluto in enumerate(plutos):
            port = base_port + index if base_port else 0
            try:
                server = _Server((host, port), pluto, stops_when_lost)
            except (OSError, OverflowError) as error:
                self.close()
                raise RadioUnavailableError(
                    f"virtual pluto: cannot listen at {host}:{port}: {error}. Another server may "
                    "be running; choose another --base-port."
                ) from error
            self._servers.append(server)
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def uris(self) -> list[str]:
        """By which clients find the radios."""
        return [server.uri for server in self._servers]

    @property
    def num_connections(self) -> int:
        """How many connections all radios have now."""
        return sum(len(server.connections) for server in self._servers)

    def unplug(self, index: int) -> None:
        """Take a radio off the network: its port is closed and so are its connections."""
        server = self._servers[index]
        server.shutdown()
        server.server_close()
        server.close_connections()

    def close(self) -> None:
        """Serve no more; connections are closed."""
        for index, server in enumerate(self._servers):
            if index < len(self._threads) and self._threads[index].is_alive():
                server.shutdown()
            server.server_close()
            server.close_connections()
        for thread in self._threads:
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], pluto: VirtualPluto, stops_when_lost: bool
    ) -> None:
        self.pluto = pluto
        self.owners = BufferOwners()
        self.stops_when_lost = stops_when_lost
        self.connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, _Connection)

    @property
    def uri(self) -> str:
        host, port = self.server_address[:2]
        return f"ip:{host!s}:{port}"

    def begin(self, connection: socket.socket) -> bool:
        """Whether there is room for a further connection."""
        with self._guard:
            if len(self.connections) >= MAX_CONNECTIONS:
                return False
            self.connections.add(connection)
            return True

    def end(self, connection: socket.socket) -> None:
        with self._guard:
            self.connections.discard(connection)

    def close_connections(self) -> None:
        with self._guard:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    rbufsize = 1 << 18
    wbufsize = 1 << 18
    server: _Server

    def handle(self) -> None:
        connection: socket.socket = self.request
        if not self.server.begin(connection):
            _logger.warning("%s: too many connections", self.server.pluto.serial)
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            Session(
                self.server.pluto,
                self.server.owners,
                self.rfile,
                self.wfile,
                stops_when_lost=self.server.stops_when_lost,
            ).serve()
        finally:
            self.server.end(connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
