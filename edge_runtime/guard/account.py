"""What a device has used up of its policy."""

from __future__ import annotations

import math

from edge_runtime.guard.policy import DevicePolicy
from edge_runtime.protocol.errors import PlanRefusedError, PromiseError


class Account:
    """The releases of one owner's data, against the rounds and the budget of the policy.

    A subsampled round takes the place of the allowed round with the most noise that it covers; the
    others stay for rounds with less. So if the releases can be dealt out to allowed rounds at all,
    they are.

    Args:
        policy: of the owner.
    """

    def __init__(self, policy: DevicePolicy) -> None:
        self._policy = policy
        noisiest_first = sorted(policy.rounds, key=lambda a: -a.min_noise_multiplier)
        self._left = [[allowed.min_noise_multiplier, allowed.number] for allowed in noisiest_first]
        self._num_releases = 0
        self._spent = 0.0

    @property
    def num_releases(self) -> int:
        """So far."""
        return self._num_releases

    def check(self, noise_multiplier: float) -> None:
        """Return if one more release is within the policy.

        Raises:
            PlanRefusedError: it is not.
        """
        if self._num_releases >= self._policy.num_rounds:
            raise PlanRefusedError(
                f"policy rounds: {self._num_releases} are released of the "
                f"{self._policy.num_rounds} that are allowed in all. A new policy, proved for all "
                "rounds, would allow more."
            )
        if self._place_of(noise_multiplier) is None:
            raise PlanRefusedError(
                f"policy rounds: noise of {noise_multiplier:.6g} times the sensitivity, and what "
                f"is left of the allowed rounds needs at least {self._least_left():.6g}; the "
                "antenna stays silent."
            )
        budget = self._policy.budget
        if not self._policy.is_subsampled and self._spent + _cost(noise_multiplier) > budget:
            raise PlanRefusedError(
                f"policy budget: {self._spent:.6g} is spent and {_cost(noise_multiplier):.6g} is "
                f"asked for, of {budget:.6g} in all."
            )

    def add(self, noise_multiplier: float) -> None:
        """One more release.

        Raises:
            PlanRefusedError: see `check`.
        """
        self.check(noise_multiplier)
        place = self._place_of(noise_multiplier)
        assert place is not None
        self._left[place][1] -= 1
        self._num_releases += 1
        self._spent = math.nextafter(self._spent + _cost(noise_multiplier), math.inf)

    def add_earlier(self, noise_multiplier: float, sampling_rate: float) -> None:
        """A release of before, perhaps under another policy; this one was proved for all of them.

        Raises:
            PromiseError: or it was not.
        """
        try:
            if sampling_rate > self._policy.max_sampling_rate:
                raise PlanRefusedError(
                    f"policy max_sampling_rate: {sampling_rate:.6g} was drawn with, at most "
                    f"{self._policy.max_sampling_rate:.6g} is allowed."
                )
            self.add(noise_multiplier)
        except PlanRefusedError as error:
            raise PromiseError(
                "the policy does not cover what was released before it: "
                f"release {self._num_releases + 1}: {error}"
            ) from error

    def _place_of(self, noise_multiplier: float) -> int | None:
        for place, (least, number) in enumerate(self._left):
            if number > 0 and noise_multiplier >= least:
                return place
        return None

    def _least_left(self) -> float:
        return min((least for least, number in self._left if number > 0), default=math.inf)


def _cost(noise_multiplier: float) -> float:
    """y = 1 / (2 m^2), rounded up; infinite without noise."""
    if noise_multiplier * noise_multiplier == 0.0:
        return math.inf
    return 0.5 / (noise_multiplier * noise_multiplier) * (1.0 + 2.0**-50)
