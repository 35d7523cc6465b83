"""Radios that are recorded, and recordings that are played as if they were radios."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from radio.arrays import Complex64Array
from radio.errors import RadioConfigurationError, RadioUnavailableError
from radio.held_radio import AroundHeldRadio
from radio.recordings.sigmf import (
    Clock,
    Recording,
    begin_of,
    load_recording,
    save_recording,
    utc_now,
)
from radio.transceiver import Mode, Transceiver


class RecordingTransceiver(AroundHeldRadio):
    """A radio whose captures are kept; everything else is the radio's own.

    Args:
        radio: with held bursts.
        carrier_hz: that it is tuned to.
        now: a clock.

    Raises:
        RadioConfigurationError: the radio has no captures to keep.
    """

    def __init__(self, radio: Transceiver, *, carrier_hz: float, now: Clock = utc_now) -> None:
        if Mode.HELD not in radio.modes:
            raise RadioConfigurationError(
                f"{radio.source}: has no captures to record, its bursts are at positions."
            )
        super().__init__(radio)
        self._carrier_hz = carrier_hz
        self._now = now
        self._captures: list[Complex64Array] = []
        self._moments: list[datetime.datetime] = []

    def save(self, path: Path, labels: Sequence[str] = ()) -> Path:
        """Write what was captured so far.

        Args:
            path: of the description.
            labels: one for each capture; without them they are counted.

        Raises:
            RadioConfigurationError: nothing was captured, or see `save_recording`.
        """
        named = tuple(labels) or tuple(f"capture {i}" for i in range(len(self._captures)))
        recording = Recording(
            tuple(self._captures),
            named,
            self.sample_rate_hz,
            self._carrier_hz,
            self.source,
            tuple(self._moments),
            self.rx_gain_db,
            self.is_simulated,
        )
        return save_recording(recording, path)

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        capture = super()._capture(num_samples, timeout_s)
        self._moments.append(begin_of(capture, self.sample_rate_hz, self._now()))
        self._captures.append(capture.copy())
        return capture


class ReplayTransceiver(Transceiver):
    """A recording that is heard again, capture by capture.

    A capture has to be as long as the one that was recorded then: what is heard is what was heard,
    and nothing is made up between. What is held goes nowhere.

    Does not model: anything. Whether what is held now is what was held then is for the caller.

    Args:
        recording: or the path of one.

    Raises:
        RadioConfigurationError, RadioUnavailableError: see `load_recording`.
    """

    def __init__(self, recording: Recording | Path) -> None:
        self._recording = load_recording(recording) if isinstance(recording, Path) else recording
        self._next = 0

    @property
    def sample_rate_hz(self) -> float:
        """As recorded."""
        return self._recording.sample_rate_hz

    @property
    def max_amplitude(self) -> float:
        """Full scale; it goes nowhere."""
        return 1.0

    @property
    def source(self) -> str:
        """Says that it is a recording, and of what."""
        return f"replay of {self._recording.source}"

    @property
    def is_simulated(self) -> bool:
        """As recorded; what does not say is taken for simulated."""
        return self._recording.is_simulated

    @property
    def modes(self) -> frozenset[Mode]:
        """Held."""
        return frozenset({Mode.HELD})

    @property
    def label(self) -> str:
        """The label of the capture that comes next; empty at the end."""
        labels = self._recording.labels
        return labels[self._next] if self._next < len(labels) else ""

    def _hold(self, burst: Complex64Array) -> None:
        pass

    def _fall_silent(self) -> None:
        pass

    def _capture(self, num_samples: int, timeout_s: float) -> Complex64Array:
        captures = self._recording.captures
        if self._next >= len(captures):
            raise RadioUnavailableError(
                f"{self.source}: its {len(captures)} captures have been heard; there is no more."
            )
        capture = captures[self._next]
        if len(capture) != num_samples:
            raise RadioConfigurationError(
                f"{self.source}: capture {self._next} ({self.label}) has {len(capture)} samples, "
                f"asked for {num_samples}. Ask as it was asked when it was recorded."
            )
        self._next += 1
        return capture.copy()

    def _close(self) -> None:
        pass
