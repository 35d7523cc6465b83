"""What a receiver heard in chosen rounds, as SigMF recordings in the run folder.

It is what the promise is about: whoever has the samples is the receiver that slotted access covers
(`server/privacy/README.md`), so keeping them gives nothing away that was not paid for.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from radio.arrays import Complex64Array
from radio.errors import RadioError
from radio.recordings.sigmf import META_SUFFIX, Clock, Recording, begin_of, save_recording
from radio.transceiver import Transceiver

_logger = logging.getLogger(__name__)

FOLDER = "captures"


class KeptCaptures:
    """Collects the captures of a round, and writes those that somebody asked for.

    A recording that cannot be written is told in the log and costs the run nothing.

    Args:
        rounds: that are kept; the calibration made before one of them is, too.
        carrier_hz: of the radios.
        now: a clock; without one nobody is told when rounds were, because that follows the sizes
            of secret batches.
    """

    def __init__(self, rounds: Sequence[int], carrier_hz: float, now: Clock | None) -> None:
        self._rounds = frozenset(rounds)
        self._carrier_hz = carrier_hz
        self._now = now
        self._folder: Path | None = None
        self._heard: list[tuple[str, Complex64Array, datetime.datetime | None]] | None = None

    def put_into(self, run_folder: Path) -> None:
        """Where the run keeps its files."""
        self._folder = run_folder / FOLDER

    @contextlib.contextmanager
    def of_round(self, what: str, round_index: int, transceiver: Transceiver) -> Iterator[None]:
        """Within it captures are noted; at its end, however it comes, they are written.

        Args:
            what: "round" or "calibration".
            round_index: of either.
            transceiver: whose captures they are.
        """
        if self._folder is None or round_index not in self._rounds:
            yield
            return
        self._heard = []
        try:
            yield
        finally:
            heard, self._heard = self._heard, None
            if heard:
                labels, captures, moments = zip(*heard, strict=True)
                recording = Recording(
                    captures,
                    labels,
                    transceiver.sample_rate_hz,
                    self._carrier_hz,
                    transceiver.source,
                    moments,
                    transceiver.rx_gain_db,
                    transceiver.is_simulated,
                )
                self._write(self._folder / f"{what}-{round_index:06d}", recording)

    def note(self, label: str, capture: Complex64Array, sample_rate_hz: float) -> None:
        """One capture that has just come; forgotten unless its round is kept."""
        if self._heard is not None:
            moment = None
            if self._now is not None:
                moment = begin_of(capture, sample_rate_hz, self._now())
            self._heard.append((label, capture, moment))

    def _write(self, stem: Path, recording: Recording) -> None:
        if stem.with_name(stem.name + META_SUFFIX).exists():
            return  # of the same round before an interruption
        try:
            stem.parent.mkdir(exist_ok=True)
            save_recording(recording, stem)
        except (OSError, RadioError) as error:
            _logger.warning("the captures of %s are not kept: %s", stem.name, error)
