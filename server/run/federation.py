"""Who holds which data: a simulated federation deals one training set out to its devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from server.errors import ConfigurationError
from server.seeds import simulation_rng

_T = TypeVar("_T")


def split_iid(examples: Sequence[_T], num_devices: int, seed: int) -> list[list[_T]]:
    """Shuffle and deal out evenly; the parts differ by at most one example.

    Raises:
        ConfigurationError: fewer examples than devices.
    """
    if len(examples) < num_devices:
        raise ConfigurationError(
            f"federation.num_devices: {num_devices} devices for {len(examples)} training examples; "
            "every device needs at least one."
        )
    order = simulation_rng(seed, "split", 0).permutation(len(examples))
    return [[examples[i] for i in order[start::num_devices]] for start in range(num_devices)]
