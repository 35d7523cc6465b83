"""How large is a mean number before noise? What noise is to be held against.

Never from training data: nothing covers a look at them. It is configured, or looked at on public
validation data with the weights a run begins with, along public directions; numbers shrink somewhat
as a model learns, so it is a friendly guess. Where neither is there, the largest number that
clipping allows stands for it, which is friendlier still.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.forward import BegunBatch, OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import derive_direction_seed, direction_seeds
from edge_runtime.protocol.rounds import Vote
from edge_runtime.spsa import clip_to_ball, gradients_along
from edge_runtime.tasks import PromptSet
from radio.arrays import Float32Array
from server.config.plan_config import PlanConfig

_ROUNDS, _MOST_EXAMPLES, _MOST_AT_ONCE = 2, 200, 50


@dataclass(frozen=True, slots=True)
class TypicalNumber:
    """Root mean square of a mean number.

    Attributes:
        value: in units of the scalar.
        origin: where it is from, for a person.
        is_bound: whether it is only known not to be larger: then what a run is worth is not known
            either, only that it is not more.
        round_s: how long all devices' part of a round took in this process; None where nothing was
            looked at.
    """

    value: float
    origin: str
    is_bound: bool = False
    round_s: float | None = None


def typical_number(
    config: PlanConfig,
    forward: OnnxForward,
    weights: ParameterStore,
    public: PromptSet | None,
) -> TypicalNumber:
    """The best there is of what the module lists.

    Args:
        config: of the run.
        forward: on ``weights``.
        weights: those a run begins with; the same afterwards.
        public: data that anybody may look at; None if there are none.
    """
    optimizer = config.optimizer
    if config.vote is not Vote.NONE:
        return TypicalNumber(1.0, "a unanimous vote")
    if optimizer.typical_number is not None:
        return TypicalNumber(optimizer.typical_number, "optimizer.typical_number")
    if public is None:
        bound = config.largest_number / math.sqrt(optimizer.directions)
        return TypicalNumber(
            bound, "the largest that clipping allows, no public data being there", is_bound=True
        )
    return look_at(config, forward, weights, public)


def _losses(forward: OnnxForward, begun: Sequence[BegunBatch]) -> Float32Array:
    """Losses of all examples, on the weights as they are now."""
    return np.concatenate([output.losses for output in forward.finish(begun)])


def look_at(
    config: PlanConfig,
    forward: OnnxForward,
    weights: ParameterStore,
    public: PromptSet,
    clock: Callable[[], float] = time.perf_counter,
) -> TypicalNumber:
    """Rounds as large as those of the run, or as the public data allow; the last one is timed.

    Args:
        config: of the run.
        forward: on ``weights``.
        weights: those a run begins with; the same afterwards.
        public: data that anybody may look at.
        clock: monotonic seconds.
    """
    optimizer = config.optimizer
    of_a_round = optimizer.batch_size * config.federation.num_devices
    num_examples = min(of_a_round, _MOST_EXAMPLES, len(public))
    # A device's own batch, as long as a forward pass over it stays small.
    rows = min(optimizer.batch_size, _MOST_AT_ONCE)
    squares, round_s = [], 0.0
    for index in range(_ROUNDS):
        started = clock()
        begun = forward.begin(public.batches_by_length(range(num_examples), rows))
        seed = derive_direction_seed(config.run.seed, index)
        vectors = gradients_along(
            weights,
            functools.partial(_losses, forward, begun),
            direction_seeds(seed, optimizer.directions),
            2.0**optimizer.perturbation_scale_log2,
            optimizer.difference,
        )
        round_s = (clock() - started) * of_a_round / num_examples
        finite = np.all(np.isfinite(vectors), axis=1)
        means = clip_to_ball(vectors[finite], optimizer.clip).sum(axis=0) / num_examples
        squares.extend(np.square(means).tolist())
    return TypicalNumber(
        math.sqrt(math.fsum(squares) / len(squares)),
        f"{num_examples} public examples, before tuning",
        round_s=round_s,
    )
