"""What is on the air besides the devices: heard in a plateau, and not in the silence before it.

The energies of a silence are taken off those of a plateau (`radio.waveforms.energy`), so a signal
that is there in both biases nothing. One that comes in between counts like a device: a tone of
power T in a band moves the sum by T / P, P the power at which the largest number arrives. The
buffers of devices are noise-like, and their power is spread evenly over thousands of bins; a tone
is in a few. With S_p and S_s the power of `WIDTH` neighbouring bins in plateau and silence, and m
its mean over the band and its guards, a tone is where

    S_p > `ABOVE_MEAN` m / `WIDTH`,    S_p > 2 S_s,    (S_p - S_s) / P >= `LEAST_SHARE`

Chance: the power of a group of Gaussian bins is Gamma(WIDTH) distributed, and the largest of 30,000
is above 50 times that of one bin with less than 1e-11 (5e-17 each).

What is broad fills the bins beyond the bands as well: their mean power, more than in the silence,
is what a band of that width gets of it. It adds to both bands alike, and with it comes its noise.

Left out: what is as broad as a band and only there; a transmitter that does as devices do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import Float64Array
from radio.waveforms.energy import EnergyWaveform

WIDTH = 5
ABOVE_MEAN = 50.0
LEAST_SHARE = 10.0**-2.5
LEAST_BROAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Intruder:
    """What was heard.

    Attributes:
        share: of the largest number, by which a sum is moved, or (if broad) both bands are raised.
        frequency_hz: above the receiver's carrier; None for what is broad.
    """

    share: float
    frequency_hz: float | None = None

    def __str__(self) -> str:
        """For a log."""
        if self.frequency_hz is None:
            return f"something broad, {self.share:.1%} of the largest number in either band"
        return (
            f"a tone {self.frequency_hz / 1e3:.1f} kHz above the carrier, which moves the sum by "
            f"{self.share:.1%} of the largest number"
        )


def find_intruder(
    waveform: EnergyWaveform,
    plateau: Float64Array,
    silence: Float64Array,
    arrival_power: float,
) -> Intruder | None:
    """The strongest tone in a band, or else what is broad; None where there is neither.

    Args:
        waveform: of the devices.
        plateau: `EnergyWaveform.bin_powers` of the capture of a number.
        silence: of a capture while nobody sent.
        arrival_power: P.
    """
    largest = arrival_power * waveform.power_scale
    found = None
    for first, end in waveform.guarded_bands_in_bins:
        window = np.ones(WIDTH)
        groups = np.convolve(plateau[first:end], window, "valid")
        quiet = np.convolve(silence[first:end], window, "valid")
        strongest = int(np.argmax(groups - quiet))
        power, before = float(groups[strongest]), float(quiet[strongest])
        mean = float(plateau[first:end].mean())
        share = (power - before) / largest
        if power > ABOVE_MEAN * mean and power > 2.0 * before and share >= LEAST_SHARE:
            centre = first + strongest + WIDTH // 2
            frequency_hz = centre * waveform.sample_rate_hz / waveform.plateau_samples
            if found is None or share > found.share:
                found = Intruder(share, frequency_hz)
    return found or _broad(waveform, plateau, silence, largest)


def _broad(
    waveform: EnergyWaveform, plateau: Float64Array, silence: Float64Array, largest: float
) -> Intruder | None:
    first, end = waveform.empty_bins
    if end - first < 2 * WIDTH:
        return None
    now, before = float(plateau[first:end].mean()), float(silence[first:end].mean())
    scatter = math.sqrt(2.0 / (end - first)) * max(now, before)
    share = (now - before) * waveform.num_guarded_bins / largest
    is_there = share >= LEAST_BROAD_SHARE and now - before > 10.0 * scatter
    return Intruder(share) if is_there else None
