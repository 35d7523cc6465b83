"""What a server knows of a device before the first round: enough to plan with, none of its data."""

from __future__ import annotations

import re

import msgspec

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_token(name: str) -> bool:
    """Whether a name can be part of an address: 1 to 64 letters, digits, - and _."""
    return _TOKEN.fullmatch(name) is not None


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device of a run, as it names itself.

    Attributes:
        num_records: how many it holds; public, for the rate at which one is drawn follows from it.
        commitment: public name of the key that its noise is drawn with.
        data_name: of its data, which only the holder of the key can compute.
    """

    num_records: int
    commitment: str
    data_name: str
