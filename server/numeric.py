"""The border of the arithmetic: which numbers a plan or a configuration can be made of."""

from __future__ import annotations

import math

from server.errors import ConfigurationError


def check_positive(name: str, value: float) -> None:
    """Return if a number is finite and > 0.

    Raises:
        ConfigurationError: it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}: got {value}, wanted a finite number > 0.")


def check_not_negative(name: str, value: float) -> None:
    """Return if a number is finite and >= 0.

    Raises:
        ConfigurationError: it is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(f"{name}: got {value}, wanted a finite number >= 0.")
