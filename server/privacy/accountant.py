"""The account of every device: what it has spent, and whether it can afford another round."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from server.errors import (
    BudgetExceededError,
    BudgetExhaustedError,
    ConfigurationError,
    PrivacyError,
    TooLittleNoiseError,
)
from server.privacy.affordability import Affordability
from server.privacy.composition import (
    Composer,
    History,
    PriceClass,
    loss_interval_for,
    make_history,
    price_class_of,
)
from server.privacy.corrections import LastReleases
from server.privacy.mechanism import MechanismRecord
from server.privacy.shown import shown_epsilon

logger = logging.getLogger(__name__)


class Accountant:
    """(epsilon, delta) of each device by exact composition of its records.

    A run without subsampling is priced in closed form, whatever its rounds have in common; sums of
    squares are a privacy filter, so its noise may be chosen as the run goes.

    An example belongs to one device, so a device's account is the whole loss of its examples, and
    the promise of a run is that of its worst device. Rounds that differ in the last digits of
    their noise multiplier are priced alike, at the lower multiplier (`composition`).

    Left out: noise of *subsampled* rounds chosen from earlier outputs (it may depend on channel,
    clock and configuration); their composition is for parameters that do not depend on the data.

    Args:
        epsilon: the budget of one device.
        delta: total failure probability of the promise.
        csi_delta: part of delta set aside for the event that a channel estimate was worse than its
            bound in any round of the run (num_rounds * num_devices * failure probability).

    Guarantees:
        * `spent` is never below the exact epsilon of the records and never decreases;
        * if every record passed `check_affordable` before `compose`, `spent` is at most epsilon;
        * a record with too little noise to be priced costs an infinite epsilon, and its device
          affords nothing after it; a record that cannot be understood raises. Neither is free.

    Raises:
        ConfigurationError: epsilon not finite and positive, delta outside (0, 1), or csi_delta
            that leaves nothing of delta.
    """

    def __init__(self, *, epsilon: float, delta: float, csi_delta: float = 0.0) -> None:
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ConfigurationError(f"epsilon: got {epsilon}, wanted a finite number > 0.")
        if not 0 < delta < 1:
            raise ConfigurationError(f"delta: got {delta}, wanted a number in (0, 1).")
        if not 0 <= csi_delta < delta:
            raise ConfigurationError(
                f"csi_delta: got {csi_delta}, wanted 0 <= csi_delta < delta = {delta}. Lower the "
                "failure probability of the channel bound."
            )
        self._epsilon = epsilon
        self._delta = delta
        self._csi_delta = csi_delta
        # Rounded down: the difference of two floats may lie above the difference of the reals.
        mechanism_delta = math.nextafter(delta - csi_delta, 0.0) if csi_delta else delta
        self._composer = Composer(loss_interval=loss_interval_for(epsilon), delta=mechanism_delta)
        self._promise: tuple[PrivacyUnit, NeighbouringRelation] | None = None
        self._counts: dict[int, dict[PriceClass, int]] = {}
        # Of devices without subsampled releases: the sum of their squares.
        self._squares: dict[int, int] = {}
        self._spent_floor: dict[int, float] = {}
        self._last = LastReleases()
        # Releases with hardly any noise, per device: no finite epsilon covers them.
        self._unpriceable: dict[int, int] = {}
        self._affordability = Affordability(self._composer, epsilon)

    @property
    def epsilon(self) -> float:
        """The budget of one device."""
        return self._epsilon

    @property
    def delta(self) -> float:
        """Total failure probability, CSI failures included."""
        return self._delta

    @property
    def csi_delta(self) -> float:
        """The part of delta that channel estimation failures may use."""
        return self._csi_delta

    @property
    def device_indices(self) -> tuple[int, ...]:
        """The devices with at least one record, ascending."""
        return tuple(sorted({*self._counts, *self._unpriceable}))

    def num_records(self, device_index: int) -> int:
        """How many releases a device has been charged for."""
        priced = sum(self._counts.get(device_index, {}).values())
        return priced + self._unpriceable.get(device_index, 0)

    def histories(self) -> tuple[History, ...]:
        """What the accounts hold, each content once.

        Raises:
            BudgetExceededError: an account holds a release that no finite epsilon covers.
        """
        if self._unpriceable:
            raise BudgetExceededError(
                f"devices {sorted(self._unpriceable)} have released with hardly any noise: no "
                "finite epsilon covers that, and no budget is large enough for more rounds."
            )
        return tuple(dict.fromkeys(make_history(counts) for counts in self._counts.values()))

    def spent(self, device_index: int) -> float:
        """Epsilon that a device has spent, at delta; 0 for a device that never spoke.

        Infinite after a release with hardly any noise.
        """
        if device_index in self._unpriceable:
            return math.inf
        if device_index in self._squares:
            epsilon = self._composer.gaussian_epsilon(self._squares[device_index])
        else:
            epsilon = self._composer.epsilon(make_history(self._counts.get(device_index, {})))
        value = max(epsilon, self._spent_floor.get(device_index, 0.0))
        self._spent_floor[device_index] = value
        return value

    def worst_spent(self) -> float:
        """Epsilon of the device that has spent most: the promise of the whole run so far.

        An account whose every class another account holds at least as often costs no more than the
        other, so it is not composed: one or two of the accounts of a run remain.
        """
        worst = max(self._spent_floor.values(), default=0.0)
        for index in self.device_indices:
            if not self._is_outspent(index):
                worst = max(worst, self.spent(index))
        return worst

    def compose(self, record: MechanismRecord) -> None:
        """Charge a record to its device.

        Does not ask whether it is affordable: a ledger that is read back must be counted in full.
        A correction takes the place of the release it corrects (`corrections`).

        Raises:
            PrivacyError: unit or relation differ from the records before.
        """
        self._check_promise(record)
        self._promise = (record.unit, record.relation)
        try:
            price = price_class_of(record)
        except TooLittleNoiseError:
            unpriceable = self._unpriceable.get(record.device_index, 0)
            self._unpriceable[record.device_index] = unpriceable + 1
            return
        is_first = record.device_index not in self._counts
        counts = self._counts.setdefault(record.device_index, {})
        charged = 0
        corrected = self._last.corrected_by(record, price)
        if corrected is not None:
            charged = corrected.square
            counts[corrected] -= 1
            if counts[corrected] == 0:
                del counts[corrected]
        counts[price] = counts.get(price, 0) + 1
        if price.is_gaussian and (is_first or record.device_index in self._squares):
            squares = self._squares.get(record.device_index, 0) + price.square - charged
            self._squares[record.device_index] = squares
        else:
            self._squares.pop(record.device_index, None)

    def compose_all(self, records: Iterable[MechanismRecord]) -> None:
        """Charge many records, for instance those of a ledger that is read back."""
        for record in records:
            self.compose(record)

    def check_affordable(self, record: MechanismRecord) -> None:
        """Raise unless the device can pay for the record; charge nothing.

        Cheap for thousands of equal rounds (`affordability`).

        Raises:
            BudgetExhaustedError: the account would exceed epsilon.
            PrivacyError: the record cannot be priced beside the records before.
        """
        self._check_promise(record)
        price = price_class_of(record)
        total = self._total_with(record.device_index, price)
        if total is None:
            return
        logger.info("round %d: device %d is out of budget", record.round_index, record.device_index)
        raise BudgetExhaustedError(
            f"device {record.device_index}, round {record.round_index}: after this round epsilon "
            f"would be {shown_epsilon(total, 6)}, the budget is {self._epsilon:.6g} at delta "
            f"{self._delta:.3g} ({self.num_records(record.device_index)} releases so far). Stop "
            "here and keep the model, or plan a new run with more noise per round."
        )

    def _total_with(self, device_index: int, price: PriceClass) -> float | None:
        """Epsilon of an account and one release more, if it is beyond the budget; else None."""
        if device_index in self._unpriceable:
            return math.inf
        counts = self._counts.get(device_index, {})
        if price.is_gaussian and (not counts or device_index in self._squares):
            squares = self._squares.get(device_index, 0) + price.square
            if self._composer.gaussian_fits(squares, self._epsilon):
                return None
            return self._composer.gaussian_epsilon(squares)
        wanted = counts.get(price, 0) + 1
        others = make_history({p: n for p, n in counts.items() if p != price})
        if self._affordability.is_affordable(others, price, wanted):
            return None
        return self._composer.epsilon(make_history({**counts, price: wanted}))

    def _is_outspent(self, device_index: int) -> bool:
        """Whether another device made every release of this one; of equals the first is kept."""
        if device_index in self._unpriceable:
            return False
        if device_index in self._squares:
            own_rank = self._squares[device_index], -device_index
            return any((total, -index) > own_rank for index, total in self._squares.items())
        own = self._counts[device_index]
        return any(
            all(others.get(price, 0) >= count for price, count in own.items())
            and (others != own or other < device_index)
            for other, others in self._counts.items()
            if other != device_index
        )

    def _check_promise(self, record: MechanismRecord) -> None:
        promise = (record.unit, record.relation)
        if self._promise is not None and promise != self._promise:
            raise PrivacyError(
                f"round {record.round_index}, device {record.device_index}: the record protects "
                f"{promise}, the account holds {self._promise}. Two different promises do not add "
                "up; start a new run."
            )
