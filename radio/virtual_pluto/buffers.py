"""Blocks of samples between a client and a radio, as the kernel keeps them."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from radio.virtual_pluto.air import Burst, Radio, VirtualAir
from radio.virtual_pluto.attributes import IioError

BYTES_PER_NUMBER = 2
"""Of a sample's part in phase or in quadrature."""

CHUNK_SAMPLES = 1 << 16
"""A long buffer is handed over in pieces, as the real daemon does."""

DAC_FULL_SCALE = 32768.0
"""The converter takes the upper 12 of 16 bits."""


class ReceiveBuffer:
    """Blocks that are filled one after another from the moment of opening.

    The kernel fills as many as it has and then waits: a client that comes late finds old samples
    first, and then a gap.

    Args:
        air: that the radio is on.
        radio: its place there.
        num_samples: of a block.
        num_blocks: that the kernel has.
        on_overflow: called where samples were lost between two blocks.
    """

    def __init__(
        self,
        air: VirtualAir,
        radio: Radio,
        num_samples: int,
        num_blocks: int,
        on_overflow: Callable[[], None],
    ) -> None:
        self._air = air
        self._radio = radio
        self._on_overflow = on_overflow
        self.num_samples = num_samples
        self._duration_s = num_samples / radio.rate_hz
        now_s = air.clock.now_s()
        self._starts_s = deque(now_s + i * self._duration_s for i in range(num_blocks))
        self._note_unread()

    def read_block(self) -> Iterator[np.ndarray]:
        """Wait for the oldest block; int16 [count, 2] pieces of it."""
        air, rate_hz = self._air, self._radio.rate_hz
        start_s = self._starts_s[0]
        done = 0
        while done < self.num_samples:
            count = min(CHUNK_SAMPLES, self.num_samples - done)
            piece_s = start_s + done / rate_hz
            air.clock.wait_until(piece_s + count / rate_hz)
            yield air.converted(self._radio, piece_s, count)
            done += count
        filled_s = self._starts_s[-1] + self._duration_s
        now_s = air.clock.now_s()
        self._starts_s.popleft()
        if now_s > filled_s:
            self._on_overflow()
        self._starts_s.append(max(now_s, filled_s))
        self._note_unread()

    def close(self) -> None:
        """Fill no more."""
        self._radio.unread_s = None

    def _note_unread(self) -> None:
        until_s = self._starts_s[-1] + self._duration_s
        self._radio.unread_s = self._starts_s[0], until_s


class TransmitBuffer:
    """Blocks that go out one after another, or one that goes round.

    Args:
        air: that the radio is on.
        radio: its place there.
        num_samples: of a block.
        num_blocks: that the kernel has.
        is_cyclic: whether one goes round.
        columns: which of in phase and quadrature come; the other is 0.
        on_underflow: called where the converter ran out of samples between two blocks.
    """

    def __init__(
        self,
        air: VirtualAir,
        radio: Radio,
        num_samples: int,
        num_blocks: int,
        *,
        is_cyclic: bool,
        columns: tuple[int, ...],
        on_underflow: Callable[[], None],
    ) -> None:
        self._air = air
        self._radio = radio
        self._on_underflow = on_underflow
        self._num_samples = num_samples
        self._num_blocks = num_blocks
        self._is_cyclic = is_cyclic
        self._columns = columns
        self._queued_until_s: deque[float] = deque()

    @property
    def is_cyclic(self) -> bool:
        """Whether its one block goes round until it is closed."""
        return self._is_cyclic

    def fits(self, size: int) -> bool:
        """Whether so many bytes are whole samples, and not more than a block has."""
        of_sample = BYTES_PER_NUMBER * len(self._columns)
        return size % of_sample == 0 and 0 < size <= self._num_samples * of_sample

    def push(self, data: bytes) -> None:
        """Send a block that fits; wait while all of the kernel's are queued.

        Raises:
            IioError: EBUSY, a second one of a cyclic buffer.
        """
        if self._is_cyclic and self._queued_until_s:
            raise IioError(errno.EBUSY)
        given = np.frombuffer(data, "<i2").reshape(-1, len(self._columns))
        parts = np.zeros((len(given), 2), dtype=np.float32)
        parts[:, self._columns] = given / np.float32(DAC_FULL_SCALE)
        samples = parts.view(np.complex64).reshape(-1)
        air, radio = self._air, self._radio
        analogue = radio.mixed(samples)
        with air.lock:
            air.forget_unheard()
            now_s = air.clock.now_s()
            start_s = now_s
            if self._queued_until_s and not self._is_cyclic:
                if self._queued_until_s[-1] < now_s:
                    self._on_underflow()
                start_s = max(now_s, self._queued_until_s[-1])
            end_s = math.inf if self._is_cyclic else start_s + len(samples) / radio.rate_hz
            radio.bursts.append(Burst(start_s, end_s, radio.rate_hz, samples, analogue))
            self._queued_until_s.append(end_s)
        if not self._is_cyclic and len(self._queued_until_s) > self._num_blocks:
            air.clock.wait_until(self._queued_until_s.popleft())
