"""The devices of a run within one process: data, keys, one agent on one copy of the weights.

What stands here stands on hosts of their own elsewhere. The server's side gets `LocalHost.members`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.agent import DeviceAgent, ScalarObserver
from edge_runtime.forward import OnnxForward
from edge_runtime.guard.keys import HostKeys
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, choose_max_rows
from edge_runtime.protocol.members import Member
from edge_runtime.tasks import PromptSet
from edge_runtime.uplink import Uplink
from edge_runtime.virtual_device import VirtualDevice
from server.config.plan_config import PlanConfig
from server.errors import PrivacyError
from server.planning.device_policy import policy_of
from server.planning.privacy_terms import PrivacyTerms


@dataclass(frozen=True, slots=True)
class LocalHost:
    """Data and keys of every device; the keys are real, or follow from the seed of a simulation."""

    config: PlanConfig
    prompts: tuple[PromptSet, ...]
    keys: HostKeys

    @classmethod
    def create(cls, config: PlanConfig, prompts: Sequence[PromptSet]) -> LocalHost:
        """With fresh keys, which are on no disk until `keep_keys`."""
        if config.privacy.has_system_keys:
            keys = HostKeys.fresh(len(prompts))
        else:
            keys = HostKeys.simulated(config.run.seed, range(len(prompts)))
        return cls(config, tuple(prompts), keys)

    @classmethod
    def load(cls, config: PlanConfig, prompts: Sequence[PromptSet], folder: Path) -> LocalHost:
        """With the keys of a run that was interrupted.

        Raises:
            DeviceKeysError: they are missing or damaged.
        """
        if config.privacy.has_system_keys:
            return cls(config, tuple(prompts), HostKeys.load(folder, len(prompts)))
        return cls.create(config, prompts)

    @property
    def members(self) -> tuple[Member, ...]:
        """What the server is told of each device."""
        owners = zip(self.prompts, self.keys.private_randoms(), strict=True)
        return tuple(
            Member(len(prompts), own.commitment, own.commit_to_data(prompts.digest()))
            for prompts, own in owners
        )

    def keep_keys(self, folder: Path) -> None:
        """Write real keys down, for a run that is interrupted.

        Raises:
            DeviceKeysError: they could not be written; nothing is left behind.
        """
        if self.config.privacy.has_system_keys:
            self.keys.keep(folder)

    @property
    def software_noise_seed(self) -> int | str:
        """What the noise of a software receiver is drawn from.

        ``run.seed``, or under system keys something that nobody can know without all of them: the
        superposed promise takes for granted that nobody can take that noise off again.
        """
        if not self.config.privacy.has_system_keys:
            return self.config.run.seed
        return self.keys.shared_secret("software-receiver")


def build_agent(
    config: PlanConfig,
    *,
    max_tokens: int,
    run_id: str,
    prompts: Sequence[PromptSet],
    keys: HostKeys,
    uplinks: Sequence[Uplink],
    terms: PrivacyTerms | None,
    weights: ParameterStore,
    forward: OnnxForward,
    vocab_size: int,
    observe_scalar: ScalarObserver | None,
) -> DeviceAgent:
    """The agent of all devices, each with its own data, keys, radio and policy.

    Args:
        config: what is planned.
        max_tokens: of a prompt.
        run_id: names it.
        prompts: each device's data.
        keys: each device's private key.
        uplinks: each device's radio.
        terms: of privacy; None where nothing is promised.
        weights: the copy that the devices share.
        forward: the session on it.
        vocab_size: tokens of the model.
        observe_scalar: told every scalar before its noise; None where real keys promise privacy.

    Raises:
        PrivacyError: a device has another key than the one that its noise will be charged under.
    """
    max_rows = MAX_ROWS
    if terms is not None:
        max_rows = choose_max_rows(forward, vocab_size=vocab_size, max_tokens=max_tokens)
    policies = {
        number: None if terms is None else policy_of(config, terms, number)
        for number in {len(own_prompts) for own_prompts in prompts}
    }
    owners = zip(prompts, keys.private_randoms(), uplinks, strict=True)
    devices = [
        VirtualDevice(
            device_index=index,
            owner=str(index),
            prompts=own_prompts,
            private_random=private_random,
            uplink=uplink,
            policy=policies[len(own_prompts)],
        )
        for index, (own_prompts, private_random, uplink) in enumerate(owners)
    ]
    if terms is not None:
        _check_keys(devices, terms)
    return DeviceAgent(
        host="in-process",
        run_id=run_id,
        devices=devices,
        store=weights,
        forward=forward,
        max_rows=max_rows,
        observe_scalar=observe_scalar,
    )


def _check_keys(devices: Sequence[VirtualDevice], terms: PrivacyTerms) -> None:
    """Noise of one key for two devices would be charged as if it were independent."""
    if len(set(terms.commitments)) < len(devices):
        raise PrivacyError(
            "two devices have the same key: their noise would be the same. Nothing was sent. "
            "Please report how the run was started."
        )
    for device, charged in zip(devices, terms.commitments, strict=True):
        if device.private_random.commitment != charged:
            raise PrivacyError(
                f"device {device.device_index} has another key than the one that its noise is "
                "charged under. Nothing was sent. Please report how the run was started."
            )
