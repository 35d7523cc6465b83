"""How far off the energy waveform's sums are: the self-noise, held against simulation in the tests.

The energies of a plateau are quadratic forms in random phases. With K devices arriving at power P,
powers p_k in a band, offsets d_k in Hz, N_B bins of bandwidth B, noise N0 per sample, a guarded
band G times as wide as the band itself, silence measured over M plateaus, and the window's constant

    kappa = N sum w^4 / (sum w^2)^2,        rho = N0 N_B / (N P)   (noise in a band, in units of P),

the variance of D_A in units of P^2, and of D_B likewise, is V / N_B with

    V = kappa sum_{k != l} p_k p_l max(0, 1 - abs(d_k - d_l) / B)     devices with one another
      + (kappa - 1) sum_k p_k^2                                       a device with itself
      + 2 kappa rho sum_k p_k                                         devices with noise
      + kappa G rho^2 (1 + 1/M)                                       noise, and its measurement

    Var(sum_estimate) = (V_A + V_B) / N_B                             signed
    Var(sum_estimate) = ((1 - r)^2 V_A + (1 + r)^2 V_B) / N_B         self-normalised

with r the mean of the shares s_k; the latter to first order. A device's own bins interfere through
the window alone (their total energy is fixed), two devices as far as their bands overlap. Left out:
what an offset leaks out of the guards. Pure functions, numpy only.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from radio.arrays import Float64Array
from radio.checks import check_integer, check_not_negative, check_paired, check_positive
from radio.waveforms.energy import PILOT_POWERS, BandEnergies, EnergyWaveform, Mapping


def sum_variance(
    waveform: EnergyWaveform,
    shares: npt.ArrayLike,
    offsets_hz: npt.ArrayLike,
    *,
    noise_power: float,
    arrival_power: float,
    num_silent_captures: int = 1,
) -> float:
    """Variance of `EnergyWaveform.estimate_sum`, a share squared; see the module.

    Args:
        waveform: bands, window and mapping.
        shares: s_k of those who speak, real [num_speakers].
        offsets_hz: d_k of each, against the receiver [num_speakers].
        noise_power: N0 per complex sample.
        arrival_power: P, mean power of a device at full power, at the receiver.
        num_silent_captures: M, plateaus that the silence was measured over.

    Raises:
        RadioConfigurationError: shapes differ, or a number is out of range.
    """
    values = np.atleast_1d(np.asarray(shares, dtype=np.float64))
    offsets = np.atleast_1d(np.asarray(offsets_hz, dtype=np.float64))
    check_paired("shares and offsets_hz", values, offsets, "num_speakers")
    check_not_negative("noise_power", noise_power)
    check_positive("arrival_power", arrival_power)
    check_integer("num_silent_captures", num_silent_captures, minimum=1)
    powers = np.array([waveform.powers(float(value)) for value in values])
    rho = noise_power * waveform.num_bins / (waveform.plateau_samples * arrival_power)
    silence = 1.0 + 1.0 / num_silent_captures
    v_a, v_b = (_band_variance(waveform, powers[:, band], offsets, rho, silence) for band in (0, 1))
    if waveform.mapping is Mapping.SELF_NORMALISED:
        ratio = float(np.mean(powers[:, 0] - powers[:, 1]))
        v_a, v_b = (1.0 - ratio) ** 2 * v_a, (1.0 + ratio) ** 2 * v_b
    return float((v_a + v_b) / waveform.num_bins)


def measured_sum_variance(
    waveform: EnergyWaveform,
    plateau: BandEnergies,
    silence: BandEnergies,
    *,
    arrival_power: float,
    num_speakers: int,
    num_silent_captures: int = 1,
) -> float:
    """`sum_variance` where the numbers are not known: from what was heard, for a report.

    Takes the devices of a band to be equally loud and their offsets equal: for equal sums the least
    and the most interference.
    """
    heard = plateau.less(silence)
    variances = []
    for energy, noise in ((heard.a, silence.a), (heard.b, silence.b)):
        powers = np.full(num_speakers, max(energy, 0.0) / (arrival_power * num_speakers))
        rho = noise_to_pilot_ratio(waveform, noise, arrival_power)
        offsets = np.zeros(num_speakers)
        variances.append(
            _band_variance(waveform, powers, offsets, rho, 1.0 + 1.0 / num_silent_captures)
        )
    v_a, v_b = variances
    if waveform.mapping is Mapping.SELF_NORMALISED:
        ratio = (heard.a - heard.b) / (heard.a + heard.b)
        v_a, v_b = (1.0 - ratio) ** 2 * v_a, (1.0 + ratio) ** 2 * v_b
    return float((v_a + v_b) / waveform.num_bins)


def pilot_relative_error(
    waveform: EnergyWaveform, heard: float, silence: float, *, num_silent_captures: int = 1
) -> float:
    """Standard deviation of a power gain measured from one pilot, over the gain, in one band.

    Infinite where the pilot did not rise above the silence.

    Args:
        waveform: bands and window.
        heard: D of the band, pilot less silence.
        silence: E of the band while nobody sent.
        num_silent_captures: M.
    """
    if heard <= 0.0:
        return math.inf
    power = PILOT_POWERS[0]
    rho = noise_to_pilot_ratio(waveform, silence, heard / power)
    variance = _band_variance(
        waveform, np.array([power]), np.zeros(1), rho, 1.0 + 1.0 / num_silent_captures
    )
    return math.sqrt(variance / waveform.num_bins) / power


def silence_relative_error(
    waveform: EnergyWaveform, heard: float, silence: float, *, num_silent_captures: int = 1
) -> float:
    """The part of `pilot_relative_error` that all devices of a calibration share.

    They are measured against one silence, kappa G rho^2 / M of the variance: what it was too loud
    makes all of them weaker together.

    Args:
        waveform: bands and window.
        heard: D of the band, pilot less silence, > 0.
        silence: E of the band while nobody sent.
        num_silent_captures: M.
    """
    power = PILOT_POWERS[0]
    rho = noise_to_pilot_ratio(waveform, silence, heard / power)
    wider = waveform.num_guarded_bins / waveform.num_bins
    variance = waveform.window_constant * wider * rho**2 / num_silent_captures
    return math.sqrt(variance / waveform.num_bins) / power


def noise_to_pilot_ratio(waveform: EnergyWaveform, silence: float, arrival_power: float) -> float:
    """rho, from the energy that a silent capture has in a band and its guards."""
    return silence * waveform.num_bins / (waveform.num_guarded_bins * arrival_power)


def _band_variance(
    waveform: EnergyWaveform,
    powers: Float64Array,
    offsets_hz: Float64Array,
    rho: float,
    silence: float,
) -> float:
    """V of the module."""
    kappa = waveform.window_constant
    apart = np.abs(offsets_hz[:, None] - offsets_hz[None, :])
    overlap = np.maximum(0.0, 1.0 - apart / waveform.bandwidth_hz)
    np.fill_diagonal(overlap, 0.0)
    with_others = float(powers @ overlap @ powers)
    with_itself = float(powers @ powers)
    with_noise = 2.0 * rho * float(np.sum(powers))
    of_noise = waveform.num_guarded_bins / waveform.num_bins * rho**2 * silence
    return kappa * (with_others + with_noise + of_noise) + (kappa - 1.0) * with_itself
