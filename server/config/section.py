"""What all sections of a configuration have in common: no unknown keys, and limits that say so."""

from __future__ import annotations

import msgspec

from server.errors import ConfigurationError

_MAX_COUNT = 2**31 - 1


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections: frozen, no unknown keys."""


def check_count(name: str, value: int, least: int) -> None:
    """Return if a number of things is within what can be.

    Raises:
        ConfigurationError: it is not.
    """
    if value < least:
        raise ConfigurationError(f"{name}: got {value}, wanted at least {least}.")
    if value > _MAX_COUNT:
        raise ConfigurationError(f"{name}: got {value}, wanted at most {_MAX_COUNT}.")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Return if a number is within a range, ends included.

    Raises:
        ConfigurationError: it is not.
    """
    if not low <= value <= high:
        raise ConfigurationError(f"{name}: got {value}, wanted {low} to {high}.")
