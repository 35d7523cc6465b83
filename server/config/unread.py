"""Keys that a configuration sets and nothing reads, by what it chooses elsewhere.

Each choice carries the keys that it reads (`WaveformName.reads`, `Policy.reads`, the tables below).
A key that some member of a choice reads, and no chosen member does, would change nothing: whoever
set it believes otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_runtime.protocol.rounds import Access
from radio.waveforms import WaveformName
from server.config.run_config import RunConfig
from server.power.catalogue import POLICIES

_IMPAIRMENTS = ("radio.impairments", "impairments.*")
_SIGNALS = ("radio.snr_db", "radio.carrier_hz", "radio.max_amplitude", "radio.sample_rate_hz")
_ANY_PLUTO = (*_SIGNALS, "radio.max_hold_s", "pluto.*")

BACKENDS_READ: dict[str, tuple[str, ...]] = {
    "loopback": (*_SIGNALS, *_IMPAIRMENTS, "radio.channel", "radio.coherence_rounds"),
    "pluto": _ANY_PLUTO,
    "virtual-pluto": (*_ANY_PLUTO, *_IMPAIRMENTS, "virtual_pluto.*"),
    "ideal": ("radio.max_amplitude",),
}
"""``radio.backend``; real radios' noise is what it is, but a plan reckons with radio.snr_db.

Without a radio there is a plan all the same, and which batches are drawn follows from its levels.
"""

_CHANNELS_READ = {
    "awgn": (), "rayleigh": (), "rician": ("radio.rician_k_db",),
    "multipath": ("radio.delay_spread_s",),
}  # fmt: skip

_A_PROMISE_READS = (
    "privacy.unit", "privacy.relation", "privacy.epsilon", "privacy.delta",
    "privacy.trusted_noise_fraction", "privacy.missing_devices", "privacy.noise_source",
    "power.policy",
)  # fmt: skip

_WITHOUT_A_PROMISE_READS: dict[str, tuple[str, ...]] = {
    name: ("power.policy",) if name == "perfect" else () for name in POLICIES
}
"""Runs without a promise are as loud as can be, which is what that policy says."""

_NUMBERS_READ = ("optimizer.typical_number",)
"""Of a promise whose devices say numbers; how large a vote is nobody has to be told."""

_ACCESS_READS: dict[Access, tuple[str, ...]] = {
    Access.SUPERPOSED: ("privacy.csi_failure_fraction", "federation.dropout_probability"),
    Access.SLOTTED: (),
}
"""Of a promise: only where noise is shared does it matter who is missing, and how loud who is."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A key that changes nothing.

    Attributes:
        key: "section.key".
        chosen: what keeps it from being read, as a file would say it.
        chosen_by: the key of that choice.
    """

    key: str
    chosen: str
    chosen_by: str


@dataclass(frozen=True, slots=True)
class _Choice:
    """One choice.

    Attributes:
        key: of it.
        value: what was chosen.
        members: what each that could be chosen reads.
        reads: what the chosen one reads here.
        unless: another choice that keeps all members from reading anything.
    """

    key: str
    value: Any
    members: Iterable[Iterable[str]]
    reads: Iterable[str]
    unless: _Choice | None = None


def unread_keys(config: RunConfig, keys: Iterable[str]) -> list[Unread]:
    """Those of some keys that change nothing in a configuration, in their order.

    Args:
        config: as it is with them.
        keys: "section.key", as they were set.
    """
    choices = _choices(config)
    mentioned: dict[str, _Choice] = {}
    read: set[str] = set()
    for choice in choices:
        for member in choice.members:
            for key in member:
                mentioned.setdefault(key, choice)
        read.update(choice.reads)
    found = []
    for key in keys:
        name = key if key in mentioned else key.partition(".")[0] + ".*"
        if name in mentioned and name not in read:
            choice = mentioned[name].unless or mentioned[name]
            found.append(Unread(key, f"{choice.key} = {_toml(choice.value)}", choice.key))
    return found


def _choices(config: RunConfig) -> list[_Choice]:
    radio, has_promise = config.radio, config.privacy.enabled
    backend, waveform = radio.backend, radio.waveform
    policies = {
        name: tuple(f"power.{key}" for key in policy.reads) for name, policy in POLICIES.items()
    }
    # What is not on the air has no waveform and no channel; what is not promised has no price.
    on_air = _Choice("radio.backend", backend, BACKENDS_READ.values(), BACKENDS_READ[backend])
    promised = _Choice(
        "privacy.enabled",
        has_promise,
        [_A_PROMISE_READS],
        _A_PROMISE_READS if has_promise else _WITHOUT_A_PROMISE_READS[config.power_policy],
    )
    return [
        on_air,
        promised,
        _Choice(
            "radio.waveform",
            waveform,
            [other.reads for other in WaveformName],
            [key for key in waveform.reads if backend != "ideal" or not key.startswith("radio.")],
            unless=on_air if backend == "ideal" else None,
        ),
        _Choice(
            "radio.channel",
            radio.channel,
            _CHANNELS_READ.values(),
            _CHANNELS_READ[radio.channel] if backend == "loopback" else (),
            unless=on_air if backend != "loopback" else None,
        ),
        _Choice(
            "radio.waveform",
            waveform,
            [_NUMBERS_READ],
            _NUMBERS_READ if has_promise and not waveform.carries_signs else (),
            unless=None if has_promise else promised,
        ),
        _Choice(
            "power.policy",
            config.power_policy,
            policies.values(),
            policies[config.power_policy] if has_promise else (),
            unless=None if has_promise else promised,
        ),
        _Choice(
            "privacy.access",
            config.access,
            _ACCESS_READS.values(),
            _ACCESS_READS[config.access] if has_promise else (),
            unless=None if has_promise else promised,
        ),
    ]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def set_keys(document: Mapping[str, Any]) -> list[str]:
    """The keys that a document sets to something else than they are without it, "section.key"."""
    without = msgspec.to_builtins(RunConfig())
    return [
        f"{section}.{key}"
        for section, values in document.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
        if value != without[section].get(key)
    ]
