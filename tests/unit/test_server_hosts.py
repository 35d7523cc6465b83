"""Who is on the list of a run, and what is heard of the air that the server plays."""

import contextlib

import msgspec
import numpy as np
import pytest

from edge_runtime.control.channel import ControlChannel
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining import messages
from edge_runtime.joining.messages import (
    Agreed,
    Hello,
    Knock,
    NumbersSent,
    Refused,
    RunTerms,
    SignalSent,
    SilenceSent,
    Start,
    here_subject,
    knock_subject,
)
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import WireError
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.rounds import PROTOCOL_VERSION
from edge_runtime.task_spec import load_task
from edge_runtime.uplink import ScalarBox
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from server.config.files import load_config
from server.errors import HostsError
from server.hosts.broker import Broker
from server.hosts.played_air import PlayedAirServer
from server.hosts.roster import Roster
from server.run.round_loop import example_plan
from tests.support.federation import until

RUN = "run-1"
TERMS = RunTerms(
    run_id=RUN, bundle_digest="d", task=load_task("snips")[0], max_tokens=24, trainable=("*",),
    example=example_plan(load_config("snips", {"optimizer.batch_size": 8}), RUN), rounds=3,
    is_private=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def broker():
    with Broker() as broker:
        yield broker


@pytest.fixture
def links(broker):
    """links() -> NatsLink, closed at the end."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(contextlib.closing(NatsLink(broker.url, "test")))


@pytest.fixture
def roster(links):
    with contextlib.closing(Roster(links(), TERMS, 4)) as roster:
        yield roster


@pytest.fixture
def says(links):
    """says(subject, message) -> the answer."""
    link = links()

    def ask(subject, message):
        data = message if isinstance(message, bytes) else messages.encode(message)
        return messages.decode(link.request(subject, data, 20.0))

    return ask


def member(key, num_records=8):
    return Member(num_records, key, "name")


def hello(says, host, *names, **changes):
    members = {n: member(f"key-{n}") for n in names}
    values = {
        "host": host,
        "run_id": RUN,
        "members": members,
        "instance": host,
        "where": f"{host}.example, process 1",
        "challenge": f"of-{host}",
    }
    return says(f"pz.{RUN}.hello.{host}", Hello(**{**values, **changes}))


def live(link, host, instance=None):
    """A process of a host that is there, as long as its link is."""
    link.subscribe(here_subject(RUN, host, instance or host), lambda *message: None)


def test_an_index_follows_from_the_name_and_not_from_who_came_first(roster, says):
    assert says(knock_subject("late"), Knock("late")) == TERMS
    assert hello(says, "late", "3", "1") == Agreed()
    with pytest.raises(HostsError, match=r"2 of 4 devices have come in 0\.01 s: late \(2\)"):
        roster.wait_for_all(0.01)
    assert hello(says, "early", "0", "2") == Agreed()
    roster.wait_for_all(20.0)
    assert roster.hosts == {"early": (0, 2), "late": (1, 3)}
    assert [m.commitment for m in roster.members] == ["key-0", "key-1", "key-2", "key-3"]


def test_who_does_not_fit_is_told_why_and_is_not_on_the_list(roster, says, links):
    assert hello(says, "a", "a") == Agreed()
    live(links(), "a")
    for answer, words in (
        (says(knock_subject("a"), Knock("a")), "with 1 devices (from a.example, process 1)"),
        (hello(says, "a", "b", instance="x"), "Two hosts need two names"),
        (hello(says, "b", "a"), "there is a device 'a' already"),
        (hello(says, "b"), "a host without devices"),
        (hello(says, "b", "b", run_id="another"), "this is run run-1"),
        (says(knock_subject("b"), Knock("c")), "b says that it is c"),
        (hello(says, "b", "b", "c", "d", "e"), r"the run has 4 devices, and 1 are on the list: a"),
        (hello(says, "b", members={"b": member("k", 7)}), "'b' has 7 records, optimizer.batch_s"),
        (hello(says, "b", members={"b": member("key-a")}), "two devices have the same key"),
    ):
        assert isinstance(answer, Refused)
        assert words in answer.reason
    assert roster.hosts == {"a": (0,)}
    assert hello(says, "b", "b", "c", "d") == Agreed()
    assert (
        "the run has 4 devices, and 4 are on the list"
        in says(knock_subject("c"), Knock("c")).reason
    )


def test_another_version_is_told_both(roster, links):
    other = bytearray(messages.encode(Knock("a")))
    other[4:6] = (1).to_bytes(2, "big")
    answer = messages.decode(links().request(knock_subject("a"), bytes(other), 20.0))
    assert f"protocol version 1, this side speaks {PROTOCOL_VERSION}" in answer.reason


def test_what_is_no_message_does_nothing(roster, says, links):
    link = links()
    for data in (b"", b"garbage", wire.pack(b"\xc1"), messages.encode(Agreed())):
        link.publish(knock_subject("a"), data)
        link.publish(f"pz.{RUN}.hello.a", data)
    assert hello(says, "a", "a") == Agreed()
    assert roster.hosts == {"a": (0,)}


def test_a_host_that_cannot_start_or_is_gone_is_named(roster, says, links):
    for name in "abcd":
        assert hello(says, name, name) == Agreed()
    with pytest.raises(HostsError, match="a is not there any more"):
        roster.start({})
    heard = []
    for name in "abcd":
        link = links()
        answer = Refused("no room") if name == "c" else Agreed()

        def reply_later(subject, data, reply, answer=answer):
            import threading

            heard.append(messages.decode(data))
            threading.Thread(target=reply, args=(messages.encode(answer),)).start()

        link.subscribe(f"pz.{RUN}.start.{name}", reply_later)
    with pytest.raises(HostsError, match="c cannot start: no room"):
        roster.start({"b": 7})
    assert Start(RUN, {"b": 1}, {"b": 7}, "of-b", -1, -1) in heard
    assert Start(RUN, {"a": 0}, {}, "of-a", -1, -1) in heard


def begin(roster, says, links):
    """A run of four hosts, that all are there."""
    there = {}
    for name in "abcd":
        assert hello(says, name, name) == Agreed()
        there[name] = links()
        live(there[name], name)
    roster._has_begun = True
    return there


def test_a_process_may_say_hello_again_with_a_challenge_of_now(roster, says, links):
    assert hello(says, "a", "a") == Agreed()
    live(links(), "a")
    assert hello(says, "a", "a", challenge="newer") == Agreed()
    assert roster.challenge_of("a") == "newer"
    assert roster.hosts == {"a": (0,)}


def test_who_is_gone_before_the_run_may_come_anew_with_other_keys(roster, says, links):
    assert hello(says, "a", "a") == Agreed()
    there = links()
    live(there, "a")
    assert "on the list already" in hello(says, "a", "a", instance="b").reason
    leave(there, "a", says)
    assert says(knock_subject("a"), Knock("a")) == TERMS
    fresh = {"a": member("fresh"), "b": member("another")}
    assert hello(says, "a", members=fresh, instance="b") == Agreed()
    assert roster.members == (member("fresh"), member("another"))


def leave(link, name, says):
    """A host goes, and the broker knows."""
    link.close()
    until(lambda: not isinstance(says(knock_subject(name), Knock(name)), Refused))


def test_once_it_has_begun_who_went_may_come_back_and_nobody_else_comes(roster, says, links):
    there = begin(roster, says, links)
    assert "'b' is on the list already" in says(knock_subject("b"), Knock("b")).reason
    assert (
        "has begun with a (1), b (1), c (1), d (1)" in says(knock_subject("e"), Knock("e")).reason
    )
    assert "has begun" in hello(says, "e", "e").reason
    leave(there["b"], "b", says)
    assert says(knock_subject("b"), Knock("b")) == TERMS
    assert "began with devices b, and comes back with b, x" in hello(says, "b", "b", "x").reason
    assert "comes back with none" in hello(says, "b").reason
    assert roster.came_back == ()
    # Nothing is promised: who it is says its name.
    assert hello(says, "b", members={"b": member("another")}, instance="again") == Agreed()
    assert roster.came_back == ("b",)
    # It waits until it has been started, or is not there to be.
    with pytest.raises(HostsError, match="b is not there any more"):
        roster.start({}, {"b": "x"})
    assert roster.came_back == ()


def test_where_something_is_promised_it_needs_the_key_and_the_data_that_it_had(links, says):
    terms = msgspec.structs.replace(TERMS, is_private=True)
    with contextlib.closing(Roster(links(), terms, 4)) as roster:
        there = begin(roster, says, links)
        leave(there["b"], "b", says)
        for changed, words in (
            (member("another"), "device 'b' comes back with another key"),
            (Member(8, "key-b", "other data"), "device 'b' comes back with another data"),
            (Member(9, "key-b", "name"), "device 'b' comes back with another data"),
        ):
            assert words in hello(says, "b", members={"b": changed}, instance="x").reason
        assert hello(says, "b", "b", instance="again") == Agreed()


def test_a_server_that_goes_on_finds_hosts_that_lived_on_and_those_that_come(links, says):
    listed = {name: {name: member(f"key-{name}")} for name in "ab"}
    with contextlib.closing(Roster(links(), TERMS, 2, listed=listed)) as roster:
        assert roster.here == ()
        live(links(), "a", "any")
        with pytest.raises(HostsError, match=r"1 of 2 devices have come in 0 s: a \(1\)"):
            roster.wait_for_all(0.0)
        roster.wait_for_all(0.0, enough=1)
        assert "on the list already" in hello(says, "a", "a", instance="x").reason
        assert hello(says, "b", "b") == Agreed()
        roster.wait_for_all(20.0)
        assert roster.hosts == {"a": (0,), "b": (1,)}


def test_a_name_that_cannot_be_part_of_an_address_is_refused(roster, links):
    good = messages.encode(Hello("good", RUN, {"good": member("k")}, "good", "here", "good"))
    for bad in (good.replace(b"good", b"a.>d"), good.replace(b"good", b"a  d")):
        framed = wire.pack(bad[10:-16])
        answer = messages.decode(links().request(f"pz.{RUN}.hello.good", framed, 20.0))
        assert "wanted 1 to 64 letters" in answer.reason
    for where in ("x" * 301, "two\nlines"):
        with pytest.raises(WireError, match="wanted a computer's name"):
            Hello("good", RUN, {}, "good", where, "good")


# ---------------------------------------------------------------- the air that the server plays


class Asking(ControlChannel):
    """Waits for one order, for ever."""

    asking = (3, 9)

    def __init__(self):
        super().__init__(RUN, {"a": (0,), "b": (1, 2)})

    def send(self, data, hosts):
        pass

    def receive(self, timeout_s):
        return None

    def close(self):
        pass


def not_finite(message):
    """As bytes: nobody can make the message."""
    finite, infinite = (msgspec.msgpack.encode(x) for x in (2.0, float("inf")))
    return wire.pack(msgspec.msgpack.encode(message).replace(finite, infinite))


def test_numbers_are_heard_during_their_order_from_their_own_host_and_else_refused(links, says):
    box, control = ScalarBox(), Asking()
    air = PlayedAirServer(links(), RUN, control, {"a": (0,), "b": (1, 2)}, box=box, num_numbers=2)
    with contextlib.closing(air):
        subject = f"pz.{RUN}.air.b"
        for message, words in (
            (NumbersSent(3, 8, 1, (1.0,)), "too late"),
            (NumbersSent(2, 9, 1, (1.0,)), "too late"),
            (NumbersSent(3, 9, 0, (1.0,)), "device 0 is none of b's"),
            (NumbersSent(3, 9, 1, (1.0,)), "1 numbers, wanted 2"),
            (not_finite(NumbersSent(3, 9, 1, (1.0, 2.0))), "one is not finite"),
            (Knock("b"), "wanted what a device sends"),
            (b"garbage", "message"),
        ):
            assert words in says(subject, message).reason
        assert box.take_sums() == ()
        assert says(subject, NumbersSent(3, 9, 1, (1.0, 2.0))) == Agreed()
        assert says(f"pz.{RUN}.air.a", NumbersSent(3, 9, 0, (0.5, -2.0))) == Agreed()
        assert box.take_sums() == (1.5, 0.0)
        control.asking = None
        assert "too late" in says(subject, NumbersSent(3, 9, 1, (1.0, 2.0))).reason
        assert box.take_sums() == ()


@pytest.fixture
def played(links):
    """Three radios on a medium without noise, and what plays them."""
    medium = SoftwareMedium(
        num_devices=3, sample_rate_hz=1e6, noise_power=0.0, noise_rng=np.random.default_rng(0)
    )
    medium.set_gains(np.ones(3))
    radios = [LoopbackTransceiver(medium, k) for k in range(3)]
    air = PlayedAirServer(
        links(), RUN, Asking(), {"a": (0,), "b": (1, 2)}, num_numbers=2, radios=radios
    )
    with contextlib.closing(air):
        yield medium


def test_samples_are_played_at_their_position_exactly(played, says):
    exact = np.array([0.1 + 0.2j, 1 / 3], dtype="<c16")
    subject = f"pz.{RUN}.air.b"
    sent = SignalSent(3, 9, 2, exact.tobytes(), is_exact=True, start_sample=5)
    assert says(subject, sent) == Agreed()
    assert says(f"pz.{RUN}.air.a", SignalSent(3, 9, 0, bytes(80), start_sample=5)) == Agreed()
    assert "overlaps" in says(subject, sent).reason
    assert played.capture(5, 2) == pytest.approx(exact, rel=1e-6)
    for spoilt, words in (
        (msgspec.structs.replace(sent, samples=b""), "RadioConfigurationError"),
        (msgspec.structs.replace(sent, samples=b"\xff" * 32), "RadioConfigurationError"),
        (msgspec.structs.replace(sent, start_sample=-1), "RadioConfigurationError"),
        (msgspec.structs.replace(sent, samples=bytes(24)), "24 bytes, which are no whole samples"),
        (msgspec.structs.replace(sent, samples=(2.0 * np.ones(4, "<c16")).tobytes()), "Saturation"),
        (msgspec.structs.replace(sent, sequence=8), "too late"),
        (msgspec.structs.replace(sent, device_index=0), "none of b's"),
    ):
        assert words in says(subject, spoilt).reason


def test_a_burst_in_pieces_is_held_when_all_are_there_in_their_order(played, says):
    samples = np.exp(2j * np.pi * np.arange(64) / 8).astype("<c8")
    halves = [samples[:32].tobytes(), samples[32:].tobytes()]

    def piece(number, num_pieces=2, **changes):
        values = {"epoch": 3, "sequence": 9, "device_index": 1, "samples": halves[number % 2]}
        return SignalSent(**{**values, **changes}, piece=number, num_pieces=num_pieces)

    subject = f"pz.{RUN}.air.b"
    assert "pieces before are missing" in says(subject, piece(1)).reason
    assert says(subject, piece(0)) == Agreed()
    assert not played.listen(64).any()
    assert "pieces before are missing" in says(subject, piece(1, device_index=2)).reason
    assert says(subject, piece(1)) == Agreed()
    assert np.abs(played.listen(64)) == pytest.approx(np.ones(64), rel=1e-5)
    for number, num_pieces in ((2, 2), (-1, 2), (0, 65)):
        assert "piece" in says(subject, piece(number, num_pieces)).reason
    assert says(subject, SilenceSent(1)) == Agreed()
    assert not played.listen(64).any()
    assert "none of b's" in says(subject, SilenceSent(0)).reason


def test_numbers_and_samples_need_the_air_that_is_played(played, links, says):
    assert "this air has radios" in says(f"pz.{RUN}.air.b", NumbersSent(3, 9, 1, (1.0,))).reason
    ideal = PlayedAirServer(links(), "ideal", Asking(), {"b": (1,)}, num_numbers=2, box=ScalarBox())
    with contextlib.closing(ideal):
        for message in (SignalSent(3, 9, 1, bytes(8), start_sample=0), SilenceSent(1)):
            assert "this air has no radios" in says("pz.ideal.air.b", message).reason


def test_an_answer_is_agreement_refusal_or_an_error():
    assert messages.refusal_of(Agreed()) == ""
    assert messages.refusal_of(Refused("no")) == "no"
    with pytest.raises(WireError, match="got Knock, wanted an answer"):
        messages.refusal_of(Knock("a"))
