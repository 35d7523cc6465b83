"""How far a device's carrier is off the receiver's, from its pilot: where its two bands have gone.

A pilot has equal power in every bin of both bands. With P(f) the power spectrum of its capture, the
offset is where the two bands, moved together, hold most power,

    d = argmax over d of H(d),   H(d) = sum_{f in A + d, B + d} P(f),      abs(d) <= MAX_SEARCH_HZ

H falls on both sides of its maximum by a bin of power at each of four edges. Two places n bins
apart differ by the powers of 4 n bins at most, which scatter as much as they are on average; an
unlikely place is believed if it holds more than the best likely one by

    EVIDENCE_STDS (noise in a bin + pilot in a bin) sqrt(4 n)

Left out: anything finer than a bin, and that the window smears edges.
"""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Complex64Array
from radio.waveforms.energy import EnergyWaveform

MAX_SEARCH_HZ = 50e3
"""25 ppm at both ends are 46 kHz at 915 MHz; further off band B would leave the spectrum."""

EVIDENCE_STDS = 6.0


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
    waveform.check_capture(pilot)
    size, bin_hz = waveform.plateau_samples, waveform.sample_rate_hz / waveform.plateau_samples
    power = np.square(np.abs(np.fft.fft(pilot * waveform.window)))
    # Sum of the bins [first, end) as a difference of two entries, around the end of the spectrum.
    summed = np.concatenate([[0.0], np.cumsum(np.tile(power, 2))])
    reach = int(MAX_SEARCH_HZ / bin_hz)
    shifts = np.arange(-reach, reach + 1)
    held = np.zeros(len(shifts))
    for first, end in waveform.bands_in_bins:
        begin = (first + shifts) % size
        held += summed[begin + (end - first)] - summed[begin]
    best = int(np.argmax(held))
    likely = int(np.argmax(np.where(np.abs(shifts) * bin_hz <= likely_hz, held, -np.inf)))
    noise = float(np.median(power)) / math.log(2.0)
    of_pilot = max(float(held[best]) / (2 * waveform.num_bins) - noise, 0.0)
    scatter = (noise + of_pilot) * math.sqrt(4 * abs(best - likely))
    is_clear = held[best] - held[likely] > EVIDENCE_STDS * scatter
    return float(shifts[best if is_clear else likely] * bin_hz)
