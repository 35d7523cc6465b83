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

_ROUNDS, _MOST_EXAMPLES, _MOST_AT_ONCE = 2, 200, 50


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


@dataclass(frozen=True, slots=True)
class PublicRound:
    """What the devices compute in a round, on public examples, as many of them as are there.

    Attributes:
        num_examples: of those that a round has, at most `_MOST_EXAMPLES`.
    """

    config: PlanConfig
    forward: OnnxForward
    weights: ParameterStore
    public: PromptSet
    num_examples: int

    @classmethod
    def like(
        cls, config: PlanConfig, forward: OnnxForward, weights: ParameterStore, public: PromptSet
    ) -> PublicRound:
        """As large as one of the run, or as large as the public data allow."""
        wanted = min(config.optimizer.batch_size * config.federation.num_devices, _MOST_EXAMPLES)
        return cls(config, forward, weights, public, min(wanted, len(public)))

    def gradients(self, round_index: int) -> np.ndarray:
        """One vector an example, along the directions of that round."""
        optimizer = self.config.optimizer
        # A device's own batch, as long as a forward pass over it stays small.
        rows = min(self.config.optimizer.batch_size, _MOST_AT_ONCE)
        begun = self.forward.begin(self.public.batches_by_length(range(self.num_examples), rows))

        def losses() -> np.ndarray:
            return np.concatenate([output.losses for output in self.forward.finish(begun)])

        seed = derive_direction_seed(self.config.run.seed, round_index)
        return gradients_along(
            self.weights,
            losses,
            direction_seeds(seed, optimizer.directions),
            2.0**optimizer.perturbation_scale_log2,
            optimizer.difference,
        )


def _looked_at(
    config: PlanConfig, forward: OnnxForward, weights: ParameterStore, public: PromptSet
) -> tuple[float, int]:
    a_round = PublicRound.like(config, forward, weights, public)
    squares = []
    for index in range(_ROUNDS):
        vectors = a_round.gradients(index)
        finite = np.all(np.isfinite(vectors), axis=1)
        means = clip_to_ball(vectors[finite], config.optimizer.clip).sum(axis=0)
        squares.extend(np.square(means / a_round.num_examples).tolist())
    return math.sqrt(math.fsum(squares) / len(squares)), a_round.num_examples
