"""Weights from a safetensors file, a piece at a time: no second copy of a tensor is ever held.

Read, not mapped: the pages of a mapped file count as resident while they are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from edge_runtime.bundle import TensorEntry
from edge_runtime.protocol.errors import BundleError

PIECE_WEIGHTS = 1 << 18  # 1 MiB of float32
_NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # safetensors' names

Pieces = Iterable[npt.NDArray[np.floating]]


def read_weights(path: Path, entries: Sequence[TensorEntry]) -> Iterator[tuple[int, Pieces]]:
    """Each tensor's index and its flat pieces, in the order of the entries.

    The pieces of one tensor must be taken before the next tensor is asked for.

    Raises:
        BundleError: not a safetensors file, cut short, or without one of the tensors in its shape.
    """
    try:
        with safe_open(str(path), framework="np") as weights:  # checks the header
            present = set(weights.keys())
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header, data_start = json.loads(file.read(size)), 8 + size
            for index, entry in enumerate(entries):
                if entry.name not in present:
                    raise BundleError(f"{path}: tensor {entry.name!r} is missing.")
                described = header[entry.name]
                check_shape(entry, described["shape"])
                file.seek(data_start + described["data_offsets"][0])
                yield index, _read_pieces(file, entry, described["dtype"])
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a safetensors file: {error}") from error


def check_shape(entry: TensorEntry, shape: Sequence[int]) -> None:
    """Raise BundleError unless a tensor has the shape that the manifest gives it."""
    if tuple(shape) != tuple(entry.shape):
        raise BundleError(f"{entry.name}: shape {tuple(shape)}, the manifest says {entry.shape}.")


def _read_pieces(file: BinaryIO, entry: TensorEntry, dtype: str) -> Pieces:
    """A tensor's values from the file's position on."""
    if dtype not in _NUMPY_DTYPES:
        raise BundleError(
            f"{entry.name}: stored as {dtype}, wanted one of {', '.join(_NUMPY_DTYPES)}. "
            "Export the model again."
        )
    left = math.prod(entry.shape)
    while left > 0:
        piece = np.empty(min(left, PIECE_WEIGHTS), dtype=_NUMPY_DTYPES[dtype])
        if file.readinto(piece.view(np.uint8)) != piece.nbytes:  # type: ignore[attr-defined]
            raise BundleError(f"{entry.name}: the file ends inside it. Copy the bundle again.")
        left -= piece.size
        yield piece
