"""`LoopbackTransceiver`: a radio without hardware, on a `SoftwareMedium`."""

from __future__ import annotations

from radio.arrays import BurstArray, Complex64Array
from radio.checks import check_integer, check_positive
from radio.errors import RadioConfigurationError
from radio.software_air.medium import SoftwareMedium
from radio.transceiver import Mode, Transceiver


class LoopbackTransceiver(Transceiver):
    """One end of a software medium: a device that transmits, or the one receiver.

    A device's transceiver is given its ``device_index`` and only transmits; the receiver's is given
    None and only receives. Both refuse the other half, as the medium has one receiver. Positions
    are the medium's, shared by all, so bursts meet exactly where they are sent; a held burst comes
    with a delay that the medium draws for each capture and tells nobody. Nothing waits, so a
    timeout never strikes. Closing it ends a held burst, and leaves the medium and what was sent to
    a position as they are.

    ``source`` is "loopback+" and the channel's name: a number measured here says so.

    Args:
        medium: the common air.
        device_index: which device this is, or None for the receiver.
        max_amplitude: transmit full scale, > 0.

    Raises:
        RadioConfigurationError: no such device.

    Does not model, beside what `radio.software_air.impairments` leaves out: the time a radio takes
    to start and stop a held burst; multipath inside a symbol; fading inside a block; pulse shaping
    and filters (one sample is one symbol, noise bandwidth is the sample rate); automatic gain;
    interference; lost buffers, stale buffers and USB latency.
    """

    def __init__(
        self,
        medium: SoftwareMedium,
        device_index: int | None,
        *,
        max_amplitude: float = 1.0,
    ) -> None:
        if device_index is not None:
            device_index = check_integer("device_index", device_index, minimum=0)
            if device_index >= medium.num_devices:
                raise RadioConfigurationError(
                    f"device_index: got {device_index}, wanted 0..{medium.num_devices - 1}, or "
                    "None for the receiver."
                )
        self._medium = medium
        self._device_index = device_index
        self._max_amplitude = check_positive("max_amplitude", max_amplitude)

    @property
    def repeats_bit_for_bit(self) -> bool:
        """A medium draws gains and noise from generators that its owner can set again."""
        return True

    @property
    def sample_rate_hz(self) -> float:
        """The medium's sample rate."""
        return self._medium.sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """Transmit full scale."""
        return self._max_amplitude

    @property
    def source(self) -> str:
        """The word "loopback+" and the name of the channel model."""
        return f"loopback+{self._medium.channel_name}"

    @property
    def is_simulated(self) -> bool:
        """Always."""
        return True

    @property
    def modes(self) -> frozenset[Mode]:
        """Both: a medium can do what each of them asks for."""
        return frozenset(Mode)

    def _transmit(self, burst: BurstArray, start_sample: int) -> None:
        self._medium.add(self._transmitter, burst, start_sample)

    def _hold(self, burst: Complex64Array) -> None:
        self._medium.hold(self._transmitter, burst)

    def _fall_silent(self) -> None:
        self._medium.fall_silent(self._transmitter)

    def _receive(self, num_samples: int, start_sample: int, timeout_s: float) -> Complex64Array:
        self._check_is_receiver()
        return self._medium.capture(start_sample, num_samples)

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        self._check_is_receiver()
        return self._medium.listen(num_samples)

    def _close(self) -> None:
        if self._device_index is not None:
            self._medium.fall_silent(self._device_index)

    @property
    def _transmitter(self) -> int:
        if self._device_index is None:
            raise RadioConfigurationError(
                f"{self.source}: this is the receiver's end and cannot transmit. Open a "
                "LoopbackTransceiver with a device_index."
            )
        return self._device_index

    def _check_is_receiver(self) -> None:
        if self._device_index is not None:
            raise RadioConfigurationError(
                f"{self.source}: this is device {self._device_index}'s end and cannot receive. "
                "Open a LoopbackTransceiver with device_index=None."
            )
