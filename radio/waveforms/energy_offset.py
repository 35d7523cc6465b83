"""How far a device's carrier is off the receiver's, from its pilot: where its bands have gone.

A pilot has equal power in every bin of all 2 Q bands. With P(f) the power spectrum of its capture,
the offset is where the bands, moved together, hold most power,

    d = argmax of H(d) over abs(d) <= MAX_SEARCH_HZ,   H(d) = sum over f in all bands + d of P(f)

H falls on both sides of its maximum by a bin of power at each of 4 Q edges, until the bands of one
number are over those of the next. Two places n bins apart differ by the powers of 4 Q n bins at
most, which scatter as much as they are on average; an unlikely place is believed if it holds more
than the best likely one by

    EVIDENCE_STDS (power in a bin of the bands) sqrt(4 Q n)

A bin counts for `MOST_OF_A_BIN` medians at most: far shifts lay bands over the device's own
carrier, whose leakage is strong in a bin or two.

Left out: anything finer than a bin, and that the window smears edges.
"""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Complex64Array
from radio.waveforms.energy import EnergyWaveform

MAX_SEARCH_HZ = 50e3
"""25 ppm at both ends are 46 kHz at 915 MHz; further off bands would lie on the carrier."""

EVIDENCE_STDS = 6.0

MOST_OF_A_BIN = 8.0
"""Of the median inside the bands: what is more is a line, such as the leakage of the carrier."""


def estimate_offset_hz(
    waveform: EnergyWaveform, pilot: Complex64Array, *, likely_hz: float = MAX_SEARCH_HZ
) -> float:
    """How far the carrier of the device whose pilot was captured lies from the receiver's.

    Args:
        waveform: whose bands they are.
        pilot: a capture, complex64 [plateau_samples].
        likely_hz: beyond this it is believed on evidence alone; see the module.

    Returns:
        Hz, a multiple of the width of a bin; without a pilot in the capture, anything likely.

    Raises:
        RadioConfigurationError: not a capture of a plateau.
    """
    size, bin_hz, num_bands = waveform.plateau_samples, waveform.bin_hz, 2 * waveform.num_scalars
    power = waveform.bin_powers(pilot)
    firsts, width = waveform.bands_in_bins().ravel(), waveform.num_bins
    inside = np.concatenate([power[first : first + width] for first in firsts.tolist()])
    power = np.minimum(power, MOST_OF_A_BIN * float(np.median(inside)))
    # Sum of the bins [first, end) as a difference of two entries, around the end of the spectrum.
    summed = np.concatenate([[0.0], np.cumsum(np.tile(power, 2))])
    reach = int(MAX_SEARCH_HZ / bin_hz)
    shifts = np.arange(-reach, reach + 1)
    held = np.zeros(len(shifts))
    for first in firsts.tolist():
        begin = (first + shifts) % size
        held += summed[begin + width] - summed[begin]
    best = int(np.argmax(held))
    likely = int(np.argmax(np.where(np.abs(shifts) * bin_hz <= likely_hz, held, -np.inf)))
    in_a_bin = float(held[best]) / (num_bands * width)
    scatter = in_a_bin * math.sqrt(2 * num_bands * abs(best - likely))
    is_clear = held[best] - held[likely] > EVIDENCE_STDS * scatter
    return float(shifts[best if is_clear else likely] * bin_hz)
