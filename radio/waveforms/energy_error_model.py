"""How far off the energy waveform's sums are: the self-noise, held against simulation in the tests.

The energies of a plateau are quadratic forms in random phases, and every number has bands of its
own: what follows is for one of them. With K devices arriving at power P, powers p_k in a band,
offsets d_k in Hz, N_B bins of bandwidth B, noise N0 per sample, a guarded band G times as wide as
the band itself, silence measured over M plateaus, and the window's constant

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
what an offset leaks out of the guards, and images (`radio.waveforms.energy`: numbers smaller by a
hundredth at most). Pure functions, numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from radio.arrays import Float64Array
from radio.checks import check_integer, check_not_negative
from radio.errors import RadioConfigurationError
from radio.waveforms.energy import EnergyWaveform, Mapping


def sum_variances(
    waveform: EnergyWaveform,
    shares: npt.ArrayLike,
    offsets_hz: npt.ArrayLike,
    *,
    noise_power: float,
    arrival_power: npt.ArrayLike,
    num_silent_captures: int = 1,
) -> Float64Array:
    """Variances of `EnergyWaveform.estimate_sums`, in shares squared [num_scalars]; see the module.

    Args:
        waveform: bands, window and mapping.
        shares: s_k of those who speak, real [num_speakers, num_scalars].
        offsets_hz: d_k of each, against the receiver [num_speakers].
        noise_power: N0 per complex sample.
        arrival_power: P, mean power of the largest number of a device at the receiver, for each
            number or one for all.
        num_silent_captures: M, plateaus that the silence was measured over.

    Raises:
        RadioConfigurationError: shapes differ, or a number is out of range.
    """
    values = np.asarray(shares, dtype=np.float64)
    offsets = np.asarray(offsets_hz, dtype=np.float64)
    if values.ndim != 2 or offsets.shape != values.shape[:1]:
        raise RadioConfigurationError(
            f"shares and offsets_hz: got shapes {values.shape} and {offsets.shape}, wanted "
            "[num_speakers, num_scalars] and [num_speakers]."
        )
    check_not_negative("noise_power", noise_power)
    check_integer("num_silent_captures", num_silent_captures, minimum=1)
    powers = waveform.powers(values)
    rho = _noise_in_bands(waveform, noise_power, arrival_power)[:, None]
    v = _band_variances(waveform, powers, offsets, rho, 1.0 + 1.0 / num_silent_captures)
    ratio = np.mean(powers[:, :, 0] - powers[:, :, 1], axis=0)
    return _of_sums(waveform, v, ratio)


def measured_sum_variances(
    waveform: EnergyWaveform,
    plateau: Float64Array,
    silence: Float64Array,
    *,
    arrival_power: npt.ArrayLike,
    num_speakers: npt.ArrayLike,
    num_silent_captures: int = 1,
) -> Float64Array:
    """`sum_variances` where the numbers are not known: from what was heard, for a report.

    Takes the devices of a band to be equally loud and their offsets equal: for equal sums the least
    and the most interference.
    """
    heard = plateau - silence
    power = np.broadcast_to(np.asarray(arrival_power, dtype=np.float64), heard.shape[:1])[:, None]
    count = np.broadcast_to(np.asarray(num_speakers, dtype=np.float64), heard.shape[:1])[:, None]
    total = np.maximum(heard, 0.0) / power
    squares = np.square(total) / count
    v = _variances(
        waveform,
        with_others=np.square(total) - squares,
        with_itself=squares,
        total=total,
        rho=noise_to_pilot_ratio(waveform, silence, power),
        silence=1.0 + 1.0 / num_silent_captures,
    )
    sums = heard.sum(axis=1)
    ratio = np.divide(heard[:, 0] - heard[:, 1], sums, out=np.zeros(len(sums)), where=sums > 0.0)
    return _of_sums(waveform, v, ratio)


def pilot_relative_errors(
    waveform: EnergyWaveform, heard: npt.ArrayLike, silence: npt.ArrayLike
) -> Float64Array:
    """Standard deviations of power gains measured from a pilot, over the gains, in single bands.

    Infinite where the pilot did not rise above the silence.

    Args:
        waveform: bands and window.
        heard: D of bands, pilot less silence.
        silence: E of bands while nobody sent; of the same shape, or one for all.
    """
    power = waveform.pilot_power

    def variances(rho: Float64Array) -> Float64Array:
        return _variances(
            waveform,
            with_others=np.zeros(()),
            with_itself=np.asarray(power**2),
            total=np.asarray(power),
            rho=rho,
            silence=2.0,
        )

    return _relative_errors(waveform, heard, silence, variances)


def silence_relative_errors(
    waveform: EnergyWaveform, heard: npt.ArrayLike, silence: npt.ArrayLike
) -> Float64Array:
    """The part of `pilot_relative_errors` that all devices of a calibration share.

    They are measured against one silence, kappa G rho^2 of the variance: what it was too loud makes
    all of them weaker together. Infinite where nothing was heard.
    """
    wider = waveform.num_guarded_bins / waveform.num_bins

    def variances(rho: Float64Array) -> Float64Array:
        return np.asarray(waveform.window_constant * wider * np.square(rho))

    return _relative_errors(waveform, heard, silence, variances)


def _relative_errors(
    waveform: EnergyWaveform,
    heard: npt.ArrayLike,
    silence: npt.ArrayLike,
    variances: Callable[[Float64Array], Float64Array],
) -> Float64Array:
    """Standard deviations over what was heard of a pilot, from V as a function of rho."""
    own, quiet = np.broadcast_arrays(np.asarray(heard, float), np.asarray(silence, float))
    is_heard, power = own > 0.0, waveform.pilot_power
    rho = noise_to_pilot_ratio(waveform, quiet, np.where(is_heard, own, 1.0) / power)
    errors = np.sqrt(variances(rho) / waveform.num_bins) / power
    return np.asarray(np.where(is_heard, errors, math.inf))


def noise_to_pilot_ratio(
    waveform: EnergyWaveform, silence: npt.ArrayLike, arrival_power: npt.ArrayLike
) -> Float64Array:
    """rho, from the energy that a silent capture has in a band and its guards."""
    in_band = np.asarray(silence) * (waveform.num_bins / waveform.num_guarded_bins)
    return np.asarray(in_band / np.asarray(arrival_power))


def _noise_in_bands(
    waveform: EnergyWaveform, noise_power: float, arrival_power: npt.ArrayLike
) -> Float64Array:
    """rho of each number."""
    power = np.asarray(arrival_power, dtype=np.float64)
    if not np.all(power > 0.0) or not np.all(np.isfinite(power)):
        raise RadioConfigurationError(
            f"arrival_power: got {power.tolist()}, wanted finite numbers > 0."
        )
    rho = noise_power * waveform.num_bins / (waveform.plateau_samples * power)
    return np.broadcast_to(rho, (waveform.num_scalars,))


def _band_variances(
    waveform: EnergyWaveform,
    powers: Float64Array,
    offsets_hz: Float64Array,
    rho: Float64Array,
    silence: float,
) -> Float64Array:
    """V of the module, of each band [num_scalars, 2].

    Args:
        waveform: bands and window.
        powers: p [num_speakers, num_scalars, 2].
        offsets_hz: d [num_speakers].
        rho: of each number [num_scalars, 1].
        silence: 1 + 1/M.
    """
    total, with_itself = powers.sum(axis=0), np.square(powers).sum(axis=0)
    if np.all(offsets_hz == offsets_hz[:1]):
        with_others = np.square(total) - with_itself  # all bands overlap wholly
    else:
        apart = np.abs(offsets_hz[:, None] - offsets_hz[None, :])
        overlap = np.maximum(0.0, 1.0 - apart / waveform.bandwidth_hz)
        np.fill_diagonal(overlap, 0.0)
        with_others = np.sum(powers * np.tensordot(overlap, powers, axes=1), axis=0)
    return _variances(
        waveform,
        with_others=with_others,
        with_itself=with_itself,
        total=total,
        rho=rho,
        silence=silence,
    )


def _variances(
    waveform: EnergyWaveform,
    *,
    with_others: Float64Array,
    with_itself: Float64Array,
    total: Float64Array,
    rho: Float64Array,
    silence: float,
) -> Float64Array:
    """V of the module, of its sums."""
    kappa = waveform.window_constant
    of_noise = waveform.num_guarded_bins / waveform.num_bins * np.square(rho) * silence
    interfering = kappa * (with_others + 2.0 * rho * total + of_noise)
    return np.asarray(interfering + (kappa - 1.0) * with_itself)


def _of_sums(waveform: EnergyWaveform, v: Float64Array, ratio: Float64Array) -> Float64Array:
    """Var(sum_estimate), from V of both bands and r."""
    if waveform.mapping is Mapping.SELF_NORMALISED:
        v = v * np.square(np.stack([1.0 - ratio, 1.0 + ratio], axis=1))
    return np.asarray(v.sum(axis=1) / waveform.num_bins)
