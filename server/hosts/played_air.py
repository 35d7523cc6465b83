"""The server plays the air of a rehearsal: what devices send it, it adds as the channel would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining.messages import (
    Agreed,
    JoiningMessage,
    LeaveAsked,
    NumbersSent,
    OnAir,
    Refused,
    SignalSent,
    SilenceSent,
)
from edge_runtime.uplink import ScalarBox
from radio.arrays import Complex64Array, Complex128Array
from radio.errors import RadioError
from radio.transceiver import Transceiver
from server.hosts.desk import Desk

_MOST_PIECES = 64
"""Of a burst that is held: 4 million samples."""


class PlayedAirServer:
    """Takes what hosts send during an order, as long as that order is waited for.

    What comes late is refused: in another round it would be heard as if it were of that one.

    Args:
        link: to the broker; it stays its owner's.
        run_id: of the run.
        control: through which the orders go.
        hosts: name of each host -> its devices.
        num_numbers: Q, of every device.
        box: which adds the numbers of the ideal link.
        radios: what plays each device's transmitter on a software air.
    """

    def __init__(
        self,
        link: NatsLink,
        run_id: str,
        control: ControlChannel,
        hosts: Mapping[str, Sequence[int]],
        *,
        num_numbers: int,
        box: ScalarBox | None = None,
        radios: Sequence[Transceiver] = (),
    ) -> None:
        self._control, self._box, self._radios = control, box, radios
        self._num_numbers = num_numbers
        self._pieces: dict[int, list[SignalSent]] = {}
        self._hosts = {host: frozenset(devices) for host, devices in hosts.items()}
        self._desk = Desk(link, "played air", self._hear)
        self._desk.listen(f"pz.{run_id}.air.*")

    def silence(self, hosts: Iterable[str]) -> None:
        """End what these hosts' devices hold, as their own limit would."""
        for host in hosts:
            for device in self._hosts[host] if self._radios else ():
                self._radios[device].fall_silent()

    def close(self) -> None:
        """Hear nothing any more. Idempotent."""
        self._desk.close()

    def _hear(self, host: str, message: JoiningMessage) -> JoiningMessage:
        if not isinstance(message, OnAir):
            return Refused(f"got {type(message).__name__}, wanted what a device sends")
        if message.device_index not in self._hosts.get(host, ()):
            return Refused(f"device {message.device_index} is none of {host}'s")
        if isinstance(message, LeaveAsked):
            return Refused("leave for a radio, and this air is played")
        if not isinstance(message, NumbersSent) and not self._radios:
            return Refused("samples, and this air has no radios")
        if isinstance(message, SilenceSent):
            return _done(self._radios[message.device_index].fall_silent)
        if (message.epoch, message.sequence) != self._control.asking:
            return Refused("too late: its order is not waited for any more")
        if isinstance(message, SignalSent):
            return self._play(message)
        if self._box is None:
            return Refused("numbers without a radio, and this air has radios")
        if len(message.numbers) != self._num_numbers:
            return Refused(f"{len(message.numbers)} numbers, wanted {self._num_numbers}")
        self._box.put(message.numbers)
        return Agreed()

    def _play(self, signal: SignalSent) -> JoiningMessage:
        """A burst at its position, or a piece of one to hold; the last piece begins it."""
        if len(signal.samples) % (16 if signal.is_exact else 8):
            return Refused(f"{len(signal.samples)} bytes, which are no whole samples")
        if signal.start_sample is not None:
            start, radio = signal.start_sample, self._radios[signal.device_index]
            burst = (_exact_burst if signal.is_exact else _burst)(signal.samples)
            return _done(lambda: radio.transmit(burst, start_sample=start))
        if not 0 <= signal.piece < signal.num_pieces <= _MOST_PIECES:
            return Refused(f"piece {signal.piece} of {signal.num_pieces}")
        before = self._pieces.pop(signal.device_index, []) if signal.piece else []
        if [(p.epoch, p.sequence, p.piece) for p in before] != [
            (signal.epoch, signal.sequence, number) for number in range(signal.piece)
        ]:
            return Refused("the pieces before are missing")
        if signal.piece + 1 < signal.num_pieces:
            self._pieces[signal.device_index] = [*before, signal]
            return Agreed()
        held = _burst(b"".join(p.samples for p in (*before, signal)))
        return _done(lambda: self._radios[signal.device_index].hold(held))


def _done(act: Callable[[], None]) -> JoiningMessage:
    """What comes of it, for the device."""
    try:
        act()
    except RadioError as error:
        return Refused(f"{type(error).__name__}: {error}")
    return Agreed()


def _exact_burst(samples: bytes) -> Complex128Array:
    return np.frombuffer(samples, "<c16").astype(np.complex128)


def _burst(samples: bytes) -> Complex64Array:
    return np.frombuffer(samples, "<c8").astype(np.complex64)
