"""Pricing: the rule that a round is paid before it is spent.

What a round costs follows from its plan (`server.planning`): the noise that covers each speaker,
the sensitivity it covers, and how often its records are drawn. The price is written down, on the
disk, before anybody is asked to speak.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge_runtime.private_random import noise_stream
from edge_runtime.protocol.rounds import Access
from server.config import RunConfig
from server.errors import BudgetExceededError
from server.planning import ChannelKnowledge, PlannedRound, RoundPower, plan_round
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import (
    GAUSSIAN,
    POISSON_SUBSAMPLED_GAUSSIAN,
    RECORD_VERSION,
    ArtificialNoise,
    MechanismRecord,
    certified_noise_stds,
)
from server.privacy.round_squares import RoundSquares
from server.privacy_terms import PrivacyTerms
from server.run_planner import RunPlanner, plans_as_it_goes


class Pricing:
    """Plans each round's loudness and noise, and pays for it before anything is sent."""

    def __init__(
        self,
        config: RunConfig,
        terms: PrivacyTerms | None,
        accountant: Accountant | None,
        ledger: PrivacyLedger | None,
        noise_symbols: int,
    ) -> None:
        """Price a run.

        Args:
            config: the run's configuration.
            terms: what was agreed, None for a run without privacy.
            accountant: every device's account, None without privacy.
            ledger: where prices are written down, None without privacy.
            noise_symbols: silent samples from which a channel estimate's noise power is measured.
        """
        self._config = config
        self._terms = terms
        self._accountant = accountant
        self._ledger = ledger
        self._noise_symbols = noise_symbols
        self._planner = None
        self._squares = RoundSquares()
        if terms is not None and ledger is not None and plans_as_it_goes(config):
            self._planner = RunPlanner(config, terms, noise_symbols)
            self._squares.add(ledger.records())
        # A resumed run finds the price of its unfinished round here.
        self._charged_before = frozenset(ledger.records()) if ledger is not None else frozenset()
        self._rounds_charged_before = frozenset(r.round_index for r in self._charged_before)

    def was_charged_before(self, round_index: int) -> bool:
        """Whether an earlier process paid for the round, and may have sent it, before it died."""
        return round_index in self._rounds_charged_before

    def plan_round(self, round_index: int, channel: ChannelKnowledge) -> PlannedRound:
        """Who speaks, how loud, and with how much noise."""
        return plan_round(
            self._config,
            self._terms,
            round_index,
            channel,
            self._noise_symbols,
            self._planner,
            self._squares.worst_before(round_index) if self._planner is not None else 0.0,
        )

    def price(self, planned: PlannedRound, release: str) -> tuple[MechanismRecord, ...]:
        """What each speaker pays; nothing without privacy.

        Args:
            planned: from `plan_round`.
            release: names the whole order that the devices will get (`RoundPlan.release`).
        """
        terms, privacy, power = self._terms, self._config.privacy, planned.power
        if terms is None:
            return ()
        certified = self._certified(power, power.participants)
        return tuple(
            MechanismRecord(
                version=RECORD_VERSION,
                kind=POISSON_SUBSAMPLED_GAUSSIAN if self._config.is_subsampled else GAUSSIAN,
                round_index=planned.round_index,
                device_index=k,
                access=self._config.access,
                waveform=self._config.radio.waveform,
                vote=self._config.vote,
                unit=privacy.unit,
                relation=privacy.relation,
                sensitivity=terms.sensitivity,
                sampling_probability=terms.sampling_probabilities[k],
                certified_noise_std=certified[k],
                amplitude_error_bound=planned.amplitude_error_bound,
                noise_stream=noise_stream(terms.commitments[k], release),
            )
            for k in power.participants
        )

    def charge(self, price: Sequence[MechanismRecord]) -> None:
        """Check that the round can be afforded, and write its price down, on the disk.

        A resumed run finds the price of its unfinished round already paid: the same noise streams
        mean the very same numbers on the air, one release.

        Raises:
            BudgetExhaustedError: it cannot be afforded.
            LedgerCorruptError: the price could not be written.
        """
        if self._accountant is None or self._ledger is None:
            return
        if not self._charged_before.issuperset(price):
            for record in price:
                self._accountant.check_affordable(record)
        self._compose(self._ledger.append(price))

    def charge_correction(
        self,
        price: Sequence[MechanismRecord],
        power: RoundPower,
        speakers: Sequence[int],
    ) -> None:
        """A device that was to speak and did not has taken its noise away: the others pay more.

        Not in slotted access, where nobody is covered by another's noise. The corrected records are
        charged on top of the paid ones. Never downward.

        Raises:
            BudgetExceededError: with the correction, more than the budget is spent.
        """
        is_slotted = self._config.access is Access.SLOTTED
        if self._ledger is None or is_slotted or set(speakers) == set(power.participants):
            return
        certified = self._certified(power, speakers)
        corrections = [
            msgspec.structs.replace(record, certified_noise_std=certified[record.device_index])
            for record in price
            if record.device_index in certified
        ]
        self._compose(self._ledger.append_correction(corrections))
        self.check_not_exceeded()

    def check_not_exceeded(self) -> None:
        """Raise if more than the budget is spent; a run that was resumed asks before it speaks.

        Raises:
            BudgetExceededError: nothing more may be transmitted in this run.
        """
        if self._accountant is None:
            return
        spent = self._accountant.worst_spent()
        if spent > self._accountant.epsilon:
            raise BudgetExceededError(
                f"epsilon {spent:.6g} is spent, the budget is {self._accountant.epsilon:.6g}: "
                "devices fell silent after the price of a round was paid, and their noise was "
                "missing from what the receiver heard. Nothing more is transmitted in this run. "
                "Find out why they fell silent before the next one."
            )

    @property
    def num_records(self) -> int:
        """Releases in the ledger, corrections included; 0 without privacy."""
        return 0 if self._ledger is None else len(self._ledger.records())

    def epsilon_spent(self) -> float | None:
        """The largest epsilon on any device's account so far; None without privacy."""
        return None if self._accountant is None else self._accountant.worst_spent()

    def _compose(self, records: Sequence[MechanismRecord]) -> None:
        if self._accountant is not None:
            self._accountant.compose_all(records)
        if self._planner is not None:
            self._squares.add(records)

    def _certified(self, power: RoundPower, speakers: Sequence[int]) -> dict[int, float]:
        """What covers each speaker, if exactly these speak."""
        return certified_noise_stds(
            access=self._config.access,
            artificial_noise=ArtificialNoise.CIRCULAR,
            noise_stds={k: power.artificial_noise_std[k] for k in speakers},
        )
