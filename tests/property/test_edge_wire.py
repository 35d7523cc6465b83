"""Bytes from outside are a message of this protocol, or a WireError; never anything else."""

import hashlib
import struct

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.errors import WireError
from edge_runtime.protocol.orders import Answer, Order, Refusal
from edge_runtime.protocol.rounds import (
    MAX_ABS_STEP_INTEGER,
    MAX_DIRECTIONS,
    PROTOCOL_VERSION,
    Access,
    BandLevels,
    Difference,
    DigestReport,
    DigestRequest,
    NumbersHold,
    PacketHold,
    PacketLevels,
    Participation,
    PilotHold,
    RoundPlan,
    RoundReport,
    RoundResult,
    RunEnded,
    SilenceOrder,
    SoundingOrder,
    TransmitOrder,
)
from edge_runtime.protocol.wire import MAX_BODY_BYTES, Message, decode, encode

KINDS = (Order, Answer)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rounds = st.integers(0, 2**40)
samples = st.integers(-(2**40), 2**40)
seeds = st.integers(0, 2**64 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)


shares = st.floats(0.0, 1.0)
pairs = st.lists(st.tuples(shares, shares), min_size=1, max_size=4).filter(
    lambda chosen: any(map(any, chosen))
)
levels = st.none() | st.builds(
    BandLevels, pairs.map(lambda chosen: tuple(one for pair in chosen for one in pair)), positive
)
packets = st.none() | st.builds(PacketLevels, st.floats(0.0, 1.0, exclude_min=True), positive)


@st.composite
def plans(draw):
    devices = sorted(draw(st.sets(st.integers(0, 2**31), max_size=6)))
    return RoundPlan(
        run_id=draw(names),
        round_index=draw(rounds),
        direction_seed=draw(seeds),
        direction_generator=draw(st.one_of(st.just(GENERATOR), names)),
        perturbation_scale=2.0 ** draw(st.integers(-60, 20)),
        clip=draw(st.one_of(positive, st.just(float("inf")))),
        batch_size=draw(st.integers(1, 2**40)),
        access=draw(st.sampled_from(Access)),
        frame_start_sample=draw(samples),
        orders=tuple(
            TransmitOrder(
                k,
                draw(finite),
                draw(finite),
                draw(st.floats(0.0, 1e9)),
                draw(levels),
                draw(packets),
            )
            for k in devices
        ),
        num_directions=draw(st.integers(1, MAX_DIRECTIONS)),
        difference=draw(st.sampled_from(Difference)),
    )


orders = st.one_of(
    plans(),
    st.builds(
        RoundResult, names, rounds, seeds,
        st.lists(
            st.integers(-MAX_ABS_STEP_INTEGER, MAX_ABS_STEP_INTEGER), min_size=1, max_size=9
        ).map(tuple),
    ),
    st.builds(SoundingOrder, names, rounds, positive, samples),
    st.builds(PilotHold, names, rounds, rounds, st.floats(0.0, 1.0, exclude_min=True)),
    st.builds(NumbersHold, names, rounds),
    st.builds(PacketHold, names, rounds, rounds),
    st.builds(SilenceOrder, names, rounds),
    st.builds(RunEnded, names, rounds),
    st.builds(DigestRequest, names, rounds),
)  # fmt: skip
reports = st.one_of(
    st.builds(
        RoundReport, names, rounds, rounds, st.sampled_from(Participation), names,
        scale=st.floats(0.0, 1.0, exclude_min=True),
    ),
    st.builds(DigestReport, names, rounds, names, names),
)  # fmt: skip
messages = st.one_of(
    st.builds(Order, rounds, rounds, orders),
    st.builds(
        Answer, names, rounds, rounds, names,
        st.lists(reports, max_size=3).map(tuple),
        st.none() | st.builds(Refusal, names, names),
    ),
)  # fmt: skip

ONE = Order(1, 9, RoundResult("run", 3, 2**64 - 1, (-12345,)))


def frame(body, *, magic=b"pAZ0", version=PROTOCOL_VERSION, length=None):
    """A frame whose digest is right, whatever its body: what a hostile sender can make."""
    framed = struct.pack(">4sHI", magic, version, len(body) if length is None else length) + body
    return framed + hashlib.blake2b(framed, digest_size=16).digest()


def assert_message_or_wire_error(data):
    try:
        message = decode(data)
    except WireError:
        return
    assert isinstance(message, KINDS)
    assert decode(encode(message)) == message


@given(messages)
def test_decode_inverts_encode(message):
    decoded = decode(encode(message))
    assert decoded == message
    assert type(decoded) is type(message)
    assert encode(decoded) == encode(message)


@given(messages, st.data())
def test_any_byte_flipped_is_a_wire_error(message, data):
    damaged = bytearray(encode(message))
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        decode(bytes(damaged))


@given(messages, st.data())
def test_any_cut_is_a_wire_error(message, data):
    whole = encode(message)
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    if last > first:
        with pytest.raises(WireError):
            decode(whole[:first] + whole[last:])


@given(messages, st.binary(min_size=1, max_size=80), st.booleans())
def test_anything_appended_or_prepended_is_a_wire_error(message, more, append):
    whole = encode(message)
    with pytest.raises(WireError):
        decode(whole + more if append else more + whole)


@given(messages, messages)
def test_two_messages_in_one_are_a_wire_error(first, second):
    with pytest.raises(WireError):
        decode(encode(first) + encode(second))


def test_every_flip_of_every_byte_and_every_cut_of_one_message_is_seen():
    whole = encode(ONE)
    for position in range(len(whole)):
        for flip in range(1, 256):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            with pytest.raises(WireError):
                decode(bytes(damaged))
        with pytest.raises(WireError):
            decode(whole[:position])


@given(st.binary(max_size=300))
def test_noise_is_a_wire_error(data):
    with pytest.raises(WireError):
        decode(data)


_ORDER = b"\x84\xa4type\xa5order\xa5epoch\x00\xa8sequence\x00\xa7message"
BAD_UTF8 = _ORDER + b"\x83\xa4type\xaedigest_request\xa6run_id\xa2\xff\xfe\xabround_index\x01"
BAD_UTF8_KEY = _ORDER + b"\x83\xa4type\xaedigest_request\xa6run_i\xff\xa2aa\xabround_index\x01"


@given(st.binary(max_size=300))
@example(b"")
@example(BAD_UTF8)
@example(BAD_UTF8_KEY)
def test_any_body_under_a_right_digest_is_a_message_or_a_wire_error(body):
    assert_message_or_wire_error(frame(body))


def test_a_body_nested_without_end_is_a_wire_error():
    # The tag that names the kind comes last, so everything before it has to be skipped.
    body = b"\x82\xa1a" + b"\x91" * 5000 + b"\x01\xa4type\xa5order"
    with pytest.raises(WireError):
        decode(frame(body))


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), names, st.binary()
)
branches = st.lists(leaves, max_size=3) | st.dictionaries(names, leaves, max_size=3)
deeper = st.lists(branches, max_size=2) | st.dictionaries(names, branches, max_size=2)
anything = leaves | branches | deeper


@given(messages, st.data())
def test_any_field_replaced_added_or_lost_is_a_message_or_a_wire_error(message, data):
    fields = msgspec.to_builtins(message)
    name = data.draw(st.one_of(st.sampled_from(sorted(fields)), names))
    if data.draw(st.booleans()):
        fields[name] = data.draw(anything)
    else:
        fields.pop(name, None)
    assert_message_or_wire_error(frame(msgspec.msgpack.encode(fields)))


def test_an_unknown_field_is_refused_by_name():
    fields = {**msgspec.to_builtins(ONE), "scalar": 0.5}
    with pytest.raises(WireError, match="scalar"):
        decode(frame(msgspec.msgpack.encode(fields)))


def test_a_record_that_cannot_be_meant_is_not_born_from_bytes_either():
    fields = msgspec.to_builtins(ONE)
    fields["message"]["step_integers"] = [MAX_ABS_STEP_INTEGER + 1]
    with pytest.raises(WireError, match="step_integers"):
        decode(frame(msgspec.msgpack.encode(fields)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": b"PAZ0"}, "not from pairzero"),
        (
            {"version": PROTOCOL_VERSION + 1},
            f"protocol version {PROTOCOL_VERSION + 1}, this side speaks {PROTOCOL_VERSION}",
        ),
        ({"version": 0}, "protocol version 0"),
        ({"length": 0}, "header says 0"),
        ({"length": 2**32 - 1}, "header says 4294967295"),
    ],
)
def test_a_wrong_header_under_a_right_digest_is_named(changes, words):
    with pytest.raises(WireError, match=words):
        decode(frame(msgspec.msgpack.encode(ONE), **changes))


def test_the_size_limit_holds_both_ways():
    def long(size):
        return Answer("run", 0, 0, "host", (DigestReport("run", 0, "h" * size, ""),))

    with pytest.raises(WireError, match="at most 1048576 may travel"):
        encode(long(MAX_BODY_BYTES))
    with pytest.raises(WireError, match="wanted 26 to 1 MiB"):
        decode(frame(b"\x00" * (MAX_BODY_BYTES + 1)))
    largest = long(MAX_BODY_BYTES - 200)
    assert decode(encode(largest)) == largest


def test_every_kind_of_message_is_covered_here():
    assert set(KINDS) == set(Message.__args__)
