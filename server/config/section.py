"""What all sections of a configuration have in common: no unknown keys, and limits that say so."""

from __future__ import annotations

import msgspec

from server.errors import ConfigurationError

_MAX_COUNT = 2**31 - 1
MAX_ROUNDS = 1_000_000
"""A plan holds all rounds at once; with more, and at any speed, nobody would see the end."""
MAX_SYMBOLS = 1 << 20
"""Of a pilot or a sequence: at 1 MS/s a second on the air."""
MAX_THREADS = 1024
"""More cores than a device or a host of them has."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections: frozen, no unknown keys."""


def check_count(name: str, value: int, least: int, most: int = _MAX_COUNT) -> None:
    """Return if a number of things is within what can be.

    Raises:
        ConfigurationError: it is not.
    """
    if value < least:
        raise ConfigurationError(f"{name}: got {value}, wanted at least {least}.")
    if value > most:
        raise ConfigurationError(f"{name}: got {value}, wanted at most {most}.")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Return if a number is within a range, ends included.

    Raises:
        ConfigurationError: it is not.
    """
    if not low <= value <= high:
        raise ConfigurationError(f"{name}: got {value}, wanted {low} to {high}.")
