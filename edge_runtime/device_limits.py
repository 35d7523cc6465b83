"""What a device allows itself, whatever a plan says."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.protocol.errors import PlanRefusedError
from edge_runtime.protocol.rounds import Access, RoundPlan, TransmitOrder, Vote


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What a device allows itself, whatever a plan says.

    Attributes:
        max_clip: largest clip it accepts (a larger one would reveal more of a record).
        min_batch_size: smallest nominal batch it accepts (likewise).
        min_noise_std: least artificial noise it speaks with, in units of the scalar.
        access: the only access mode it speaks in; slotted shows its scalar by itself.
        vote: the only thing it says: its numbers, or their signs with noise before or after.
        is_private: whether anybody is promised anything. Then what it says lies on the declared
            grid, noise or none, and not even its silence tells of a record.
    """

    max_clip: float
    min_batch_size: int
    min_noise_std: float = 0.0
    access: Access = Access.SUPERPOSED
    vote: Vote = Vote.NONE
    is_private: bool = False

    def check(self, plan: RoundPlan, order: TransmitOrder, name: str) -> None:
        """Return if a plan keeps within them.

        Args:
            plan: the whole.
            order: the device's part of it.
            name: of the device, for the message.

        Raises:
            PlanRefusedError: it does not; the antenna stays silent.
        """
        if plan.clip > self.max_clip:
            raise PlanRefusedError(f"{name}: clip {plan.clip} is above its own {self.max_clip}.")
        if plan.batch_size < self.min_batch_size:
            raise PlanRefusedError(
                f"{name}: batch size {plan.batch_size} is below its own {self.min_batch_size}."
            )
        if plan.access is not self.access:
            raise PlanRefusedError(f"{name}: access {plan.access}, it speaks {self.access} only.")
        if plan.vote is not self.vote:
            raise PlanRefusedError(f"{name}: vote {plan.vote}, its own is {self.vote}.")
        if order.artificial_noise_std > 0.0 and not self.is_private:
            raise PlanRefusedError(
                f"{name}: noise {order.artificial_noise_std} is ordered, it was told of no "
                "promise. Its configuration and the server's are not the same."
            )
        if order.artificial_noise_std < self.min_noise_std:
            raise PlanRefusedError(
                f"{name}: noise {order.artificial_noise_std} is below its own "
                f"{self.min_noise_std}; the antenna stays silent."
            )
