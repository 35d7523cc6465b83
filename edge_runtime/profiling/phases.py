"""What phases take, measured as they come: each with a peak of memory that is its own.

A phase's memory is the most of any of its turns, its time the median of them. Before each turn the
peak is set back (`memory`).
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from edge_runtime.profiling import memory
from edge_runtime.profiling.memory import Faults
from edge_runtime.profiling.sensors import EnergyMeter


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """What all turns of a phase took.

    Attributes:
        name: of it.
        turns: how often it came in a round, or once.
        seconds: of one turn, median; and
        seconds_spread: largest less smallest.
        cpu_seconds: of all threads in one turn, median.
        peak_rss_bytes: the most that was resident in any turn.
        anonymous_bytes: resident after the last turn, the process's own; and
        file_bytes: of files.
        pss_bytes: after the first turn, shared pages divided by who shares them; None if unknown.
        minor_faults: of all turns.
        major_faults: likewise, from a disk.
        tokens_per_s: through the model; None where it does not run.
        weight_bytes: read or moved in one turn; None where none are.
        energy_j: of one turn; None without a counter.
    """

    name: str
    turns: int
    seconds: float
    seconds_spread: float
    cpu_seconds: float
    peak_rss_bytes: int
    anonymous_bytes: int
    file_bytes: int
    pss_bytes: int | None
    minor_faults: int
    major_faults: int
    tokens_per_s: float | None = None
    weight_bytes: int | None = None
    energy_j: float | None = None


@dataclass(slots=True)
class _Turns:
    """What was seen of a phase so far."""

    tokens: int | None
    weight_bytes: int | None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    energy_j: list[float] = field(default_factory=list)
    peak: int = 0
    after: memory.Resident | None = None
    pss: int | None = None
    faults: Faults = field(default_factory=lambda: Faults(0, 0))


class PhaseMeter:
    """Measures phases as they come.

    Args:
        energy: a counter of the board's, if it has one.
        sets_peak_back: whether a phase's peak is its own; if not it is that of all before, too.
        on_phase: told after every phase.
    """

    def __init__(
        self,
        energy: EnergyMeter | None = None,
        *,
        sets_peak_back: bool = True,
        on_phase: Callable[[PhaseMeter], None] = lambda meter: None,
    ) -> None:
        self._energy, self._sets_peak_back, self._on_phase = energy, sets_peak_back, on_phase
        self._turns: dict[str, _Turns] = {}
        self.is_counting = True
        """Whether turns are kept; those of a first round are not, but for their memory."""

    @contextlib.contextmanager
    def phase(
        self, name: str, *, tokens: int | None = None, weight_bytes: int | None = None
    ) -> Iterator[None]:
        """What happens within is a turn of it."""
        turns = self._turns.setdefault(name, _Turns(tokens, weight_bytes))
        if self._sets_peak_back:
            memory.set_peak_back()
        faults, joules = memory.faults(), self._joules()
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        yield
        seconds, cpu_seconds = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        turns.after = memory.resident()
        turns.peak = max(turns.peak, turns.after.peak)
        if turns.pss is None:
            turns.pss = memory.proportional_bytes()
        if self.is_counting:
            turns.seconds.append(seconds)
            turns.cpu_seconds.append(cpu_seconds)
            turns.energy_j.append(self._joules() - joules)
            turns.faults = Faults(
                turns.faults.minor + (now := memory.faults() - faults).minor,
                turns.faults.major + now.major,
            )
        self._on_phase(self)

    def _joules(self) -> float:
        return 0.0 if self._energy is None else self._energy.joules()

    def phases(self, rounds_done: int) -> list[Phase]:
        """All that have been counted, in the order in which they came first."""
        return [
            _phase(name, turns, rounds_done, has_energy=self._energy is not None)
            for name, turns in self._turns.items()
            if turns.seconds and turns.after is not None
        ]


def _phase(name: str, turns: _Turns, rounds_done: int, *, has_energy: bool) -> Phase:
    assert turns.after is not None
    seconds = statistics.median(turns.seconds)
    return Phase(
        name=name,
        turns=max(1, round(len(turns.seconds) / max(rounds_done, 1))),
        seconds=seconds,
        seconds_spread=max(turns.seconds) - min(turns.seconds),
        cpu_seconds=statistics.median(turns.cpu_seconds),
        peak_rss_bytes=turns.peak,
        anonymous_bytes=turns.after.anonymous,
        file_bytes=turns.after.file_backed,
        pss_bytes=turns.pss,
        minor_faults=turns.faults.minor,
        major_faults=turns.faults.major,
        tokens_per_s=None if turns.tokens is None else turns.tokens / max(seconds, 1e-9),
        weight_bytes=turns.weight_bytes,
        energy_j=statistics.median(turns.energy_j) if has_energy else None,
    )
