"""What a run has spent, read from its ledger: the ledger is the only witness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from server.config.plan_config import PlanConfig
from server.planning.privacy_terms import Stretch, csi_delta
from server.privacy.accountant import Accountant
from server.privacy.ledger import PrivacyLedger
from server.privacy.mechanism import MechanismRecord
from server.store.run_store import RunStore


def stretch_of(store: RunStore, config: PlanConfig) -> Stretch:
    """The stretch of a run that is being carried out, with what had been spent before it."""
    stretches = store.meta("stretches")
    last = stretches[-1]
    stretch = Stretch(first_round=last["first_round"], number=len(stretches))
    if not config.privacy.enabled or stretch.number == 1:
        return stretch
    before = PrivacyLedger(store.connection).records()[: last["num_records"]]
    spent = open_accounts(config, stretch.number, before).histories()
    return Stretch(stretch.first_round, stretch.number, spent)


def releases_heard(store: RunStore) -> dict[str, int]:
    """Device -> of how many rounds it was heard for sure; its own ledger has at least those.

    Where not all who paid have spoken, nobody knows here who of them has; and rounds that were paid
    for and passed over may have reached nobody.
    """
    paid: dict[int, set[int]] = {}
    for record in PrivacyLedger(store.connection).records():
        paid.setdefault(record.round_index, set()).add(record.device_index)
    heard: Counter[str] = Counter()
    for row in store.rounds():
        payers = paid.get(row.round_index, set())
        if not row.is_skipped and row.num_speakers == len(payers):
            heard.update(map(str, payers))
    return heard


def num_stretches(store: RunStore) -> int:
    """How often the rounds of a run were planned: once, and once more each time it went on."""
    return len(store.meta("stretches"))


def open_accounts(
    config: PlanConfig, num_stretches: int, records: Sequence[MechanismRecord]
) -> Accountant:
    """Every device's account after so many stretches, with a ledger's records charged to it."""
    accountant = Accountant(
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        csi_delta=csi_delta(config, num_stretches),
    )
    accountant.compose_all(records)
    return accountant


def accounts_to_go_on_with(
    config: PlanConfig, num_stretches: int, ledger: PrivacyLedger
) -> Accountant:
    """Every device's account, for a run that is about to speak again.

    What an earlier process left on the air, without a word of who spoke, is charged first.
    """
    ledger.settle_unknown_speakers()
    return open_accounts(config, num_stretches, ledger.records())


def epsilon_spent(store: RunStore, config: PlanConfig) -> float | None:
    """Epsilon of the device that has spent most, by everything in the ledger; None without privacy.

    A run notes the figure when it stops. One that died has not, or has an older one: then the
    ledger is composed again.

    Raises:
        LedgerCorruptError: the ledger cannot be trusted.
    """
    if not config.privacy.enabled:
        return None
    ledger = PrivacyLedger(store.connection)
    ledger.check_configuration(store.config_digest())
    unknown = ledger.unknown_speakers()
    noted: float | None = store.meta("epsilon_spent")
    is_up_to_date = store.meta("epsilon_records") == len(ledger.records()) and not unknown
    if noted is not None and is_up_to_date:
        return noted
    records = (*ledger.records(), *unknown)
    return open_accounts(config, num_stretches(store), records).worst_spent()
