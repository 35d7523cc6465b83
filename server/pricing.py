"""Pricing: what a round may cost in privacy, and the rule that it is paid before it is spent.

Plan: the noise multiplier that the whole run can afford is found once. In each round the artificial
noise of those who speak adds up to

    certified_noise_std = noise_multiplier * sensitivity * (1 + eta) / (1 - eta),

eta being the round's bound on the received amplitude's relative error: one record may weigh up to
1 + eta, the others' noise may arrive as weak as 1 - eta (theory of the mechanism:
`server.privacy.mechanism`). Receiver noise comes on top and is promised to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edge_runtime.private_random import noise_stream
from edge_runtime.protocol.rounds import Access
from radio.waveforms.coherent import ChannelEstimate
from radio.waveforms.error_model import (
    amplitude_error_bound,
    gain_error_variance,
    noise_power_upper_bound,
)
from server.config import RunConfig
from server.errors import BudgetExceededError
from server.power.static import PowerPlan, plan_static
from server.privacy.accountant import Accountant
from server.privacy.calibration import calibrate_noise_multiplier
from server.privacy.composition import History
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import (
    POISSON_SUBSAMPLED_GAUSSIAN,
    RECORD_VERSION,
    ArtificialNoise,
    MechanismRecord,
    certified_noise_stds,
)
from server.privacy.units import sum_sensitivity

MAX_AMPLITUDE_ERROR = 0.5
"""A device whose gain is known worse than this stays silent: its noise price would explode."""

CALIBRATION_SLACK = 1e-6
"""Noise added on top, so that rounding on the way never makes a round dearer than planned."""

_LARGEST_SCALAR = 1e6
"""Stands for an infinite clip on the ideal link, where loudness means nothing."""


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """What was agreed for the whole run.

    Attributes:
        noise_multiplier: of every round.
        sensitivity: of the sum of scalars to one record.
        sampling_probabilities: of the records of each device.
        commitments: public name of each device's private key.
        csi_failure_probability: allowed per statement about the channel.
    """

    noise_multiplier: float
    sensitivity: float
    sampling_probabilities: tuple[float, ...]
    commitments: tuple[str, ...]
    csi_failure_probability: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """The rounds that are planned at once: all of a run's, or those it goes on for.

    Attributes:
        first_round: where they begin; they end with the configuration's last round.
        number: 1 for the rounds a run was started with, 2 for those it went on for, and so on. Each
            stretch makes its own statements about the channel, and has its own part of delta.
        spent: what the devices' accounts held before it.
    """

    first_round: int = 0
    number: int = 1
    spent: tuple[History, ...] = ()


WHOLE_RUN = Stretch()


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """How loud and how noisy."""

    round_index: int
    power: PowerPlan
    amplitude_error_bound: float
    weakest_gain: float

    def noise_std_of_mean(self, speakers: Sequence[int]) -> float:
        """Standard deviation of the artificial noise on the mean over those who spoke."""
        if not speakers:
            return 0.0
        stds = (self.power.artificial_noise_std[k] for k in speakers)
        return math.hypot(*stds) / len(speakers)


def csi_delta(config: RunConfig, num_stretches: int) -> float:
    """The part of delta that all statements about the channel in so many stretches may use."""
    return config.privacy.delta * config.privacy.csi_failure_fraction * num_stretches


def plan_privacy_terms(
    config: RunConfig,
    num_records: Sequence[int],
    commitments: Sequence[str],
    stretch: Stretch = WHOLE_RUN,
) -> PrivacyTerms:
    """Find the least noise that keeps the whole run within its budget, for a stretch of it.

    The device with the fewest records samples each of them most often, and sets the price for all.
    How many records a device holds is public: the sampling rate b/n is fixed from it once, and
    neighbouring data sets are drawn from at the same rate.

    Raises:
        ConfigurationError: delta is not below 1/n.
        PrivacyError: no amount of noise meets the budget.
    """
    optimizer, privacy = config.optimizer, config.privacy
    probabilities = tuple(min(1.0, optimizer.batch_size / n) for n in num_records)
    coherence = config.radio.coherence_rounds
    num_rounds = optimizer.rounds - stretch.first_round
    num_blocks = math.ceil(optimizer.rounds / coherence) - stretch.first_round // coherence
    # One statement per device and block about its gain, one per block about the noise power.
    num_statements = (len(num_records) + 1) * num_blocks
    return PrivacyTerms(
        noise_multiplier=calibrate_noise_multiplier(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            csi_delta=csi_delta(config, stretch.number),
            sampling_probability=max(probabilities),
            num_rounds=num_rounds,
            num_records=sum(num_records),
            spent=stretch.spent,
        ),
        # The clipped terms of the other records are the same bits with one record and without it:
        # edge_runtime.pass_shapes sees to that.
        sensitivity=sum_sensitivity(
            clip=optimizer.clip,
            batch_size=optimizer.batch_size,
            unit=privacy.unit,
            relation=privacy.relation,
        ),
        sampling_probabilities=probabilities,
        commitments=tuple(commitments),
        csi_failure_probability=privacy.delta * privacy.csi_failure_fraction / num_statements,
    )


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
        # A resumed run finds the price of its unfinished round here.
        self._charged_before = frozenset(ledger.records()) if ledger is not None else frozenset()
        self._rounds_charged_before = frozenset(r.round_index for r in self._charged_before)

    def was_charged_before(self, round_index: int) -> bool:
        """Whether an earlier process paid for the round, and may have sent it, before it died."""
        return round_index in self._rounds_charged_before

    def plan_round(self, round_index: int, channel: ChannelEstimate) -> PlannedRound:
        """Who speaks, how loud, and with how much noise."""
        radio, terms = self._config.radio, self._terms
        min_gain, gain_error = radio.min_gain, 0.0
        if terms is not None:
            gain_error = self._gain_error(channel, terms.csi_failure_probability)
            min_gain = max(min_gain, gain_error / MAX_AMPLITUDE_ERROR)
        loud_enough = np.abs(channel.gains)[np.abs(channel.gains) >= min_gain]
        weakest_gain = float(np.min(loud_enough, initial=math.inf))
        eta = gain_error / weakest_gain
        required = 0.0
        if terms is not None:
            required = terms.noise_multiplier * terms.sensitivity * (1.0 + eta) / (1.0 - eta)
        power = plan_static(
            gain_estimates=channel.gains,
            max_amplitude=radio.max_amplitude,
            scalar_bound=min(self._config.optimizer.clip, _LARGEST_SCALAR),
            required_noise_std=required * (1.0 + CALIBRATION_SLACK),
            min_gain=min_gain,
            min_participants=self._config.federation.min_speakers,
        )
        return PlannedRound(
            round_index=round_index,
            power=power,
            amplitude_error_bound=eta,
            weakest_gain=weakest_gain if power.participants else 0.0,
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
        certified = _certified(power, power.participants)
        return tuple(
            MechanismRecord(
                version=RECORD_VERSION,
                kind=POISSON_SUBSAMPLED_GAUSSIAN,
                round_index=planned.round_index,
                device_index=k,
                access=privacy.access,
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
        self, price: Sequence[MechanismRecord], power: PowerPlan, speakers: Sequence[int]
    ) -> None:
        """A device that was to speak and did not has taken its noise away: the others pay more.

        The corrected records are charged on top of the paid ones. Never downward.

        Raises:
            BudgetExceededError: with the correction, more than the budget is spent.
        """
        if self._ledger is None or set(speakers) == set(power.participants):
            return
        certified = _certified(power, speakers)
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

    def _gain_error(self, channel: ChannelEstimate, failure_probability: float) -> float:
        """sqrt(v ln(1/p)), with v from an upper confidence limit of the noise power."""
        radio = self._config.radio
        noise_power = noise_power_upper_bound(
            channel.noise_power, self._noise_symbols, failure_probability
        )
        variance = gain_error_variance(noise_power, radio.pilot_symbols, radio.max_amplitude)
        return amplitude_error_bound(variance, 1.0, failure_probability)


def _certified(power: PowerPlan, speakers: Sequence[int]) -> dict[int, float]:
    """What covers each speaker, if exactly these speak."""
    return certified_noise_stds(
        access=Access.SUPERPOSED,
        artificial_noise=ArtificialNoise.CIRCULAR,
        noise_stds={k: power.artificial_noise_std[k] for k in speakers},
    )
