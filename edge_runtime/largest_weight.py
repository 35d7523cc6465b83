"""The largest weight of a tensor, as it is and as it would be after a move."""

from __future__ import annotations

from typing import cast

import numpy as np

from edge_runtime import kernel
from edge_runtime.kernel import numpy_twin
from edge_runtime.kernel.numpy_twin import FlatArray
from edge_runtime.protocol.direction import WEIGHTS_PER_WORD, sign_bytes
from radio.arrays import Float32Array

_CHUNK_WEIGHTS = 1 << 18  # 1 MiB: what a range check holds beside the weights


def max_abs(flat: FlatArray) -> float:
    """The largest abs(flat); NaN if one is NaN, 0 for none. No copy is made."""
    if flat.dtype == np.float32:
        return kernel.max_abs(cast(Float32Array, flat))
    return float(max(abs(int(flat.max(initial=0))), abs(int(flat.min(initial=0)))))


def max_abs_after(
    flat: FlatArray,
    direction_seed: int,
    tensor_index: int,
    scale: float,
) -> float:
    """max abs(flat + scale z) in float64, chunk by chunk; nothing is moved."""
    largest = 0.0
    for start in range(0, flat.size, _CHUNK_WEIGHTS):
        piece = flat[start : start + _CHUNK_WEIGHTS].astype(np.float64)
        words = -(-piece.size // WEIGHTS_PER_WORD)
        signs = sign_bytes(direction_seed, tensor_index, start // WEIGHTS_PER_WORD, words)
        piece += scale * numpy_twin.SIGNS_OF_BYTE[signs].reshape(-1)[: piece.size]
        largest = max(largest, float(np.max(np.abs(piece))))
    return largest
