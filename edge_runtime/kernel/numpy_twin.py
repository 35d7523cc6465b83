"""The kernel in numpy: the definition of what core.c does, and its stand-in where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.direction import WEIGHTS_PER_WORD, sign_bytes
from radio.arrays import Float32Array, Int64Array

FlatArray = npt.NDArray[np.float32] | npt.NDArray[np.int16]
"""What a move changes in place."""

StoredArray = npt.NDArray[np.int16] | npt.NDArray[np.int8]

WORDS_PER_BLOCK = 4
_CHUNK_WORDS = 1024  # 64 Ki weights: the scratch stays in the second-level cache

# Row b holds the eight signs that byte b encodes, least significant bit first.
SIGNS_OF_BYTE: Float32Array = 1.0 - 2.0 * np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
).astype(np.float32)


def add_moves(
    weights: FlatArray,
    tensor_index: int,
    first_block: int,
    seeds: Sequence[int],
    scales: Sequence[float],
) -> None:
    """Add ``sum_m scales[m] * z(seeds[m])`` to ``weights``, in place, one move after the other.

    Args:
        weights: flat, contiguous piece of one tensor, float32 or int16; its first weight has
            number 256 * ``first_block`` in the tensor.
        tensor_index: the tensor's index in the direction.
        first_block: where the piece begins, in blocks of 256 weights (one Philox block of signs).
        seeds: direction seeds, 64-bit.
        scales: one per seed; used as float32. For int16 weights whole numbers of 16 bits; who asks
            sees to it that the sums are, too.

    Guarantees: the same bits as the C kernel, whatever the sums; chunking changes nothing.
    """
    if weights.dtype == np.int16 and not all(_is_int16(scale) for scale in scales):
        raise ValueError("scales: wanted whole numbers of 16 bits for int16 weights.")
    for start in range(0, weights.size, _CHUNK_WORDS * WEIGHTS_PER_WORD):
        piece = weights[start : start + _CHUNK_WORDS * WEIGHTS_PER_WORD]
        words = -(-piece.size // WEIGHTS_PER_WORD)
        first_word = first_block * WORDS_PER_BLOCK + start // WEIGHTS_PER_WORD
        picked = np.empty((words * 8, 8), dtype=weights.dtype)
        for seed, scale in zip(seeds, scales, strict=True):
            # mode="clip" skips numpy's bounds check and its buffer; a byte cannot be out of bounds.
            np.take(
                (SIGNS_OF_BYTE * np.float32(scale)).astype(weights.dtype, copy=False),
                sign_bytes(seed, tensor_index, first_word, words),
                axis=0, out=picked, mode="clip",
            )  # fmt: skip
            piece += picked.reshape(-1)[: piece.size]


def _is_int16(scale: float) -> bool:
    return -(2**15) <= scale < 2**15 and scale == int(scale)


def expand_rows(
    out: Float32Array,
    stored: StoredArray,
    rows: Int64Array,
    tensor_index: int,
    row_scales: Float32Array,
    seeds: Sequence[int],
    scales: Sequence[float],
) -> None:
    """Rows of a matrix as float32, moved along directions on the way; what is stored stays.

        out[r] = row_scales[n] * stored[n] + sum_m scales[m] * z(seeds[m])[n],    n = rows[r]

    Args:
        out: [len(rows), width], written.
        stored: [num_rows, width], int16 or int8.
        rows: which, in any order [.].
        tensor_index: the matrix's index in the direction.
        row_scales: [num_rows].
        seeds: direction seeds, 64-bit.
        scales: one per seed; used as float32.

    Guarantees: the same bits as the C kernel: one rounding an operation, in the order above.

    Raises:
        IndexError: a row that there is not.
    """
    width = stored.shape[1]
    if rows.size and not 0 <= rows.min() <= rows.max() < len(stored):
        raise IndexError(f"rows: got {rows.min()} to {rows.max()}, there are {len(stored)}.")
    most = max(1, _CHUNK_WORDS * WEIGHTS_PER_WORD // max(1, width))
    is_next = np.diff(rows) == 1
    start = 0
    while start < rows.size:
        end = start + 1
        while end < rows.size and end - start < most and is_next[end - 1]:
            end += 1
        first, row_scale = int(rows[start]), row_scales[rows[start:end], None]
        piece = out[start:end]
        np.multiply(stored[first : first + end - start], row_scale, out=piece)
        words, bit = divmod(first * width, WEIGHTS_PER_WORD)
        num_words = -(-(bit + piece.size) // WEIGHTS_PER_WORD)
        for seed, scale in zip(seeds, scales, strict=True):
            signs = SIGNS_OF_BYTE[sign_bytes(seed, tensor_index, words, num_words)].reshape(-1)
            piece += (np.float32(scale) * signs[bit : bit + piece.size]).reshape(piece.shape)
        start = end


def max_abs(weights: Float32Array) -> float:
    """Largest ``abs(weights)``, NaN if one is NaN, 0 for none; no copy of the weights is made."""
    if weights.size == 0:
        return 0.0
    return max(abs(float(weights.max())), abs(float(weights.min())))
