"""What a measurement heard, as pictures: spectrum of a capture, constellation of many."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from radio.arrays import Complex64Array, Complex128Array, Float64Array
from radio.recordings.drawing import Figure, FigureCanvasAgg
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import Packets

Waveform = CoherentWaveform | EnergyWaveform | Packets

_BLUE, _ORANGE = "#0072B2", "#D55E00"
_SEGMENT = 1024
_MAX_POINTS = 4000


def draw_measurement(
    folder: Path, waveform: Waveform, captures: Sequence[Complex64Array], sample_rate_hz: float
) -> list[Path]:
    """Write spectrum.png and constellation.png; returns their paths.

    Args:
        folder: made if it is missing.
        waveform: what was captured.
        captures: of payloads, one or more.
        sample_rate_hz: of the captures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _draw_spectrum(folder / "spectrum.png", waveform, captures[0], sample_rate_hz),
        _draw_constellation(folder / "constellation.png", waveform, captures),
    ]


def power_density_db(capture: Complex64Array) -> Float64Array:
    """Mean power a bin over full scale [_SEGMENT], carrier in the middle; Hann segments (Welch)."""
    segment = min(_SEGMENT, capture.size)
    window = np.hanning(segment)
    starts = range(0, capture.size - segment + 1, max(segment // 2, 1))
    spectra = [np.fft.fft(capture[start : start + segment] * window) for start in starts]
    power = np.mean(np.square(np.abs(spectra)), axis=0) / (segment * np.sum(np.square(window)))
    density: Float64Array = 10.0 * np.log10(np.fft.fftshift(power) + 1e-20)
    return density


def constellation(waveform: Waveform, capture: Complex64Array) -> Complex128Array:
    """The points that the receiver decides by.

    Coherent: each number's level, in phase and in quadrature. Energy: each number's power of band A
    and, as the imaginary part, of band B. Packets: their turned phase steps.
    """
    if isinstance(waveform, EnergyWaveform):
        energies = waveform.energies(capture)
        points: Complex128Array = energies[:, 0] + 1j * energies[:, 1]
        return points
    if isinstance(waveform, Packets):
        return waveform.constellation(capture)
    reception = waveform.demodulate(capture, 1.0)
    return np.array(reception.sum_estimates) + 1j * np.array(reception.quadrature_estimates)


def _draw_spectrum(
    path: Path, waveform: Waveform, capture: Complex64Array, sample_rate_hz: float
) -> Path:
    density = power_density_db(capture)
    frequencies_khz = (np.arange(density.size) / density.size - 0.5) * sample_rate_hz / 1e3
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(frequencies_khz, density, color=_BLUE, linewidth=0.8)
    if isinstance(waveform, EnergyWaveform):
        top = axes.get_ylim()[1]
        for number in range(waveform.num_scalars):
            edges_khz = [edge / 1e3 for edge in waveform.edges_hz(number)]
            for name, sign in (("A", 1.0), ("B", -1.0)):
                first, last = sorted(sign * edge for edge in edges_khz)
                axes.axvspan(first, last, color=_ORANGE, alpha=0.15)
                text = name if waveform.num_scalars == 1 else f"{name}{number}"
                axes.text((first + last) / 2, top, text, ha="center")
    axes.set_xlabel("frequency beside the receiver's carrier (kHz)")
    axes.set_ylabel("power a bin (dB over full scale)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _draw_constellation(path: Path, waveform: Waveform, captures: Sequence[Complex64Array]) -> Path:
    of_one = functools.partial(constellation, waveform)
    points = np.concatenate([of_one(capture) for capture in captures])[:_MAX_POINTS]
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(points.real, points.imag, ".", color=_BLUE, markersize=3)
    is_energy = isinstance(waveform, EnergyWaveform)
    axes.set_xlabel("power in band A" if is_energy else "in phase")
    axes.set_ylabel("power in band B" if is_energy else "in quadrature")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path
