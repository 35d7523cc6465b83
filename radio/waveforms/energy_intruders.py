"""What is on the air besides the devices: heard in a plateau, and not in the silence before it.

The energies of a silence are taken off those of a plateau (`radio.waveforms.energy`), so a signal
that is there in both biases nothing. One that comes in between counts like a device: a tone of
power T in a band moves the sum of its number by T / P, P the power at which the largest number
arrives. The buffers of devices are noise-like, and their power is spread evenly over thousands of
bins; a tone is in a few. With S_p and S_s the power of `WIDTH` neighbouring bins in plateau and
silence, and m its mean over the band and its guards, a tone is where

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
import numpy.typing as npt

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
        share: of the largest number, by which a sum is moved, or (if broad) all bands are raised.
        frequency_hz: beside the receiver's carrier; None for what is broad.
        number: whose sum it moves; None for what is broad.
    """

    share: float
    frequency_hz: float | None = None
    number: int | None = None

    def __str__(self) -> str:
        """For a log."""
        if self.frequency_hz is None:
            return f"something broad, {self.share:.1%} of the largest number in every band"
        side = "above" if self.frequency_hz >= 0.0 else "below"
        return (
            f"a tone {abs(self.frequency_hz) / 1e3:.1f} kHz {side} the carrier, which moves the "
            f"sum of number {self.number} by {self.share:.1%} of the largest number"
        )


def find_intruder(
    waveform: EnergyWaveform,
    plateau: Float64Array,
    silence: Float64Array,
    arrival_power: npt.ArrayLike,
) -> Intruder | None:
    """The strongest tone in a band, or else what is broad; None where there is neither.

    Args:
        waveform: of the devices.
        plateau: `EnergyWaveform.bin_powers` of the capture of the numbers.
        silence: of a capture while nobody sent.
        arrival_power: P, for each number or one for all.
    """
    power = np.broadcast_to(np.asarray(arrival_power, dtype=np.float64), (waveform.num_scalars,))
    largest = power * waveform.power_scale
    width, found, window = waveform.num_guarded_bins, None, np.ones(WIDTH)
    for number, firsts in enumerate(waveform.bands_in_bins(guarded=True).tolist()):
        for first in firsts:
            groups = np.convolve(plateau[first : first + width], window, "valid")
            quiet = np.convolve(silence[first : first + width], window, "valid")
            strongest = int(np.argmax(groups - quiet))
            now, before = float(groups[strongest]), float(quiet[strongest])
            mean = float(plateau[first : first + width].mean())
            share = (now - before) / float(largest[number])
            if now > ABOVE_MEAN * mean and now > 2.0 * before and share >= LEAST_SHARE:
                centre = first + strongest + WIDTH // 2
                if centre > waveform.plateau_samples // 2:
                    centre -= waveform.plateau_samples
                if found is None or share > found.share:
                    found = Intruder(share, centre * waveform.bin_hz, number)
    return found or _broad(waveform, plateau, silence, float(largest.min()))


def _broad(
    waveform: EnergyWaveform, plateau: Float64Array, silence: Float64Array, largest: float
) -> Intruder | None:
    bins = waveform.empty_bins
    if len(bins) < 2 * WIDTH:
        return None
    now, before = float(plateau[bins].mean()), float(silence[bins].mean())
    scatter = math.sqrt(2.0 / len(bins)) * max(now, before)
    share = (now - before) * waveform.num_guarded_bins / largest
    is_there = share >= LEAST_BROAD_SHARE and now - before > 10.0 * scatter
    return Intruder(share) if is_there else None
