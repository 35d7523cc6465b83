"""A run while it goes on: its status file, `pairzero status`, its page and its metrics."""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.commands.cli import main
from server.commands.status import in_words
from server.config.files import load_config
from server.hosts.standing import HostStanding, RadioState
from server.live.page import LatestStatus, Page
from server.live.publisher import Publisher
from server.live.status import Evaluated, ReceiverState, State, Status, status_file
from server.run.experiment import Experiment
from tests.support.federation import until

pytestmark = pytest.mark.usefixtures("outlined_pictures")

SETTINGS = {
    "federation.num_devices": 2, "optimizer.rounds": 4, "optimizer.batch_size": 4,
    "optimizer.directions": 2, "task.validation_examples": 20, "task.max_tokens": 24,
    "run.evaluation_interval": 2,
}  # fmt: skip
PATIENCE_S = 60.0

AWAY = HostStanding(name="pi2", devices=(1, 2), is_here=False, away_s=12)
HERE = HostStanding(
    name="pi1", devices=(0,), is_here=True,
    radios={0: RadioState(temperature_c=41.25, num_underflows=3)},
)  # fmt: skip
STATUS = Status(
    run_id="snips-1", folder="runs/<b>snips</b>", process=os.getpid(), source="loopback",
    state=State.RUNNING, rounds_done=30, rounds_planned=120, speakers=2, erased=1,
    rounds_per_s=7.5, epsilon_budget=1.0, releases={0: 30, 1: 28}, spent={0: 0.375, 1: None},
    evaluations=(
        Evaluated(rounds=0, loss=3.0, accuracy=0.25, epsilon=0.0),
        Evaluated(rounds=30, loss=2.0, accuracy=0.625, epsilon=0.375),
    ),
    hosts=(HERE, AWAY),
    receiver=ReceiverState(
        temperature_c=38.5, overloaded_share=0.0125, num_overflows=4, num_captures=90
    ),
    phases_s={"devices compute": 3.0, "server itself": 1.0},
)  # fmt: skip


def read(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read().decode()


def metrics_of(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def page():
    """A page of STATUS, and where it takes another from."""
    latest = LatestStatus(STATUS)
    with Page(latest, 0) as served:
        yield served.url, latest


# ---------------------------------------------------------------- a run that goes on


def test_a_run_says_how_it_stands_as_long_as_it_has_a_process(tmp_path, capsys):
    folder, seen = tmp_path / "run", []
    experiment = Experiment.start(load_config("snips", SETTINGS), folder)
    with contextlib.closing(experiment), Publisher(experiment, 0, every_s=0.01) as publisher:
        assert (status_file(folder).stat().st_mode & 0o777) == 0o600

        def look(progress):
            publisher.note(progress)
            done = progress.rounds_done
            # A thread tells it: it comes to that, and no later than the next round is begun.
            for _ in range(6000):
                found = json.loads(read(f"{publisher.url}status.json"))
                if found["rounds_done"] == done:
                    break
                threading.Event().wait(0.01)
            seen.append(found)
            if done == 2:
                assert main(["status", str(folder)]) == 0
                assert main(["status", str(folder), "--json"]) == 0

        assert experiment.run(look)
    assert [s["rounds_done"] for s in seen] == [0, 1, 2, 3, 4]
    assert [len(s["evaluations"]) for s in seen] == [1, 1, 2, 2, 3]
    assert seen[-1]["evaluations"][-1]["accuracy"] is not None
    assert seen[-1]["releases"] == {"0": 4, "1": 4}
    assert max(seen[-1]["spent"].values()) == seen[-1]["evaluations"][-1]["epsilon"]
    assert seen[-1]["phases_s"]["devices compute"] > 0.0
    assert seen[-1]["rounds_per_s"] > 0.0
    words, _, document = capsys.readouterr().out.partition("\n{\n")
    assert f"{folder}: running, 2 of 4 rounds, process {os.getpid()}" in words
    assert "after 2 rounds: accuracy" in words and "epsilon" in words
    assert "time: " in words and "devices compute" in words
    assert json.loads("{" + document)["rounds_done"] == 2
    # And then nobody says that it goes on.
    assert not status_file(folder).exists()
    assert main(["status", str(folder)]) == 0
    assert f"{folder}: complete, 4 of 4 rounds" in capsys.readouterr().out
    assert main(["status", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ended"


def test_of_a_process_that_was_killed_nobody_says_that_it_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    experiment = Experiment.start(load_config("snips", SETTINGS), folder)
    with contextlib.closing(experiment):
        experiment.run(should_stop=lambda: True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = msgspec.structs.replace(STATUS, process=ended.pid)
    status_file(folder).write_bytes(msgspec.json.encode(left))
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{folder}: interrupted, 0 of 4 rounds" in said
    assert "no process carries it on: --resume does" in said
    for spoilt in (b"", b"{}", b'{"process": "no"}'):
        status_file(folder).write_bytes(spoilt)
        assert main(["status", str(folder)]) == 0
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "no run is there" in capsys.readouterr().err


def test_with_real_keys_no_time_is_told(tmp_path):
    folder, seen = tmp_path / "run", []
    config = load_config("snips", {**SETTINGS, "privacy.noise_source": "system"})
    experiment = Experiment.start(config, folder)
    with contextlib.closing(experiment), Publisher(experiment, 0, every_s=0.01) as publisher:

        def look(progress):
            publisher.note(progress)
            seen.append(publisher._watch.status())

        assert experiment.run(look)
    assert {(s.rounds_per_s, s.phases_s) for s in seen} == {(None, None)}
    assert (
        metrics_of(read_metrics(seen[-1]))
        .keys()
        .isdisjoint(
            {("pairzero_rounds_per_second",), ("pairzero_phase_seconds_total", "devices compute")}
        )
    )


def read_metrics(status):
    with Page(LatestStatus(status), 0) as page:
        return read(f"{page.url}metrics")


def test_a_folder_that_takes_no_status_does_not_end_a_run(tmp_path, caplog):
    folder = tmp_path / "run"
    experiment = Experiment.start(load_config("snips", SETTINGS), folder)
    (folder / ".status.json").mkdir()
    with contextlib.closing(experiment), Publisher(experiment, every_s=0.01) as publisher:
        assert experiment.run(publisher.note)
    assert caplog.text.count("the run goes on") == 1


def test_a_page_that_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 70000, -1):
            asked = ["run", "snips", "--page", str(port), "--out", str(tmp_path / "run")]
            assert main(asked) == 2
            assert f"--page: cannot answer at 127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what a page says


def test_metrics_are_what_prometheus_reads():
    found = metrics_of(read_metrics(STATUS))
    for name, value in {
        ("pairzero_rounds_done",): 30, ("pairzero_rounds_planned",): 120, ("pairzero_paused",): 0,
        ("pairzero_speakers",): 2, ("pairzero_erased",): 1, ("pairzero_rounds_per_second",): 7.5,
        ("pairzero_loss",): 2.0, ("pairzero_accuracy_ratio",): 0.625,
        ("pairzero_epsilon",): 0.375, ("pairzero_epsilon_budget",): 1.0,
        ("pairzero_epsilon_spent", "0"): 0.375, ("pairzero_epsilon_spent", "1"): math.inf,
        ("pairzero_releases_total", "0"): 30, ("pairzero_releases_total", "1"): 28,
        ("pairzero_phase_seconds_total", "devices compute"): 3.0,
        ("pairzero_phase_seconds_total", "server itself"): 1.0,
        ("pairzero_host_here", "pi1"): 1, ("pairzero_host_here", "pi2"): 0,
        ("pairzero_host_away_seconds", "pi2"): 12,
        ("pairzero_radio_temperature_celsius", "device 0"): 41.25,
        ("pairzero_radio_temperature_celsius", "receiver"): 38.5,
        ("pairzero_radio_underflows_total", "device 0"): 3,
        ("pairzero_receiver_overloaded_ratio",): 0.0125,
        ("pairzero_receiver_overflows_total",): 4, ("pairzero_receiver_captures_total",): 90,
    }.items():  # fmt: skip
        assert found.pop(name) == value
    assert found == {}
    paused = metrics_of(read_metrics(msgspec.structs.replace(STATUS, state=State.PAUSED)))
    assert paused["pairzero_paused",] == 1


def test_a_terminal_is_told_the_same_in_words():
    assert in_words(STATUS).splitlines() == [
        f"runs/<b>snips</b>: running, 30 of 120 rounds, process {os.getpid()}",
        "  loopback, 7.5 rounds/s",
        "  after 30 rounds: accuracy 62.5%, epsilon 0.375 of 1",
        "  pi1: there (device 0, 30 releases, epsilon 0.375, radio at 41.2 degrees C, "
        "3 underflows)",
        "  pi2: away for 12 s (device 1, 28 releases, epsilon inf; device 2, 0 releases)",
        "  receiver: 38.5 degrees C, 90 captures, 4 lost samples, 1.250% of samples overloaded",
        "  time: devices compute 75%, server itself 25%",
    ]
    at_first = msgspec.structs.replace(STATUS, spent={0: 0.0}, evaluations=(), phases_s=None)
    assert "device 0, 30 releases, epsilon 0.000" in in_words(at_first)
    assert "time:" not in in_words(at_first)


def test_events_tell_every_change_and_end_with_the_run(page):
    url, latest = page
    with urllib.request.urlopen(f"{url}events", timeout=60) as events:
        assert events.headers["Content-Type"] == "text/event-stream"

        def next_status():
            line = events.readline()
            assert events.readline() == b"\n"
            return msgspec.json.decode(line.removeprefix(b"data: "), type=Status)

        assert next_status() == STATUS
        for rounds in (31, 32):
            latest.tell(msgspec.structs.replace(STATUS, rounds_done=rounds))
            assert next_status().rounds_done == rounds
        latest.end()
        assert events.read() in (b"", b": still here\n\n")


def test_it_answers_at_this_machine_alone_and_to_its_own_name(page):
    url, _ = page
    port = url.rpartition(":")[2].rstrip("/")
    assert "snips-1" in read(f"http://localhost:{port}/status.json")
    for host in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example:80", ""):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            read(f"{url}status.json", Host=host)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(f"{url}../run.sqlite3")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(url, data=b"x=1", timeout=60)
    own = next(
        (a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith("127.")),
        None,
    )
    if own is not None:
        with pytest.raises(OSError):
            socket.create_connection((own, int(port)), timeout=5).close()


def test_a_browser_shows_it(page, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("install chromium")
    url, latest = page
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=5000", "--dump-dom", url,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as showing:
        try:
            until(lambda: latest.is_read)
            # What it showed first is replaced while it looks; then it is done.
            latest.tell(msgspec.structs.replace(STATUS, rounds_done=60, state=State.ENDED))
            shown, _ = showing.communicate(timeout=60)
        finally:
            showing.kill()
    for text in (
        "60 / 120", ">ended<", "2, 1 unread", "62.5 %", "0.375 of 1", "7.5",
        "runs/&lt;b&gt;snips&lt;/b&gt;",
        "away 12 s", "41.3 °C 3 underflows", "38.5 °C, 90 captures, 4 lost samples, 1.250 %",
        "devices compute", "75 %", "0,75 100,37.5", ">0.375</td>", ">∞, -</td>",
    ):  # fmt: skip
        assert text in shown, (text, shown)
    assert "<title>60/120 snips-1</title>" in shown
