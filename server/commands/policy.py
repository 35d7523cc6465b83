"""``pairzero policy``: what an owner of data agrees to, proved on the owner's own machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime.guard.ledger import LEDGER_FILE, DeviceLedger
from edge_runtime.guard.policy import Cover, DevicePolicy, load_policy
from server.config.run_config import RunConfig
from server.errors import ConfigurationError, PrivacyError
from server.files import check_can_be_written
from server.planning.device_policy import policy_of, proved_epsilon, released_before
from server.planning.privacy_terms import WHOLE_RUN, Stretch, csi_delta, plan_privacy_terms
from server.privacy.shown import shown_epsilon

_MOST_RECORDS = 10**9


def policy(args: argparse.Namespace) -> int:
    """Write a policy, or say what the one in a file comes to."""
    if args.check is not None:
        return _check(args.check)
    config: RunConfig = args.asked_for
    if not config.privacy.enabled:
        raise ConfigurationError(
            "privacy.enabled = false: such a run promises nothing, so there is nothing to agree to."
        )
    if args.records is None:
        raise ConfigurationError(
            "--records: how many records the device holds is part of the proof. Give it, as in "
            "--records 1300."
        )
    least = config.optimizer.batch_size
    if not least <= args.records <= _MOST_RECORDS:
        raise ConfigurationError(
            f"--records: got {args.records}, wanted {least} (optimizer.batch_size) to "
            f"{_MOST_RECORDS:,}."
        )
    if args.out is not None:
        check_can_be_written(args.out, ConfigurationError)
    stretch = WHOLE_RUN if args.spent is None else _after(args, config)
    everybody = [args.records] * config.federation.num_devices
    terms = plan_privacy_terms(config, everybody, [""] * len(everybody), stretch)
    found = policy_of(config, terms, args.records)
    proved = proved_epsilon(found, csi_delta(config, stretch.number))
    if proved > config.privacy.epsilon:
        raise PrivacyError(
            f"the policy comes to epsilon {shown_epsilon(proved, 6)}, more than the "
            f"{config.privacy.epsilon:g} that were planned. Nothing was written. Please report the "
            "arguments."
        )
    text = policy_text(found, args.records, proved)
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")
        print(f"{args.out}: {_in_words(found, proved)}")
    return 0


def _check(path: Path) -> int:
    """What the rounds of a policy file come to; an error if that is more than it says."""
    found = load_policy(path)
    proved = proved_epsilon(found)
    if proved > found.epsilon:
        raise PrivacyError(
            f"{path}: its {found.num_rounds} rounds come to epsilon {shown_epsilon(proved, 6)} at "
            f"delta {found.delta:g}, it says {found.epsilon:g}. Let `pairzero policy` write one."
        )
    print(f"{path}: {_in_words(found, proved)}")
    return 0


def _after(args: argparse.Namespace, config: RunConfig) -> Stretch:
    """Rounds that come on top of what a device's own ledger holds."""
    if not (args.spent / LEDGER_FILE).is_file():
        raise ConfigurationError(
            f"--spent: there is no {LEDGER_FILE} in {args.spent}, wanted the folder of a device."
        )
    ledger = DeviceLedger(args.spent)
    try:
        owners = ledger.owners
        owner = args.device if args.device is not None else (owners or ("",))[0]
        if owner not in owners or (args.device is None and len(owners) > 1):
            raise ConfigurationError(
                f"--device: wanted one of the devices of that ledger: {', '.join(owners)}."
            )
        rate = config.optimizer.batch_size / args.records if config.is_subsampled else 1.0
        return Stretch(0, 2, (released_before(ledger.releases(owner), min(1.0, rate)),))
    finally:
        ledger.close()


def _in_words(policy: DevicePolicy, proved: float) -> str:
    covered = "its own noise alone"
    if policy.cover is Cover.FEDERATION:
        covered = "the noise of all who speak"
        if policy.num_missing:
            covered += f", {policy.num_missing} of them not counted"
        covered += "; it trusts the server to say who they are"
    return (
        f"{policy.num_rounds} rounds come to epsilon {shown_epsilon(proved)} at delta "
        f"{policy.delta:g}; a device is covered by {covered}"
    )


def policy_text(policy: DevicePolicy, num_records: int, proved: float) -> str:
    """The file, with a reason for each figure."""
    p = policy
    rounds = "".join(
        f"\n[[rounds]]\nnumber = {allowed.number}\n"
        f"min_noise_multiplier = {allowed.min_noise_multiplier!r}\n"
        for allowed in p.rounds
    )
    carrier = "" if p.carrier_hz is None else f"carrier_hz = {p.carrier_hz!r}  # of that radio\n"
    budget = f"budget = {p.budget!r}  # of 1 / (2 m^2), m a round's noise multiplier\n"
    return (
        f"# What a device with {num_records} records may release, in all, whatever a server asks\n"
        f"# for: {p.num_rounds} rounds, proved to come to epsilon {shown_epsilon(proved, 6)}.\n"
        "# The device counts every one of them, of any run and with any key. More rounds need a\n"
        "# new policy, proved for all rounds: pairzero policy ... --spent FOLDER\n"
        "\n"
        f"version = {p.version}\n"
        f"epsilon = {p.epsilon!r}\n"
        f"delta = {p.delta!r}\n"
        f'unit = "{p.unit}"\n'
        f'relation = "{p.relation}"\n'
        "\n"
        f"# {_in_words(p, proved).partition('; ')[2].capitalize()}.\n"
        f'cover = "{p.cover}"\n'
        f"min_speakers = {p.min_speakers}\n"
        f"num_missing = {p.num_missing}\n"
        f"counts_receiver_noise = {str(p.counts_receiver_noise).lower()}\n"
        "\n"
        f'access = "{p.access}"\n'
        f'waveform = "{p.waveform}"\n'
        f'vote = "{p.vote}"\n'
        f"max_clip = {p.max_clip!r}\n"
        f"min_batch = {p.min_batch}\n"
        f"max_directions = {p.max_directions}\n"
        f"max_amplitude = {p.max_amplitude!r}  # over full scale\n"
        f"max_hold_s = {p.max_hold_s!r}  # of one burst, by a radio of the device's own\n"
        f"{carrier}"
        f"max_sampling_rate = {p.max_sampling_rate!r}  # a batch over the records\n"
        f"{'' if p.is_subsampled else budget}"
        f"{rounds}"
    )
