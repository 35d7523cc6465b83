"""Privacy records for tests, one field changed at a time."""

from __future__ import annotations

from typing import Any

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.rounds import Access, Vote
from radio.waveforms import WaveformName
from server.privacy.mechanism import RECORD_VERSION, MechanismRecord


def make_record(
    round_index: int = 0,
    device_index: int = 0,
    *,
    multiplier: float = 1.0,
    rate: float = 0.01,
    **changes: Any,
) -> MechanismRecord:
    """A release of a superposed round; fields by name."""
    fields: dict[str, Any] = {
        "version": RECORD_VERSION,
        "kind": "gaussian" if rate == 1.0 else "poisson_subsampled_gaussian",
        "round_index": round_index,
        "device_index": device_index,
        "access": Access.SUPERPOSED,
        "waveform": WaveformName.COHERENT,
        "vote": Vote.NONE,
        "unit": PrivacyUnit.EXAMPLE,
        "relation": NeighbouringRelation.ZERO_OUT_ONE,
        "sensitivity": 1.0,
        "sampling_probability": rate,
        # The record rounds its multiplier down by a hair; stay on the wanted grid point.
        "certified_noise_std": multiplier * (1 + 1e-9),
        "receiver_noise_std": 0.0,
        "num_missing": 0,
        "amplitude_error_bound": 0.0,
        "noise_stream": f"{round_index:08x}{device_index:08x}",
    }
    return MechanismRecord(**{**fields, **changes})
