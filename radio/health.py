"""What a radio has gone through: counters that tell a bad link from a good one."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def overloaded_share(self) -> float:
        """The share of all samples that were at full scale."""
        return self.num_overloaded / self.num_samples if self.num_samples else 0.0
