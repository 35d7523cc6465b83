"""A transceiver around another one whose bursts are held: all is its own but for what changes."""

from __future__ import annotations

from radio.arrays import Complex64Array
from radio.health import RadioHealth
from radio.transceiver import Mode, Transceiver


class AroundHeldRadio(Transceiver):
    """Passes everything on; a subclass changes some of it.

    Args:
        radio: with held bursts; it is closed with this one.
    """

    def __init__(self, radio: Transceiver) -> None:
        self._radio = radio

    @property
    def sample_rate_hz(self) -> float:
        """The radio's."""
        return self._radio.sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """The radio's."""
        return self._radio.max_amplitude

    @property
    def source(self) -> str:
        """The radio's."""
        return self._radio.source

    @property
    def name(self) -> str:
        """The radio's."""
        return self._radio.name

    @property
    def is_simulated(self) -> bool:
        """What the radio says of itself."""
        return self._radio.is_simulated

    @property
    def repeats_bit_for_bit(self) -> bool:
        """What the radio says of itself."""
        return self._radio.repeats_bit_for_bit

    @property
    def temperature_c(self) -> float | None:
        """The radio's."""
        return self._radio.temperature_c

    @property
    def rx_gain_db(self) -> float | None:
        """The radio's."""
        return self._radio.rx_gain_db

    @property
    def modes(self) -> frozenset[Mode]:
        """Held alone."""
        return frozenset({Mode.HELD})

    def take_health(self) -> RadioHealth | None:
        """The radio's."""
        return self._radio.take_health()

    def _hold(self, burst: Complex64Array) -> None:
        self._radio.hold(burst)

    def _fall_silent(self) -> None:
        self._radio.fall_silent()

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        return self._radio.capture(num_samples, timeout_s=timeout_s)

    def _close(self) -> None:
        self._radio.close()
