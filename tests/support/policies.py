"""Policies of owners who agree to nearly anything; a test narrows what it is about."""

from __future__ import annotations

from typing import Any

from edge_runtime.guard.policy import POLICY_VERSION, AllowedRounds, Cover, DevicePolicy
from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.rounds import Access, Vote
from radio.waveforms import WaveformName


def make_policy(**changes: Any) -> DevicePolicy:
    """make_policy(max_clip=1.0, ...); subsampled, superposed, covered by its own noise."""
    fields: dict[str, Any] = {
        "version": POLICY_VERSION,
        "epsilon": 8.0,
        "delta": 1e-5,
        "unit": PrivacyUnit.EXAMPLE,
        "relation": NeighbouringRelation.ZERO_OUT_ONE,
        "access": Access.SUPERPOSED,
        "waveform": WaveformName.COHERENT,
        "vote": Vote.NONE,
        "cover": Cover.OWN,
        "max_clip": 4.0,
        "min_batch": 1,
        "max_directions": 256,
        "max_amplitude": 1.0,
        "max_sampling_rate": 1.0,
        "rounds": (AllowedRounds(number=1000, min_noise_multiplier=1e-3),),
    }
    return DevicePolicy(**{**fields, **changes})
