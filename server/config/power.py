"""Configuration of the power policy."""

from __future__ import annotations

from server.config.power_limits import PowerLimitsSection
from server.config.section import Section, check_within
from server.power.catalogue import policy_called


class PowerSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the budget is dealt out over the rounds; policies in `server.power.policies`.

    Rounds with Poisson batches (`RunConfig.is_subsampled`) are planned by two of them: "static",
    the same noise in every round, and "subsampled", the least noise at the end of a model that
    forgets. The others plan rounds without subsampling.

    Attributes:
        policy: see above. Left out: "subsampled", or "optimal" where nothing is subsampled.
        contraction: A, 0 to 1: the noise of round t weighs A^(T - t) at the end. 1 forgets nothing
            and has the same noise in every round.
        min_participation: with "selection", the share of the rounds that a device speaks in at
            least, those in which its own channel is best.
        wrong_sign_probability: with "sign", e0, how often a device's sign is not that of the mean.
        limits: batteries, duty cycles, caps and fairness, by the policy "limited", which needs a
            solver (pip install 'pairzero[plan]').
    """

    policy: str | None = None
    contraction: float = 1.0
    min_participation: float = 0.0
    wrong_sign_probability: float = 0.3
    limits: PowerLimitsSection = PowerLimitsSection()

    def __post_init__(self) -> None:
        """Check the policy's name and numbers."""
        if self.policy is not None:
            policy_called(self.policy)
        check_within("power.contraction", self.contraction, 0.5, 1.0)
        check_within("power.min_participation", self.min_participation, 0.0, 1.0)
        check_within("power.wrong_sign_probability", self.wrong_sign_probability, 0.0, 0.499)
