"""Moves along directions that wait until somebody reads the weights.

A round asks for many moves: there and back along each direction, and the steps. Moves along one
direction add up, and several directions share one pass over the weights, so most of them cost
nothing. The sums are exact (`edge_runtime.lattice`), which makes the waiting invisible.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edge_runtime.kernel import MAX_FUSED_MOVES, WEIGHTS_PER_BLOCK, add_moves

_PIECE_WEIGHTS = 1 << 20  # what one thread takes at a time


class DeferredMoves:
    """Moves of some flat tensors that were asked for and not yet made.

    Args:
        flats: float32 [num_weights] of each tensor, changed in place by `carry_out`.
        num_threads: threads that share a pass; 1 uses the caller's alone.
    """

    def __init__(self, flats: Sequence[npt.NDArray[np.float32]], num_threads: int) -> None:
        self._flats = flats
        # Direction seed -> scale per tensor, oldest first.
        self._scales: dict[int, list[float]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if num_threads > 1:
            self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pairzero-move")
            weakref.finalize(self, self._pool.shutdown, wait=False)

    def add(self, direction_seed: int, scales: Sequence[float]) -> None:
        """Ask for tensor i to move by scales[i] z_i(direction_seed).

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
        pieces = []
        for index, flat in enumerate(self._flats):
            moves = [(seed, scales[index]) for seed, scales in asked.items() if scales[index]]
            if moves:
                seeds, scales = zip(*moves, strict=True)
                for start in range(0, flat.size, _PIECE_WEIGHTS):
                    piece = flat[start : start + _PIECE_WEIGHTS]
                    pieces.append((piece, index, start // WEIGHTS_PER_BLOCK, seeds, scales))
        if self._pool is None:
            for arguments in pieces:
                add_moves(*arguments)
        else:
            for done in [self._pool.submit(add_moves, *arguments) for arguments in pieces]:
                done.result()

    def close(self) -> None:
        """Let the threads go; later moves are made by the caller's own. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
