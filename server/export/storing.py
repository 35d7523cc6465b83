"""The form in which a bundle's file holds the weights.

::

    float32   every tensor in the precision it came in
    int16     matrices in 16 bits
    int8      matrices in 8 bits, but for those that shall be trained, in 16

Vectors (norms, biases) stay floats: they are few, and steps need their fine lattice. See
`edge_runtime.stored_matrix`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import FLOAT32, INT8, INT16, TensorEntry
from edge_runtime.lattice import choose_quantum_exponent
from edge_runtime.protocol.errors import LatticeError
from edge_runtime.stored_matrix import ROW_SCALES_SUFFIX, to_int8, to_int16
from edge_runtime.trainable import select_trainable
from server.errors import ExportError

FORMS = (FLOAT32, INT16, INT8)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What goes into the file, and what the manifest says about it."""

    arrays: dict[str, npt.NDArray[Any]]
    entries: tuple[TensorEntry, ...]


def check_form(form: str, trainable: Sequence[str]) -> None:
    """Raise ExportError unless there is such a form, and patterns belong to it."""
    if form not in FORMS:
        raise ExportError(f"store: got {form!r}, wanted one of {', '.join(FORMS)}.")
    if trainable and form != INT8:
        raise ExportError(
            f"trainable: stored as {form}, every tensor can be trained. Leave the patterns out, or "
            f"store as {INT8}."
        )


def store_weights(
    weights: Mapping[str, npt.NDArray[Any]], form: str, trainable: Sequence[str]
) -> StoredWeights:
    """Weights in one of `FORMS`.

    Args:
        weights: float16 or float32 by torch's name, in torch's order.
        form: one of them.
        trainable: patterns of the tensors that shall be trained, where ``form`` is int8; none is
            fine.

    Raises:
        ExportError: no such form, or a pattern that matches nothing.
    """
    check_form(form, trainable)
    try:
        is_trainable = select_trainable(list(weights), trainable) if trainable else None
    except LatticeError as error:
        raise ExportError(str(error)) from error
    arrays: dict[str, npt.NDArray[Any]] = {}
    entries = []
    for index, (name, array) in enumerate(weights.items()):
        own = form if array.ndim == 2 else FLOAT32
        if own == INT8 and is_trainable is not None and is_trainable[index]:
            own = INT16
        if own == INT8:
            arrays[name], arrays[name + ROW_SCALES_SUFFIX] = to_int8(array)
            exponent = 0
        elif own == INT16:
            arrays[name], exponent = to_int16(array)
        else:
            arrays[name] = array
            exponent = choose_quantum_exponent(float(np.abs(array).max()))
        entries.append(TensorEntry(name, array.shape, arrays[name].dtype.name, exponent))
    return StoredWeights(arrays, tuple(entries))
