"""A run that has ended can go on: more rounds, a larger budget, fresh keys, the old ledger.

Nothing that was spent is forgotten: the new rounds are priced on top of every device's account, at
the least noise that keeps the *whole* run within the new budget. The devices draw fresh keys, for
the old ones are destroyed, so the new noise has nothing in common with the old. The learning rate
falls anew along its curve to the new last round.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from server.config.files import dump_config, parse_config
from server.config.run_config import RunConfig
from server.errors import ConfigurationError, ServerError
from server.planning.learnability import Outlook, outlook
from server.planning.policy_preview import preview_policy
from server.planning.privacy_terms import PrivacyTerms, Stretch
from server.planning.scalar_rms import typical_number
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import MechanismRecord
from server.privacy.shown import shown_epsilon
from server.run.accounts import open_accounts
from server.run.components import RunComponents, connect, plan_privacy
from server.run.data import RunData, load_run_data
from server.run.environment import environment, probe
from server.run.local_host import LocalHost
from server.store.records import Outcome
from server.store.run_store import RunStore, configuration_digest

CHANGEABLE = (
    "optimizer.rounds",
    "optimizer.learning_rate",
    "optimizer.final_learning_rate_fraction",
    "privacy.epsilon",
    "run.evaluation_interval",
    "run.digest_interval",
)
"""What may differ from then on. Everything else is part of what the steps so far mean."""


@dataclass(frozen=True, slots=True)
class MoreRounds:
    """What is planned for a run that goes on.

    Attributes:
        first_round: where it goes on.
        num_rounds: of those that are new.
        spent: epsilon before them; None without a promise.
        epsilon: the budget that they may use up, all of it.
        outlook: what noise leaves of the new rounds alone; None without a promise.
    """

    first_round: int
    num_rounds: int
    spent: float | None = None
    epsilon: float | None = None
    outlook: Outlook | None = None

    def __str__(self) -> str:
        """For a person, before anything is sent."""
        text = f"Going on for {self.num_rounds} rounds, from {self.first_round} on"
        if self.epsilon is None:
            return f"{text}, without a promise."
        text += (
            f". They may spend the whole budget: epsilon {shown_epsilon(self.spent)} becomes up to "
            f"{self.epsilon:g}"
        )
        if self.outlook is None:
            return f"{text}."
        return f"{text}. What they are worth without noise: {self.outlook.worth} rounds."


def plan_more_rounds(folder: Path, changes: dict[str, Any]) -> MoreRounds:
    """Plan more rounds for a run that has ended; `Experiment.resume` carries them out.

    Args:
        folder: the run.
        changes: settings of `CHANGEABLE`, "section.key" -> value.

    Returns:
        What they may cost and what they are worth, to be said before they are carried out.

    Raises:
        ConfigurationError: the run has not ended, another setting, no more rounds than it has, or
            a budget that is spent already. Nothing is changed then.
        PrivacyError: no noise meets the budget.
    """
    if other := sorted(set(changes) - set(CHANGEABLE)):
        raise ConfigurationError(
            f"{other[0]}: cannot change while a run goes on. What can: {', '.join(CHANGEABLE)}."
        )
    store = RunStore.open(folder)
    try:
        before = store.config()
        _check_has_ended(store, folder)
        config = _changed(before, changes)
        done = store.num_rounds()
        if config.optimizer.rounds <= done:
            raise ConfigurationError(
                f"--rounds: got {config.optimizer.rounds}, the run has {done} rounds already; "
                "wanted more, counted from its beginning."
            )
        if config.privacy.enabled and config.privacy.epsilon < before.privacy.epsilon:
            raise ConfigurationError(
                f"privacy.epsilon: got {config.privacy.epsilon}, the run had "
                f"{before.privacy.epsilon}; a budget that was planned for cannot be lowered."
            )
        records: tuple[MechanismRecord, ...] = ()
        if config.privacy.enabled:
            ledger = PrivacyLedger(store.connection)
            ledger.check_configuration(store.config_digest())
            ledger.settle_unknown_speakers()
            records = ledger.records()
        stretches = [
            *store.meta("stretches"),
            {"first_round": done, "num_records": len(records)},
        ]
        stretch = Stretch(done, len(stretches))
        planned = MoreRounds(done, config.optimizer.rounds - done)
        if config.privacy.enabled:
            accounts = open_accounts(config, stretch.number, records)
            spent = accounts.histories()  # refuses what no finite epsilon covers
            if accounts.worst_spent() >= config.privacy.epsilon:
                raise ConfigurationError(
                    f"privacy.epsilon: {shown_epsilon(accounts.worst_spent(), 6)} is spent (some "
                    "of delta goes to the channel of the new rounds), the budget is "
                    f"{config.privacy.epsilon:g}. More rounds need a larger one: "
                    "--set privacy.epsilon=E, with E well above what is spent."
                )
            stretch = Stretch(done, len(stretches), spent)
            planned = dataclasses.replace(
                planned, spent=accounts.worst_spent(), epsilon=config.privacy.epsilon
            )
        data = load_run_data(config)
        host = LocalHost.create(config, data.device_prompts)
        terms = plan_privacy(config, host.members, stretch)
        components = connect(config, data, host, terms, str(store.meta("run_id")))
        try:
            probed = probe(components.forward, data.bundle)
            if terms is not None:
                seen = _outlook_of_new_rounds(config, data, terms, components)
                planned = dataclasses.replace(planned, outlook=seen)
        finally:
            components.close()
        host.keep_keys(folder)
        document = dump_config(config)
        if config.privacy.enabled:
            # First, because nothing is charged in between: a death here leaves the run as it was.
            PrivacyLedger(store.connection).note_configuration(configuration_digest(document))
        # One transaction: the run goes on as planned here, or is as it was.
        store.set_all_meta(
            {
                "config": document,
                "stretches": stretches,
                "keys": [member.commitment for member in host.members],
                "data_commitments": [member.data_name for member in host.members],
                "validation_digest": data.validation_digest,
                "environment": environment(),
                "probe": probed,
                "outcome": Outcome.INTERRUPTED,
                "parameter_digest": None,
            }
        )
    finally:
        store.close()
    return planned


def _outlook_of_new_rounds(
    config: RunConfig, data: RunData, terms: PrivacyTerms, components: RunComponents
) -> Outlook | None:
    """As if they were a run of their own; None where nobody can say."""
    typical = typical_number(config, components.forward, components.replica, data.validation)
    num_new = config.optimizer.rounds - terms.first_round
    alone = msgspec.structs.replace(
        config, optimizer=msgspec.structs.replace(config.optimizer, rounds=num_new)
    )
    try:
        preview = preview_policy(
            alone,
            alone.power_policy,
            [len(prompts) for prompts in data.device_prompts],
            dataclasses.replace(terms, first_round=0),
            spending=False,
        )
    except ServerError:
        return None
    return outlook(alone, preview, typical)


def _check_has_ended(store: RunStore, folder: Path) -> None:
    if store.outcome is Outcome.ABANDONED:
        raise ConfigurationError(
            f"{folder}: the run was ended on request. There is nothing to continue; start a new "
            "run."
        )
    if not store.outcome.is_final:
        raise ConfigurationError(
            "--resume continues an interrupted run as it was planned; it takes no other settings. "
            "A run that has ended can go on with --rounds."
        )


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    document = dump_config(config)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        document[section][key] = value
    return parse_config(document, source="--set")
