"""What the rounds before one have cost every account, in the closed form's own units.

A plan that follows the budget must not see the price of the round that it plans: a resumed run
plans a round again that it has paid for, and has to come to the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from radio.arrays import Float64Array
from server.errors import TooLittleNoiseError
from server.privacy.composition import gdp_mu_of_squares, price_class_of
from server.privacy.corrections import LastReleases
from server.privacy.mechanism import MechanismRecord


class RoundSquares:
    """Sums of mu^2 of every device, by round."""

    def __init__(self) -> None:
        self._rounds: dict[int, dict[int, int]] = {}
        # Of all rounds before the one that was asked for last.
        self._before: dict[int, int] = {}
        self._asked = 0
        self._has_unpriceable = False
        self._last = LastReleases()

    def add(self, records: Iterable[MechanismRecord]) -> None:
        """Count releases without subsampling; a correction in place of the release it corrects."""
        for record in records:
            try:
                price = price_class_of(record)
            except TooLittleNoiseError:
                self._has_unpriceable = True
                continue
            corrected = self._last.corrected_by(record, price)
            square = price.square - (0 if corrected is None else corrected.square)
            _count(self._rounds.setdefault(record.round_index, {}), record.device_index, square)
            if record.round_index < self._asked:
                _count(self._before, record.device_index, square)

    def before(self, round_index: int, num_devices: int) -> Float64Array:
        """Sum of y = mu^2 / 2 over the rounds before this one, rounded up, of every device [K].

        Infinite for all after a release with hardly any noise.
        """
        if self._has_unpriceable:
            return np.full(num_devices, math.inf)
        if round_index < self._asked:
            self._before, self._asked = {}, 0
        for index in range(self._asked, round_index):
            for device, square in self._rounds.get(index, {}).items():
                _count(self._before, device, square)
        self._asked = round_index
        mu = [gdp_mu_of_squares(self._before.get(device, 0)) for device in range(num_devices)]
        return np.nextafter(np.square(mu) / 2.0, math.inf)


def _count(totals: dict[int, int], device_index: int, square: int) -> None:
    totals[device_index] = totals.get(device_index, 0) + square
