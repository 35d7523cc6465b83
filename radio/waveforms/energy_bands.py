"""Where the numbers of the energy waveform stand in frequency: two bands each, mirrored.

::

      band B of number 1  band B of number 0      band A of number 0  band A of number 1
    ...[=================]..[=================]..|..[=================]..[=================]...
                      guards                  carrier, first                         frequency ->

All bands are equally wide, and as wide as rate, numbers and guards leave: with N samples of a
capture, F, G and S the first bin, the bins of a guard and those of the gap between two guards,
and u the share of the spectrum that is used,

    N_B = (u N / 2 - F + G + S) / Q - 2 G - S    bins to a band
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import Int64Array
from radio.checks import check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError

USED_SHARE = 0.9
"""Of the sampled spectrum; the filters' edges lie beyond."""

MIN_BAND_BINS = 16

MAX_SCALARS = 256
"""Numbers of one buffer."""

_GAP_BINS = 32
"""Between the guards of neighbours: what the window smears."""


@dataclass(frozen=True, slots=True)
class Bands:
    """The layout.

    Attributes:
        sample_rate_hz: of both ends.
        plateau_samples: N, period of a device's buffer and length of a capture.
        num_scalars: Q, numbers of one buffer.
        first_band_hz: lower edge of the innermost bands beside the carrier, away from its leakage.
        used_share: of the sampled spectrum; the filters' edges lie beyond.
        max_offset_hz: largest carrier offset between a device and the receiver; the guard on each
            side of a band.

    Raises:
        RadioConfigurationError: more numbers than the spectrum has room for, or a value that cannot
            be.
    """

    sample_rate_hz: float = 1e6
    plateau_samples: int = 1 << 16
    num_scalars: int = 1
    first_band_hz: float = 60e3
    used_share: float = USED_SHARE
    max_offset_hz: float = 22e3

    def __post_init__(self) -> None:
        check_integer("plateau_samples", self.plateau_samples, minimum=1024)
        check_integer("num_scalars", self.num_scalars, minimum=1, maximum=MAX_SCALARS)
        for name in ("sample_rate_hz", "first_band_hz"):
            check_positive(name, getattr(self, name))
        check_not_negative("max_offset_hz", self.max_offset_hz)
        if not 0.0 < self.used_share <= 1.0:
            raise RadioConfigurationError(f"used_share: got {self.used_share}, wanted 0 to 1.")
        if self.first_band_hz <= self.max_offset_hz:
            raise RadioConfigurationError(
                f"first_band_hz: got {self.first_band_hz:g}, wanted above max_offset_hz = "
                f"{self.max_offset_hz:g}: a band would be moved onto the carrier's leakage."
            )
        if self.num_bins < MIN_BAND_BINS:
            raise RadioConfigurationError(_no_room(self))

    @property
    def bin_hz(self) -> float:
        """Width of a bin of a capture's transform."""
        return self.sample_rate_hz / self.plateau_samples

    @property
    def _guard_bins(self) -> int:
        return math.ceil(self.max_offset_hz / self.bin_hz)

    @property
    def _first_bin(self) -> int:
        return math.ceil(self.first_band_hz / self.bin_hz)

    @property
    def num_bins(self) -> int:
        """N_B, the bins of the transform that a band holds."""
        return _bins_left(self, self.sample_rate_hz, self.num_scalars)

    @property
    def _pitch_bins(self) -> int:
        """From one band to the next on the same side of the carrier."""
        return self.num_guarded_bins + _GAP_BINS

    @property
    def num_guarded_bins(self) -> int:
        """The bins of a band and its guards."""
        return self.num_bins + 2 * self._guard_bins

    @property
    def bandwidth_hz(self) -> float:
        """B, of each band: what rate, numbers and guards leave."""
        return self.num_bins * self.bin_hz

    def bands_in_bins(self, *, guarded: bool = False) -> Int64Array:
        """First bin of each band, without or with its guards [num_scalars, 2].

        A band has `num_bins` (`num_guarded_bins`) of them, one after the other; those of a band B
        count from below, beyond the middle of the transform.
        """
        guard = self._guard_bins if guarded else 0
        width = self.num_bins + 2 * guard
        number = np.arange(self.num_scalars, dtype=np.int64)
        above = self._first_bin - guard + number * self._pitch_bins
        return np.stack([above, self.plateau_samples - above - width + 1], axis=1)

    def edges_hz(self, number: int) -> tuple[float, float]:
        """Ends of band A of a number, beside the carrier; band B has them with the other sign."""
        first = self._first_bin + number * self._pitch_bins
        return first * self.bin_hz, (first + self.num_bins) * self.bin_hz

    @property
    def plateau_s(self) -> float:
        """Duration of a capture."""
        return self.plateau_samples / self.sample_rate_hz

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

    @property
    def empty_bins(self) -> Int64Array:
        """Outside of all bands and their guards, where no device is; less the filters' edge."""
        beyond = math.floor(self.used_share * self.plateau_samples / 2.0) + 1
        end = math.floor(0.47 * self.plateau_samples)
        above = np.arange(beyond, max(end, beyond), dtype=np.int64)
        return np.concatenate([above, self.plateau_samples - above])


def _bins_left(bands: Bands, sample_rate_hz: float, num_scalars: int) -> int:
    """N_B at another rate, with another number of numbers; may be negative."""
    w, bin_hz = bands, sample_rate_hz / bands.plateau_samples
    guard, first = math.ceil(w.max_offset_hz / bin_hz), math.ceil(w.first_band_hz / bin_hz)
    end = math.floor(w.used_share * w.plateau_samples / 2.0)
    return (end - first + guard + _GAP_BINS) // num_scalars - 2 * guard - _GAP_BINS


def _no_room(bands: Bands) -> str:
    """Which rate, and how many numbers, would do."""
    w, rate_hz = bands, bands.sample_rate_hz
    counts = range(w.num_scalars, 0, -1)
    fits = next((n for n in counts if _bins_left(w, rate_hz, n) >= MIN_BAND_BINS), 0)
    advice = f"At that rate {fits} fit"
    rates_hz = (rate_hz * 1.05**step for step in range(1, 100))
    enough = next((r for r in rates_hz if _bins_left(w, r, w.num_scalars) >= MIN_BAND_BINS), None)
    if enough is None:
        advice += f"; for {w.num_scalars} make the plateau longer."
    else:
        advice += f"; for {w.num_scalars} take {math.ceil(enough / 1e4) * 1e4:g}, and several "
        advice += "times that for bands that scatter little."
    return (
        f"num_scalars: {w.num_scalars} numbers need two bands each, and their guards of "
        f"{w.max_offset_hz:g} Hz leave {max(w.num_bins, 0)} bins to a band at sample_rate_hz = "
        f"{w.sample_rate_hz:g}, wanted at least {MIN_BAND_BINS}. {advice}"
    )
