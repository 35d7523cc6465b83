"""What a server knows of a device before the first round: enough to plan with, none of its data."""

from __future__ import annotations

import msgspec


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
