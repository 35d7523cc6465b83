"""The direction z of a round: Rademacher signs from a counter, the same bits on every machine.

Generator ``philox4x64-10/rademacher/1``. The signs of tensor number i under seed s are the bits of
the word stream

    word(n) = lane (n mod 4) of philox4x64-10(counter = (n div 4 + 1, i, 0, 0), key = (s, DOMAIN))

least significant bit first: weight number j takes bit (j mod 64) of word (j div 64), and the sign
is -1 where the bit is 1. Nothing is stored and nothing is sent: any piece of z can be made anew
from (s, i, position), which is what lets a device hold one copy of the weights and no gradient.

Philox is due to Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
numpy's implementation reproduces the known-answer vectors published with it (tests/golden).

Seeds are public. Privacy noise never comes from here: see `edge_runtime.private_random`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

GENERATOR = "philox4x64-10/rademacher/1"

WEIGHTS_PER_WORD = 64
_LANES = 4
_DIRECTION_DOMAIN = 0x7A2D646972656374  # "z-direct"
ROUNDING_DOMAIN = 0x726F756E64696E67  # "rounding"

UInt64Array = npt.NDArray[np.uint64]
UInt8Array = npt.NDArray[np.uint8]


def _words(
    seed: int, domain: int, tensor_index: int, first_word: int, num_words: int
) -> UInt64Array:
    block, lane = divmod(first_word, _LANES)
    if not (0 <= seed < 2**64 and 0 <= tensor_index < 2**64 and 0 <= block < 2**64):
        raise OverflowError(
            f"seed {seed}, tensor_index {tensor_index}, word {first_word}: wanted unsigned 64-bit "
            "integers."
        )
    # numpy raises the counter before it makes a block, hence "div 4 + 1" in the definition above.
    counter = np.array([block, tensor_index, 0, 0], dtype=np.uint64)
    key = np.array([seed, domain], dtype=np.uint64)
    generator = np.random.Philox(counter=counter, key=key)
    words: UInt64Array = generator.random_raw(lane + num_words)
    return words[lane:]


def sign_words(
    direction_seed: int, tensor_index: int, first_word: int, num_words: int
) -> UInt64Array:
    """Words ``first_word .. first_word + num_words`` of a tensor's sign stream, uint64."""
    return _words(direction_seed, _DIRECTION_DOMAIN, tensor_index, first_word, num_words)


def sign_bytes(
    direction_seed: int, tensor_index: int, first_word: int, num_words: int
) -> UInt8Array:
    """`sign_words` as bytes, least significant first: bit b of byte j is weight 8 j + b."""
    words = sign_words(direction_seed, tensor_index, first_word, num_words)
    return words.astype("<u8", copy=False).view(np.uint8)


def direction(direction_seed: int, tensor_index: int, num_weights: int) -> npt.NDArray[np.float32]:
    """All signs of one tensor, float32 in {-1, +1}: the plain definition, for tests and plots."""
    num_words = -(-num_weights // WEIGHTS_PER_WORD)
    bits = np.unpackbits(sign_bytes(direction_seed, tensor_index, 0, num_words), bitorder="little")[
        :num_weights
    ]
    return 1.0 - 2.0 * bits.astype(np.float32)


def rounding_word(direction_seed: int, tensor_index: int) -> int:
    """One public uniform 64-bit integer per (seed, tensor), for stochastic rounding of the step."""
    return int(_words(direction_seed, ROUNDING_DOMAIN, tensor_index, 0, 1)[0])


def direction_seeds(direction_seed: int, num_directions: int) -> tuple[int, ...]:
    """The public seeds of a round's directions: the round's own, and more derived from it."""
    texts = (f"pairzero/direction-of-round/{direction_seed}/{q}" for q in range(1, num_directions))
    return (direction_seed, *(_seed_from(text) for text in texts))


def derive_direction_seed(master_seed: int, round_index: int) -> int:
    """The public direction seed of a round, from the run's master seed by SHA-256.

    One-way, so that publishing it tells nothing about anything else derived from the master seed.
    """
    return _seed_from(f"pairzero/direction/{master_seed}/{round_index}")


def _seed_from(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
