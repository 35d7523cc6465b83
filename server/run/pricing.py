"""Pricing: the rule that a round is paid before it is spent.

What a round costs follows from its plan (`server.planning.round_plan`): the noise that covers each
speaker, the sensitivity it covers, and how often its records are drawn. The price is written down,
on the disk, before anybody is asked to speak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edge_runtime.guard.cover import ArtificialNoise, certified_noise_stds
from edge_runtime.private_random import noise_stream
from edge_runtime.protocol.rounds import Access
from radio.arrays import Float64Array
from radio.waveforms.error_model import noise_power_limits
from server.config.plan_config import PlanConfig
from server.errors import BudgetExceededError
from server.planning.online_run import RunPlanner, plans_as_it_goes
from server.planning.privacy_terms import PrivacyTerms
from server.planning.round_plan import (
    ChannelKnowledge,
    PlannedRound,
    RoundPower,
    counted_noise_std,
    plan_round,
)
from server.power.channel_inversion import PowerPlan
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import (
    GAUSSIAN,
    POISSON_SUBSAMPLED_GAUSSIAN,
    RECORD_VERSION,
    MechanismRecord,
)
from server.privacy.on_air import SpeakersUnknown
from server.privacy.round_squares import RoundSquares
from server.privacy.shown import shown_epsilon
from server.store.records import RoundRow

_ROUNDING = 2.0**-49
"""What float64 may do to the receiver's noise in units of the scalar."""


class Pricing:
    """Plans each round's loudness and noise, and pays for it before anything is sent."""

    def __init__(
        self,
        config: PlanConfig,
        terms: PrivacyTerms | None,
        accountant: Accountant | None,
        ledger: PrivacyLedger | None,
        noise_symbols: int,
        rounds: Sequence[RoundRow] = (),
    ) -> None:
        """Price a run.

        Args:
            config: the run's configuration.
            terms: what was agreed, None for a run without privacy.
            accountant: every device's account, None without privacy.
            ledger: where prices are written down, None without privacy.
            noise_symbols: silent samples from which a channel estimate's noise power is measured.
            rounds: that the run has had.
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
            for row in rounds:
                self.note(row)
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
            None if self._planner is None else self._spent_before(round_index),
        )

    def _spent_before(self, round_index: int) -> Float64Array:
        return self._squares.before(round_index, self._config.federation.num_devices)

    def note(self, row: RoundRow) -> None:
        """A round is over."""
        if self._planner is not None:
            self._planner.note(row.energies)

    def price(self, planned: PlannedRound, release: str) -> tuple[MechanismRecord, ...]:
        """What each speaker pays; nothing without privacy.

        Args:
            planned: from `plan_round`.
            release: names the whole order that the devices will get (`RoundPlan.release`).
        """
        terms, privacy, power = self._terms, self._config.privacy, planned.power
        if terms is None:
            return ()
        num_missing, counted = privacy.missing_devices, self.counted_noise_std(power)
        if self._config.access is Access.SLOTTED:
            num_missing = 0  # whatever the others do
        certified = self._certified(power, power.participants, num_missing, counted)
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
                receiver_noise_std=counted,
                num_missing=num_missing,
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

    def note_sending(self, planned: PlannedRound) -> None:
        """Before the first number of a round is sent: who will have spoken is not known.

        Nothing is written where nobody is covered by another's noise.

        Raises:
            PrivacyError: it could not be written down; nothing may be sent.
        """
        power = planned.power
        if self._ledger is None or self._config.access is Access.SLOTTED or not power.participants:
            return
        counted = self.counted_noise_std(power)
        alone = [self._alone(power, k, counted) for k in power.participants]
        self._ledger.note_sending(
            SpeakersUnknown(
                round_index=planned.round_index,
                devices=tuple(power.participants),
                alone_noise_stds=tuple(alone),
            )
        )

    def note_speakers(self, round_index: int, speakers: Sequence[int]) -> None:
        """All is over, and charged: it is known who spoke.

        If that are others than when an earlier process carried the same round out, the difference
        of what was heard holds some of them with nobody else's noise: the dearest set is paid.

        Raises:
            BudgetExceededError: with that, more than the budget is spent.
        """
        if self._ledger is None:
            return
        before = self._ledger.speakers(round_index)
        if before is not None and set(before) != set(speakers):
            if self._charge_less_noise(self._ledger.unknown_speakers()):
                self.check_not_exceeded()
        self._ledger.note_speakers(round_index, speakers)

    def charge_correction(
        self,
        price: Sequence[MechanismRecord],
        power: RoundPower,
        speakers: Sequence[int],
        unknown: Sequence[int] = (),
    ) -> None:
        """A device that was to speak and did not has taken its noise away: the others pay more.

        Not as long as the promise holds without the noise of so many, and not in slotted access,
        where nobody is covered by another's noise. A device that did not answer covers nobody, and
        pays as if it had spoken alone, early or late. The corrected records are charged in place of
        the paid ones. Never downward.

        Args:
            price: of the round, paid.
            power: of the round.
            speakers: who spoke.
            unknown: of whom nobody knows.

        Raises:
            BudgetExceededError: with the correction, more than the budget is spent.
        """
        is_slotted = self._config.access is Access.SLOTTED
        if self._ledger is None or is_slotted or set(speakers) == set(power.participants):
            return
        counted = self.counted_noise_std(power)
        alone = [
            msgspec.structs.replace(
                record,
                certified_noise_std=self._alone(power, record.device_index, counted),
                num_missing=0,
            )
            for record in price
            if record.device_index in unknown
        ]
        is_dearer = self._charge_less_noise(alone)
        self._correct(price, power, speakers, counted)
        if is_dearer:
            self.check_not_exceeded()

    def charge_quiet_receiver(
        self,
        price: Sequence[MechanismRecord],
        power: RoundPower,
        speakers: Sequence[int],
        measured_std: float,
    ) -> None:
        """A receiver that is quieter than was counted on has covered less: everybody pays more.

        Only where it shows: where not even the upper confidence limit of what was measured comes up
        to what was counted. Then what was measured, at its lower limit, is what counts. The measure
        is no part of the proof, which rests on the floor that somebody vouched for; it finds a
        floor that was wrong. Never downward.

        Args:
            price: of the round, paid.
            power: of the round.
            speakers: who spoke.
            measured_std: of the receiver's noise on a sum.

        Raises:
            BudgetExceededError: with the correction, more than the budget is spent.
        """
        terms, counted = self._terms, self.counted_noise_std(power)
        if self._ledger is None or terms is None or counted == 0.0 or not speakers:
            return
        limits = noise_power_limits(
            measured_std**2, self._noise_symbols, terms.csi_failure_probability
        )
        if limits[1] >= counted**2:
            return
        self._correct(price, power, speakers, math.sqrt(limits[0]))

    def _correct(
        self,
        price: Sequence[MechanismRecord],
        power: RoundPower,
        speakers: Sequence[int],
        receiver_noise_std: float,
    ) -> None:
        """Charge what the round really cost those for whom that is more than was paid.

        Of the q whose noise is not counted, those who fell silent are no longer in it.
        """
        assert self._ledger is not None
        num_silent = len(power.participants) - len(speakers)
        num_missing = max(0, self._config.privacy.missing_devices - num_silent)
        certified = self._certified(power, speakers, num_missing, receiver_noise_std)
        is_dearer = self._charge_less_noise(
            [
                msgspec.structs.replace(
                    record,
                    certified_noise_std=certified[record.device_index],
                    num_missing=num_missing,
                    receiver_noise_std=receiver_noise_std,
                )
                for record in price
                if record.device_index in certified
            ]
        )
        if is_dearer:
            self.check_not_exceeded()

    def _charge_less_noise(self, records: Sequence[MechanismRecord]) -> bool:
        """Those of the records that are dearer than all that was charged for the same release."""
        assert self._ledger is not None
        dearer = [r for r in records if r.certified_noise_std < self._ledger.least_certified(r)]
        if dearer:
            self._compose(self._ledger.append_correction(dearer))
        return bool(dearer)

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
                f"epsilon {shown_epsilon(spent, 6)} is spent, the budget is "
                f"{self._accountant.epsilon:.6g}: devices fell silent, or did not answer, after "
                "the price of a round was paid, and their noise cannot be counted. Nothing more is "
                "transmitted in this run. Find out why before the next one; "
                "privacy.missing_devices keeps room for so many."
            )

    @property
    def num_records(self) -> int:
        """Releases in the ledger, corrections included; 0 without privacy."""
        return 0 if self._ledger is None else len(self._ledger.records())

    def releases(self) -> dict[int, int]:
        """Device -> how many releases it has been charged for; nothing without privacy."""
        if self._accountant is None:
            return {}
        return {k: self._accountant.num_records(k) for k in self._accountant.device_indices}

    def spent(self, most_devices: int) -> dict[int, float]:
        """Device -> epsilon on its account; nothing without privacy, or of more devices."""
        if self._accountant is None or len(self._accountant.device_indices) > most_devices:
            return {}
        return {k: self._accountant.spent(k) for k in self._accountant.device_indices}

    def epsilon_spent(self) -> float | None:
        """The largest epsilon on any device's account so far; None without privacy."""
        return None if self._accountant is None else self._accountant.worst_spent()

    def _compose(self, records: Sequence[MechanismRecord]) -> None:
        if self._accountant is not None:
            self._accountant.compose_all(records)
        if self._planner is not None:
            self._squares.add(records)

    def counted_noise_std(self, power: RoundPower) -> float:
        """What a sum's price counts of the receiver's noise, in units of the scalar."""
        if self._terms is None or not isinstance(power, PowerPlan) or power.receive_scale == 0.0:
            return 0.0
        return counted_noise_std(self._config.radio, self._config.privacy, power.receive_scale) * (
            1.0 - _ROUNDING
        )

    def _alone(self, power: RoundPower, device: int, receiver_noise_std: float) -> float:
        """What covers a device that speaks with nobody."""
        return self._certified(power, [device], 0, receiver_noise_std)[device]

    def _certified(
        self,
        power: RoundPower,
        speakers: Sequence[int],
        num_missing: int,
        receiver_noise_std: float,
    ) -> dict[int, float]:
        """What covers each speaker, if exactly these speak."""
        return certified_noise_stds(
            access=self._config.access,
            artificial_noise=ArtificialNoise.CIRCULAR,
            noise_stds={k: power.artificial_noise_std[k] for k in speakers},
            num_missing=num_missing,
            receiver_noise_std=receiver_noise_std,
        )
