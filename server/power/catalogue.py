"""Which power policies there are, what each is good for, and where it is refused, by name.

In superposed access all noise covers everybody and a level is common to all; policies plan both. In
slotted access, the statement of radios that can be told apart, a device's own noise covers it and
nobody else, receiver noise counts for nothing and there is no common level to plan: what is left is
how the budget is dealt out over the rounds.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import numpy as np

from edge_runtime.protocol.rounds import Access, Vote
from radio.arrays import Float64Array
from server.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Policy:
    """What is known of a policy before it plans.

    Attributes:
        name: of it, and of its file in `server.power.policies`.
        summary: one line.
        promises: whether it keeps a promise at all.
        slotted: whether its shares of the budget mean something where devices are covered alone.
        why_not_slotted: otherwise, the reason.
    """

    name: str
    summary: str
    promises: bool = True
    slotted: bool = False
    why_not_slotted: str = ""


OWN_NOISE_POLICIES = ("optimal", "static", "reversed")
"""Those that deal a budget out over rounds by their weights alone (`own_noise_costs`)."""

EQUAL_NOISE_POLICIES = ("static", "subsampled", "equal_split")
"""Those in which all who speak have the same noise, so that it can be planned without some."""

_NO_LEVEL = "there is no common level to invert to"

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("optimal", "least noise of the means, everybody speaking", slotted=True),
        Policy("static", "the same price for every round", slotted=True),
        Policy("reversed", "the optimum of the opposite order, for comparison", slotted=True),
        Policy("constant_inversion", "one level for the whole run", why_not_slotted=_NO_LEVEL),
        Policy("truncated_inversion", "one level, the weak silent", why_not_slotted=_NO_LEVEL),
        Policy("perfect", "full power, no noise of its own", promises=False),
        Policy("paper", "what is printed in arXiv 2604.12401", promises=False),
        Policy(
            "selection",
            "in each round those who are worth it, with a fairness floor",
            why_not_slotted="a device more costs the others nothing",
        ),
        Policy(
            "equal_split",
            "equal noises that hold without q devices",
            why_not_slotted="no noise is shared, so nothing can be split",
        ),
        Policy(
            "sign",
            "votes, silent where noise would decide",
            why_not_slotted="votes in two bands have their noise before the sign",
        ),
        Policy("subsampled", "record level, Poisson batches", slotted=True),
        Policy(
            "limited",
            "batteries, duty cycles, caps and fairness, by a solver",
            why_not_slotted="its levels and shared noises do not exist there",
        ),
    )
}


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
    policy = POLICIES.get(name)
    if policy is None:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(
            f"power policy: got {name!r}, wanted one of {', '.join(POLICIES)}.{hint}"
        )
    if has_promise and not policy.promises:
        raise ConfigurationError(
            f"power policy {name!r} keeps no promise: {policy.summary}. It is for comparison, with "
            "privacy.enabled = false."
        )
    if access is Access.SLOTTED and not policy.slotted:
        why = policy.why_not_slotted or "it plans levels that are common to all"
        able = ", ".join(p.name for p in POLICIES.values() if p.slotted)
        raise ConfigurationError(
            f"power policy {name!r}: not for radios whose devices are covered by their own noise "
            f"alone: {why}. Use one of: {able}."
        )
    return policy


def check_plans_full_rounds(name: str, access: Access, vote: Vote) -> None:
    """Return if a policy plans a run's rounds without subsampling.

    Raises:
        ConfigurationError: it does not; the message says which do.
    """
    able = [*OWN_NOISE_POLICIES]
    if access is Access.SUPERPOSED:
        able += ["equal_split", "selection", "constant_inversion", "truncated_inversion"]
        able += ["limited"]
        able += ["sign"] if vote is Vote.NOISE_AFTER else []
    if name not in able:
        raise ConfigurationError(
            f'power.policy: "{name}" does not plan such rounds, each of which is paid in full. '
            f"Use one of: {', '.join(able)}."
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
    match name:
        case "static":
            shares = np.ones(len(values[0]))
        case "optimal":
            shares = values[1] * np.sqrt(values[0])
        case "reversed":
            shares = values[1] * np.sqrt(values[0][::-1])
        case _:
            raise ConfigurationError(
                f"power policy {name!r} deals no budget out by weights alone; "
                f"{', '.join(OWN_NOISE_POLICIES)} do."
            )
    costs = budget * shares / shares.sum()
    # The last bits of a sum of quotients may lie above the budget.
    while math.fsum(costs) > budget:
        costs = np.nextafter(costs, 0.0)
    return costs
