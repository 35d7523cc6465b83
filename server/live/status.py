"""How a run stands, as one document: what its status file, its page and its metrics say.

Of a run with real keys it holds nothing that follows the secret batches: no times, no loss of data
that are not public (`tests/e2e/test_what_a_private_run_keeps.py` has the list).
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec

from server.air.base import HeldAir
from server.hosts.standing import HostStanding
from server.run.experiment import Experiment, Progress
from server.store.records import EvaluationRow

STATUS_FILE = "status.json"
"""In the folder of a run that goes on; it is gone with the process."""

_PHASES = {
    "RoundPlan": "devices compute",
    "SoundingOrder": "pilots",
    "PilotHold": "pilots",
    "NumbersHold": "numbers",
    "PacketHold": "numbers",
    "SilenceOrder": "silence",
    "RoundResult": "step",
    "DigestRequest": "digests",
}
"""Kind of an order -> what it is waited for; what is left of a round is the server's own."""

_COUNT_EVERY_S = 0.5
_MOST_ACCOUNTS = 64
"""Composed at each evaluation; equal ones once."""

SERVER_ITSELF = "server itself"


class State(enum.StrEnum):
    """Whether a run that has a process goes on."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """The model after so many rounds; see `EvaluationRow`."""

    rounds: int
    loss: float | None = None
    accuracy: float | None = None
    epsilon: float | None = None


class ReceiverState(msgspec.Struct, frozen=True, kw_only=True):
    """The server's radio.

    Attributes:
        temperature_c: of its chip.
        overloaded_share: of all samples, those at the end of its converter.
        num_overflows: captures in which it lost samples.
        num_captures: of all.
    """

    temperature_c: float | None
    overloaded_share: float
    num_overflows: int
    num_captures: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has a process.

    Attributes:
        run_id: of the run.
        folder: of the run.
        process: its number.
        source: where the numbers come from.
        state: whether it goes on.
        rounds_done: and
        rounds_planned: of the run.
        speakers: of the last round.
        erased: of them, whose packets could not be read.
        rounds_per_s: since this process began; None where devices hold real keys.
        evaluations: all of them.
        epsilon_budget: of a device; None without privacy.
        releases: device -> how many releases it has been charged for.
        spent: device -> epsilon on its account at the last evaluation, None for an infinite one;
            nothing where there are more devices than a page shows.
        hosts: those that devices are on, where they are not in this process.
        receiver: the server's radio, where it is one that can say how it is.
        phases_s: what a round waits for -> seconds, in all; None where devices hold real keys.
    """

    run_id: str
    folder: str
    process: int
    source: str
    state: State
    rounds_done: int
    rounds_planned: int
    speakers: int = 0
    erased: int = 0
    rounds_per_s: float | None = None
    evaluations: tuple[Evaluated, ...] = ()
    epsilon_budget: float | None = None
    releases: dict[int, int] = {}
    spent: dict[int, float | None] = {}
    hosts: tuple[HostStanding, ...] = ()
    receiver: ReceiverState | None = None
    phases_s: dict[str, float] | None = None


class Watch:
    """What is known of a run while it goes on.

    Args:
        experiment: the run.
        process: number of this one.
        clock: monotonic seconds.
    """

    def __init__(self, experiment: Experiment, process: int, clock: Callable[[], float]) -> None:
        config = experiment.config
        self._experiment, self._clock, self._begun_s = experiment, clock, clock()
        self._keeps_time_secret = config.privacy.has_system_keys
        self._evaluated: dict[int, Evaluated] = {
            row.num_rounds: _as_shown(row) for row in experiment.store.evaluations()
        }
        self._releases, self._counted_s = experiment.pricing.releases(), clock()
        self._spent = self._spent_by_now()
        self._crew, self._control = experiment.loop.crew, experiment.components.control
        self._now = Status(
            run_id=experiment.loop.run_id,
            folder=str(experiment.folder),
            process=process,
            source=experiment.source,
            state=State.RUNNING,
            rounds_done=experiment.store.num_rounds(),
            rounds_planned=config.optimizer.rounds,
            evaluations=tuple(self._evaluated[n] for n in sorted(self._evaluated)),
            releases=self._releases,
            spent=self._spent,
            epsilon_budget=config.privacy.epsilon if config.privacy.enabled else None,
        )

    def note(self, progress: Progress) -> None:
        """A round is over; in the run's own thread."""
        row, evaluation = progress.row, progress.evaluation
        if evaluation is not None or self._clock() - self._counted_s > _COUNT_EVERY_S:
            self._counted_s, self._releases = self._clock(), self._experiment.pricing.releases()
        if evaluation is not None:
            self._spent = self._spent_by_now()
            self._evaluated[evaluation.num_rounds] = _as_shown(evaluation)
        self._now = msgspec.structs.replace(
            self._now,
            rounds_done=progress.rounds_done,
            speakers=0 if row is None else row.num_speakers,
            erased=0 if row is None else row.num_erased,
            rounds_per_s=None if self._keeps_time_secret else progress.rounds_per_s,
            evaluations=tuple(self._evaluated[n] for n in sorted(self._evaluated)),
            releases=self._releases,
            spent=self._spent,
            receiver=self._receiver(),
            phases_s=None if self._keeps_time_secret else self._phases_s(),
        )

    def status(self) -> Status:
        """As it is now; from any thread."""
        now = self._now
        state = State.PAUSED if self._crew.is_pausing else now.state
        return msgspec.structs.replace(now, state=state, hosts=self._crew.standing)

    def _spent_by_now(self) -> dict[int, float | None]:
        spent = self._experiment.pricing.spent(_MOST_ACCOUNTS)
        return {k: epsilon if math.isfinite(epsilon) else None for k, epsilon in spent.items()}

    def _receiver(self) -> ReceiverState | None:
        air = self._experiment.components.link.air
        if not isinstance(air, HeldAir) or not air.health.num_captures:
            return None
        return ReceiverState(
            temperature_c=air.health.temperature_c,
            overloaded_share=air.health.overloaded_share,
            num_overflows=air.health.num_overflows,
            num_captures=air.health.num_captures,
        )

    def _phases_s(self) -> dict[str, float]:
        waited: defaultdict[str, float] = defaultdict(float)
        for kind, seconds in self._control.waited_s.items():
            waited[_PHASES.get(kind, kind)] += seconds
        itself = self._clock() - self._begun_s - sum(waited.values())
        return {**waited, SERVER_ITSELF: max(itself, 0.0)}


def _as_shown(row: EvaluationRow) -> Evaluated:
    return Evaluated(
        rounds=row.num_rounds, loss=row.loss, accuracy=row.accuracy, epsilon=row.epsilon
    )


def status_file(folder: Path) -> Path:
    """Where a run that goes on says how it stands."""
    return folder / STATUS_FILE
