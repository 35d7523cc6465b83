"""What a host loads and makes before it says who it is; what does not fit is said by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, Bundle, open_bundle
from edge_runtime.control.bundle_store import fetch
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.over_nats import token
from edge_runtime.guard.keys import KEYS_FILE, HostKeys
from edge_runtime.guard.ledger import LEDGER_FILE, DeviceLedger
from edge_runtime.guard.policy import MAX_HOLD_S, check_hold
from edge_runtime.joining.host_settings import HostSettings
from edge_runtime.joining.journal import run_of
from edge_runtime.joining.messages import AirTerms, RunTerms
from edge_runtime.joining.own_radio import GUARDIAN_BEHIND_S, Leave, OwnRadio
from edge_runtime.joining.rehearsal import PlayedAir, PlayedBox, PlayedTransceiver
from edge_runtime.protocol.errors import (
    DeviceKeysError,
    LinkError,
    PlanRefusedError,
    PromiseError,
    TaskError,
)
from edge_runtime.tasks import PromptSet, load_tokenizer, read_examples
from edge_runtime.uplink import IdealUplink, Uplink, uplink_with
from radio.backends import resolve_backend
from radio.pluto.settings import PlutoSettings, Role
from radio.transceiver import Transceiver


def open_the_same(
    link: NatsLink, settings: HostSettings, terms: RunTerms, say: Callable[[str], None]
) -> Bundle:
    """The run's bundle: the one that was named, or that comes with pairzero, or the broker's.

    Raises:
        LinkError, BundleError: it is not to be had.
    """
    bundle = open_bundle(BUNDLED_MODEL_FOLDER if settings.bundle is None else settings.bundle)
    if bundle.digest == terms.bundle_digest:
        return bundle
    if settings.bundle is not None:
        raise LinkError(
            f"{settings.bundle}: this bundle is {bundle.digest[:16]}, the run's is "
            f"{terms.bundle_digest[:16]}. Leave --bundle out, and it is fetched from the server's."
        )
    return fetch(link, terms.bundle_digest, settings.fetched_bundle(terms.bundle_digest), say)


def load_prompts(data: Mapping[str, Path], bundle: Bundle, terms: RunTerms) -> dict[str, PromptSet]:
    """Every device's examples, tokenised.

    Raises:
        TaskError: a file is none, or has fewer records than a batch.
    """
    tokenizer = load_tokenizer(bundle.tokenizer_path)
    prompts = {}
    for name, path in sorted(data.items()):
        token("device", name)
        prompts[name] = PromptSet(
            read_examples(path, terms.task), terms.task, tokenizer, terms.max_tokens
        )
        if len(prompts[name]) < terms.example.batch_size:
            raise TaskError(
                f"{path}: {len(prompts[name])} records, the run's optimizer.batch_size is "
                f"{terms.example.batch_size}. A device divides by it whatever it holds, so it "
                "needs as many."
            )
    return prompts


def check_policies(
    settings: HostSettings, terms: RunTerms, prompts: Mapping[str, PromptSet]
) -> None:
    """Return if every owner has agreed to such a run.

    Raises:
        PromiseError: one has agreed to nothing.
        PlanRefusedError: one has agreed to less.
    """
    if not terms.is_private:
        return
    for name, own in prompts.items():
        policy = settings.policies.get(name)
        if policy is None:
            raise PromiseError(
                f"device {name!r}: the run promises privacy, and there is no policy of the owner "
                "of its data: --policy FILE. `pairzero policy` writes one."
            )
        try:
            policy.check_kind(terms.example)
            policy.check_sampling_rate(terms.example.batch_size, len(own))
            policy.check_covers(terms.rounds)
        except PlanRefusedError as error:
            raise PlanRefusedError(f"device {name!r} does not join: {error}") from error


def was_in(settings: HostSettings, terms: RunTerms) -> bool:
    """Whether this host was in the run before: by its journal, or, that lost, by its ledger.

    Raises:
        JournalError, DeviceLedgerError, DeviceKeysError: what there is cannot be read.
    """
    if run_of(settings.journal) == terms.run_id:
        return True
    files = (settings.state / KEYS_FILE, settings.state / LEDGER_FILE)
    if not terms.is_private or not all(path.exists() for path in files):
        return False
    own = set(HostKeys.load(settings.state, len(settings.data)).commitments)
    with contextlib.closing(DeviceLedger(settings.state)) as ledger:
        releases = (r for name in settings.data for r in ledger.releases(name))
        return any(r.run_id == terms.run_id and r.commitment in own for r in releases)


def make_keys(settings: HostSettings, terms: RunTerms, was_here: bool) -> HostKeys:
    """The keys of every device: those it had, if it was in this run before.

    Raises:
        DeviceKeysError: another run's are there, or they cannot be kept.
        LinkError: keys that protect nobody, and the host was not started for them.
    """
    if terms.simulated_seed is None:
        return _real_keys(settings, terms, was_here)
    if not settings.may_simulate:
        raise LinkError(
            f"run {terms.run_id}: wants keys that follow from its seed, which protect nobody. "
            "Only `pairzero up`, on one machine, may; elsewhere privacy.noise_source = "
            '"system".'
        )
    return HostKeys.simulated(terms.simulated_seed, [int(name) for name in sorted(settings.data)])


def _real_keys(settings: HostSettings, terms: RunTerms, was_here: bool) -> HostKeys:
    """From the system's generator; on the host's own disk before anything is drawn with them."""
    keys = HostKeys.fresh(len(settings.data))
    if terms.is_private:
        if (settings.state / KEYS_FILE).exists():
            if was_here:
                return HostKeys.load(settings.state, len(settings.data))
            raise DeviceKeysError(
                f"{settings.state / KEYS_FILE}: keys of another run are there, which may go on. "
                "Name another folder with --state, or delete them to end that run for good."
            )
        settings.state.mkdir(parents=True, exist_ok=True)
        keys.keep(settings.state)
    return keys


def check_radios(settings: HostSettings, terms: RunTerms) -> None:
    """Return if every device has a radio of its own where it needs one, and may use it so.

    Raises:
        LinkError: one is missing, or nobody would hear it.
        PlanRefusedError: it is to send where, or for longer than, its owner allows.
    """
    asked = None if terms.air is None else terms.air.pluto
    if asked is None:
        if settings.radios:
            raise LinkError(
                f"--radio: run {terms.run_id} is a rehearsal, whose air its server plays; nobody "
                "would hear a radio. Leave it out."
            )
        return
    for name in settings.data:
        if name not in settings.radios:
            raise LinkError(
                f"device {name!r}: run {terms.run_id} is over real radios: --radio URI. "
                "`pairzero-radio doctor` lists those that are there."
            )
        policy = settings.policies.get(name)
        check_hold(asked.max_hold_s, MAX_HOLD_S if policy is None else policy.max_hold_s)
        if policy is not None and terms.is_private:
            policy.check_carrier(asked.carrier_hz)


def open_radios(settings: HostSettings, terms: RunTerms) -> dict[str, Transceiver]:
    """Every device's own radio, set up and silent; none in a rehearsal.

    Raises:
        RadioError: one is not there, or cannot be what the run asks for; none is left open.
    """
    if terms.air is None or (asked := terms.air.pluto) is None:
        return {}
    open_pluto = cast(Callable[..., Transceiver], resolve_backend("pluto"))
    with contextlib.ExitStack() as opened:
        radios = {
            name: opened.enter_context(
                open_pluto(
                    PlutoSettings(
                        uri=settings.radios[name],
                        role=Role.TRANSMITTER,
                        sample_rate_hz=terms.air.sample_rate_hz,
                        carrier_hz=asked.carrier_hz,
                        rf_bandwidth_hz=asked.rf_bandwidth_hz,
                        tx_attenuation_db=max(asked.tx_attenuation_db, settings.tx_attenuation_db),
                        xo_correction=settings.xo_corrections.get(name),
                        max_hold_s=asked.max_hold_s + GUARDIAN_BEHIND_S,
                    ),
                    max_amplitude=terms.air.max_amplitude,
                )
            )
            for name in sorted(settings.data)
        }
        opened.pop_all()
    return radios


def own_radio(radio: Transceiver, air: PlayedAir, device_index: int, terms: RunTerms) -> OwnRadio:
    """A radio as this run may use it."""
    assert terms.air is not None
    assert terms.air.pluto is not None
    leave = Leave(air.link, air.subject, air.at_hand, device_index)
    return OwnRadio(radio, leave, max_hold_s=terms.air.pluto.max_hold_s)


def uplink_of(
    air: PlayedAir, device_index: int, terms: AirTerms | None, radio: OwnRadio | None
) -> Uplink:
    """One device's end of the run's radio, or of the link without one.

    Args:
        air: the way to the server.
        device_index: whose end.
        terms: of the radio; None for the link without one.
        radio: the device's own; None, and the server plays the air.
    """
    if terms is None:
        return IdealUplink(PlayedBox(air, device_index))
    if radio is not None:
        return uplink_with(terms.waveform, radio)
    played = PlayedTransceiver(
        air,
        device_index,
        sample_rate_hz=terms.sample_rate_hz,
        max_amplitude=terms.max_amplitude,
    )
    return uplink_with(terms.waveform, played)
