"""A virtual Pluto among clients that are broken, hostile, or gone; it must go on serving others."""

import io
import math
import random
import socket
import threading
import time

import numpy as np
import pytest

from radio.errors import RadioUnavailableError
from radio.virtual_pluto.iiod import BufferOwners, Session
from radio.virtual_pluto.server import MAX_CONNECTIONS, Bench, VirtualPlutoServer

CAPTURE = b"OPEN iio:device3 16 00000003\r\nREADBUF iio:device3 64\r\nCLOSE iio:device3\r\n"
CONVERSATIONS = (
    b"VERSION\r\nPRINT\r\nTIMEOUT 2500\r\nEXIT\r\n",
    b"READ iio:device0 OUTPUT TX_LO frequency\r\nREAD iio:device0 INPUT voltage0 hardwaregain\r\n",
    b"WRITE iio:device0 OUTPUT TX_LO frequency 9\r\n915000000READ iio:device0 ensm_mode\r\n",
    b"WRITE iio:device0 INPUT voltage0 gain_control_mode 7\r\nmanual\0TIMEOUT 1\r\n",
    b"SET iio:device3 BUFFERS_COUNT 2\r\nREAD iio:device0 INPUT temp0 input\r\n",
    CAPTURE,
    b"OPEN iio:device2 4 00000003 CYCLIC\r\nWRITEBUF iio:device2 16\r\n0123456789abcdef",
    b"READ iio:device3 DEBUG direct_reg_access\r\nBINARY\r\nZPRINT\r\nGETTRIG iio:device3\r\n",
)
WORDS = (
    b"OPEN", b"READ", b"WRITE", b"READBUF", b"iio:device2", b"iio:device3", b"DEBUG", b"CYCLIC",
    b"-1", b"0", b"17", b"4294967296", b"00000003", b"\r\n", b" ", b"\0", b"\xff" * 9, b"%n%s",
)  # fmt: skip
NUM_INPUTS = 10_000


def spoil(conversation, rng):
    data = bytearray(conversation)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                del data[position:]
            case 1:
                data[position : position + rng.randint(1, 20)] = b""
            case 2:
                data[position:position] = rng.choice(WORDS)
            case 3:
                data[position:position] = rng.randbytes(rng.randint(1, 30))
            case 4:
                data[position : position + 1] = bytes([rng.randrange(256)])
            case 5:
                data += rng.choice(CONVERSATIONS)
    return bytes(data)


def test_ten_thousand_spoilt_conversations_harm_nobody():
    rng = random.Random(20260401)
    plutos = Bench(num_radios=2, is_stepped=True).build()
    owners = BufferOwners()
    num_ended_early = 0
    for index in range(NUM_INPUTS):
        answer = io.BytesIO()
        reader = io.BytesIO(spoil(rng.choice(CONVERSATIONS), rng))
        Session(plutos[1], owners, reader, answer).serve()
        num_ended_early += answer.getvalue().endswith(b"-22\n")
        assert not owners._owners
        if index % 500 == 0:
            whole = io.BytesIO()
            Session(plutos[1], owners, io.BytesIO(CAPTURE), whole).serve()
            assert whole.getvalue().startswith(b"0\n64\n00000003\n")
            assert whole.getvalue().endswith(b"0\n")
    assert num_ended_early > NUM_INPUTS / 10  # the spoiling spoils


@pytest.fixture
def server():
    with VirtualPlutoServer(Bench(num_radios=2, is_stepped=True).build(), base_port=0) as running:
        yield running


def connect(server, index=0):
    host, port = server.uris[index].removeprefix("ip:").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def wait_until(is_so, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.005)


def is_answering(server, index=0):
    with connect(server, index) as client:
        client.sendall(b"VERSION\r\n")
        return client.recv(100) == b"0.25.virtual\n"


def test_spoilt_conversations_over_the_network(server):
    rng = random.Random(7)
    for _ in range(300):
        with connect(server) as client:
            client.sendall(spoil(rng.choice(CONVERSATIONS), rng))
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
    assert is_answering(server)
    wait_until(lambda: server.num_connections == 0)


def test_a_hundred_connections_leave_nothing_behind(server):
    for index in range(100):
        client = connect(server, index % 2)
        client.sendall(CONVERSATIONS[index % len(CONVERSATIONS)][: 10 + index])
        client.close()
    wait_until(lambda: server.num_connections == 0)
    wait_until(lambda: not [t for t in threading.enumerate() if "process_request" in t.name])
    assert is_answering(server)


def test_a_client_that_says_nothing_keeps_nobody_waiting(server):
    with connect(server) as silent:
        silent.sendall(b"WRITE iio:device0 ensm_mode 3\r\n")
        assert is_answering(server)
        assert is_answering(server, 1)


def test_too_many_connections_are_closed_and_the_others_stay(server):
    clients = [connect(server) for _ in range(MAX_CONNECTIONS)]
    wait_until(lambda: server.num_connections == MAX_CONNECTIONS)
    with connect(server) as one_too_many:
        assert one_too_many.recv(1) == b""
    clients[0].sendall(b"VERSION\r\n")
    assert clients[0].recv(100) == b"0.25.virtual\n"
    for client in clients:
        client.close()
    wait_until(lambda: server.num_connections == 0)
    assert is_answering(server)


def test_an_unplugged_radio_is_gone_and_the_other_is_not(server):
    with connect(server, 1) as client:
        client.sendall(b"VERSION\r\n")
        assert client.recv(100)
        server.unplug(1)
        assert client.recv(100) == b""
    with pytest.raises(OSError):
        connect(server, 1)
    assert is_answering(server, 0)


def test_a_port_that_is_taken_is_a_named_error(server):
    port = int(server.uris[0].rsplit(":", 1)[1])
    plutos = Bench(num_radios=2, is_stepped=True).build()
    with pytest.raises(RadioUnavailableError, match=rf"cannot listen at 127.0.0.1:{port}"):
        VirtualPlutoServer(plutos, base_port=port)
    with pytest.raises(RadioUnavailableError, match="cannot listen"):
        VirtualPlutoServer(plutos, base_port=65535)


def test_clients_at_once_do_not_mix_their_samples():
    plutos = Bench(num_radios=3, is_stepped=True, noise_dbfs=-math.inf).build()
    with VirtualPlutoServer(plutos, base_port=0) as server:
        answers = {}

        def ask(index):
            with connect(server, index) as client, client.makefile("rb") as reader:
                for _ in range(20):
                    client.sendall(b"OPEN iio:device3 64 00000003\r\nREADBUF iio:device3 256\r\n")
                    assert reader.readline() == b"0\n"
                    assert reader.readline() == b"256\n"
                    assert reader.readline() == b"00000003\n"
                    answers.setdefault(index, []).append(reader.read(256))
                    client.sendall(b"CLOSE iio:device3\r\n")
                    assert reader.readline() == b"0\n"

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {len(blocks) for blocks in answers.values()} == {20}
    assert not np.frombuffer(b"".join(answers[0]), "<i2").any()
