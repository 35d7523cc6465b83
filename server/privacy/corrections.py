"""Which record corrects which: the rule by which accounts charge one release once."""

from __future__ import annotations

from server.privacy.composition import PriceClass
from server.privacy.mechanism import MechanismRecord


class LastReleases:
    """What names each device's last release, and its price."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[int, str], PriceClass]] = {}

    def corrected_by(self, record: MechanismRecord, price: PriceClass) -> PriceClass | None:
        """The price whose place this one takes; None where it is a release of its own.

        A correction is the release before it, of the same name, with less noise. Anything else of
        the same name is charged once more.
        """
        name = (record.round_index, record.noise_stream)
        last = self._last.get(record.device_index)
        self._last[record.device_index] = (name, price)
        is_correction = last is not None and last[0] == name and price.is_dearer_than(last[1])
        return last[1] if last is not None and is_correction else None
