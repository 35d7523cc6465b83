"""Weights from a safetensors file: read a piece at a time, or mapped.

What becomes float32 is read, and no second copy of a tensor is ever held. What stays as it is
stored, whole numbers that do not move, is mapped: its pages count as resident while they are used,
and are given back after that.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from edge_runtime.bundle import TensorEntry
from edge_runtime.protocol.errors import BundleError

PIECE_WEIGHTS = 1 << 18  # 1 MiB of float32
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # safetensors' names
_WHOLE_NUMBERS = {"int16": ("I16", np.int16), "int8": ("I8", np.int8)}

Pieces = Iterable[npt.NDArray[np.floating]]


class WeightsFile:
    """An opened file; its tensors by name.

    Raises:
        BundleError: not a safetensors file, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(str(path), framework="np"):  # checks the header
                pass
            self._file: BinaryIO = path.open("rb")
            size = int.from_bytes(self._file.read(8), "little")
            self._header: dict[str, Any] = json.loads(self._file.read(size))
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{path}: not a safetensors file: {error}") from error
        self._data_start = 8 + size
        self._map: mmap.mmap | None = None

    def floats(self, name: str, shape: tuple[int, ...]) -> Pieces:
        """A tensor's values in flat pieces, in order; to be taken before the next is asked for.

        Raises:
            BundleError: it is missing, of another shape, or holds no floats.
        """
        described = self._described(name, shape)
        dtype = described["dtype"]
        if dtype not in _FLOATS:
            raise BundleError(
                f"{name}: stored as {dtype}, wanted one of {', '.join(_FLOATS)}. "
                "Export the model again."
            )
        self._file.seek(self._data_start + described["data_offsets"][0])
        return self._pieces(name, math.prod(shape), _FLOATS[dtype])

    def mapped(self, entry: TensorEntry) -> tuple[npt.NDArray[Any], Callable[[], None]]:
        """A matrix of whole numbers, read-only, where it lies in the file.

        Returns:
            The matrix, and what gives its pages back.

        Raises:
            BundleError: it is missing, of another shape, or not what the manifest says.
        """
        described = self._described(entry.name, entry.shape)
        wanted, dtype = _WHOLE_NUMBERS[entry.stored_dtype]
        if described["dtype"] != wanted:
            raise BundleError(
                f"{entry.name}: stored as {described['dtype']}, the manifest says "
                f"{entry.stored_dtype}. Copy the bundle again."
            )
        if self._map is None:
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise BundleError(f"{self._path}: cannot be mapped ({error}).") from error
        mapping, start = self._map, self._data_start + described["data_offsets"][0]
        values = np.frombuffer(mapping, dtype, math.prod(entry.shape), start)

        def give_back() -> None:
            # The whole map: the kernel brings neighbours along with a page that is asked for.
            mapping.madvise(mmap.MADV_DONTNEED)

        return values.reshape(entry.shape), give_back

    def close(self) -> None:
        """Close the file; what is mapped stays."""
        self._file.close()

    def _described(self, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        described: dict[str, Any] | None = self._header.get(name)
        if described is None:
            raise BundleError(f"{self._path}: tensor {name!r} is missing.")
        check_shape(name, described["shape"], shape)
        return described

    def _pieces(self, name: str, left: int, dtype: str) -> Pieces:
        while left > 0:
            piece = np.empty(min(left, PIECE_WEIGHTS), dtype=dtype)
            if self._file.readinto(piece.view(np.uint8)) != piece.nbytes:  # type: ignore[attr-defined]
                raise BundleError(f"{name}: the file ends inside it. Copy the bundle again.")
            left -= piece.size
            yield piece


def check_shape(name: str, shape: Iterable[int], wanted: tuple[int, ...]) -> None:
    """Raise BundleError unless a tensor has the shape that the manifest gives it."""
    if tuple(shape) != tuple(wanted):
        raise BundleError(f"{name}: shape {tuple(shape)}, the manifest says {wanted}.")
