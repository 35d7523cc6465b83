"""What a run leaves on record: how it stands, its rounds, its evaluations."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

STORE_FILE = "run.sqlite3"
"""In a run folder: its store, and what makes it one."""


class Outcome(enum.StrEnum):
    """How a run stands, as its store and summary say it.

    COMPLETE: every planned round. INTERRUPTED: stopped from outside, can be resumed.
    BUDGET_EXHAUSTED: the next round could not be afforded; it stays silent for good.
    BUDGET_EXCEEDED: more than the budget was spent, because devices fell silent after the price of
        a round was paid; it stays silent for good.
    ABANDONED: its private keys were destroyed on request before its last round.
    """

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    BUDGET_EXHAUSTED = "budget_exhausted"
    BUDGET_EXCEEDED = "budget_exceeded"
    ABANDONED = "abandoned"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will ever be transmitted in the run."""
        return self is not Outcome.INTERRUPTED


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One finished round; the defaults are those of a round in which nothing was sent.

    The store makes its columns from these fields, in this order.

    Attributes:
        direction_seed, step_integers: the step; see RoundResult.
        num_speakers: devices whose signals went out.
        num_erased: speakers whose numbers could not be read, and are part of no mean.
        is_skipped: paid for before an interruption and not repeated, because the radio cannot.
        mean_estimates: what the receiver made of it, the estimated mean scalars [Q].
        true_means: the means before noise, known to simulations only (None otherwise) [Q].
        squared_error_of_noise: squared norm of the artificial noise on the means; simulations only.
        squared_error_of_radio: squared norm of what channel and receiver added to the means, before
            they were held within the clip; simulations only.
        share_clipped: share of examples that were clipped; simulations only.
        artificial_noise_std: of the mean, from the plan.
        receiver_noise_std: of the mean, measured.
        amplitude_error_bound: eta that the noise was planned with.
        noise_multiplier: of the charged mechanism; 0 without privacy.
        receive_scale: common receive level.
        energies: mean square of what each device was to send, its number at its bound, over full
            scale, 0 for who was silent [K]; empty where no common level was planned.
        weakest_gain: smallest estimated gain among the speakers.
        learning_rate: of this round.
        wall_s: duration of the round; None where devices hold real keys, because it follows the
            sizes of the secret batches.
    """

    round_index: int
    direction_seed: int
    step_integers: tuple[int, ...]
    num_speakers: int = 0
    num_erased: int = 0
    is_skipped: bool = False
    mean_estimates: tuple[float, ...] = ()
    true_means: tuple[float, ...] | None = None
    squared_error_of_noise: float | None = None
    squared_error_of_radio: float | None = None
    share_clipped: float | None = None
    artificial_noise_std: float = 0.0
    receiver_noise_std: float = 0.0
    amplitude_error_bound: float = 0.0
    noise_multiplier: float = 0.0
    receive_scale: float = 0.0
    energies: tuple[float, ...] = ()
    weakest_gain: float = 0.0
    learning_rate: float = 0.0
    wall_s: float | None = None


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """The model after ``num_rounds`` rounds; epsilon spent so far (None without privacy).

    Loss and accuracy are None where the validation data are not public.
    """

    num_rounds: int
    loss: float | None
    accuracy: float | None
    epsilon: float | None


def best_evaluation(evaluations: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The earliest with the highest accuracy; None where nothing was scored."""
    scored = [row for row in evaluations if row.accuracy is not None]
    return max(scored, key=lambda row: row.accuracy or 0.0, default=None)


def heard_and_true(rows: Sequence[RoundRow]) -> tuple[list[float], list[float]]:
    """Every number that was heard where the truth is known, and the truth; pairs in order."""
    known = [(r.mean_estimates, r.true_means) for r in rows if r.true_means and r.num_speakers]
    return [p for heard, _ in known for p in heard], [p for _, true in known for p in true]
