"""What stands between an order and a device's antenna: its owner's policy and its own ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime.guard.account import Account
from edge_runtime.guard.keys import HostKeys
from edge_runtime.guard.ledger import DeviceLedger, Release
from edge_runtime.guard.policy import DevicePolicy
from edge_runtime.protocol.errors import PlanRefusedError
from edge_runtime.protocol.rounds import RoundPlan, RoundResult, TransmitOrder


@dataclass(frozen=True, slots=True)
class Asked:
    """One device of a host that is asked to speak.

    Attributes:
        owner: names its data.
        policy: what their owner allows.
        num_records: how many there are.
        commitment: of its key.
        data: keyed name of the data.
        order: its own.
    """

    owner: str
    policy: DevicePolicy
    num_records: int
    commitment: str
    data: str
    order: TransmitOrder


def history_after(history: str, result: RoundResult) -> str:
    """The digest of weights and how they came about, with one step more."""
    step = msgspec.msgpack.encode(msgspec.structs.replace(result, run_id=""))
    return hashlib.sha256(history.encode() + step).hexdigest()


class Guard:
    """Admits the releases of one host's devices, or none of a round's.

    Args:
        folder: of the host's own disk, with its ledger and keys.
        policies: owner -> what it allows.

    Raises:
        DeviceLedgerError: what was released before cannot be known.
        PromiseError: a policy does not cover what was released before it.
    """

    def __init__(self, folder: Path, policies: Mapping[str, DevicePolicy]) -> None:
        self._folder = folder
        self._accounts = {owner: Account(policy) for owner, policy in policies.items()}
        self._ledger = DeviceLedger(folder)
        try:
            for owner, account in self._accounts.items():
                for release in self._ledger.releases(owner):
                    account.add_earlier(release.noise_multiplier, release.sampling_rate)
        except BaseException:
            self._ledger.close()
            raise

    @property
    def ledger(self) -> DeviceLedger:
        """What was released so far."""
        return self._ledger

    def admit(self, plan: RoundPlan, release: str, history: str, asked: Sequence[Asked]) -> None:
        """Return when what all of these devices are about to release is allowed and written down.

        A release that is in the ledger already is the same again: the key and the order draw the
        same batch and the same noise. On other weights it would not be the same number, and the
        difference of the two would hold no noise at all.

        Args:
            plan: the order of the round.
            release: its digest (`RoundPlan.release`).
            history: digest of the weights, and how they came about.
            asked: who is to speak.

        Raises:
            PlanRefusedError: it is not allowed to one of them; nothing was written down.
            DeviceLedgerError: it could not be written down; nothing may be sent.
        """
        by_policy: dict[int, Mapping[int, float]] = {}
        new = []
        for device in asked:
            policy, index = device.policy, device.order.device_index
            try:
                policy.check_order(plan, device.order)
                rate = policy.check_sampling_rate(plan.batch_size, device.num_records)
                if id(policy) not in by_policy:
                    by_policy[id(policy)] = policy.noise_multipliers(plan)
                entry = Release(
                    owner=device.owner,
                    run_id=plan.run_id,
                    round_index=plan.round_index,
                    commitment=device.commitment,
                    release=release,
                    data=device.data,
                    history=history,
                    noise_multiplier=by_policy[id(policy)][index],
                    sampling_rate=rate,
                )
                if not self._is_known(entry):
                    self._accounts[device.owner].check(entry.noise_multiplier)
                    new.append(entry)
            except PlanRefusedError as error:
                raise PlanRefusedError(f"device {index}: {error}") from error
        self._ledger.append(new)
        for entry in new:
            self._accounts[entry.owner].add(entry.noise_multiplier)

    def _is_known(self, entry: Release) -> bool:
        before = self._ledger.same_noise(entry)
        if before is None:
            return False
        if before != entry:
            raise PlanRefusedError(
                f"round {entry.round_index}: the noise of this release was used before, on other "
                "weights or data. The difference of the two would hold none."
            )
        return True

    def end_run(self) -> None:
        """Destroy the keys of the run, where it has real ones.

        Raises:
            DeviceKeysError: they are still there.
        """
        HostKeys.destroy(self._folder)

    def close(self) -> None:
        """Let the ledger go. Idempotent."""
        self._ledger.close()
