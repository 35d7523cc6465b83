"""The receiving end: from samples to an estimate of the sum, with the noise that was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.uplink import ScalarBox
from radio.transceiver import Transceiver
from radio.waveforms.coherent import ChannelEstimate, CoherentWaveform, Reception

_RECEIVE_TIMEOUT_S = 5.0


class Receiver(ABC):
    """Hears pilots and sums."""

    @property
    @abstractmethod
    def source(self) -> str:
        """What the numbers come from, for eyes only: "loopback+rayleigh", "ideal (no radio)"."""

    @property
    @abstractmethod
    def is_simulated(self) -> bool:
        """Whether a program makes what is received; see `Transceiver.is_simulated`."""

    @property
    @abstractmethod
    def repeats_bit_for_bit(self) -> bool:
        """Whether a round that is carried out again is heard as the very same numbers."""

    @abstractmethod
    def hear_pilots(self, frame_start_sample: int, amplitude: float) -> ChannelEstimate:
        """Estimate every device's channel gain from a sounding frame."""

    @abstractmethod
    def hear_sum(self, frame_start_sample: int, receive_scale: float) -> Reception:
        """Demodulate the superposed payload into estimates of the Q sums of scalars."""

    @abstractmethod
    def close(self) -> None:
        """Let the radio go. Idempotent."""


@dataclass(frozen=True, slots=True)
class RadioReceiver(Receiver):
    """A transceiver and the coherent waveform's demodulator."""

    transceiver: Transceiver
    waveform: CoherentWaveform

    @property
    def source(self) -> str:
        """The transceiver's own name for itself."""
        return self.transceiver.source

    @property
    def is_simulated(self) -> bool:
        """What the transceiver says of itself."""
        return self.transceiver.is_simulated

    @property
    def repeats_bit_for_bit(self) -> bool:
        """What the transceiver says of itself."""
        return self.transceiver.repeats_bit_for_bit

    def hear_pilots(self, frame_start_sample: int, amplitude: float) -> ChannelEstimate:
        """Capture a sounding frame and correlate with each pilot."""
        capture = self.transceiver.receive(
            self.waveform.sounding_samples,
            start_sample=frame_start_sample,
            timeout_s=_RECEIVE_TIMEOUT_S,
        )
        return self.waveform.estimate_gains(capture, amplitude)

    def hear_sum(self, frame_start_sample: int, receive_scale: float) -> Reception:
        """Capture a payload frame and correlate with the payload sequences."""
        capture = self.hear_samples(frame_start_sample)
        return self.waveform.demodulate(capture, receive_scale)

    def hear_samples(self, frame_start_sample: int) -> npt.NDArray[np.complex64]:
        """The raw samples of a payload frame."""
        return self.transceiver.receive(
            self.waveform.payload_samples,
            start_sample=frame_start_sample,
            timeout_s=_RECEIVE_TIMEOUT_S,
        )

    def close(self) -> None:
        """Close the transceiver."""
        self.transceiver.close()


@dataclass(frozen=True, slots=True)
class IdealReceiver(Receiver):
    """The exact sums: unit gains, no noise, no radio."""

    box: ScalarBox
    num_devices: int

    @property
    def source(self) -> str:
        """Says that nothing was on any air."""
        return "ideal (no radio)"

    @property
    def is_simulated(self) -> bool:
        """No radio is no hardware."""
        return True

    @property
    def repeats_bit_for_bit(self) -> bool:
        """An exact sum is the same every time."""
        return True

    def hear_pilots(self, frame_start_sample: int, amplitude: float) -> ChannelEstimate:
        """Every gain is 1, known exactly."""
        gains = np.ones(self.num_devices, dtype=np.complex128)
        return ChannelEstimate(gains=gains, error_variance=0.0, noise_power=0.0)

    def hear_sum(self, frame_start_sample: int, receive_scale: float) -> Reception:
        """The exactly rounded sums."""
        sums = self.box.take_sums()
        return Reception(
            sum_estimates=sums,
            receiver_noise_std=0.0,
            noise_power=0.0,
            quadrature_estimates=(0.0,) * len(sums),
        )

    def close(self) -> None:
        """Nothing to let go of."""
