"""Randomness of simulated runs: every draw a function of (seed, purpose, index)."""

from __future__ import annotations

import hashlib

import numpy as np


def simulation_rng(seed: int | str, purpose: str, index: int) -> np.random.Generator:
    """The generator for one purpose and index of a simulated run."""
    text = f"pairzero/simulation/{seed}/{purpose}/{index}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
