"""StoredMatrix: weights in 16 or 8 bits, read as float32.

::

    int16   w = 2^e k      one quantum for the matrix (`edge_runtime.lattice`): it can be trained
    int8    w = s_row k    one scale for each row: frozen

Nothing is moved in place but by whole quanta. A direction is added to the float32 copy on its way
to whoever reads it,

    copy = w + sum_m scale_m z_m,

so there is no way back to go wrong, and the file of a frozen matrix need not be in memory: its
pages are given back as soon as they were read.

A step moves int16 weights by a few of 65,536 quanta. In 8 bits it would be one quantum or none for
nearly every tensor, which is rounding and no learning; so those are frozen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edge_runtime.kernel import expand_rows
from edge_runtime.kernel.numpy_twin import StoredArray
from edge_runtime.lattice import choose_int16_exponent
from edge_runtime.shared_work import SharedWork
from radio.arrays import Float32Array, Int64Array

ROW_SCALES_SUFFIX = ".row_scales"
"""Beside an int8 matrix, in a file: the scale of each of its rows, float32."""

LARGEST_INT8 = 127
_PIECE_WEIGHTS = 1 << 18  # what one thread expands at a time
_SCATTERED_ROWS = 64
"""Rows of a mapped table that are read before its pages are given back: each may bring 64 KiB."""


class StoredMatrix:
    """A matrix as it is kept.

    Args:
        values: int16 or int8 [num_rows, width].
        row_scales: float32 [num_rows].
        tensor_index: its index in a direction.
        give_back: called after each reading of mapped values, so that their pages may go.
    """

    def __init__(
        self,
        values: StoredArray,
        row_scales: Float32Array,
        tensor_index: int,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        self.values, self.row_scales = values, row_scales
        self.tensor_index, self._give_back = tensor_index, give_back

    def expand(
        self,
        out: Float32Array,
        rows: Int64Array | None,
        moves: Mapping[int, float],
        work: SharedWork,
    ) -> None:
        """Write rows as float32, moved on the way.

        Args:
            out: [num_rows, width], C-contiguous.
            rows: which, in any order; None for all in theirs.
            moves: direction seed -> scale.
            work: threads that share it.
        """
        is_scattered = rows is not None and self._give_back is not None
        if rows is None:
            rows = np.arange(len(self.values))
        most = max(1, _PIECE_WEIGHTS // self.values.shape[1])
        seeds, scales = list(moves), list(moves.values())

        def call(start: int, end: int) -> Callable[[], None]:
            return functools.partial(
                expand_rows, out[start:end], self.values, rows[start:end],
                self.tensor_index, self.row_scales, seeds, scales,
            )  # fmt: skip

        if is_scattered:
            for start in range(0, len(rows), _SCATTERED_ROWS):
                call(start, start + _SCATTERED_ROWS)()
                self.let_go()
        else:
            work.do([call(start, start + most) for start in range(0, len(rows), most)])
            self.let_go()

    def let_go(self) -> None:
        """After a reading of `values`: pages of a file need not stay."""
        if self._give_back is not None:
            self._give_back()


def to_int16(matrix: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int16], int]:
    """A matrix on its 16-bit lattice and the exponent of the quantum; off by half of it at most."""
    values = matrix.astype(np.float64)
    exponent = choose_int16_exponent(float(np.abs(values).max(initial=0.0)))
    return np.rint(np.ldexp(values, -exponent)).astype(np.int16), exponent


def to_int8(matrix: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """A matrix in 8 bits and the scale of each row; off by half a scale at most.

    The largest weight of a row becomes 127 of them; a row of zeros has scale 0.
    """
    values = matrix.astype(np.float64)
    largest = np.abs(values).max(axis=1, initial=0.0)
    row_scales = (largest / LARGEST_INT8).astype(np.float32)
    # A scale that float32 rounded down would make 128 of the largest; one too small for it, none.
    scaled = np.divide(
        values, row_scales[:, None], out=np.zeros_like(values), where=row_scales[:, None] > 0
    )
    return np.clip(np.rint(scaled), -LARGEST_INT8, LARGEST_INT8).astype(np.int8), row_scales


def int16_scales(num_rows: int, exponent: int) -> Float32Array:
    """The scales of an int16 matrix's rows: its quantum, for each."""
    return np.full(num_rows, math.ldexp(1.0, exponent), dtype=np.float32)
