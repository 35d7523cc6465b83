"""Private randomness of one device: artificial noise and the secret choice of its batch.

Everything comes from a 256-bit key through SHAKE-256 used as a keyed function,

    stream(purpose, release) = SHAKE-256( key || purpose || release ),

so nobody without the key can tell the noise or the batch from random. The release is named by the
whole plan (`RoundPlan.release`): a device that dies after it has spoken and is given the same plan
says exactly the same number again, the same release and not a second one; given another plan for
the same round it draws everything afresh, so no two answers ever share a noise that could cancel.
The key is made by the operating system and never leaves the device.

A repeatable simulation derives its keys from the run's seed instead (`simulated_key`).
Such noise protects nobody from a reader of the configuration; it is refused on a real radio.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.discrete_gaussian import RandomBits, discrete_gaussian

KEY_BYTES = 32
_BLOCK = 1024


def noise_stream(commitment: str, release: str) -> str:
    """Public name of the noise and the batch that a key draws for one release, hexadecimal.

    H(commitment, release): whoever knows a device's public commitment can compute it before the
    device has drawn anything. Noise is a function of (key, release), so equal names mean the very
    same noise, and other names noise that was drawn afresh.
    """
    return hashlib.sha256(f"pairzero/noise-stream/{commitment}/{release}".encode()).hexdigest()


class PrivateRandom:
    """Noise and batches of one device, a function of (key, purpose, release)."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key: got {len(key)} bytes, wanted {KEY_BYTES}.")
        self._key = bytes(key)

    @staticmethod
    def generate_key() -> bytes:
        """A fresh key from the operating system's secure generator."""
        return secrets.token_bytes(KEY_BYTES)

    @staticmethod
    def simulated_key(master_seed: int, device_index: int) -> bytes:
        """A repeatable stand-in for simulations, derived one-way from the run's seed.

        The public direction seeds come from the same master seed through another hash, so they do
        not give this key away; the configuration does.
        """
        text = f"pairzero/simulated-private-key/{master_seed}/{device_index}".encode()
        return hashlib.sha256(text).digest()

    @property
    def commitment(self) -> str:
        """A public name of the key for the ledger: tells keys apart and reveals none."""
        return hashlib.sha256(b"pairzero/commitment/" + self._key).hexdigest()

    def commit_to_data(self, digest: str) -> str:
        """A name for the device's data that only the holder of the key can compute.

        A plain digest would tell whoever has a second data set at hand whether it is this one,
        with certainty and at no charge to the ledger; under the key it is as good as random.
        """
        return self._stream("data", digest, 32).hex()

    def _stream(self, purpose: str, release: str, num_bytes: int) -> bytes:
        message = self._key + f"/{purpose}/{release}".encode()
        return hashlib.shake_256(message).digest(num_bytes)

    def circular_draws(self, release: str, sigma: int, num: int) -> tuple[tuple[int, int], ...]:
        """``num`` independent pairs of independent discrete Gaussians of parameter sigma.

        Two quadratures, because the receiver could look at both: noise along the scalar's own axis
        alone would leave the other one silent, and there the devices' small phase errors tell them
        apart (`edge_runtime.guard.cover.certified_noise_stds`).

        Guarantees: the law is exact, as far as SHAKE-256 is random
            (`edge_runtime.discrete_gaussian`); sigma 0 gives 0; the first pairs of a release are
            the same, however many are drawn.
        """
        bits = RandomBits(_Reader(lambda block: self._stream(f"noise-{block}", release, _BLOCK)))
        return tuple(
            (discrete_gaussian(sigma, bits), discrete_gaussian(sigma, bits)) for _ in range(num)
        )

    def poisson_batch(
        self, release: str, num_records: int, sampling_probability: float
    ) -> npt.NDArray[np.int64]:
        """Indices of the records that join a release's batch, each independently, ascending.

        The realised probability is floor(q 2^64) / 2^64, never above q: rounding toward safety.
        """
        if not 0.0 < sampling_probability <= 1.0:
            raise ValueError(f"sampling_probability: got {sampling_probability}, wanted in (0, 1].")
        if sampling_probability == 1.0:
            return np.arange(num_records, dtype=np.int64)
        draws = np.frombuffer(self._stream("batch", release, 8 * num_records), dtype="<u8")
        threshold = np.uint64(math.floor(math.ldexp(sampling_probability, 64)))
        return np.flatnonzero(draws < threshold).astype(np.int64)


class _Reader:
    """Bytes, one block after the other, made when they are asked for."""

    def __init__(self, block: Callable[[int], bytes]) -> None:
        self._block = block
        self._num_blocks = 0
        self._held = b""
        self._position = 0

    def __call__(self, num_bytes: int) -> bytes:
        end = self._position + num_bytes
        while end > len(self._held):
            self._held = self._held[self._position :] + self._block(self._num_blocks)
            self._num_blocks += 1
            self._position, end = 0, num_bytes
        found = self._held[self._position : end]
        self._position = end
        return found
