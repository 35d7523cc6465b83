"""Energies of paired bands: an over-the-air sum for radios that share neither carrier nor clock.

Each device repeats a buffer of N samples without end, a *plateau*, made anew for every number from
random phases. A number s, a share of the largest (-1 to 1), is the power of the buffer in two
bands::

    signed            p_A = max(s, 0)       p_B = max(-s, 0)
    self-normalised   p_A = (1 + s) / 2     p_B = (1 - s) / 2

            0      first           first + B         second          second + B     frequency ->
            |        [==== band A ====]                [==== band B ====]
          carrier                    two guards, each wider than an offset

    x_k[n] = sum over bands and their bins f of a sqrt(p / N_B) exp(j theta_kf + 2 pi j f n / N)

with N_B bins in a band, a the device's amplitude in it and independent uniform phases theta. The
receiver takes one capture of N samples anywhere inside the plateau: it holds every device's whole
buffer, shifted round by an amount that nobody needs to know. A frequency offset moves a device's
bands by less than the guards, and the phases of arrival fall out of an energy. With every device
arriving at the same power P (its amplitudes undo abs(h_k), see
`radio.waveforms.energy_calibration`), N0 the noise per sample and w a window:

    E_A = sum over band A and its guards of abs(FFT(w y))^2 / (N sum w^2)
    D_A = E_A of a plateau - E_A of a silent capture,   mean D_A = P sum_k p_Ak

    signed            sum_estimate = (D_A - D_B) / P
    self-normalised   sum_estimate = K (D_A - D_B) / (D_A + D_B)

The signed estimate is unbiased where P is exact; a device that arrives e dB too loud weighs
10^(e/10). What stays is the interference of the devices' random buffers (self-noise), see
`radio.waveforms.energy_error_model`.

That nobody has to be in phase is why carrier offsets of kilohertz and delays of milliseconds cost
nothing. They are fingerprints all the same: a receiver that looks for them tells the devices apart.

Sources: Goldenbaum and Stanczak, IEEE T-COM 61(9), 2013 (energies of random-phase sequences); REED,
arXiv 2605.07263 (the signed mapping).
"""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radio.arrays import Complex64Array, Float64Array, Int64Array
from radio.checks import check_all_finite, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.units import amplitude_ratio_from_db

MAX_DRAWS = 100
"""So often are phases drawn again that peak above full scale; half a percent do so at 12 dB."""


PILOT_POWERS = (0.5, 0.5)
"""p of a pilot in the two bands."""


class Mapping(enum.StrEnum):
    """How a number becomes two powers; see the module."""

    SIGNED = "signed"
    SELF_NORMALISED = "self_normalised"


@dataclass(frozen=True, slots=True)
class BandEnergies:
    """Mean power in each band and its guards, in units of the capture's samples squared."""

    a: float
    b: float

    def less(self, silence: BandEnergies) -> BandEnergies:
        """What the devices added to a silent capture."""
        return BandEnergies(self.a - silence.a, self.b - silence.b)


@dataclass(frozen=True, slots=True)
class EnergyWaveform:
    """The bands and the arithmetic at both ends.

    Guarantees: pure, no state; a capture of a plateau gives the same energies up to rounding
    wherever it begins and whatever the phase of arrival; no burst exceeds full scale.

    Attributes:
        sample_rate_hz: of both ends.
        plateau_samples: N, period of a device's buffer and length of a capture.
        bandwidth_hz: B, of each band.
        first_band_hz: lower edge of band A above the carrier, away from its leakage; images of both
            bands fall below the carrier.
        max_offset_hz: largest carrier offset between a device and the receiver; the guard on each
            side of a band.
        taper: share of a capture that the window fades in and out (Tukey). With no taper a
            capture of whole periods has the least self-noise, but a carrier offset leaks.
        backoff_db: power of a buffer at full power below full scale; room for its peaks.
        mapping: see `Mapping`.

    Raises:
        RadioConfigurationError: bands that overlap, leave the sampled spectrum, or are too narrow.
    """

    sample_rate_hz: float = 1e6
    plateau_samples: int = 1 << 16
    bandwidth_hz: float = 150e3
    first_band_hz: float = 60e3
    max_offset_hz: float = 22e3
    taper: float = 0.1
    backoff_db: float = 12.0
    mapping: Mapping = Mapping.SIGNED

    def __post_init__(self) -> None:
        check_integer("plateau_samples", self.plateau_samples, minimum=1024)
        for name in ("sample_rate_hz", "bandwidth_hz", "first_band_hz"):
            check_positive(name, getattr(self, name))
        check_not_negative("max_offset_hz", self.max_offset_hz)
        check_not_negative("backoff_db", self.backoff_db)
        if not 0.0 <= self.taper <= 1.0:
            raise RadioConfigurationError(f"taper: got {self.taper}, wanted 0 to 1.")
        if self.first_band_hz <= self.max_offset_hz:
            raise RadioConfigurationError(
                f"first_band_hz: got {self.first_band_hz:g}, wanted above max_offset_hz = "
                f"{self.max_offset_hz:g}: band A would be moved onto the carrier's leakage."
            )
        end_hz = self.second_band_hz + self.bandwidth_hz + self.max_offset_hz
        if end_hz >= self.sample_rate_hz / 2:
            raise RadioConfigurationError(
                f"band B with its guard ends {end_hz:g} Hz above the carrier, wanted below half of "
                f"sample_rate_hz = {self.sample_rate_hz:g}. Narrow the bands or the offset."
            )
        if self.num_bins < 16:
            raise RadioConfigurationError(
                f"bandwidth_hz: {self.bandwidth_hz:g} holds {self.num_bins} bins of a plateau, "
                "wanted at least 16. Widen the bands or lengthen the plateau."
            )

    @property
    def second_band_hz(self) -> float:
        """Lower edge of band B: two guards and a little above band A."""
        gap_hz = 2.0 * self.max_offset_hz + 0.04 * self.bandwidth_hz
        return self.first_band_hz + self.bandwidth_hz + gap_hz

    @property
    def num_bins(self) -> int:
        """N_B, the bins of the transform that a band holds."""
        return len(_bins(self, self.first_band_hz, 0.0))

    @property
    def num_guarded_bins(self) -> int:
        """The bins of a band and its guards."""
        return len(_bins(self, self.first_band_hz, self.max_offset_hz))

    @property
    def window_constant(self) -> float:
        """N sum w^4 / (sum w^2)^2 >= 1: how much more energies scatter than without a window."""
        squared = np.square(self.window)
        return float(self.plateau_samples * np.sum(np.square(squared)) / np.sum(squared) ** 2)

    @property
    def window(self) -> Float64Array:
        """What a capture is multiplied with [plateau_samples]; not to be written to."""
        return _window(self.plateau_samples, self.taper)

    @property
    def bands_in_bins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First bin of each band, and the one after its last."""
        a, b = (_bins(self, first, 0.0) for first in (self.first_band_hz, self.second_band_hz))
        return (int(a[0]), int(a[-1]) + 1), (int(b[0]), int(b[-1]) + 1)

    @property
    def plateau_s(self) -> float:
        """Duration of a capture."""
        return self.plateau_samples / self.sample_rate_hz

    def captures_of_round(self, num_scalars: int) -> int:
        """The silence, and a plateau for each number."""
        return 1 + num_scalars

    def captures_of_calibration(self, num_devices: int) -> int:
        """The silence, and a pilot of each device."""
        return 1 + num_devices

    def check_offset(self, offset_hz: float) -> None:
        """Return if the guards have room for a carrier that far from the receiver's.

        Raises:
            RadioConfigurationError: they do not: energy would leak from one band into the other.
        """
        if not abs(offset_hz) <= self.max_offset_hz:
            raise RadioConfigurationError(
                f"carrier offset: up to {offset_hz:g} Hz, the guards of the bands have room for "
                f"{self.max_offset_hz:g} Hz. Correct the crystals (xo_correction), or use a lower "
                "carrier frequency."
            )

    def check_capture(self, capture: npt.NDArray[np.complex64]) -> None:
        """Return if it is one of a plateau.

        Raises:
            RadioConfigurationError: another length, or a sample that is not finite.
        """
        if capture.shape != (self.plateau_samples,):
            raise RadioConfigurationError(
                f"capture: got shape {capture.shape}, wanted ({self.plateau_samples},), one period "
                "of the devices' buffers."
            )
        check_all_finite("capture", capture)

    def powers(self, share: float) -> tuple[float, float]:
        """(p_A, p_B) of a number, each 0 to 1.

        A number beyond the range is sent as the end of it: post-processing of what a device has
        made private already.

        Raises:
            RadioConfigurationError: not a finite number.
        """
        if not math.isfinite(share):
            raise RadioConfigurationError(
                f"number: got {share}, wanted a finite one. A device whose scalar is not finite "
                "stays silent this round."
            )
        part = max(-1.0, min(1.0, share))
        if self.mapping is Mapping.SIGNED:
            return max(part, 0.0), max(-part, 0.0)
        return (1.0 + part) / 2.0, (1.0 - part) / 2.0

    def burst(
        self, share: float, amplitudes: tuple[float, float], rng: np.random.Generator
    ) -> Complex64Array:
        """One device's buffer for one number, to be repeated until it is told to stop.

        Its mean power is p_A a_A^2 + p_B a_B^2 at the back-off below full scale, and no sample is
        above the larger of the amplitudes.

        Args:
            share: s, the number over the largest.
            amplitudes: (a_A, a_B) over full scale, 0 to 1.
            rng: draws the phases. They carry nothing.

        Raises:
            RadioConfigurationError: an argument out of range.
        """
        return self._random_buffer(self.powers(share), amplitudes, rng)

    def pilot(self, amplitude: float, rng: np.random.Generator) -> Complex64Array:
        """A known buffer: half of full power in each band, from which a gain is measured.

        Raises:
            RadioConfigurationError: the amplitude is out of range.
        """
        return self._random_buffer(PILOT_POWERS, (amplitude, amplitude), rng)

    def _random_buffer(
        self,
        powers: tuple[float, float],
        amplitudes: tuple[float, float],
        rng: np.random.Generator,
    ) -> Complex64Array:
        for amplitude in amplitudes:
            if not 0.0 <= amplitude <= 1.0:
                raise RadioConfigurationError(f"amplitude: got {amplitude}, wanted 0 to 1.")
        firsts_hz = (self.first_band_hz, self.second_band_hz)
        loudest = max(amplitudes)
        for _ in range(MAX_DRAWS):
            spectrum = np.zeros(self.plateau_samples, dtype=np.complex128)
            for power, amplitude, first_hz in zip(powers, amplitudes, firsts_hz, strict=True):
                if power > 0.0:
                    bins = _bins(self, first_hz, 0.0)
                    phases = np.exp(2j * math.pi * rng.random(len(bins)))
                    spectrum[bins] = amplitude * math.sqrt(power / len(bins)) * phases
            samples = np.fft.ifft(spectrum) * (self.plateau_samples * self.full_power_amplitude)
            if np.max(np.abs(samples)) <= loudest:
                return samples.astype(np.complex64)
        raise RadioConfigurationError(
            f"backoff_db: at {self.backoff_db:g} dB none of {MAX_DRAWS} random buffers stayed "
            "below full scale. Raise it."
        )

    @property
    def full_power_amplitude(self) -> float:
        """Root mean square of a buffer with p_A + p_B = 1 and amplitude 1, full scale being 1."""
        return amplitude_ratio_from_db(-self.backoff_db)

    def energies(self, capture: npt.NDArray[np.complex64]) -> BandEnergies:
        """Mean power in each band, guards included.

        Raises:
            RadioConfigurationError: another length than a plateau, or a sample that is not finite.
        """
        return self.band_energies(self.bin_powers(capture))

    def bin_powers(self, capture: npt.NDArray[np.complex64]) -> Float64Array:
        """Power in each bin above the carrier, `power_scale` times its mean [plateau_samples / 2].

        Raises:
            RadioConfigurationError: another length than a plateau, or a sample that is not finite.
        """
        self.check_capture(capture)
        spectrum = np.fft.fft(capture * self.window)[: self.plateau_samples // 2]
        powers: Float64Array = np.square(np.abs(spectrum))
        return powers

    @property
    def power_scale(self) -> float:
        """N sum w^2: by which powers of bins are too large."""
        return self.plateau_samples * float(np.sum(np.square(self.window)))

    def band_energies(self, bin_powers: Float64Array) -> BandEnergies:
        """Mean power in each band, guards included, of what `bin_powers` gave."""
        a, b = (float(np.sum(bin_powers[first:end])) for first, end in self.guarded_bands_in_bins)
        scale = self.power_scale
        return BandEnergies(a / scale, b / scale)

    @property
    def guarded_bands_in_bins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First bin of each band and its guards, and the one after their last."""
        a, b = (
            _bins(self, first_hz, self.max_offset_hz)
            for first_hz in (self.first_band_hz, self.second_band_hz)
        )
        return (int(a[0]), int(a[-1]) + 1), (int(b[0]), int(b[-1]) + 1)

    @property
    def empty_bins(self) -> tuple[int, int]:
        """Above band B and its guards, where no device is; less the filters' edge."""
        (_, end) = self.guarded_bands_in_bins[1]
        return min(end + 1, self.plateau_samples), math.floor(0.47 * self.plateau_samples)

    def estimate_sum(
        self, plateau: BandEnergies, silence: BandEnergies, arrival_power: float, weight: float
    ) -> float:
        """The sum of the shares of those who spoke; equations in the module.

        Args:
            plateau: of the capture of this number.
            silence: of a capture while nobody sent.
            arrival_power: P, at which the largest number arrives from a device of weight 1.
            weight: K, how many there are, or, where some arrive weaker, the sum of what they count.

        Raises:
            RadioConfigurationError: an argument out of range; self-normalised, that the devices
                were not heard above the noise.
        """
        check_positive("arrival_power", arrival_power)
        check_positive("weight", weight)
        heard = plateau.less(silence)
        if self.mapping is Mapping.SIGNED:
            return (heard.a - heard.b) / arrival_power
        total = heard.a + heard.b
        if total <= 0.0:
            raise RadioConfigurationError(
                f"energies: {total:g} in both bands together, after the noise was taken off: "
                "nobody was heard. Raise the transmit power or shorten the distance."
            )
        return weight * (heard.a - heard.b) / total


@functools.lru_cache(maxsize=32)
def _bins(waveform: EnergyWaveform, first_hz: float, guard_hz: float) -> Int64Array:
    """The bins of a band, widened on both sides."""
    per_hz = waveform.plateau_samples / waveform.sample_rate_hz
    first = math.ceil((first_hz - guard_hz) * per_hz)
    end = math.ceil((first_hz + waveform.bandwidth_hz + guard_hz) * per_hz)
    return np.arange(first, end, dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _window(num_samples: int, taper: float) -> Float64Array:
    """Tukey's window: flat, with raised-cosine ends of ``taper`` / 2 of the length each."""
    window = np.ones(num_samples)
    num_ends = math.floor(taper * num_samples / 2.0)
    if num_ends:
        ramp = 0.5 * (1.0 - np.cos(math.pi * (np.arange(num_ends) + 0.5) / num_ends))
        window[:num_ends], window[-num_ends:] = ramp, ramp[::-1]
    window.flags.writeable = False
    return window
