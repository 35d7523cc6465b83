"""Energies of paired bands: over-the-air sums for radios that share neither carrier nor clock.

Each device repeats a buffer of N samples without end, a *plateau*, made anew for every round from
random phases. Its Q numbers stand side by side in frequency. A number s_q, a share of the largest
(-1 to 1), is the power of the buffer in two bands of its own (`radio.waveforms.energy_bands`)::

    signed            p_qA = max(s_q, 0)         p_qB = max(-s_q, 0)
    self-normalised   p_qA = (1 + s_q) / 2       p_qB = (1 - s_q) / 2

    x_k[n] = sum over bands and their bins f of a sqrt(p P1 / N_B) exp(j theta_kf + 2 pi j f n / N)

with N_B bins in a band, a the device's amplitude in it, P1 the power that the largest number has
(`number_power` of full power) and independent uniform phases theta. The receiver takes one capture
of N samples anywhere inside the plateau: it holds every device's whole buffer, shifted round by an
amount that nobody needs to know. A frequency offset moves a device's bands by less than the guards,
and the phases of arrival fall out of an energy. With every device arriving at the same power P of
the largest number (its amplitudes undo abs(h_k), see `radio.waveforms.energy_calibration`), N0 the
noise per sample and w a window:

    E_qA = sum over band A of q and its guards of abs(FFT(w y))^2 / (N sum w^2)
    D_qA = E_qA of a plateau - E_qA of a silent capture,   mean D_qA = P sum_k p_kqA

    signed            sum_estimate = (D_qA - D_qB) / P
    self-normalised   sum_estimate = K (D_qA - D_qB) / (D_qA + D_qB)

The signed estimate is unbiased where P is exact; a device that arrives e dB too loud weighs
10^(e/10). What stays is the interference of the devices' random buffers (self-noise), see
`radio.waveforms.energy_error_model`.

**Images.** A mixer out of balance lays an image of every band on the other side of the carrier, r
times as strong in power. A number's two bands are mirrors, so its image falls on itself:

    mean D_qA - D_qB = P (1 - r) sum_k (p_kqA - p_kqB),     pilots arrive (1 + r) times as loud

It makes numbers smaller by 2 r, 0.01 % at 43 dB of suppression (pluto-stock) and 1 % at 23 (worst),
and never moves one number into another.

**Peaks.** A buffer with all of full power, `backoff_db` below full scale, stays below it with half
a percent of the draws of its phases above. Typical numbers are a tenth of their range, so Q of them
need no more room than one; where they do, the device sends all of them smaller by one factor, which
it tells (`Burst.scale`): it is their weight in the sums.

That nobody has to be in phase is why carrier offsets of kilohertz and delays of milliseconds cost
nothing. They are fingerprints all the same: a receiver that looks for them tells the devices apart.

Sources: Goldenbaum and Stanczak, IEEE T-COM 61(9), 2013 (energies of random-phase sequences); REED,
arXiv 2605.07263 (the signed mapping). Numbers side by side, mirrored, are ours.
"""

from __future__ import annotations

import enum
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from radio.arrays import Complex64Array, Float64Array
from radio.checks import check_all_finite, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.units import amplitude_ratio_from_db
from radio.waveforms.energy_bands import Bands

MAX_DRAWS = 8
"""So often are phases drawn again that peak above full scale; half a percent do so at 12 dB."""


class Mapping(enum.StrEnum):
    """How a number becomes two powers; see the module."""

    SIGNED = "signed"
    SELF_NORMALISED = "self_normalised"


class Burst(NamedTuple):
    """A buffer, and what became of its numbers.

    Attributes:
        samples: complex64 [plateau_samples].
        scale: by which all numbers were made smaller so that no sample is above full scale, 0 to 1.
    """

    samples: Complex64Array
    scale: float


@dataclass(frozen=True, slots=True)
class EnergyWaveform(Bands):
    """The bands and the arithmetic at both ends.

    Guarantees: pure, no state; a capture of a plateau gives the same energies up to rounding
    wherever it begins and whatever the phase of arrival; no burst exceeds full scale.

    Energies, powers, gains and amplitudes of bands are arrays [num_scalars, 2], bands A and B.

    Attributes:
        taper: share of a capture that the window fades in and out (Tukey). With no taper a
            capture of whole periods has the least self-noise, but a carrier offset leaks.
        backoff_db: full power below full scale; room for its peaks.
        mapping: see `Mapping`.
        are_votes: whether every number is as large as can be, 1 or -1: then each has 1 / Q of full
            power, and else all of it, because numbers are rarely large together.

    Raises:
        RadioConfigurationError: more numbers than the spectrum has room for, or a value that cannot
            be.
    """

    taper: float = 0.1
    backoff_db: float = 12.0
    mapping: Mapping = Mapping.SIGNED
    are_votes: bool = False

    def __post_init__(self) -> None:
        # Not super(): dataclasses with slots are made anew, and it would look for the old one.
        Bands.__post_init__(self)
        check_not_negative("backoff_db", self.backoff_db)
        if not 0.0 <= self.taper <= 1.0:
            raise RadioConfigurationError(f"taper: got {self.taper}, wanted 0 to 1.")

    @property
    def window_constant(self) -> float:
        """N sum w^4 / (sum w^2)^2 >= 1: how much more energies scatter than without a window."""
        of_squares, of_fourths = _window_sums(self.plateau_samples, self.taper)
        return self.plateau_samples * of_fourths / of_squares**2

    @property
    def window(self) -> Float64Array:
        """What a capture is multiplied with [plateau_samples]; not to be written to."""
        return _window(self.plateau_samples, self.taper)

    @property
    def captures_of_round(self) -> int:
        """The silence, and a plateau with all numbers."""
        return 2

    def captures_of_calibration(self, num_devices: int) -> int:
        """The silence, and a pilot of each device."""
        return 1 + num_devices

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

    @property
    def number_power(self) -> float:
        """Power that the largest number has, over full power."""
        always = self.are_votes or self.mapping is Mapping.SELF_NORMALISED
        return 1.0 / self.num_scalars if always else 1.0

    @property
    def pilot_power(self) -> float:
        """Power that a pilot has in each band, over that of the largest number."""
        return 0.5 / (self.num_scalars * self.number_power)

    def powers(self, shares: npt.ArrayLike) -> Float64Array:
        """(p_A, p_B) of each number, 0 to 1 [..., num_scalars, 2].

        A number beyond the range is sent as the end of it: post-processing of what a device has
        made private already.

        Args:
            shares: s, the numbers over the largest, of one device or many [..., num_scalars].

        Raises:
            RadioConfigurationError: not so many, or one is not finite.
        """
        parts = np.asarray(shares, dtype=np.float64)
        if parts.shape[-1:] != (self.num_scalars,):
            raise RadioConfigurationError(
                f"numbers: got shape {parts.shape}, wanted ({self.num_scalars},)."
            )
        if not np.all(np.isfinite(parts)):
            # Not which: they are made of somebody's data, and this goes into a log.
            raise RadioConfigurationError(
                f"numbers: {np.count_nonzero(~np.isfinite(parts))} of {parts.size} are not, wanted "
                "finite ones. A device whose scalar is not finite stays silent this round."
            )
        parts = np.clip(parts, -1.0, 1.0)
        both = np.stack([parts, -parts], axis=-1)
        if self.mapping is Mapping.SIGNED:
            signed: Float64Array = np.maximum(both, 0.0)
            return signed
        return (1.0 + both) / 2.0

    def burst(
        self, shares: npt.ArrayLike, amplitudes: npt.ArrayLike, rng: np.random.Generator
    ) -> Burst:
        """One device's buffer for its numbers, to be repeated until it is told to stop.

        Its mean power is sum of p a^2 P1, and no sample is above the largest of the amplitudes.

        Args:
            shares: s, the numbers over the largest [num_scalars].
            amplitudes: a of each band over full scale, 0 to 1 [num_scalars, 2], or one for all.
            rng: draws the phases. They carry nothing.

        Raises:
            RadioConfigurationError: an argument out of range.
        """
        return self._random_buffer(self.powers(shares) * self.number_power, amplitudes, rng)

    def pilot(self, amplitude: float, rng: np.random.Generator) -> Complex64Array:
        """A known buffer: full power, evenly in all bands, from which gains are measured.

        Raises:
            RadioConfigurationError: the amplitude is out of range, or the back-off too small.
        """
        powers = np.full((self.num_scalars, 2), self.pilot_power * self.number_power)
        samples, scale = self._random_buffer(powers, amplitude, rng)
        if scale < 1.0:
            raise RadioConfigurationError(
                f"backoff_db: at {self.backoff_db:g} dB none of {MAX_DRAWS} pilots stayed below "
                "full scale. Raise it."
            )
        return samples

    def _random_buffer(
        self, powers: Float64Array, amplitudes: npt.ArrayLike, rng: np.random.Generator
    ) -> Burst:
        """Powers are over full power."""
        levels = np.broadcast_to(np.asarray(amplitudes, dtype=np.float64), powers.shape)
        if not np.all((levels >= 0.0) & (levels <= 1.0)):
            raise RadioConfigurationError(f"amplitude: got {levels.tolist()}, wanted 0 to 1.")
        loudest = float(levels.max())
        of_a_bin = levels * np.sqrt(powers / self.num_bins)
        speaking = np.nonzero(of_a_bin)
        bins = self.bands_in_bins()[speaking][:, None] + np.arange(self.num_bins)
        best, lowest = np.zeros(self.plateau_samples, dtype=np.complex128), math.inf
        for _ in range(MAX_DRAWS):
            spectrum = np.zeros(self.plateau_samples, dtype=np.complex128)
            phases = np.exp(2j * math.pi * rng.random(bins.shape))
            spectrum[bins] = of_a_bin[speaking][:, None] * phases
            samples = np.fft.ifft(spectrum) * (self.plateau_samples * self.full_power_amplitude)
            peak = float(np.max(np.abs(samples)))
            if peak < lowest:
                best, lowest = samples, peak
            if peak <= loudest:
                return Burst(samples.astype(np.complex64), 1.0)
        # An amplitude is smaller by this, and so are powers, which are numbers, by its square. A
        # hair more, so that the samples are below the limit in single precision, too.
        by = loudest * (1.0 - 2.0**-20) / lowest
        return Burst((best * by).astype(np.complex64), by**2)

    @property
    def full_power_amplitude(self) -> float:
        """Root mean square of a buffer of full power at amplitude 1, full scale being 1."""
        return amplitude_ratio_from_db(-self.backoff_db)

    def arrival_power(self, level: npt.ArrayLike) -> Float64Array:
        """P, at which the largest number arrives through a gain of ``level``, an amplitude."""
        power = np.square(np.asarray(level, dtype=np.float64) * self.full_power_amplitude)
        return np.asarray(power * self.number_power)

    def energies(self, capture: npt.NDArray[np.complex64]) -> Float64Array:
        """Mean power in each band, guards included [num_scalars, 2].

        Raises:
            RadioConfigurationError: another length than a plateau, or a sample that is not finite.
        """
        return self.band_energies(self.bin_powers(capture))

    def bin_powers(self, capture: npt.NDArray[np.complex64]) -> Float64Array:
        """Power in each bin of the transform, `power_scale` times its mean [plateau_samples].

        Raises:
            RadioConfigurationError: another length than a plateau, or a sample that is not finite.
        """
        self.check_capture(capture)
        spectrum = np.fft.fft(capture * self.window)
        powers: Float64Array = np.square(spectrum.real) + np.square(spectrum.imag)
        return powers

    @property
    def power_scale(self) -> float:
        """N sum w^2: by which powers of bins are too large."""
        return self.plateau_samples * _window_sums(self.plateau_samples, self.taper)[0]

    def noise_power(self, silence: Float64Array) -> float:
        """N0 per complex sample, of the energies of a silent capture: that of its loudest band."""
        return float(silence.max()) * self.plateau_samples / self.num_guarded_bins

    def band_energies(self, bin_powers: Float64Array) -> Float64Array:
        """Mean power in each band, guards included, of what `bin_powers` gave [num_scalars, 2]."""
        width = self.num_guarded_bins
        sums = [
            [float(np.sum(bin_powers[first : first + width])) for first in pair]
            for pair in self.bands_in_bins(guarded=True).tolist()
        ]
        return np.array(sums) / self.power_scale

    def estimate_sums(
        self,
        plateau: Float64Array,
        silence: Float64Array,
        arrival_power: npt.ArrayLike,
        weights: npt.ArrayLike,
    ) -> Float64Array:
        """The sums of the shares of those who spoke [num_scalars]; equations in the module.

        Args:
            plateau: energies of the capture.
            silence: of a capture while nobody sent.
            arrival_power: P, at which the largest number arrives from a device of weight 1, for
                each number or one for all.
            weights: K, how many there are, or, where some arrive weaker, the sums of what they
                count, for each number or one for all.

        Raises:
            RadioConfigurationError: an argument out of range; self-normalised, that the devices
                were not heard above the noise.
        """
        power, counts = (
            np.broadcast_to(np.asarray(value, dtype=np.float64), (self.num_scalars,))
            for value in (arrival_power, weights)
        )
        for name, values in (("arrival_power", power), ("weights", counts)):
            for value in values.tolist():
                check_positive(name, value)
        heard = plateau - silence
        difference = heard[:, 0] - heard[:, 1]
        if self.mapping is Mapping.SIGNED:
            return np.asarray(difference / power)
        total = heard.sum(axis=1)
        if np.any(total <= 0.0):
            raise RadioConfigurationError(
                f"energies: {total.min():g} in both bands together, after the noise was taken off: "
                "nobody was heard. Raise the transmit power or shorten the distance."
            )
        return np.asarray(counts * difference / total)


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


@functools.lru_cache(maxsize=8)
def _window_sums(num_samples: int, taper: float) -> tuple[float, float]:
    """Sums of its squares and of their squares: asked for with every variance."""
    squared = np.square(_window(num_samples, taper))
    return float(np.sum(squared)), float(np.sum(np.square(squared)))
