r"""Whether a run can learn anything at all, said before it is started, and what would make it.

With S the power of a typical mean number and nu_t the variance of all noise on the means of round
t, a run of T rounds is worth

    sum_t S / (S + nu_t)

rounds without noise (`server.power.feasibility.effective_rounds`). Where that is fewer than
`LEAST_ROUNDS`, and noise and not a small T is the reason, the run would spend its budget on nothing
that anybody could tell from chance: that is an error, which names what would help and how much of
it, one setting changed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from server.config.plan_config import PlanConfig
from server.errors import ConfigurationError, ServerError
from server.planning.policy_preview import PolicyPreview, preview_policy
from server.planning.privacy_statement import worth_in_words
from server.planning.privacy_terms import PrivacyTerms, plan_privacy_terms
from server.planning.scalar_rms import TypicalNumber
from server.power.feasibility import effective_rounds, information_ceiling_nats

LEAST_ROUNDS = 2.0
"""On the bundled task (`benchmarks/feasibility.py`): with less, runs end where they began."""

_BURIED = 0.1
"""Of a round's progress; above it a run is short, and not noisy."""

_SEARCH_STEPS = 7
_RAISED_BY = 1.1
_USUAL_DELTA = 1e-5


class CannotLearnError(ConfigurationError):
    """A run whose noise leaves nothing to learn, refused before it is started.

    Examples: a promise to whole devices with five of them.
    """


@dataclass(frozen=True, slots=True)
class Outlook:
    """What noise leaves of a run.

    Attributes:
        typical: number that noise is held against.
        effective_rounds: see the module.
        num_rounds: T.
        noise_std: of the means, root mean square over the rounds in which somebody speaks.
        noise_to_clip: the same over the clip.
        noise_to_typical: the same over the typical number.
        ceiling_nats: no more information can reach the server in the whole run.
    """

    typical: TypicalNumber
    effective_rounds: float
    num_rounds: int
    noise_std: float
    noise_to_clip: float
    noise_to_typical: float
    ceiling_nats: float

    @property
    def worth(self) -> str:
        """So many rounds without noise, in words."""
        return worth_in_words(self.effective_rounds, is_bound=self.typical.is_bound)

    @property
    def can_learn(self) -> bool:
        """Whether there may be enough of it, or too few rounds to say."""
        is_buried = self.effective_rounds < _BURIED * self.num_rounds
        return self.effective_rounds >= LEAST_ROUNDS or not is_buried


def outlook(config: PlanConfig, preview: PolicyPreview, typical: TypicalNumber) -> Outlook:
    """What the noise of a policy's preview leaves to learn, for numbers of a typical size."""
    noise = preview.mean_noise_std
    spoken = noise[preview.num_speakers > 0]
    noise_std = math.sqrt(math.fsum(spoken**2) / len(spoken)) if len(spoken) else math.inf
    num_devices = config.federation.num_devices
    ceiling = 0.0
    if math.isfinite(noise_std):
        ceiling = information_ceiling_nats(
            num_rounds=len(spoken),
            num_devices=num_devices,
            num_scalars=config.optimizer.directions,
            clip=config.largest_number,
            sum_noise_std=noise_std * num_devices,
        )
    return Outlook(
        typical=typical,
        effective_rounds=effective_rounds(noise, typical.value),
        num_rounds=config.optimizer.rounds,
        noise_std=noise_std,
        noise_to_clip=noise_std / config.largest_number,
        noise_to_typical=noise_std / typical.value,
        ceiling_nats=ceiling,
    )


def check_can_learn(
    config: PlanConfig,
    num_records: Sequence[int],
    typical: TypicalNumber,
    terms: PrivacyTerms | None = None,
) -> Outlook | None:
    """The outlook of a run with a promise, if it is one that can learn; None without a promise.

    Args:
        config: of the run.
        num_records: of each device.
        typical: number that noise is held against.
        terms: of the run, if they are known.

    Raises:
        CannotLearnError: it cannot; the message says what would help.
        ConfigurationError, PrivacyError: it cannot be planned at all.
    """
    if not config.privacy.enabled:
        return None
    preview = preview_policy(config, config.power_policy, num_records, terms, spending=False)
    found = outlook(config, preview, typical)
    if found.can_learn:
        return found
    raise CannotLearnError(
        f"this run cannot learn: the noise on a mean has {found.noise_to_typical:.3g} times the "
        f"size of a typical number ({typical.value:.3g}: {typical.origin}) and "
        f"{found.noise_to_clip:.3g} times that of the clip. Its {found.num_rounds} rounds are "
        f"worth {'at most ' if typical.is_bound else ''}{found.effective_rounds:.2g} without "
        f"noise, wanted {LEAST_ROUNDS:g}; at most "
        f"{found.ceiling_nats:.3g} nats reach the server. What would do, one at a time: "
        f"{'; '.join(what_would_help(config, num_records, typical))}. --force runs it all the same."
    )


def what_would_help(
    config: PlanConfig, num_records: Sequence[int], typical: TypicalNumber
) -> list[str]:
    """Settings, each with the number that would do if nothing else were changed."""

    def works(records: Sequence[int], *, roughly: bool = False, **changes: Any) -> bool:
        """Whether it would learn with ``section__key=value`` changed."""
        try:
            changed = _with(config, changes)
            names = [""] * len(records)
            terms = plan_privacy_terms(changed, records, names, roughly=True) if roughly else None
            preview = preview_policy(changed, changed.power_policy, records, terms, spending=False)
            return outlook(changed, preview, typical).can_learn
        except ServerError:
            return False

    few = max(1, min(num_records))
    helps = []
    delta = config.privacy.delta
    if delta >= 1.0 / sum(num_records):  # there are more records than devices
        delta = _USUAL_DELTA
    if not config.is_subsampled and works(
        num_records,
        privacy__unit=PrivacyUnit.EXAMPLE,
        privacy__relation=NeighbouringRelation.ZERO_OUT_ONE,
        privacy__delta=delta,
        power__policy=None,
    ):
        with_delta = f" with privacy.delta = {delta:g}" if delta != config.privacy.delta else ""
        helps.append(f'privacy.unit = "example"{with_delta}')
    helps += _least(
        "federation.num_devices",
        config.federation.num_devices,
        lambda n, how: works([few] * round(n), federation__num_devices=round(n), **how),
        most=4096,
    )
    if config.is_subsampled:
        helps += _least(
            "optimizer.batch_size",
            config.optimizer.batch_size,
            lambda b, how: works(num_records, optimizer__batch_size=round(b), **how),
            most=few,
        )
    helps += _least(
        "privacy.epsilon",
        config.privacy.epsilon,
        lambda e, how: works(num_records, privacy__epsilon=e, **how),
        most=1e5,
    )
    rounds = config.optimizer.rounds
    by_rounds = _least(
        "optimizer.rounds",
        rounds,
        lambda n, how: works(num_records, optimizer__rounds=round(n), **how),
        most=16 * rounds,
    )
    return helps + (by_rounds or ["(no number of optimizer.rounds would: more of them share it)"])


def _with(config: PlanConfig, changes: Mapping[str, Any]) -> PlanConfig:
    for name, value in changes.items():
        section, key = name.split("__")
        changed = msgspec.structs.replace(getattr(config, section), **{key: value})
        config = msgspec.structs.replace(config, **{section: changed})
    return config


def _least(
    name: str, start: float, works: Callable[[float, dict[str, bool]], bool], *, most: float
) -> list[str]:
    """About the least value above ``start`` that works, whole where the start is; or nothing.

    It is searched for roughly, and what is found is raised until it does indeed.
    """
    roughly = {"roughly": True}
    low, high = float(start), float(start)
    while True:
        low, high = high, min(2.0 * high, float(most))
        if high <= low:
            return []
        if works(high, roughly):
            break
    for _ in range(_SEARCH_STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if works(middle, roughly) else (middle, high)
    while not works(high, {}):
        if high >= most:
            return []
        high = min(_RAISED_BY * high, float(most))
    return [f"{name} = {math.ceil(high)}" if isinstance(start, int) else f"{name} = {high:.3g}"]
