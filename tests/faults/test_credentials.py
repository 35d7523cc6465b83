"""A broker that lets in whom it knows, and lets nobody speak for another; what is said of it."""

import contextlib
import datetime
import threading
import time

import pytest

from edge_runtime.control.credentials import Credentials
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.control.over_nats import NatsChannel, NatsHost
from edge_runtime.control.step_log import StepLog, num_steps
from edge_runtime.protocol import wire
from edge_runtime.protocol.errors import LinkError
from edge_runtime.protocol.orders import Answer, Order
from edge_runtime.protocol.rounds import RoundResult, SilenceOrder
from server.commands.cli import main
from server.errors import HostsError
from server.hosts.broker import Broker
from server.hosts.credentials import write_credentials
from tests.support.federation import until
from tests.support.killable_broker import free_port

RUN = "run"
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secured") / "credentials"
    write_credentials(folder, ["pi1", "pi2"], ["127.0.0.1"], free_port(), NOW)
    with Broker(folder / "broker.conf"):
        yield folder


@pytest.fixture
def link_of(folder):
    """link_of(name) -> NatsLink with the name's own credentials."""
    with contextlib.ExitStack() as opened:

        def make(name):
            credentials = Credentials(folder / f"{name}.pairzero")
            link = NatsLink(None, name, credentials=credentials)
            return opened.enter_context(contextlib.closing(link))

        yield make


def port_of(folder):
    line = next(t for t in (folder / "broker.conf").read_text().splitlines() if "listen" in t)
    return int(line.rpartition(":")[2].strip('"'))


def changed(folder, who, tmp_path, replaced, mode=0o600):
    """A copy of a file with other text in it."""
    text = (folder / f"{who}.pairzero").read_text()
    for was, becomes in replaced:
        assert was in text
        text = text.replace(was, becomes)
    path = tmp_path / "changed.pairzero"
    path.touch(0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_who_is_known_asks_and_is_answered(link_of):
    server, host = link_of("server"), link_of("pi1")

    def later(subject, data, reply):
        threading.Thread(target=reply, args=(data[::-1],)).start()

    server.subscribe("pz.lobby.knock.*", later)
    assert host.request("pz.lobby.knock.pi1", b"abc", 20.0) == b"cba"
    host.subscribe(f"pz.{RUN}.start.pi1", later)
    assert server.request(f"pz.{RUN}.start.pi1", b"abc", 20.0) == b"cba"


@pytest.mark.parametrize(
    "subject",
    [
        f"pz.{RUN}.order", f"pz.{RUN}.order.pi1", f"pz.{RUN}.answer.pi2", f"pz.{RUN}.hello.pi2",
        f"pz.{RUN}.alive.pi2", f"pz.{RUN}.air.pi2", f"pz.{RUN}.log", "pz.lobby.knock.pi2",
        f"pz.{RUN}.start.pi2", "_INBOX.server.x", "_INBOX.pi2.x",
    ],
)  # fmt: skip
def test_nobody_speaks_for_another(link_of, subject):
    server, host, heard = link_of("server"), link_of("pi1"), []
    server.subscribe(subject, lambda *message: heard.append(message))
    with pytest.raises(LinkError, match="no permission"):
        host.request(subject, b"forged", 20.0)
    assert heard == []


@pytest.mark.parametrize(
    "subject", [f"pz.{RUN}.answer.*", f"pz.{RUN}.answer.pi2", "_INBOX.>", f"pz.{RUN}.air.pi2", ">"]
)
def test_nobody_hears_what_is_for_another(link_of, subject):
    server, host, heard = link_of("server"), link_of("pi1"), []
    with contextlib.suppress(LinkError):  # denied while it waits for the broker, or a moment later
        host.subscribe(subject, lambda *message: heard.append(message))
    told = subject.replace("*", "pi2").replace(">", "pi2.x")
    server.publish(told, b"secret")
    assert host.request(f"pz.{RUN}.server", b"?", 20.0) is None  # behind it
    assert heard == []


def test_an_answer_is_given_once_and_by_who_was_asked(link_of):
    server, host, replies = link_of("server"), link_of("pi1"), []
    host.subscribe(f"pz.{RUN}.start.pi1", lambda subject, data, reply: replies.append(reply))
    with pytest.raises(LinkError):
        server.request(f"pz.{RUN}.start.pi1", b"?", 0.3)
    (reply,) = replies
    reply(b"late, and allowed")
    reply(b"again")
    until(lambda: "permissions violation" in host._last_failure.lower())


def test_the_log_is_read_by_hosts_and_written_by_the_server_alone(link_of):
    server, host = link_of("server"), link_of("pi1")
    steps = [RoundResult(RUN, t, t, (t,)) for t in range(3)]
    log = StepLog(server, RUN, lambda first: steps[first:])
    try:
        assert num_steps(host, RUN) == 3
        with pytest.raises(LinkError, match="no permission"):
            host.on_disk(lambda disk: disk.delete_stream(f"pz_{RUN}"), 20.0)
        with pytest.raises(LinkError, match="no permission"):
            host.on_disk(lambda disk: disk.purge_stream(f"pz_{RUN}"), 20.0)
        with pytest.raises(LinkError, match="no permission"):
            host.on_disk(lambda disk: disk.publish(f"pz.{RUN}.log", b"forged"), 20.0)
        assert num_steps(host, RUN) == 3
    finally:
        log.remove()


def test_who_has_no_certificate_is_told_what_is_wanted(folder):
    with pytest.raises(LinkError, match="takes nobody without credentials"):
        NatsLink(f"nats://127.0.0.1:{port_of(folder)}", "pi1")


def test_a_strangers_files_are_refused_by_either_side(folder, tmp_path):
    write_credentials(tmp_path / "theirs", ["pi1"], ["127.0.0.1"], port_of(folder), NOW)
    stranger = tmp_path / "theirs" / "pi1.pairzero"
    with pytest.raises(LinkError, match="not of this file's authority"):
        NatsLink(None, "pi1", credentials=Credentials(stranger))
    # One who knows the authority, and has a certificate of another.
    ours, theirs = ((f / "authority.pem").read_text() for f in (folder, tmp_path / "theirs"))
    mixed = changed(tmp_path / "theirs", "pi1", tmp_path, [(theirs, ours)])
    with pytest.raises(LinkError, match="does not take this file's certificate"):
        NatsLink(None, "pi1", credentials=Credentials(mixed))


def test_a_certificate_of_the_authority_that_is_on_no_list_is_refused(tmp_path):
    folder = tmp_path / "c"
    write_credentials(folder, ["pi1", "pi2"], ["127.0.0.1"], free_port(), NOW)
    configuration = folder / "broker.conf"
    configuration.write_text(configuration.read_text().replace("pi2@pairzero", "pi3@pairzero"))
    with Broker(configuration):
        with pytest.raises(LinkError, match=r"does not know 'pi2'|does not take this file's"):
            NatsLink(None, "pi2", credentials=Credentials(folder / "pi2.pairzero"))


def test_another_address_than_the_certificates_is_named_with_what_mends_it(folder):
    elsewhere = (f"127.0.0.2:{port_of(folder)}",)
    with pytest.raises(LinkError, match=r"is not for 127\.0\.0\.2.*--address 127\.0\.0\.2"):
        NatsLink(None, "pi1", credentials=Credentials(folder / "pi1.pairzero", elsewhere))


@pytest.mark.parametrize("years", [-20, 4])
def test_a_date_that_is_wrong_is_said_with_this_machines(tmp_path, years):
    folder = tmp_path / "c"
    then = NOW + datetime.timedelta(days=365 * years)
    write_credentials(folder, ["pi1"], ["127.0.0.1"], free_port(), then)
    with Broker(folder / "broker.conf"):
        with pytest.raises(LinkError, match=rf"this machine's date is {NOW.year}.*timedatectl"):
            NatsLink(None, "pi1", credentials=Credentials(folder / "pi1.pairzero"))


def test_nobody_there_is_said_for_every_address_that_was_tried(tmp_path):
    folder, port = tmp_path / "c", free_port()
    write_credentials(folder, ["pi1"], ["127.0.0.1"], port, NOW)
    begun_s = time.monotonic()
    with pytest.raises(LinkError, match=rf"127\.0\.0\.1:{port}: nobody answers"):
        NatsLink(None, "pi1", credentials=Credentials(folder / "pi1.pairzero", (
            f"127.0.0.1:{port}", f"localhost:{port}", "no port", "[::1]:x")))  # fmt: skip
    assert time.monotonic() - begun_s < 60.0


def test_a_file_that_others_can_read_is_none_that_is_used(folder, tmp_path):
    with pytest.raises(LinkError, match="chmod 600"):
        Credentials(changed(folder, "pi1", tmp_path, [], mode=0o644))


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        (("format = 1", "format = 2"), "format 2, this pairzero reads 1"),
        (('name = "pi1"', 'name = "a.>"'), "name or addresses are none"),
        (("format = 1", "format = 1\nmore = 2"), "no credentials"),
        (("BEGIN PRIVATE KEY", "BEGIN NOTHING"), "certificates cannot be read"),
        (("authority = '''\n", "authority = '''\nx"), "certificates cannot be read"),
    ],
)
def test_what_is_no_file_of_credentials_is_named(folder, tmp_path, replaced, words):
    path = changed(folder, "pi1", tmp_path, [replaced])
    with pytest.raises(LinkError, match=words):
        Credentials(path)
    for content in (b"", b"garbage", b"\xff\xfe", b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(LinkError, match="no credentials"):
            Credentials(path)
    with pytest.raises(LinkError, match="cannot be read"):
        Credentials(tmp_path / "missing")


@pytest.mark.parametrize(
    ("devices", "addresses", "words"),
    [
        (["a.b"], [], "--devices: got 'a.b'"),
        (["server"], [], "none called"),
        (["a", "a"], [], "each once"),
        ([""], [], "--devices: got ''"),
        (["a"], ["two words"], "--address: got 'two words'"),
        (["a"], ["host:4222"], "--address: got 'host:4222'"),
    ],
)
def test_names_and_addresses_that_are_none_leave_nothing(tmp_path, devices, addresses, words):
    with pytest.raises(HostsError, match=words):
        write_credentials(tmp_path / "c", devices, addresses, 4222, NOW)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_goes_where_and_overwrites_nothing(tmp_path, capsys):
    out = tmp_path / "c"
    asked = ["credentials", "--devices", "pi1, pi2", "--out", str(out), "--address", "192.0.2.7"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "at port 4222 of 192.0.2.7" in said and "pairzero-device join pi1.pairzero" in said
    assert {p.name for p in out.iterdir()} == {
        "authority.pem", "broker.conf", "broker.pem", "pi1.pairzero", "pi2.pairzero",
        "server.pairzero",
    }  # fmt: skip
    secret = [p for p in out.iterdir() if "PRIVATE KEY" in p.read_text()]
    assert len(secret) == 4 and all(p.stat().st_mode & 0o077 == 0 for p in secret)
    assert main(asked) == 2
    assert "there is something already" in capsys.readouterr().err
    assert main([*asked, "--port", "0"]) == 2


# ---------------------------------------------------------------- a broker that lies


class NotingAgent:
    run_id, device_indices = RUN, (0,)

    def __init__(self, host):
        self.host, self.carried_out = host, []

    def carry_out(self, message):
        self.carried_out.append(message)
        return []

    def close(self):
        pass


@pytest.fixture
def lying(folder, tmp_path):
    """Whoever has the broker's machine: may say and hear everything, and has nobody's key."""
    text = (folder / "server.pairzero").read_text()
    (own,) = (line for line in text.splitlines() if line.startswith("signing_key"))
    forged = changed(folder, "server", tmp_path, [(own, f'signing_key = "{"1" * 64}"')])
    with contextlib.closing(NatsLink(None, "server", credentials=Credentials(forged))) as link:
        yield link


@pytest.fixture
def overheard(lying):
    """overheard(subject) -> list of (subject, bytes as they travel) from here on."""

    def listen(subject):
        found = []

        async def note(message):
            found.append((message.subject, message.data))

        lying._wait(lying._nats.subscribe(subject, cb=note), 20.0)
        lying._wait(lying._nats.flush(), 20.0)
        return found

    return listen


def said_again(lying, subject, data):
    """Bytes as they are."""
    lying._wait(lying._nats.publish(subject, data), 20.0)
    lying._wait(lying._nats.flush(), 20.0)


@pytest.fixture
def host(link_of):
    """pi1, which carries out orders and notes them."""
    agent = NotingAgent("pi1")
    serving = NatsHost(link_of("pi1"), RUN, "pi1")
    thread = threading.Thread(target=serving.serve, args=(HostEnd(agent),), daemon=True)
    thread.start()
    yield agent
    serving.stop()
    thread.join(30.0)


def test_an_order_that_the_server_has_not_signed_is_none(link_of, lying, host, caplog):
    channel = NatsChannel(link_of("server"), RUN, {"pi1": (0,)}, epoch=1)
    forged = wire.encode(Order(7, 1, SilenceOrder(RUN, 9)))
    lying.publish(f"pz.{RUN}.order", forged)
    lying.publish(f"pz.{RUN}.order.pi1", forged)
    said_again(lying, f"pz.{RUN}.order", forged)
    assert channel.ask(SilenceOrder(RUN, 0), deadline_s=60.0).answered.keys() == {"pi1"}
    assert host.carried_out == [SilenceOrder(RUN, 0)]
    assert caplog.text.count("not signed by server") == 3


def test_an_order_that_is_said_again_or_elsewhere_changes_nothing(
    link_of, lying, overheard, host, caplog
):
    channel = NatsChannel(link_of("server"), RUN, {"pi1": (0,)}, epoch=1)
    travelled = overheard(f"pz.{RUN}.order")
    for index in range(3):
        assert channel.ask(SilenceOrder(RUN, index), deadline_s=60.0).missing == ()
    for subject, data in [travelled[0], travelled[2], (f"pz.{RUN}.order.pi1", travelled[2][1])]:
        said_again(lying, subject, data)
    bent = bytearray(travelled[2][1])
    bent[-1] ^= 1
    said_again(lying, f"pz.{RUN}.order", bytes(bent))
    said_again(lying, f"pz.{RUN}.order", b"x" * (1 << 21))
    assert channel.ask(SilenceOrder(RUN, 3), deadline_s=60.0).missing == ()
    assert host.carried_out == [SilenceOrder(RUN, index) for index in range(4)]


def test_an_answer_that_the_host_has_not_signed_is_none(link_of, lying, caplog):
    channel = NatsChannel(link_of("server"), RUN, {"pi1": (0,)}, epoch=1)
    lying.publish(f"pz.{RUN}.answer.pi1", wire.encode(Answer(RUN, 1, 1, "pi1")))
    until(lambda: "not signed by pi1" in caplog.text)
    assert channel.ask(SilenceOrder(RUN, 0), deadline_s=0.2).missing == ("pi1",)
    # Another host that has a key of its own signs for itself alone, and in its own place.
    channel.welcome("pi1")
    as_pi1 = wire.encode(Answer(RUN, 1, 2, "pi1"))
    with pytest.raises(LinkError, match="no permission"):
        link_of("pi2").request(f"pz.{RUN}.answer.pi1", as_pi1, 20.0)
    link_of("pi2").publish(f"pz.{RUN}.answer.pi2", as_pi1)
    until(lambda: not channel._replies.empty())
    assert channel.ask(SilenceOrder(RUN, 1), deadline_s=0.2).missing == ("pi1",)
    assert "pi2 answers for pi1" in caplog.text


def test_a_question_that_another_answers_is_not_answered(link_of, lying):
    def forge(subject, data, reply):
        threading.Thread(target=reply, args=(b"agreed",)).start()

    async def take(message):
        forge(message.subject, message.data, Reply(lying, message.reply, message.data))

    lying._wait(lying._nats.subscribe("pz.lobby.knock.*", cb=take), 20.0)
    lying._wait(lying._nats.flush(), 20.0)
    with pytest.raises(LinkError, match="not signed by server"):
        link_of("pi1").request("pz.lobby.knock.pi1", b"?", 20.0)
