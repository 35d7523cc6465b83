"""One device of a host: its data, its secrets, its policy, its way out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edge_runtime.guard.policy import DevicePolicy
from edge_runtime.number_grid import NumberGrid
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.rounds import (
    Participation,
    RoundPlan,
    RoundReport,
    TransmitOrder,
    Vote,
)
from edge_runtime.tasks import Prompt, PromptSet
from edge_runtime.uplink import Uplink
from edge_runtime.vote import said_on_grid, said_plainly
from radio.errors import RadioError, RadioNotSilentError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """One device: its data, its secrets, its policy, its way out.

    Attributes:
        device_index: by which orders know it.
        owner: by which its host's ledger knows its data, in every run.
        prompts: its data.
        private_random: its noise and batches.
        uplink: its radio.
        policy: what the owner of the data allows; None where nobody is promised anything. With one,
            what it says lies on the declared grid, and not even its silence tells of a record.
    """

    device_index: int
    owner: str
    prompts: PromptSet
    private_random: PrivateRandom
    uplink: Uplink
    policy: DevicePolicy | None = None

    @property
    def is_private(self) -> bool:
        """Whether anything is promised about its data."""
        return self.policy is not None

    def draw(self, plan: RoundPlan, release: str) -> list[Prompt]:
        """Its secret Poisson batch; empty when nobody was drawn."""
        num_records = len(self.prompts)
        probability = min(1.0, plan.batch_size / num_records)
        chosen = self.private_random.poisson_batch(release, num_records, probability)
        return self.prompts.chosen(chosen)

    def with_noise(
        self, plan: RoundPlan, release: str, order: TransmitOrder, scalars: Sequence[float]
    ) -> tuple[tuple[complex, ...], tuple[complex, ...]]:
        """What it says, and the noise in it [Q]."""
        if not self.is_private:
            return said_plainly(scalars, plan.vote), (0j,) * len(scalars)
        if plan.vote is Vote.NOISE_AFTER:
            grid = NumberGrid.of_votes()
        else:
            grid = NumberGrid.of_numbers(plan.clip, plan.batch_size)
        sigma = grid.steps_above(order.artificial_noise_std)
        draws = self.private_random.circular_draws(release, sigma, len(scalars))
        noise = tuple(complex(grid.number(n), grid.number(m)) for n, m in draws)
        return said_on_grid(scalars, draws, plan.vote, grid), noise

    def report(
        self,
        run_id: str,
        round_index: int,
        what: Participation,
        reason: str = "",
        scale: float = 1.0,
    ) -> RoundReport:
        """What it did in a round, for the server."""
        return RoundReport(run_id, round_index, self.device_index, what, reason, scale)

    def silence(self) -> None:
        """End what it holds.

        Raises:
            RadioNotSilentError: it may still be on the air.
        """
        try:
            self.uplink.fall_silent()
        except RadioNotSilentError as error:
            raise RadioNotSilentError(f"device {self.device_index}: {error}") from error
        except RadioError as error:  # nothing is on the air, and nothing was
            _logger.warning("device %d: %s", self.device_index, error)
