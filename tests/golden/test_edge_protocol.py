"""Frozen bits: the direction on every machine, and what goes over the wire.

Three witnesses for the direction: the published known-answer vectors, philox4x64-10 written out
here in Python integers (the same on any processor), and stored words.

``python tests/golden/test_edge_protocol.py YYYY-MM-DD`` from the repository root writes the stored
file again. A difference means another direction or other bytes: then GENERATOR or PROTOCOL_VERSION
must change with it, in a commit of its own that explains the difference.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.protocol import wire
from edge_runtime.protocol.direction import (
    GENERATOR,
    derive_direction_seed,
    direction,
    direction_seeds,
    rounding_word,
    sign_bytes,
    sign_words,
)
from edge_runtime.protocol.orders import Answer, Order, Refusal
from edge_runtime.protocol.rounds import (
    PROTOCOL_VERSION,
    Access,
    Difference,
    DigestReport,
    DigestRequest,
    Participation,
    RoundPlan,
    RoundReport,
    RoundResult,
    RunEnded,
    SoundingOrder,
    TransmitOrder,
)

TABLE = Path(__file__).with_name("edge_protocol.json")
FORMAT_VERSION = 1
ONES = 2**64 - 1

# (direction seed, tensor index, first word, number of words)
STREAMS = [
    (0, 0, 0, 4096),
    (1, 0, 0, 1025),
    (ONES, 0, 0, 7),
    (2024, 197, 0, 4096),
    (2024, 197, 3, 1),
    (2024, 0, 2**32 - 2, 9),
    (2024, 1, 2**34 + 1, 5),
    (0x0123456789ABCDEF, 2**32 + 1, 2**40 + 3, 64),
]
ORDERS = {
    "round_plan": RoundPlan(
        run_id="run", round_index=7, direction_seed=ONES, direction_generator="generator/1",
        perturbation_scale=2.0**-10, clip=2.5, batch_size=16, access=Access.SUPERPOSED,
        frame_start_sample=4096,
        orders=(TransmitOrder(0, 0.5, -0.25, 1.0), TransmitOrder(3, -1.0, 0.0, 0.0)),
    ),
    "round_plan_of_many": RoundPlan(
        run_id="run", round_index=7, direction_seed=ONES, direction_generator="generator/1",
        perturbation_scale=2.0**-10, clip=2.5, batch_size=16, access=Access.SUPERPOSED,
        frame_start_sample=0, orders=(), num_directions=8, difference=Difference.ONE_SIDED,
    ),
    "round_result": RoundResult("run", 7, ONES, (-(2**40), 0, 2**50)),
    "sounding_order": SoundingOrder("run", 0, 0.75, 128),
    "digest_request": DigestRequest("run", 7),
    "run_ended": RunEnded("run", 7),
}  # fmt: skip
REPORTS = (
    RoundReport("run", 7, 3, Participation.DROPPED, "why"), DigestReport("run", 7, "host", "0f"),
)  # fmt: skip
MESSAGES = {kind: Order(2, 11, message) for kind, message in ORDERS.items()} | {
    "answer": Answer("run", 2, 11, "host", REPORTS),
    "refusal": Answer("run", 2, 11, "host", (), Refusal("PlanRefusedError", "why")),
}


def philox4x64_10(counter, key):
    """Salmon, Moraes, Dror, Shaw, SC 2011, section 3.3: ten rounds on Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & ONES, (first >> 64) ^ c[3] ^ k[1], first & ONES]
        k = [(k[0] + 0x9E3779B97F4A7C15) & ONES, (k[1] + 0xBB67AE8584CAA73B) & ONES]
    return c


def word_by_definition(seed, tensor_index, n, domain=b"z-direct"):
    counter = (n // 4 + 1, tensor_index, 0, 0)
    return philox4x64_10(counter, (seed, int.from_bytes(domain, "big")))[n % 4]


# Random123's kat_vectors, philox4x64 10: counter, key, answer.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0), (0, 0),
        "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    ),
    (
        (ONES, ONES, ONES, ONES), (ONES, ONES),
        "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, answer):
    wanted = [int(word, 16) for word in answer.split()]
    assert philox4x64_10(counter, key) == wanted
    # numpy raises the counter before it makes a block, so it starts one below.
    below = (sum(c << (64 * i) for i, c in enumerate(counter)) - 1) % 2**256
    start = np.array([(below >> (64 * i)) & ONES for i in range(4)], dtype=np.uint64)
    numpy_words = np.random.Philox(counter=start, key=np.array(key, dtype=np.uint64)).random_raw(4)
    assert numpy_words.tolist() == wanted


@pytest.mark.parametrize(("seed", "tensor_index", "first", "count"), STREAMS)
def test_words_follow_the_definition(seed, tensor_index, first, count):
    words = sign_words(seed, tensor_index, first, count)
    assert words.dtype == np.uint64 and len(words) == count
    for n in {0, 1, 2, 3, 4, count // 2, count - 1} & set(range(count)):
        assert int(words[n]) == word_by_definition(seed, tensor_index, first + n)


def test_signs_follow_the_definition():
    seed, tensor_index, num_weights = 99, 5, 1000
    signs = direction(seed, tensor_index, num_weights)
    for j in range(num_weights):
        bit = word_by_definition(seed, tensor_index, j // 64) >> (j % 64) & 1
        assert signs[j] == (-1.0 if bit else 1.0)


def test_rounding_has_a_stream_of_its_own():
    for seed, tensor_index in ((0, 0), (2024, 3), (ONES, 2**33)):
        wanted = word_by_definition(seed, tensor_index, 0, domain=b"rounding")
        assert rounding_word(seed, tensor_index) == wanted
        assert wanted != int(sign_words(seed, tensor_index, 0, 1)[0])


def stream_row(seed, tensor_index, first, count):
    words = sign_words(seed, tensor_index, first, count)
    as_bytes = sign_bytes(seed, tensor_index, first, count).tobytes()
    return {
        "direction_seed": seed,
        "tensor_index": tensor_index,
        "first_word_index": first,
        "num_words": count,
        "first_word": f"{int(words[0]):016x}",
        "last_word": f"{int(words[-1]):016x}",
        "sha256_little_endian": hashlib.sha256(as_bytes).hexdigest(),
        "rounding_word": f"{rounding_word(seed, tensor_index):016x}",
    }


def load_table():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    known = (table["format"], table["format_version"]) == ("pairzero-edge-protocol", FORMAT_VERSION)
    assert known, f"{TABLE.name}: unknown format; regenerate it as said in this module."
    return table


def test_stored_directions_are_made_again():
    table = load_table()
    assert table["direction_generator"] == GENERATOR
    assert [tuple(row[name] for name in list(row)[:4]) for row in table["streams"]] == STREAMS
    for row, stream in zip(table["streams"], STREAMS, strict=True):
        assert stream_row(*stream) == row, f"another direction than {TABLE.name}: see this module."


def test_stored_direction_seeds_are_derived_again():
    for master_seed, round_index, wanted in load_table()["derived_seeds"]:
        assert derive_direction_seed(master_seed, round_index) == int(wanted, 16)


def test_stored_seeds_of_a_round_are_derived_again():
    wanted = [int(seed, 16) for seed in load_table()["seeds_of_a_round"]]
    assert list(direction_seeds(ONES, 4)) == wanted
    assert wanted[0] == ONES  # a round of one direction is what it was
    assert len(set(wanted)) == 4
    assert direction_seeds(ONES, 2) == tuple(wanted[:2])


@pytest.mark.parametrize("kind", MESSAGES)
def test_stored_messages_are_encoded_and_decoded_again(kind):
    table = load_table()
    assert table["protocol_version"] == PROTOCOL_VERSION
    stored = bytes.fromhex(table["messages"][kind])
    assert wire.encode(MESSAGES[kind]) == stored, f"other bytes than {TABLE.name}: see this module."
    assert wire.decode(stored) == MESSAGES[kind]


def main(date):
    table = {
        "format": "pairzero-edge-protocol",
        "format_version": FORMAT_VERSION,
        "generator": "tests/golden/test_edge_protocol.py",
        "date": date,
        "versions": {"numpy": np.__version__, "python": platform.python_version()},
        "made_on": platform.machine(),
        "tolerance": 0,
        "tolerance_reason": "bits: integers only, the same on every processor",
        "direction_generator": GENERATOR,
        "protocol_version": PROTOCOL_VERSION,
        "streams": [stream_row(*stream) for stream in STREAMS],
        "derived_seeds": [
            [seed, index, f"{derive_direction_seed(seed, index):016x}"]
            for seed, index in ((0, 0), (0, 1), (2024, 0), (2024, 7999))
        ],
        "seeds_of_a_round": [f"{seed:016x}" for seed in direction_seeds(ONES, 4)],
        "messages": {kind: wire.encode(message).hex() for kind, message in MESSAGES.items()},
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
