"""Which power policies there are, what each is good for, and where it is refused, by name.

In superposed access all noise covers everybody and a level is common to all; policies plan both. In
slotted access, the statement of radios that can be told apart, a device's own noise covers it and
nobody else, receiver noise counts for nothing and there is no common level to plan: what is left is
how the budget is dealt out over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_runtime.protocol.rounds import Access, Vote
from radio.arrays import Float64Array
from radio.errors import did_you_mean
from server.errors import ConfigurationError
from server.power.policies import optimal, reversed, static


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is known of a policy before it plans.

    Attributes:
        name: of it, and of its file in `server.power.policies`.
        summary: one line.
        reads: keys of [power] that it asks for; another that is set beside it would do nothing.
        promises: whether it keeps a promise at all.
        plans_full_rounds: whether it plans rounds without subsampling, each paid in full.
        plans_subsampled: whether it plans rounds with Poisson batches.
        has_equal_noises: whether all who speak have the same noise, so that it can be planned
            without some of it.
        only_votes: whether it plans signs with noise after them and nothing else.
        keeps_limits: whether it keeps [power.limits].
        why_not_slotted: where devices are covered by their own noise alone, the reason why it plans
            nothing; empty if it does.
        own_noise_shares: shares of the budget there [T], by weights and sensitivities.
    """

    name: str
    summary: str
    reads: tuple[str, ...] = ("contraction",)
    promises: bool = True
    plans_full_rounds: bool = True
    plans_subsampled: bool = False
    has_equal_noises: bool = False
    only_votes: bool = False
    keeps_limits: bool = False
    why_not_slotted: str = ""
    own_noise_shares: Callable[[Float64Array, Float64Array], Float64Array] | None = None


_NO_LEVEL = "there is no common level to invert to"
_NO_PROMISE = "it plans levels that are common to all"

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            name="optimal",
            summary="least noise of the means, everybody speaking",
            own_noise_shares=optimal.own_noise_shares,
        ),
        Policy(
            name="static",
            summary="the same price for every round",
            reads=(),
            plans_subsampled=True,
            has_equal_noises=True,
            own_noise_shares=static.own_noise_shares,
        ),
        Policy(
            name="reversed",
            summary="the optimum of the opposite order, for comparison",
            own_noise_shares=reversed.own_noise_shares,
        ),
        Policy(
            name="constant_inversion",
            summary="one level for the whole run",
            why_not_slotted=_NO_LEVEL,
        ),
        Policy(
            name="truncated_inversion",
            summary="one level, the weak silent",
            why_not_slotted=_NO_LEVEL,
        ),
        Policy(
            name="perfect",
            summary="full power, no noise of its own",
            promises=False,
            plans_full_rounds=False,
            why_not_slotted=_NO_PROMISE,
        ),
        Policy(
            name="paper",
            summary="what is printed in arXiv 2604.12401",
            promises=False,
            plans_full_rounds=False,
            why_not_slotted=_NO_PROMISE,
        ),
        Policy(
            name="selection",
            summary="in each round those who are worth it, with a fairness floor",
            reads=("contraction", "min_participation"),
            why_not_slotted="a device more costs the others nothing",
        ),
        Policy(
            name="equal_split",
            summary="equal noises that hold without q devices",
            has_equal_noises=True,
            why_not_slotted="no noise is shared, so nothing can be split",
        ),
        Policy(
            name="sign",
            summary="votes, silent where noise would decide",
            reads=("contraction", "wrong_sign_probability"),
            only_votes=True,
            why_not_slotted="votes in two bands have their noise before the sign",
        ),
        Policy(
            name="subsampled",
            summary="record level, Poisson batches",
            plans_full_rounds=False,
            plans_subsampled=True,
            has_equal_noises=True,
        ),
        Policy(
            name="limited",
            summary="batteries, duty cycles, caps and fairness, by a solver",
            reads=("contraction", "limits"),
            keeps_limits=True,
            why_not_slotted="its levels and shared noises do not exist there",
        ),
    )
}

OWN_NOISE_POLICIES = tuple(name for name, policy in POLICIES.items() if policy.own_noise_shares)
"""Those that deal a budget out over rounds by their weights alone (`own_noise_costs`)."""


def policy_called(name: str) -> Policy:
    """The policy of a name, whether it may be used or not.

    Raises:
        ConfigurationError: there is none; the message lists those there are.
    """
    policy = POLICIES.get(name)
    if policy is None:
        raise ConfigurationError(
            f"power.policy: got {name!r}, wanted one of {', '.join(POLICIES)}."
            f"{did_you_mean(name, POLICIES)}"
        )
    return policy


def policy_named(name: str, *, access: Access, has_promise: bool) -> Policy:
    """A policy that may be used.

    Args:
        name: of it.
        access: what the receiver may tell apart.
        has_promise: whether somebody is promised something.

    Raises:
        ConfigurationError: there is none; it promises nothing where something is promised; or it
            cannot plan this access, and why.
    """
    policy = policy_called(name)
    if has_promise and not policy.promises:
        raise ConfigurationError(
            f"power policy {name!r} keeps no promise: {policy.summary}. `pairzero plan` compares "
            "it with those that do."
        )
    if access is Access.SLOTTED and policy.why_not_slotted:
        able = ", ".join(p.name for p in POLICIES.values() if not p.why_not_slotted)
        raise ConfigurationError(
            f"power policy {name!r}: not for radios whose devices are covered by their own noise "
            f"alone: {policy.why_not_slotted}. Use one of: {able}."
        )
    return policy


def check_plans_rounds(
    name: str, *, access: Access, vote: Vote, is_subsampled: bool, has_limits: bool
) -> None:
    """Return if a policy can plan a run with a promise.

    Args:
        name: of it.
        access: what the receiver may tell apart.
        vote: whether devices say numbers or signs, and where their noise comes in.
        is_subsampled: whether rounds have Poisson batches; else each is paid in full.
        has_limits: whether there are [power.limits] to keep.

    Raises:
        ConfigurationError: it cannot; the message says why, and which can.
    """
    policy = policy_named(name, access=access, has_promise=True)

    def is_able(other: Policy) -> bool:
        if is_subsampled:
            return other.plans_subsampled
        may_vote = vote is Vote.NOISE_AFTER or not other.only_votes
        may_hear = access is Access.SUPERPOSED or not other.why_not_slotted
        return other.plans_full_rounds and may_vote and may_hear

    if not is_able(policy):
        able = ", ".join(other.name for other in POLICIES.values() if is_able(other))
        rounds = "with Poisson batches" if is_subsampled else "that are each paid in full"
        raise ConfigurationError(
            f'power.policy: "{name}" does not plan rounds {rounds}, those of '
            f'privacy.unit = "{"example" if is_subsampled else "device"}". Use one of: {able}.'
        )
    if has_limits and not policy.keeps_limits:
        raise ConfigurationError(
            f'[power.limits]: power.policy = "{name}" does not keep them; wanted "limited", for '
            'superposed rounds that are paid in full (privacy.unit = "device").'
        )
    if policy.keeps_limits and not has_limits:
        raise ConfigurationError(
            f'power.policy: "{name}" without limits. Set some in [power.limits], or use '
            '"selection".'
        )


def own_noise_costs(
    name: str, *, weights: Float64Array, sensitivities: Float64Array, budget: float
) -> Float64Array:
    """Prices of rounds without subsampling by their weights alone; noise is Delta / sqrt(2 y).

    ``optimal`` deals the budget out as b = Delta sqrt(omega), ``reversed`` as the weights of the
    opposite order would, ``static`` evenly; there is no largest price, because no receiver noise
    counts.

    Args:
        name: of the policy.
        weights: omega [T] > 0.
        sensitivities: Delta [T] > 0.
        budget: R > 0.

    Raises:
        ConfigurationError: another policy, or a value out of range.
    """
    values = np.asarray(weights, dtype=np.float64), np.asarray(sensitivities, dtype=np.float64)
    if not all(v.ndim == 1 and len(v) == len(values[0]) and np.all(v > 0) for v in values):
        raise ConfigurationError("weights and sensitivities: wanted numbers > 0, one a round.")
    if not (math.isfinite(budget) and budget > 0):
        raise ConfigurationError(f"budget: got {budget}, wanted a finite number > 0.")
    policy = POLICIES.get(name)
    if policy is None or policy.own_noise_shares is None:
        raise ConfigurationError(
            f"power policy {name!r} deals no budget out by weights alone; "
            f"{', '.join(OWN_NOISE_POLICIES)} do."
        )
    shares = policy.own_noise_shares(*values)
    costs = budget * shares / shares.sum()
    # The last bits of a sum of quotients may lie above the budget.
    while math.fsum(costs) > budget:
        costs = np.nextafter(costs, 0.0)
    return costs
