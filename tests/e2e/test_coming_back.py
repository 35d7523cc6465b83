"""Hosts, servers and brokers that go and come back: the run goes on, and all hold its weights."""

import contextlib
import json
import shutil

import msgspec
import pytest

from edge_runtime.control.over_nats import NatsHost
from edge_runtime.guard.ledger import HEAD_FILE, LEDGER_FILE, DeviceLedger
from edge_runtime.joining.host import _Host
from edge_runtime.joining.journal import Journal
from edge_runtime.joining.messages import RadioNote, encode
from server.commands.cli import main
from server.config.files import load_config
from server.errors import HostsError, HostsMissingError
from server.hosts.broker import Broker
from server.hosts.remote_hosts import RemoteHosts
from server.hosts.standing import HostStanding, RadioState
from server.store.records import Outcome
from server.store.run_store import look_at
from tests.support.federation import RUN, Federation, until
from tests.support.killable_broker import KillableBroker
from tests.support.whole_runs import looked_at

pytestmark = pytest.mark.usefixtures("outlined_pictures")

PLAIN = {
    "radio.backend": "ideal", "privacy.enabled": False, "federation.num_devices": 2,
    "federation.deadline_s": 1.0, "optimizer.rounds": 12, "optimizer.batch_size": 4,
    "optimizer.directions": 2, "task.validation_examples": 20, "task.max_tokens": 24,
}  # fmt: skip
PROMISED = {
    **{key: PLAIN[key] for key in PLAIN if key not in ("radio.backend", "privacy.enabled")},
    "radio.waveform": "energy", "radio.plateau_samples": 8192, "radio.sample_rate_hz": 1e6,
    "radio.channel": "awgn", "radio.snr_db": 30.0, "privacy.epsilon": 8.0,
    "privacy.noise_source": "system", "task.validation_is_public": True,
    "optimizer.learning_rate": 1e-6,
}  # fmt: skip


@pytest.fixture
def broker():
    with Broker() as broker:
        yield broker


@pytest.fixture
def federation(tmp_path):
    """federation(url, settings) -> one of a and b, which have come."""
    with contextlib.ExitStack() as opened:

        def make(url, settings=PLAIN, names="ab", folder=tmp_path, **more):
            config = load_config("snips", settings)
            made = opened.enter_context(contextlib.closing(Federation(folder, config, url, **more)))
            for number, name in enumerate(names):
                made.come(name, number)
            return made

        yield make


def at(moments, hosts=None):
    """A run's on_progress that does something after so many rounds, once."""

    def on_progress(progress):
        if progress.rounds_done in moments and progress.row is not None:
            moments.pop(progress.rounds_done)()

    return on_progress


class DiedError(Exception):
    """Of a server, between two rounds."""


def die():
    raise DiedError


def come_again(made, hosts, run, name, and_then=lambda: False):
    """A host is started again, and everything has happened that makes it take part."""
    made.come(name)
    until(lambda: hosts._roster.came_back)
    until(lambda: hosts._take_back(run.store.num_rounds(), run.loop.replica.digest) or and_then())


def test_a_host_that_was_away_is_in_step_again_and_is_heard(federation, broker):
    made = federation(broker.url)
    with made.server() as (run, hosts):
        moments = {3: lambda: made.leave("b"), 6: lambda: come_again(made, hosts, run, "b")}
        assert run.run(at(moments))
    assert made.ended("a") and made.ended("b") and not made.errors
    rows = looked_at(made.run_folder).rows
    assert [row.num_speakers for row in rows] == [2, 2, 2, 1, 1, 1] + [2] * 6
    # Of the third nobody knew whether b had spoken: no step.
    assert [any(row.step_integers) for row in rows] == [t != 3 for t in range(12)]
    assert "in step after 6 rounds" in made.said["b"]
    assert not list((made.folder / "state-b").glob("journal*"))


def test_how_hosts_stand_is_told_and_what_their_radios_say_is_their_own(federation, broker):
    made = federation(broker.url)
    with made.server() as (run, hosts):

        def note(host, data):
            made.links[host].publish(f"pz.{RUN}.radio.{host}", data)

        def look_while_away():
            assert hosts.standing[1].name == "b" and not hosts.standing[1].is_here
            assert 0 <= hosts.standing[1].away_s < 600
            note("a", encode(RadioNote(1, 99.0, 9)))  # of another's device: nobody believes it
            note("a", b"noise")
            note("a", encode(RadioNote(0, 41.5, 2)))
            until(lambda: hosts.standing[0].radios)
            assert hosts.standing[0].radios == {0: RadioState(temperature_c=41.5, num_underflows=2)}
            assert hosts.standing[1].radios == {}

        here = [HostStanding(name=name, devices=(k,), is_here=True) for k, name in enumerate("ab")]
        moments = {
            2: lambda: (made.leave("b"), hosts.standing == tuple(here) or pytest.fail("not here")),
            4: look_while_away,
        }  # fmt: skip
        assert run.run(at(moments))
        assert not hosts.is_pausing
    assert not made.errors


def test_a_host_without_its_journal_reads_everything_from_the_log(federation, broker):
    made = federation(broker.url)
    with made.server() as (run, hosts):

        def come_without_it():
            shutil.rmtree(made.folder / "state-b")
            come_again(made, hosts, run, "b")

        assert run.run(at({4: lambda: made.leave("b"), 7: come_without_it}))
    assert "in step after 7 rounds" in made.said["b"]
    assert [row.num_speakers for row in looked_at(made.run_folder).rows[7:]] == [2] * 5


def test_a_host_that_holds_other_weights_does_not_take_part(federation, broker, caplog):
    made = federation(broker.url)
    with made.server() as (run, hosts):

        def come_with_another_step():
            path = made.folder / "state-b" / "journal-b.sqlite"
            with contextlib.closing(Journal(path, RUN)) as journal:
                first = next(iter(journal.steps()))
                journal.append([msgspec.structs.replace(first, step_integers=(7, 7))])
            come_again(made, hosts, run, "b", lambda: "Delete its journal" in caplog.text)

        assert run.run(at({3: lambda: made.leave("b"), 6: come_with_another_step}))
    assert "b does not come back: it holds weights" in caplog.text
    assert [row.num_speakers for row in looked_at(made.run_folder).rows[6:]] == [1] * 6


def test_with_too_few_there_the_run_pauses_until_they_have_come(federation, broker, caplog):
    made = federation(broker.url, {**PLAIN, "federation.min_speakers": 2})
    with made.server() as (run, _):

        def go_and_come():
            made.leave("b")
            made.come("b")

        assert run.run(at({3: go_and_come}))
    assert "1 devices are there, wanted 2; b are missing. The run pauses" in caplog.text
    rows = looked_at(made.run_folder).rows
    # One round found out that b was gone; no other was begun without it.
    assert [row.num_speakers for row in rows] == [2, 2, 2, 1] + [2] * 8


def test_a_run_whose_hosts_do_not_come_stops_and_goes_on_when_they_do(
    federation, broker, caplog, capsys
):
    made = federation(broker.url, {**PLAIN, "federation.min_speakers": 2})
    with made.server(patience_s=0.5) as (run, _):
        with pytest.raises(HostsMissingError, match=r"wanted 2; b are missing.*in 0\.5 s"):
            run.run(at({3: lambda: made.leave("b")}))
    assert look_at(made.run_folder)[1] == Outcome.INTERRUPTED
    assert main(["run", "--resume", str(made.run_folder)]) == 2
    assert f"Go on with: pairzero serve --resume {made.run_folder}" in capsys.readouterr().err
    made.come("b")
    with made.server(resumes=True) as (run, _):
        assert run.run()
    rows = looked_at(made.run_folder).rows
    assert [row.num_speakers for row in rows] == [2, 2, 2, 1] + [2] * 8
    assert made.ended("a") and made.ended("b") and not made.errors
    assert main(["serve", "--resume", str(made.run_folder)]) == 2
    assert "the run has ended (complete)" in capsys.readouterr().err


def test_a_server_that_was_started_again_ends_with_the_undisturbed_digest(
    federation, broker, tmp_path
):
    """Nothing is promised, so its unfinished round is asked for again; the hosts have lived on."""
    made = federation(broker.url, names="01", folder=tmp_path / "one", seed=3)
    with made.server() as (run, _), pytest.raises(DiedError):
        run.run(at({5: die}))
    with made.server(resumes=True) as (run, _):
        assert run.run()
    assert made.ended("0") and made.ended("1") and not made.errors
    other = federation(broker.url, names="01", folder=tmp_path / "other", seed=3)
    with other.server() as (run, _):
        assert run.run()
    assert looked_at(made.run_folder) == looked_at(other.run_folder)


def test_a_server_that_was_started_again_does_not_wait_for_who_holds_other_weights(
    federation, broker, caplog
):
    made = federation(broker.url)
    with made.server() as (run, _), pytest.raises(DiedError):
        run.run(at({5: lambda: (made.leave("b"), die())}))
    path = made.folder / "state-b" / "journal-b.sqlite"
    with contextlib.closing(Journal(path, RUN)) as journal:
        first = next(iter(journal.steps()))
        journal.append([msgspec.structs.replace(first, step_integers=(7, 7))])
    made.come("b")
    with made.server(resumes=True, patience_s=3600.0) as (run, _):
        assert run.run()
    assert "b does not come back: it holds weights" in caplog.text
    assert {row.num_speakers for row in looked_at(made.run_folder).rows[5:]} == {1}


@pytest.mark.parametrize("keeps_its_disk", [True, False])
def test_a_broker_that_was_started_again_loses_nothing(federation, tmp_path, keeps_its_disk):
    broker = KillableBroker(tmp_path / "broker")
    try:
        made = federation(broker.url, {**PLAIN, "federation.min_speakers": 2})
        with made.server() as (run, _):

            def kill_and_start():
                broker.kill()
                if not keeps_its_disk:
                    shutil.rmtree(broker.folder / "disk")
                broker.start()

            assert run.run(at({4: kill_and_start}))
        assert made.ended("a") and made.ended("b") and not made.errors
        rows = looked_at(made.run_folder).rows
        assert [row.is_skipped for row in rows] == [t == 4 for t in range(12)]
        assert [row.num_speakers for row in rows if not row.is_skipped] == [2] * 11
    finally:
        broker.kill()


def test_a_promise_is_kept_through_a_host_and_a_server_that_come_back(
    federation, broker, tmp_path, capsys
):
    policy = tmp_path / "policy.toml"
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in PROMISED.items()]
    assert main(["policy", "snips", *pairs, "--records", "250", "--out", str(policy)]) == 0
    made = federation(broker.url, PROMISED, policy=policy)
    with made.server() as (run, hosts):

        def go_and_come():
            """Its journal lost, its ledger says of which run its keys are."""
            made.leave("b")
            (made.folder / "state-b" / "journal-b.sqlite").unlink()
            come_again(made, hosts, run, "b")

        with pytest.raises(DiedError):
            run.run(at({3: go_and_come, 6: die}))
    with made.server(resumes=True) as (run, _):
        assert run.run()
    assert made.ended("a") and made.ended("b") and not made.errors
    left = looked_at(made.run_folder)
    assert left.epsilon <= 8.0
    assert [row.num_speakers for row in left.rows] == [2] * 12
    for index, name in enumerate("ab"):
        state = made.folder / f"state-{name}"
        assert {path.name for path in state.iterdir()} == {LEDGER_FILE, HEAD_FILE}
        with contextlib.closing(DeviceLedger(state)) as ledger:
            counted = len(ledger.releases(name))
        assert counted == sum(record.device_index == index for record in left.records) == 12


SUPERPOSED = {
    **{key: PLAIN[key] for key in PLAIN if key not in ("radio.backend", "privacy.enabled")},
    "radio.waveform": "coherent", "radio.channel": "awgn", "radio.snr_db": 30.0,
    "federation.num_devices": 3, "privacy.epsilon": 8.0, "privacy.missing_devices": 1,
    "optimizer.learning_rate": 1e-6, "optimizer.batch_size": 200,
}  # fmt: skip


def test_those_who_are_left_cover_each_other_and_who_is_away_pays_nothing(
    federation, broker, tmp_path, capsys
):
    """Noise that is shared by all: it is shared by those who are there."""
    policy = tmp_path / "policy.toml"
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in SUPERPOSED.items()]
    assert main(["policy", "snips", *pairs, "--records", "250", "--out", str(policy)]) == 0
    made = federation(broker.url, SUPERPOSED, names="012", policy=policy, seed=3)
    with made.server() as (run, hosts):
        moments = {3: lambda: made.leave("2"), 7: lambda: come_again(made, hosts, run, "2")}
        assert run.run(at(moments))
    assert not made.errors
    left = looked_at(made.run_folder)
    assert [row.num_speakers for row in left.rows] == [3, 3, 3, 2, 2, 2, 2] + [3] * 5
    assert left.epsilon <= 8.0
    paid = [{r.device_index for r in left.records if r.round_index == t} for t in range(12)]
    # In the third it was still counted on; what became of it is unknown, and paid.
    assert paid == [{0, 1, 2}] * 4 + [{0, 1}] * 3 + [{0, 1, 2}] * 5
    least = [min(r.certified_noise_std for r in left.records if r.round_index == t) for t in (2, 5)]
    assert least[0] == pytest.approx(least[1], rel=1e-5)


def test_a_host_whose_link_was_lost_does_nothing_before_the_server_has_answered_its_challenge(
    federation, broker, caplog
):
    made = federation(broker.url, {**PLAIN, "federation.min_speakers": 2})
    with made.server() as (run, _):

        def lose():
            """As the link does when the broker is lost; the server has noticed nothing."""
            made.links["b"].on_lost()

        assert run.run(at({4: lose}))
    assert made.ended("a") and made.ended("b") and not made.errors
    assert "link was lost meanwhile" in caplog.text or "b is back" in caplog.text
    rows = looked_at(made.run_folder).rows
    assert sum(row.num_speakers < 2 for row in rows) <= 1
    assert [row.num_speakers for row in rows[:4]] == [2] * 4
    assert rows[-1].num_speakers == 2


def test_a_link_that_is_lost_before_the_run_costs_nothing(federation, broker, monkeypatch):
    """At the latest moment: when the server is about to tell everybody to start."""
    made, start, lost = federation(broker.url), RemoteHosts._start, []

    def lose_first(self, hosts):
        if not lost:
            lost.append(made.links["a"].on_lost())
        start(self, hosts)

    monkeypatch.setattr(RemoteHosts, "_start", lose_first)
    with made.server() as (run, _):
        assert run.run()
    assert made.ended("a") and made.ended("b") and not made.errors
    assert [row.num_speakers for row in looked_at(made.run_folder).rows] == [2] * 12


@pytest.fixture
def start_of_b_is_lost(monkeypatch):
    """The first start that comes to it, and everything else that was on the way."""
    take, lost = _Host._take_start, []

    def lose_first(self, data, reply):
        if self._settings.host == "b" and not lost:
            lost.append(reply)
            self._link.on_lost()
        else:
            take(self, data, reply)

    monkeypatch.setattr(_Host, "_take_start", lose_first)
    return lost


def test_a_start_that_is_lost_with_the_link_is_told_again_at_once(
    federation, broker, start_of_b_is_lost, monkeypatch, caplog
):
    monkeypatch.setattr("server.hosts.roster._START_S", 3600.0)  # it does not wait so long
    made = federation(broker.url)
    with made.server() as (run, _):
        assert run.run()
    assert made.ended("a") and made.ended("b") and not made.errors
    assert "b cannot be started" in caplog.text and "Told again" in caplog.text
    assert [row.num_speakers for row in looked_at(made.run_folder).rows] == [2] * 12


def test_who_was_never_started_is_started_by_the_server_that_goes_on(
    federation, broker, start_of_b_is_lost, monkeypatch
):
    made = federation(broker.url)
    with monkeypatch.context() as patched, pytest.raises(HostsError, match="cannot be started"):
        patched.setattr("server.hosts.roster._START_S", 0.5)
        patched.setattr(NatsHost, "say_waiting", lambda self, challenge: None)
        with made.server():
            pass
    until(lambda: start_of_b_is_lost)
    with made.server(resumes=True) as (run, _):
        assert run.run()
    assert made.ended("a") and made.ended("b") and not made.errors
    assert [row.num_speakers for row in looked_at(made.run_folder).rows] == [2] * 12
