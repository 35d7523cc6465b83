"""The conversation of one client with a virtual Pluto, byte by byte, without a network."""

import errno
import io
import math

import numpy as np
import pytest

from radio.virtual_pluto.iiod import BufferOwners, Session
from radio.virtual_pluto.server import Bench

PHY, DAC, ADC = "iio:device0", "iio:device2", "iio:device3"
REFUSED = b"-%d\n"


@pytest.fixture
def plutos():
    return Bench(num_radios=2, is_stepped=True, noise_dbfs=-math.inf).build()


def talk(pluto, request, owners=None, **options):
    """All that a client gets who sends ``request`` and leaves."""
    answer = io.BytesIO()
    Session(pluto, owners or BufferOwners(), io.BytesIO(request), answer, **options).serve()
    return answer.getvalue()


def test_a_session_answers_in_the_order_of_the_requests(plutos):
    answer = talk(
        plutos[0], b"\r\nVERSION\r\nTIMEOUT 2500\r\nGETTRIG iio:device3\r\nEXIT\r\nVERSION\r\n"
    )
    assert answer == b"0.25.virtual\n0\n-2\n"


def test_the_description_is_as_long_as_it_says(plutos):
    length, rest = talk(plutos[0], b"PRINT\r\n").split(b"\n", 1)
    assert len(rest) == int(length) + 1
    assert rest.endswith(b"</context>\n")
    assert rest.count(b"<device ") == 4
    assert b"<!DOCTYPE" in rest


def test_texts_carry_a_zero_byte_that_is_counted(plutos):
    assert talk(plutos[0], b"READ iio:device0 OUTPUT TX_LO powerdown\r\n") == b"2\n0\0\n"
    assert talk(plutos[0], b"READ ad9361-phy ensm_mode\r\n") == b"4\nfdd\0\n"
    assert talk(plutos[0], b"READ iio:device0 DEBUG loopback\r\n") == b"2\n0\0\n"
    assert talk(plutos[0], b"READ iio:device3 BUFFER data_available\r\n") == b"2\n0\0\n"


def test_a_written_text_is_read_back(plutos):
    write = b"WRITE iio:device0 OUTPUT voltage0 hardwaregain 6\r\n-20.00"
    assert talk(plutos[0], write + b"VERSION\r\n") == b"6\n0.25.virtual\n"
    assert b"-20.000000 dB" in talk(plutos[0], b"READ iio:device0 OUTPUT voltage0 hardwaregain\r\n")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"READ iio:device9 x", errno.ENODEV),
        (b"READ iio:device0 nothing", errno.ENOENT),
        (b"READ iio:device0 INPUT voltage7 rssi", errno.ENXIO),
        (b"READ iio:device0 OUTPUT temp0 input", errno.ENXIO),
        (b"READ iio:device0 a b c", errno.EINVAL),
        (b"WRITE iio:device0 OUTPUT TX_LO frequency 3\r\n100", errno.EINVAL),
        (b"WRITE iio:device0 nothing 2\r\nab", errno.ENOENT),
        (b"WRITE iio:device0 INPUT voltage0 rssi 1\r\n1", errno.EACCES),
        (b"SET iio:device0 BUFFERS_COUNT 4", errno.EINVAL),
        (b"OPEN iio:device0 16 00000003", errno.EINVAL),
        (b"OPEN iio:device3 16 3", errno.EINVAL),
        (b"OPEN iio:device3 16 00000003 CYCLIC", errno.EINVAL),
        (b"OPEN iio:device2 16 00000004", errno.EINVAL),
        (b"OPEN iio:device3 0 00000003", errno.ENOMEM),
        (b"OPEN iio:device3 999999999 00000003", errno.ENOMEM),
        (b"CLOSE iio:device3", errno.EBADF),
        (b"READBUF iio:device3 64", errno.EBADF),
        (b"WRITEBUF iio:device2 64", errno.EBADF),
        # What newer clients ask for first.
        (b"BINARY", errno.EINVAL),
        (b"ZPRINT", errno.EINVAL),
    ],
)  # fmt: skip
def test_a_refused_request_has_its_errno_and_the_session_goes_on(plutos, request_, code):
    answer = talk(plutos[0], request_ + b"\r\nVERSION\r\n")
    assert answer == REFUSED % code + b"0.25.virtual\n"


@pytest.mark.parametrize(
    "malformed",
    [
        b"version",
        b"\x00\xff\xfe",
        b"READ",
        b"READ  iio:device0  x",
        b"OPEN iio:device3 many 00000003",
        b"OPEN iio:device3 -1 00000003",
        b"OPEN iio:device3 16 00000003 CYCLIC CYCLIC",
        b"TIMEOUT",
        b"TIMEOUT 99999999999999999999",
        b"WRITE iio:device0 ensm_mode 99999999",
        b"SET iio:device3 COUNT 4",
        b"A" * 2000,
        "PRINT é".encode(),
    ],
)
def test_what_is_no_request_ends_the_connection_with_an_error(plutos, malformed):
    assert talk(plutos[0], malformed + b"\r\nVERSION\r\n") == REFUSED % errno.EINVAL


@pytest.mark.parametrize(
    "cut",
    [b"VERSI", b"WRITE iio:device0 OUTPUT TX_LO frequency 9\r\n9150", b"READ iio:device0 x"],
)
def test_half_a_request_changes_nothing(plutos, cut):
    before = talk(plutos[0], b"READ iio:device0 OUTPUT TX_LO frequency\r\n")
    assert talk(plutos[0], cut) == REFUSED % errno.EINVAL
    assert talk(plutos[0], b"READ iio:device0 OUTPUT TX_LO frequency\r\n") == before


class Gone(io.BytesIO):
    """A client that has left when it is answered."""

    def write(self, data):
        raise BrokenPipeError(errno.EPIPE, "gone")


@pytest.mark.parametrize("request_", [b"VERSION\r\n", b"no request\r\n"])
def test_a_client_that_is_gone_is_no_error_of_the_server(plutos, request_):
    owners = BufferOwners()
    opening = b"OPEN iio:device3 16 00000003\r\n"
    Session(plutos[0], owners, io.BytesIO(opening + request_), Gone()).serve()
    assert talk(plutos[0], opening, owners) == b"0\n"


def test_a_capture_comes_with_its_mask_and_in_pieces(plutos):
    count = 70_000  # more than one piece
    request = f"OPEN {ADC} {count} 00000003\r\nREADBUF {ADC} {4 * count}\r\nCLOSE {ADC}\r\n"
    answer = io.BytesIO(talk(plutos[0], request.encode()))
    assert answer.readline() == b"0\n"
    got, is_first = 0, True
    while got < 4 * count:
        size = int(answer.readline())
        if is_first:
            assert answer.readline() == b"00000003\n"
            is_first = False
        assert len(answer.read(size)) == size
        got += size
    assert answer.read() == b"0\n"


def test_one_part_of_the_samples_can_be_had_alone(plutos):
    answer = talk(plutos[0], b"OPEN iio:device3 8 00000002\r\nREADBUF iio:device3 16\r\n")
    assert answer == b"0\n16\n00000002\n" + bytes(16)


def test_a_capture_of_more_than_the_buffer_is_refused(plutos):
    answer = talk(plutos[0], b"OPEN iio:device3 8 00000003\r\nREADBUF iio:device3 36\r\n")
    assert answer == b"0\n" + REFUSED % errno.EINVAL


def burst(count=64):
    return np.full(2 * count, 8192, dtype="<i2").tobytes()


def send(count=64, options=b" CYCLIC"):
    opened = b"OPEN iio:device2 %d 00000003%s\r\n" % (count, options)
    return opened + b"WRITEBUF iio:device2 %d\r\n" % (4 * count) + burst(count)


def is_sounding(pluto):
    now_s = pluto.air.clock.now_s()
    return any(b.start_s <= now_s < b.end_s for b in pluto.radio.bursts)


def test_a_closed_buffer_is_silent(plutos):
    assert talk(plutos[1], send() + b"CLOSE iio:device2\r\n") == b"0\n0\n256\n0\n"
    assert not is_sounding(plutos[1])


def test_a_lost_client_leaves_its_burst_on_the_air_until_the_next_one_opens(plutos):
    owners = BufferOwners()
    talk(plutos[1], send(), owners)
    assert is_sounding(plutos[1])
    assert talk(plutos[1], b"OPEN iio:device2 64 00000003\r\n", owners) == b"0\n"
    assert not is_sounding(plutos[1])


def test_the_network_daemon_ends_a_lost_clients_burst(plutos):
    talk(plutos[1], send(), stops_when_lost=True)
    assert not is_sounding(plutos[1])


def test_a_stream_ends_with_its_client(plutos):
    owners = BufferOwners()
    talk(plutos[1], send(options=b""), owners)
    assert talk(plutos[1], send(options=b""), owners).startswith(b"0\n0\n")


def test_a_block_that_does_not_fit_is_refused_before_it_is_sent(plutos):
    for size in (0, 3, 260):
        request = b"OPEN iio:device2 64 00000003\r\nWRITEBUF iio:device2 %d\r\nVERSION\r\n" % size
        answer = talk(plutos[1], request)
        assert answer == b"0\n" + REFUSED % errno.EINVAL + b"0.25.virtual\n"
    assert not plutos[1].radio.bursts


def test_half_a_block_is_not_sent(plutos):
    answer = talk(plutos[1], send()[:-1])
    assert answer == b"0\n0\n" + REFUSED % errno.EINVAL
    assert not is_sounding(plutos[1])


def test_a_buffer_has_one_owner(plutos):
    owners = BufferOwners()
    first = Session(plutos[0], owners, io.BytesIO(), io.BytesIO())
    owners.take(plutos[0].adc, first)
    answer = talk(plutos[0], b"OPEN iio:device3 16 00000003\r\n", owners)
    assert answer == REFUSED % errno.EBUSY
    owners.give_back(plutos[0].adc)
    assert talk(plutos[0], b"OPEN iio:device3 16 00000003\r\n", owners) == b"0\n"
    twice = b"OPEN iio:device3 16 00000003\r\n" * 2
    assert talk(plutos[0], twice, owners) == b"0\n" + REFUSED % errno.EBUSY
