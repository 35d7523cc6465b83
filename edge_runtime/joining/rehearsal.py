"""A device's end of an air that the server plays: for rehearsals, where no radio is there.

Everything sent names the order that it is sent during, so that what comes late is refused and not
heard in another round. The server sees what each device sends by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining import messages
from edge_runtime.joining.messages import NumbersSent, OnAir, SignalSent, SilenceSent
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.orders import AtHand
from radio.arrays import BurstArray, Complex64Array
from radio.errors import RadioConfigurationError, RadioNotSilentError, RadioUnavailableError
from radio.transceiver import Mode, Transceiver

_SEND_S = 30.0
_PIECE_BYTES = 1 << 19
"""Of a held burst, which is a megabyte at 20 MS/s: half of what a message may be."""


@dataclass(frozen=True, slots=True)
class PlayedAir:
    """The way to the server's air.

    Attributes:
        link: to the broker.
        subject: where the server listens.
        at_hand: the order that is being carried out.
    """

    link: NatsLink
    subject: str
    at_hand: AtHand

    def send(self, message: OnAir) -> None:
        """Have it heard.

        Raises:
            RadioUnavailableError: it was not, for all that is known here.
        """
        try:
            reply = self.link.request(self.subject, messages.encode(message), _SEND_S)
            reason = "nobody plays the air" if reply is None else refusal(reply)
        except (LinkError, WireError) as error:
            raise RadioUnavailableError(str(error)) from error
        if reason:
            raise RadioUnavailableError(f"{self.subject}: {reason}")


def refusal(reply: bytes) -> str:
    """Why the server refuses; empty if it does not."""
    return messages.refusal_of(messages.decode(reply))


@dataclass(frozen=True, slots=True)
class PlayedBox:
    """One device's end of the ideal link (`edge_runtime.uplink.ScalarBox`)."""

    air: PlayedAir
    device_index: int

    def put(self, scalars: Iterable[float]) -> None:
        """Add the device's numbers to the sums.

        Raises:
            RadioUnavailableError: they were not added, for all that is known here.
        """
        now = self.air.at_hand
        self.air.send(NumbersSent(now.epoch, now.sequence, self.device_index, tuple(scalars)))


class PlayedTransceiver(Transceiver):
    """One device's transmitter on the air that the server plays; it cannot receive.

    Does not model, beside what the server's air leaves out: that two devices send at one moment;
    they are added as if they had.

    Args:
        air: the way there.
        device_index: whose it is.
        sample_rate_hz: of both ends.
        max_amplitude: transmit full scale, > 0.
    """

    def __init__(
        self, air: PlayedAir, device_index: int, *, sample_rate_hz: float, max_amplitude: float
    ) -> None:
        self._air, self._device_index = air, device_index
        self._sample_rate_hz, self._max_amplitude = sample_rate_hz, max_amplitude
        self._is_holding = False

    @property
    def sample_rate_hz(self) -> float:
        """The server's."""
        return self._sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """Transmit full scale."""
        return self._max_amplitude

    @property
    def source(self) -> str:
        """The word "rehearsal"."""
        return "rehearsal"

    @property
    def is_simulated(self) -> bool:
        """Always."""
        return True

    @property
    def modes(self) -> frozenset[Mode]:
        """Both."""
        return frozenset(Mode)

    def _transmit(self, burst: BurstArray, start_sample: int) -> None:
        is_exact = burst.dtype == np.complex128
        samples = burst.astype("<c16" if is_exact else "<c8", copy=False).tobytes()
        now = self._air.at_hand
        self._air.send(
            SignalSent(now.epoch, now.sequence, self._device_index, samples, is_exact, start_sample)
        )

    def _hold(self, burst: Complex64Array) -> None:
        samples, now = burst.astype("<c8", copy=False).tobytes(), self._air.at_hand
        pieces = [samples[i : i + _PIECE_BYTES] for i in range(0, len(samples), _PIECE_BYTES)]
        self._is_holding = True  # for all that is known, from the first piece on
        for number, piece in enumerate(pieces):
            self._air.send(
                SignalSent(
                    now.epoch,
                    now.sequence,
                    self._device_index,
                    piece,
                    piece=number,
                    num_pieces=len(pieces),
                )
            )

    def _fall_silent(self) -> None:
        if not self._is_holding:
            return
        try:
            self._air.send(SilenceSent(self._device_index))
        except RadioUnavailableError as error:
            raise RadioNotSilentError(
                f"device {self._device_index} may be held on the server's air: {error}"
            ) from error
        self._is_holding = False

    def _receive(self, num_samples: int, start_sample: int, timeout_s: float) -> Complex64Array:
        raise _cannot_hear()

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        raise _cannot_hear()

    def _close(self) -> None:
        self._fall_silent()


def _cannot_hear() -> RadioConfigurationError:
    return RadioConfigurationError("rehearsal: a device's end cannot receive; the server hears.")
