"""What a store holds of a run as a whole: the kind of each value.

By itself, because a listing loads `server.store.records` before there is a run to show.
"""

from __future__ import annotations

from typing import Any, TypedDict

from edge_runtime.protocol.members import Member
from edge_runtime.task_spec import TaskSpec
from server.store.records import Outcome


class PlannedStretch(TypedDict):
    """Rounds under one plan of prices: where it begins, and how many were paid for before it."""

    first_round: int
    num_records: int


class RunMeta(TypedDict, total=False):
    """What a store holds of the run as a whole, a key each; what is not there reads as None."""

    run_id: str
    config: dict[str, Any] | None
    bundle_digest: str
    task: TaskSpec
    data_commitments: list[str]
    validation_digest: str | None
    environment: dict[str, str]
    keys: list[str]
    probe: str
    source: str
    is_simulated: bool
    worth_rounds: float | None
    worth_is_bound: bool | None
    wall_s: float | None
    stretches: list[PlannedStretch]
    hosts: dict[str, dict[str, Member]] | None
    epoch: int
    class_examples: list[int]
    class_correct: list[int]
    peak_rss_mb: float | None
    epsilon_spent: float | None
    epsilon_records: int
    parameter_digest: str | None
    outcome: Outcome
