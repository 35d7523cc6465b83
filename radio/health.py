"""What a radio has gone through: counters that tell a bad link from a good one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class RadioHealth:
    """What a radio has gone through since it was asked last.

    Attributes:
        num_captures: made.
        num_samples: captured.
        num_overloaded: of those, at the end of the converter's range: the sum is too loud, and
            amplitudes do not add up any more.
        num_overflows: captures in which the radio reports lost samples.
        num_underflows: times the transmitter ran out of samples.
        temperature_c: of the chip, now.
    """

    num_captures: int = 0
    num_samples: int = 0
    num_overloaded: int = 0
    num_overflows: int = 0
    num_underflows: int = 0
    temperature_c: float | None = None

    def note_capture(
        self, codes: npt.NDArray[np.complex128], full_scale: int, *, has_overflowed: bool
    ) -> None:
        """Count a capture.

        Args:
            codes: of the converter, both parts of each sample [num_samples].
            full_scale: beyond the largest of them.
            has_overflowed: whether the radio reports lost samples.
        """
        parts = codes.view(np.float64).reshape(-1, 2)
        is_overloaded = (parts >= full_scale - 1) | (parts <= -full_scale)
        self.num_captures += 1
        self.num_samples += len(codes)
        self.num_overloaded += int(is_overloaded.any(axis=1).sum())
        self.num_overflows += has_overflowed

    def add(self, later: RadioHealth) -> None:
        """Count what has happened since as well."""
        self.num_captures += later.num_captures
        self.num_samples += later.num_samples
        self.num_overloaded += later.num_overloaded
        self.num_overflows += later.num_overflows
        self.num_underflows += later.num_underflows
        self.temperature_c = later.temperature_c

    @property
    def overloaded_share(self) -> float:
        """The share of all samples that were at full scale."""
        return self.num_overloaded / self.num_samples if self.num_samples else 0.0
