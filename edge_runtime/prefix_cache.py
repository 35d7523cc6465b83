"""PrefixCache: what the layers that do not move give for an example, kept for a whole run.

Where the first layers are frozen, the hidden states of a prompt behind them depend on the prompt
alone, and no round changes them. They are kept in a file that has no name: it is made in a folder
of the device's, unlinked at once, and gone with the process, however that ends. So there is nothing
to copy, to resume or to destroy. Pages are given back after each use.

A prompt's states are the same bits in whatever company and padding it was computed, or nothing may
be kept (`edge_runtime.pass_shapes`). How long a round takes then follows how many of its examples
were seen before, as it follows the size of its batch (docs/promise.md).
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from pathlib import Path

import numpy as np

from edge_runtime.protocol.errors import EdgeError
from radio.arrays import Float32Array, Int64Array


class PrefixCache:
    """Hidden states by prompt.

    Args:
        folder: where the file is made; on a disk, of the device.
        max_bytes: what it holds at most; later prompts are not kept.
        of: the layers that give them (`OnnxForward.frozen_name`).

    Raises:
        EdgeError: the folder cannot hold a file of that size.
    """

    def __init__(self, folder: Path, max_bytes: int, of: str = "") -> None:
        self.of = of
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:  # mode 0600, and no name
                file.truncate(max_bytes)
                self._map = mmap.mmap(file.fileno(), max_bytes)
        except (OSError, ValueError) as error:
            raise EdgeError(
                f"{folder}: no room for {max_bytes / 1e6:.0f} MB of kept prefixes ({error})."
            ) from error

    def __len__(self) -> int:
        """Prompts that are kept."""
        return len(self._places)

    def has(self, prompt: Int64Array) -> bool:
        """Whether a prompt's states are kept."""
        return _key(prompt) in self._places

    def put(self, prompt: Int64Array, hidden: Float32Array) -> None:
        """Keep a prompt's states [length, hidden_size], if there is room and they are not there."""
        key, data = _key(prompt), np.ascontiguousarray(hidden)
        if key in self._places or self._end + data.nbytes > len(self._map):
            return
        self._map[self._end : self._end + data.nbytes] = data.tobytes()
        self._places[key] = (self._end, data.nbytes)
        self._end += data.nbytes

    def take(self, prompt: Int64Array, out: Float32Array) -> bool:
        """Write a prompt's states to ``out`` [length, hidden_size]; False if they are not kept."""
        place = self._places.get(_key(prompt))
        if place is None:
            return False
        start, size = place
        out[...] = np.frombuffer(self._map, np.float32, size // 4, start).reshape(out.shape)
        return True

    def let_go(self) -> None:
        """After some use: pages are written to the file and need not stay in memory."""
        self._map.flush()
        self._map.madvise(mmap.MADV_DONTNEED)


def _key(prompt: Int64Array) -> bytes:
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()
