"""What numbers arrays hold, and which ones a plan can be made of."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from server.errors import ConfigurationError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def check_positive(**values: float) -> None:
    """Return if every value is finite and > 0, or raise ConfigurationError with its name."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name}: got {value}, wanted a finite number > 0.")


def check_not_negative(**values: float) -> None:
    """Return if every value is finite and >= 0, or raise ConfigurationError with its name."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigurationError(f"{name}: got {value}, wanted a finite number >= 0.")
