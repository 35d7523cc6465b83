"""What a run writes down before its first round, and what must be as it was before it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.guard.keys import KEYS_FILE
from server.air.base import Air
from server.config.files import dump_config
from server.config.plan_config import PlanConfig
from server.config.run_config import RunConfig
from server.errors import LedgerCorruptError, RunStoreError
from server.planning.privacy_terms import PrivacyTerms
from server.privacy.ledger import PrivacyLedger
from server.run.accounts import accounts_to_go_on_with, num_stretches
from server.run.data import RunData
from server.run.environment import environment
from server.run.local_host import LocalHost
from server.run.pricing import Pricing
from server.store.run_store import RunStore

if TYPE_CHECKING:
    # At run time it needs the client of a broker, which one process does without.
    from server.hosts.remote_hosts import RemoteHosts


def create_store(
    config: RunConfig,
    folder: Path,
    run_id: str,
    data: RunData,
    host: LocalHost | RemoteHosts,
    probed: str,
    air: Air,
) -> RunStore:
    """The run folder with its store and, where the devices have real keys, the keys."""
    if (folder / KEYS_FILE).exists():
        raise RunStoreError(
            f"{folder / KEYS_FILE}: keys of another run are there. Name another folder with --out."
        )
    store = RunStore.create(
        folder,
        {
            "run_id": run_id,
            "config": dump_config(config),
            "bundle_digest": data.bundle.digest,
            "task": data.task.without_paths(),
            "data_commitments": [member.data_name for member in host.members],
            "validation_digest": data.validation_digest,
            "environment": environment(),
            "keys": [member.commitment for member in host.members],
            "probe": probed,
            "source": air.source,
            "is_simulated": air.is_simulated,
            "worth_rounds": None,
            "worth_is_bound": None,
            "wall_s": None if config.privacy.has_system_keys else 0.0,
            "stretches": [{"first_round": 0, "num_records": 0}],
            "hosts": None if isinstance(host, LocalHost) else msgspec.to_builtins(host.listed),
            "epoch": 0,
        },
    )
    try:
        host.keep_keys(folder)
    except BaseException:
        store.remove()
        raise
    return store


def build_pricing(
    config: PlanConfig, terms: PrivacyTerms | None, store: RunStore, noise_symbols: int
) -> Pricing:
    """The accountant starts from what the ledger says was spent, never from memory."""
    if terms is None:
        return Pricing(config, None, None, None, noise_symbols)
    ledger = PrivacyLedger(store.connection)
    digest = store.config_digest()
    ledger.check_configuration(digest)
    ledger.note_configuration(digest)
    accountant = accounts_to_go_on_with(config, num_stretches(store), ledger)
    spoken = sum(row.num_speakers for row in store.rounds())
    if len(ledger.records()) < spoken:
        raise LedgerCorruptError(
            f"{store.path}: {spoken} transmissions were recorded and only {len(ledger.records())} "
            "of them are in the privacy ledger. What was spent is unknown: start a new run."
        )
    return Pricing(config, terms, accountant, ledger, noise_symbols, store.rounds())


def check_is_here(store: RunStore) -> None:
    """Return if the devices of a run are in the process that goes on with it.

    Raises:
        RunStoreError: they are on hosts of their own.
    """
    if store.meta("hosts"):
        raise RunStoreError(
            f"{store.path}: the devices of this run are on hosts of their own, which have its keys "
            f"and data. Go on with: pairzero serve --resume {store.path.parent}"
        )


def check_same(store: RunStore, key: str, now: Any) -> None:
    """Return if something is as it was when the run was started.

    Raises:
        RunStoreError: it is not; the same bits cannot be promised.
    """
    then = store.meta(key)
    if then != now:
        change = f"{key} was {then} when the run was started and is {now} now"
        if isinstance(then, list):  # a long name for each device tells a person nothing
            change = f"{key} are not those that the run was started with"
        raise RunStoreError(
            f"{store.path}: {change}. The same bits cannot be promised, and a round repeated with "
            "other bits would be a second release. Restore what was there, or start a new run."
        )
