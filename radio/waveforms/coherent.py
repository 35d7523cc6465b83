"""Coherent over-the-air sum: devices undo their channels, amplitudes add, the receiver reads it.

The receiver first learns the channels, once per fading block, then hears the sums::

    sounding frame   | noise | pilot 0 |guard| pilot 1 |guard| ... | pilot K-1 |guard|
                     one device after the other, all at the same known amplitude A

    payload frame    | noise | number 0 | number 1 | ... | number Q-1 |
                     all devices at once, each with  tx_gain_k = receive_scale / h_hat_k

One sample per symbol. Pilot and payload are Zadoff-Chu sequences z of unit amplitude, the payload
the same for all devices and numbers. With y the capture of one sequence, L its length:

    h_hat_k = sum_i conj(z[i]) y_k[i] / (L A)
            = h_k + CN(0, N0 / (L A^2))
    sum_estimate = Re sum_i conj(z[i]) y[i] / (L c)
                 = sum_k Re(h_k / h_hat_k) s_k + N(0, N0 / (2 L c^2))

Numbers follow one another instead of sharing the time on orthogonal sequences, because the peak
amplitude is what a transmitter is short of: one after the other, Q numbers of bounded norm reach no
higher peak than one, and each is heard as well as one alone; together they would reach sqrt(Q)
times that. The price is airtime, Q L symbols.

Assumes: gains constant from sounding to payload, alignment to the sample, common carrier. At a
residual offset of 100 Hz and a few milliseconds between the frames nothing is left of the phase:
this is the waveform of the software medium and of radios with a shared trigger and clock.
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from radio.arrays import Complex64Array, Complex128Array
from radio.checks import check_all_finite, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.waveforms.error_model import (
    gain_error_variance,
    receiver_noise_std,
)
from radio.waveforms.zadoff_chu import zadoff_chu

MAX_PAYLOAD_SYMBOLS = 1 << 16
"""Of one frame: 66 ms at 1 MHz, longer than gains stay constant in most places."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelEstimate:
    """What the sounding frame told.

    Attributes:
        gains: h_hat, complex128 [num_devices], read-only.
        error_variance: measured_noise_power / (pilot_symbols amplitude^2), E[abs(h_hat - h)^2].
        noise_power: measured in the silence of this frame; its own relative standard deviation is
            1 / sqrt(noise_symbols). For a promise use `noise_power_upper_bound`.
    """

    gains: Complex128Array
    error_variance: float
    noise_power: float


@dataclass(frozen=True, slots=True)
class Reception:
    """What the payload frame told.

    Attributes:
        sum_estimates: of each number, the estimate of sum_k s_k over the devices that spoke, in
            scalar units.
        receiver_noise_std: standard deviation of the receiver noise on each, from the measured
            noise power. The error of the gain estimates is not in it (`csi_covariance`).
        noise_power: measured in the silence of this frame, per complex sample.
        quadrature_estimates: the imaginary parts, same units. Noise of the same size if all arrive
            in phase; many receiver_noise_std mean that the gains are out of date.
    """

    sum_estimates: tuple[float, ...]
    receiver_noise_std: float
    noise_power: float
    quadrature_estimates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CoherentWaveform:
    """Layout of the two frames, and the arithmetic at both ends (equations in the module).

    Guarantees: pure, no state; slots never overlap; every sum is formed in float64 in a fixed
    order, so equal captures give equal bits (on one machine and numpy version); a noise-free round
    with exact gains is off by at most 2^-23 (1 + 2^-20) sum_k abs(s_k).

    Attributes:
        num_devices: pilot slots, >= 1.
        pilot_symbols: length of each pilot, >= 1.
        payload_symbols: length of the sequence that carries one number, >= 1.
        num_scalars: Q, numbers of one payload, >= 1; at most MAX_PAYLOAD_SYMBOLS in all.
        guard_symbols: silence after each pilot, >= 0; room for a late device.
        noise_symbols: silence at the start of each frame, >= 1; the noise power is measured there.

    Raises:
        RadioConfigurationError: a length is out of range.
    """

    num_devices: int
    pilot_symbols: int = 1024
    payload_symbols: int = 64
    num_scalars: int = 1
    guard_symbols: int = 32
    noise_symbols: int = 256

    def __post_init__(self) -> None:
        for name in (
            "num_devices", "pilot_symbols", "payload_symbols", "num_scalars", "noise_symbols",
        ):  # fmt: skip
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("guard_symbols", self.guard_symbols, minimum=0)
        if self.num_scalars * self.payload_symbols > MAX_PAYLOAD_SYMBOLS:
            raise RadioConfigurationError(
                f"payload: {self.num_scalars} numbers of {self.payload_symbols} symbols are "
                f"{self.num_scalars * self.payload_symbols}, wanted at most {MAX_PAYLOAD_SYMBOLS} "
                "in a frame. Send fewer numbers a round, or shorten radio.payload_symbols."
            )

    @property
    def sounding_samples(self) -> int:
        """Length of the sounding frame."""
        return self.noise_symbols + self.num_devices * (self.pilot_symbols + self.guard_symbols)

    @property
    def payload_samples(self) -> int:
        """Length of the payload frame."""
        return self.noise_symbols + self.num_scalars * self.payload_symbols

    @property
    def payload_offset_samples(self) -> int:
        """Position of the payload burst in its frame."""
        return self.noise_symbols

    def airtime_s(self, sample_rate_hz: float) -> float:
        """Duration of both frames of a round, silence included, in seconds."""
        check_positive("sample_rate_hz", sample_rate_hz)
        return (self.sounding_samples + self.payload_samples) / sample_rate_hz

    def sounding_burst(self, device_index: int, amplitude: float) -> tuple[Complex64Array, int]:
        """One device's pilot and its position in the sounding frame.

        Args:
            device_index: 0..num_devices-1.
            amplitude: A > 0, the same for all devices and known to the receiver; the transceiver's
                ``max_amplitude`` gives the best estimate.

        Returns:
            (burst complex64 [pilot_symbols], offset_samples).

        Raises:
            RadioConfigurationError: an argument out of range.
        """
        device = check_integer("device_index", device_index, minimum=0)
        if device >= self.num_devices:
            raise RadioConfigurationError(
                f"device_index: got {device}, wanted 0..{self.num_devices - 1}."
            )
        check_positive("amplitude", amplitude)
        burst = (amplitude * zadoff_chu(self.pilot_symbols)).astype(np.complex64)
        return burst, self.noise_symbols + device * (self.pilot_symbols + self.guard_symbols)

    def estimate_gains(self, capture: npt.NDArray[Any], amplitude: float) -> ChannelEstimate:
        """Gains from a capture of the sounding frame: correlate each slot with the pilot.

        Least squares, unbiased, and of the smallest possible variance in white noise. A device that
        did not sound has an estimate of pure noise; compare it with sqrt(error_variance).

        Args:
            capture: complex [sounding_samples], from the first sample of the frame on.
            amplitude: A, as it was transmitted.

        Raises:
            RadioConfigurationError: another length, a sample that is not finite, a bad amplitude.
        """
        samples = _check_capture(capture, self.sounding_samples, "sounding frame")
        check_positive("amplitude", amplitude)
        noise_power = self._measure_noise_power(samples)
        slots = samples[self.noise_symbols :].reshape(self.num_devices, -1)
        matched = slots[:, : self.pilot_symbols] * zadoff_chu(self.pilot_symbols).conj()
        gains = matched.sum(axis=1) / (self.pilot_symbols * amplitude)
        gains.flags.writeable = False
        return ChannelEstimate(
            gains=gains,
            error_variance=gain_error_variance(noise_power, self.pilot_symbols, amplitude),
            noise_power=noise_power,
        )

    def modulate(self, noisy_scalars: Sequence[complex], tx_gain: complex) -> Complex128Array:
        """The payload burst: tx_gain s z for each number, complex128 [Q * payload_symbols].

        In double precision, because what is rounded off is another function of s for each device:
        a receiver that heard the sum with less noise than that could take it apart
        (`server.privacy.receiver_noise`).

        Peak amplitude is max abs(tx_gain s), that of every sample of its sequence; the transceiver
        refuses it above full scale, nothing is clipped here.

        Args:
            noisy_scalars: s = scalar + noise [Q], in scalar units. The scalar is real; its noise
                may have a quadrature part, which covers the directions the receiver does not use.
            tx_gain: receive_scale / h_hat of this device.

        Raises:
            RadioConfigurationError: another number of scalars; a scalar, the gain or a product is
                not finite.
        """
        if len(noisy_scalars) != self.num_scalars:
            raise RadioConfigurationError(
                f"modulate: got {len(noisy_scalars)} scalars, wanted {self.num_scalars}, as many "
                "as the payload frame has room for."
            )
        levels = [complex(tx_gain) * complex(scalar) for scalar in noisy_scalars]
        for scalar, level in zip(noisy_scalars, levels, strict=True):
            if not cmath.isfinite(level):
                raise RadioConfigurationError(
                    f"modulate: scalar {scalar} and tx_gain {tx_gain}, wanted a finite product. "
                    "A device whose scalar is not finite stays silent this round."
                )
        burst: Complex128Array = np.multiply.outer(levels, zadoff_chu(self.payload_symbols))
        return burst.reshape(-1)

    def demodulate(self, capture: npt.NDArray[Any], receive_scale: float) -> Reception:
        """The sums of the scalars, from a capture of the payload frame.

        Unbiased given exact gains; the noise on each is Gaussian with the standard deviation in the
        result (which is itself measured, to a relative 1 / (2 sqrt(noise_symbols))).

        Args:
            capture: complex [payload_samples], from the first sample of the frame on.
            receive_scale: c > 0, the common amplitude of arrival.

        Raises:
            RadioConfigurationError: another length, a sample that is not finite, a bad scale.
        """
        samples = _check_capture(capture, self.payload_samples, "payload frame")
        check_positive("receive_scale", receive_scale)
        noise_power = self._measure_noise_power(samples)
        payload = samples[self.payload_offset_samples :].reshape(self.num_scalars, -1)
        matched = (payload * zadoff_chu(self.payload_symbols).conj()).sum(axis=1)
        levels = matched / (self.payload_symbols * receive_scale)
        return Reception(
            sum_estimates=tuple(levels.real.tolist()),
            receiver_noise_std=receiver_noise_std(noise_power, self.payload_symbols, receive_scale),
            noise_power=noise_power,
            quadrature_estimates=tuple(levels.imag.tolist()),
        )

    def _measure_noise_power(self, samples: Complex128Array) -> float:
        parts = samples[: self.noise_symbols].view(np.float64)
        return check_not_negative("noise_power", float(np.square(parts).sum()) / self.noise_symbols)


def _check_capture(capture: npt.NDArray[Any], wanted: int, frame: str) -> Complex128Array:
    if capture.shape != (wanted,):
        raise RadioConfigurationError(
            f"capture: got shape {capture.shape}, wanted ({wanted},), one {frame} from its first "
            "sample on."
        )
    samples: Complex128Array = capture.astype(np.complex128)
    check_all_finite("capture", samples)
    return samples
