"""The passes over all weights, in C where it was built, in numpy otherwise: the same bits.

``KERNEL_NAME`` is "c" or "numpy", ``KERNEL_REASON`` says why it is not "c". The environment
variable PAIRZERO_KERNEL=numpy asks for numpy, to compare.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.kernel import numpy_twin
from edge_runtime.protocol import direction

KERNEL_VARIABLE = "PAIRZERO_KERNEL"
WEIGHTS_PER_BLOCK = 256
MAX_FUSED_MOVES = 16

KERNEL_NAME, KERNEL_REASON = "numpy", f"{KERNEL_VARIABLE}=numpy"
_kernel: Any = numpy_twin

if os.environ.get(KERNEL_VARIABLE) != "numpy":
    try:
        _kernel = import_module("edge_runtime.kernel._native")
    except ImportError as error:
        KERNEL_REASON = f"{error}; install again where gcc and Python's headers are present"
    else:
        KERNEL_NAME, KERNEL_REASON = "c", ""

add_moves: Callable[
    [numpy_twin.FlatArray, int, int, Sequence[int], Sequence[float]],
    None,
] = _kernel.add_moves
expand_rows: Callable[
    [
        npt.NDArray[np.float32], numpy_twin.StoredArray, npt.NDArray[np.int64], int,
        npt.NDArray[np.float32], Sequence[int], Sequence[float],
    ],
    None,
] = _kernel.expand_rows  # fmt: skip
max_abs: Callable[[npt.NDArray[np.float32]], float] = _kernel.max_abs


def rounding_word(direction_seed: int, tensor_index: int) -> int:
    """`edge_runtime.protocol.direction.rounding_word`, without a numpy generator for each word.

    A step asks for one a tensor and direction: half of what a replayed round takes, else.
    """
    if KERNEL_NAME != "c":
        return direction.rounding_word(direction_seed, tensor_index)
    # numpy raises the counter before it makes a block.
    words: tuple[int, ...] = _kernel.philox4x64_10(
        (1, tensor_index, 0, 0), (direction_seed, direction.ROUNDING_DOMAIN)
    )
    return words[0]


__all__ = [
    "KERNEL_NAME", "KERNEL_REASON", "MAX_FUSED_MOVES", "WEIGHTS_PER_BLOCK", "add_moves",
    "expand_rows", "max_abs", "rounding_word",
]  # fmt: skip
