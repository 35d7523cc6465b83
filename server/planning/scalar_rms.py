"""How large is a mean number before noise? What noise is to be held against.

Never from training data: nothing covers a look at them. It is configured, or looked at on public
validation data with the weights a run begins with, along public directions; numbers shrink somewhat
as a model learns, so it is a friendly guess. Where neither is there, the largest number that
clipping allows stands for it, which is friendlier still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import derive_direction_seed, direction_seeds
from edge_runtime.protocol.rounds import Vote
from edge_runtime.spsa import clip_to_ball, gradients_along
from edge_runtime.tasks import PromptSet
from server.config.plan_config import PlanConfig

_ROUNDS, _MOST_EXAMPLES, _BATCH = 2, 200, 50


@dataclass(frozen=True, slots=True)
class TypicalNumber:
    """Root mean square of a mean number.

    Attributes:
        value: in units of the scalar.
        origin: where it is from, for a person.
        is_bound: whether it is only known not to be larger: then what a run is worth is not known
            either, only that it is not more.
    """

    value: float
    origin: str
    is_bound: bool = False


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
    value, num_examples = _looked_at(config, forward, weights, public)
    return TypicalNumber(value, f"{num_examples} public examples, before tuning")


def _looked_at(
    config: PlanConfig, forward: OnnxForward, weights: ParameterStore, public: PromptSet
) -> tuple[float, int]:
    optimizer = config.optimizer
    wanted = min(optimizer.batch_size * config.federation.num_devices, _MOST_EXAMPLES)
    num_examples = min(wanted, len(public))
    batches = list(public.batches_by_length(range(num_examples), _BATCH))
    scale = 2.0**optimizer.perturbation_scale_log2

    def losses() -> np.ndarray:
        return np.concatenate([output.losses for output in forward.run_many(batches)])

    squares = []
    for index in range(_ROUNDS):
        seed = derive_direction_seed(config.run.seed, index)
        vectors = gradients_along(
            weights,
            losses,
            direction_seeds(seed, optimizer.directions),
            scale,
            optimizer.difference,
        )
        finite = np.all(np.isfinite(vectors), axis=1)
        means = clip_to_ball(vectors[finite], optimizer.clip).sum(axis=0) / num_examples
        squares.extend(np.square(means).tolist())
    return math.sqrt(math.fsum(squares) / len(squares)), num_examples
