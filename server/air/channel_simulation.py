"""What exists only because a run is simulated: the channel's state in each round, and the truth.

Every random draw is a function of (seed, purpose, index), never of what was drawn before, so a run
that was interrupted continues with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.protocol.rounds import Vote
from edge_runtime.spsa import ScalarEstimate
from edge_runtime.vote import sign
from radio.software_air.channel_models import ChannelModel
from radio.software_air.impairments import Crystals
from radio.software_air.medium import SoftwareMedium
from server.seeds import simulation_rng


class ChannelSimulation(Protocol):
    """What only a simulation has: a channel that is brought to the right state for a frame."""

    def begin_sounding(self, round_index: int) -> None:
        """A sounding frame is about to be sent."""

    def begin_payload(self, round_index: int) -> None:
        """A payload frame is about to be sent."""


class SoftwareChannelSimulation(ChannelSimulation):
    """Gains per fading block, carriers per round and noise per frame for a SoftwareMedium."""

    def __init__(
        self,
        medium: SoftwareMedium,
        channel: ChannelModel,
        *,
        path_gains: npt.NDArray[np.float64],
        crystals: Crystals,
        seed: int,
        noise_seed: int | str,
        coherence_rounds: int,
    ) -> None:
        self._medium = medium
        self._channel = channel
        self._path_gains = path_gains
        self._crystals = crystals
        self._seed = seed
        self._noise_seed = noise_seed
        self._coherence_rounds = coherence_rounds

    def begin_sounding(self, round_index: int) -> None:
        """The block's gains, and fresh noise for the sounding frame."""
        self._begin("sounding", round_index)

    def begin_payload(self, round_index: int) -> None:
        """The block's gains, and fresh noise for the payload frame."""
        self._begin("payload", round_index)

    def _begin(self, frame: str, round_index: int) -> None:
        block = round_index // self._coherence_rounds
        medium = self._medium
        taps = self._channel.taps(
            simulation_rng(self._seed, "gains", block), medium.num_devices, medium.sample_rate_hz
        )
        self._medium.set_carrier_offsets_hz(self._crystals.offsets_hz(round_index))
        self._medium.begin_round(simulation_rng(self._noise_seed, f"noise/{frame}", round_index))
        self._medium.set_gains(taps * self._path_gains[:, None])


class NoChannelSimulation(ChannelSimulation):
    """The ideal link has no channel."""

    def begin_sounding(self, round_index: int) -> None:
        """Nothing to do."""

    def begin_payload(self, round_index: int) -> None:
        """Nothing to do."""


class ScalarTruth:
    """Remembers the scalars of the current round, to hold the radio's estimates against.

    Args:
        vote: where devices say signs, these are the truth, and noise is what it makes of them.
        vote_value: what a vote counts as.
    """

    def __init__(self, vote: Vote = Vote.NONE, vote_value: float = 1.0) -> None:
        self._vote = vote
        self._vote_value = vote_value
        self._round_index = -1
        self._spoken: dict[int, tuple[ScalarEstimate, tuple[complex, ...]]] = {}

    def observe(
        self,
        round_index: int,
        device_index: int,
        estimate: ScalarEstimate,
        noise: tuple[complex, ...],
    ) -> None:
        """Called by the simulated devices after they have spoken."""
        if round_index != self._round_index:
            self._round_index, self._spoken = round_index, {}
        self._spoken[device_index] = estimate, noise

    def true_means(self, round_index: int) -> tuple[float, ...] | None:
        """Means of the clipped scalars, or signs, of those who spoke, before noise [Q]."""
        if round_index != self._round_index:
            return None
        return _means(self._meant(estimate) for estimate, _ in self._spoken.values())

    def mean_noises(self, round_index: int) -> tuple[float, ...] | None:
        """Means of what artificial noise did to them, in phase [Q]."""
        if round_index != self._round_index:
            return None
        return _means(self._noise(*both) for both in self._spoken.values())

    def _meant(self, estimate: ScalarEstimate) -> Sequence[float]:
        if self._vote is Vote.NONE:
            return estimate.clipped_scalars
        return [self._vote_value * sign(p) for p in estimate.clipped_scalars]

    def _noise(self, estimate: ScalarEstimate, noise: tuple[complex, ...]) -> Sequence[float]:
        if self._vote is Vote.NONE:
            return [n.real for n in noise]
        if self._vote is Vote.NOISE_AFTER:
            return [self._vote_value * n.real for n in noise]
        pairs = zip(estimate.clipped_scalars, noise, strict=True)
        said = [sign(p + n.real) for p, n in pairs]
        return [
            self._vote_value * s - meant
            for s, meant in zip(said, self._meant(estimate), strict=True)
        ]

    def share_clipped(self, round_index: int) -> float | None:
        """Share of the examples whose projected gradient was cut."""
        if round_index != self._round_index:
            return None
        examples = sum(estimate.num_examples for estimate, _ in self._spoken.values())
        clipped = sum(estimate.num_clipped for estimate, _ in self._spoken.values())
        return clipped / examples if examples else None


def _means(vectors: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Coordinate by coordinate, exactly rounded sums."""
    return tuple(math.fsum(column) / len(column) for column in zip(*vectors, strict=True))
