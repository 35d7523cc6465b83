"""What numbers an array holds, named once for all packages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Complex64Array = npt.NDArray[np.complex64]
Complex128Array = npt.NDArray[np.complex128]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
BurstArray = Complex64Array | Complex128Array
"""Samples on their way out."""
