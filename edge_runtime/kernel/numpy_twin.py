"""The kernel in numpy: the definition of what core.c does, and its stand-in where it is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.protocol.direction import WEIGHTS_PER_WORD, sign_bytes
from radio.arrays import Float32Array

WORDS_PER_BLOCK = 4
_CHUNK_WORDS = 1024  # 64 Ki weights: the scratch stays in the second-level cache

# Row b holds the eight signs that byte b encodes, least significant bit first.
SIGNS_OF_BYTE: Float32Array = 1.0 - 2.0 * np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
).astype(np.float32)


def add_moves(
    weights: Float32Array,
    tensor_index: int,
    first_block: int,
    seeds: Sequence[int],
    scales: Sequence[float],
) -> None:
    """Add ``sum_m scales[m] * z(seeds[m])`` to ``weights``, in place, one move after the other.

    Args:
        weights: flat, contiguous piece of one tensor, float32; its first weight has number
            256 * ``first_block`` in the tensor.
        tensor_index: the tensor's index in the direction.
        first_block: where the piece begins, in blocks of 256 weights (one Philox block of signs).
        seeds: direction seeds, 64-bit.
        scales: one per seed; used as float32.

    Guarantees: the same bits as the C kernel, whatever the sums; chunking changes nothing.
    """
    for start in range(0, weights.size, _CHUNK_WORDS * WEIGHTS_PER_WORD):
        piece = weights[start : start + _CHUNK_WORDS * WEIGHTS_PER_WORD]
        words = -(-piece.size // WEIGHTS_PER_WORD)
        first_word = first_block * WORDS_PER_BLOCK + start // WEIGHTS_PER_WORD
        picked = np.empty((words * 8, 8), dtype=np.float32)
        for seed, scale in zip(seeds, scales, strict=True):
            # mode="clip" skips numpy's bounds check and its buffer; a byte cannot be out of bounds.
            np.take(
                SIGNS_OF_BYTE * np.float32(scale),
                sign_bytes(seed, tensor_index, first_word, words),
                axis=0, out=picked, mode="clip",
            )  # fmt: skip
            piece += picked.reshape(-1)[: piece.size]


def max_abs(weights: Float32Array) -> float:
    """Largest ``abs(weights)``, NaN if one is NaN, 0 for none; no copy of the weights is made."""
    if weights.size == 0:
        return 0.0
    return max(abs(float(weights.max())), abs(float(weights.min())))
