"""Which accounts fit a budget: the answers are kept, and looked for far ahead.

Composing costs the same for one round more or a thousand, so for a device that is about to make
thousands of equal rounds twice as many as it needs are tried: once they are known to fit, every
smaller number does (epsilon only grows with the count). A run of T equal rounds then composes about
log2 T times instead of T.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.privacy.composition import Composer, History, PriceClass, make_history

# With more price classes than this one more round is composed onto the last distribution instead
# of looking ahead, because looking ahead has to compose every class again.
_MAX_CLASSES_TO_LOOK_AHEAD = 4
_NEVER = 2**63


class Affordability:
    """Says whether a number of equal rounds fits beside the rest of an account.

    Args:
        composer: prices a history at the promise's delta.
        epsilon: the budget.

    Guarantees: `is_affordable` is composer.epsilon(account) <= epsilon, whatever was asked before.
    """

    def __init__(self, composer: Composer, epsilon: float) -> None:
        self._composer = composer
        self._epsilon = epsilon
        # (the other classes of an account, one class) -> counts of that class known to fit, and
        # known not to. Equal accounts of many devices share an entry.
        self._fits: dict[tuple[History, PriceClass], int] = {}
        self._exceeds: dict[tuple[History, PriceClass], int] = {}

    def is_affordable(self, others: History, price: PriceClass, wanted: int) -> bool:
        """Whether ``wanted`` rounds of one class fit beside the other classes."""
        key = (others, price)
        if wanted <= self._fits.get(key, 0):
            return True
        if wanted >= self._exceeds.get(key, _NEVER):
            return False
        for count in self._counts_to_try(key, wanted):
            if (
                self._composer.epsilon(make_history({**dict(others), price: count}))
                <= self._epsilon
            ):
                self._fits[key] = count
                return True
            self._exceeds[key] = count
        return False

    def _counts_to_try(self, key: tuple[History, PriceClass], wanted: int) -> Iterable[int]:
        """Counts from which ``wanted`` can be decided, the most far-sighted first."""
        others, _ = key
        if len(others) < _MAX_CLASSES_TO_LOOK_AHEAD:
            count = min(2 * wanted, (wanted + self._exceeds.get(key, _NEVER)) // 2)
            while count > wanted:
                yield count
                count = (wanted + count) // 2
        yield wanted
