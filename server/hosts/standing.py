"""How the hosts of a run stand, for whoever watches it."""

from __future__ import annotations

import msgspec


class RadioState(msgspec.Struct, frozen=True, kw_only=True):
    """A device's own radio, as its host says now and then.

    Attributes:
        temperature_c: of its chip, which computes nothing.
        num_underflows: how often it has run out of samples.
    """

    temperature_c: float | None = None
    num_underflows: int = 0


class HostStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One host.

    Attributes:
        name: of it.
        devices: its devices.
        is_here: whether it takes part.
        away_s: whole seconds since it was heard last, where it does not; how soon one that is here
            answers follows the sizes of secret batches, and is not said.
        radios: device -> its own radio.
    """

    name: str
    devices: tuple[int, ...]
    is_here: bool
    away_s: int | None = None
    radios: dict[int, RadioState] = {}
