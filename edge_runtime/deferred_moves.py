"""Moves along directions that wait until somebody reads the weights.

A round asks for many moves: there and back along each direction, and the steps. Moves along one
direction add up, and several directions share one pass over the weights, so most of them cost
nothing. The sums are exact (`edge_runtime.lattice`), which makes the waiting invisible.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from edge_runtime.kernel import MAX_FUSED_MOVES, WEIGHTS_PER_BLOCK, add_moves
from edge_runtime.kernel.numpy_twin import FlatArray
from edge_runtime.shared_work import SharedWork

_ALIGNMENT_BYTES = 64
_PIECE_WEIGHTS = 1 << 20  # what one thread takes at a time


class DeferredMoves:
    """Moves of some flat tensors that were asked for and not yet made.

    Args:
        flats: float32 or int16 [num_weights] of each tensor, changed in place by `carry_out`.
        work: threads that share a pass.
    """

    def __init__(self, flats: Sequence[FlatArray], work: SharedWork) -> None:
        self._flats = flats
        # Direction seed -> scale per tensor, oldest first.
        self._scales: dict[int, list[float]] = {}
        self._work = work

    def add(self, direction_seed: int, scales: Sequence[float]) -> None:
        """Ask for tensor i to move by scales[i] z_i(direction_seed), in units of its own numbers.

        Scales are multiples of the tensors' quanta, so their sum in float64 is exact.
        """
        if direction_seed not in self._scales and len(self._scales) == MAX_FUSED_MOVES:
            self.carry_out()
        total = self._scales.setdefault(direction_seed, [0.0] * len(self._flats))
        for index, scale in enumerate(scales):
            total[index] += scale

    def carry_out(self) -> None:
        """Make every move that was asked for, in one pass over the tensors that move."""
        if not self._scales:
            return
        asked, self._scales = self._scales, {}
        calls = []
        for index, flat in enumerate(self._flats):
            moves = [(seed, scales[index]) for seed, scales in asked.items() if scales[index]]
            if moves:
                seeds, scales = zip(*moves, strict=True)
                for start in range(0, flat.size, _PIECE_WEIGHTS):
                    piece = flat[start : start + _PIECE_WEIGHTS]
                    block = start // WEIGHTS_PER_BLOCK
                    calls.append(functools.partial(add_moves, piece, index, block, seeds, scales))
        self._work.do(calls)


def float32_flats(sizes: Sequence[int]) -> list[FlatArray]:
    """Flat tensors in one buffer, each on a cache line of its own."""
    per_line = _ALIGNMENT_BYTES // 4
    starts = np.cumsum([0] + [-(-size // per_line) * per_line for size in sizes])
    raw = np.zeros(int(starts[-1]) + per_line, dtype=np.float32)
    offset = (-raw.ctypes.data % _ALIGNMENT_BYTES) // 4
    return [
        raw[offset + start : offset + start + size]
        for start, size in zip(starts[:-1].tolist(), sizes, strict=True)
    ]
