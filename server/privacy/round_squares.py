"""What the rounds before one have cost every account, in the closed form's own units.

A plan that follows the budget must not see the price of the round that it plans: a resumed run
plans a round again that it has paid for, and has to come to the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from server.errors import TooLittleNoiseError
from server.power.schedule import FloatArray
from server.privacy.composition import PriceClass, gdp_mu_of_squares, price_class_of
from server.privacy.mechanism import MechanismRecord


class RoundSquares:
    """Sums of mu^2 of every device, by round."""

    def __init__(self) -> None:
        self._rounds: dict[int, dict[int, int]] = {}
        # Of all rounds before the one that was asked for last.
        self._before: dict[int, int] = {}
        self._asked = 0
        self._has_unpriceable = False
        # Of each device's last release: what names it, and its price.
        self._last: dict[int, tuple[tuple[int, str], PriceClass]] = {}

    def add(self, records: Iterable[MechanismRecord]) -> None:
        """Count releases without subsampling; a correction in place of the release it corrects."""
        for record in records:
            try:
                price = price_class_of(record.to_dp_event())
            except TooLittleNoiseError:
                self._has_unpriceable = True
                continue
            name, square = (record.round_index, record.noise_stream), price.square
            last = self._last.get(record.device_index)
            if last is not None and last[0] == name and price.is_dearer_than(last[1]):
                square -= last[1].square
            self._last[record.device_index] = (name, price)
            _count(self._rounds.setdefault(record.round_index, {}), record.device_index, square)
            if record.round_index < self._asked:
                _count(self._before, record.device_index, square)

    def before(self, round_index: int, num_devices: int) -> FloatArray:
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
