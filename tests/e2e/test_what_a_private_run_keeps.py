"""Everything that a run with real keys stores, sends or writes, each entry with the reason why it
tells nothing about the data beyond what the ledger was charged for. A new field needs an entry.

A promise in numbers is worth nothing beside a field that breaks it, so the list is closed: what is
not on it fails the test. And one behaviour stands for all of them: of two data sets that differ in
a record which no round drew, the same keys must leave the same run folder, bit for bit.
"""

import contextlib
import io
import json
import os
import sqlite3
import stat
from types import SimpleNamespace

import msgspec
import pytest

from edge_runtime.guard import keys as guard_keys
from edge_runtime.guard.keys import KEYS_FILE
from edge_runtime.guard.ledger import HEAD_FILE, LEDGER_FILE, DeviceLedger, Release
from edge_runtime.joining.messages import RadioNote
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.rounds import DigestReport, RoundReport
from edge_runtime.task_spec import load_task
from server.air.link import build_radio_link
from server.commands import cli
from server.config.files import load_config
from server.errors import PrivacyError, RunStoreError
from server.hosts.standing import HostStanding, RadioState
from server.live.status import Evaluated, ReceiverState, Status
from server.privacy.mechanism import MechanismRecord
from server.report import page as report
from server.report.terminal import ProgressPrinter
from server.run.experiment import Experiment, Progress
from server.run.federation import split_iid
from server.store.records import EvaluationRow, Outcome
from server.store.run_store import STORE_FILE

pytestmark = pytest.mark.usefixtures("outlined_pictures")

CHOSEN = "chosen by whoever starts the run, before any data are read"
PUBLIC_N = "how many records each device holds is public by the promise's own terms"
RELEASE = "computed from noisy sums that the ledger was charged for"
CHANNEL = "of the channel, which knows no data"
PUBLIC_SEED = "from the run's public seed"
PUBLIC_DATA = "of validation data that are declared public; else NULL"
KEYED = "a keyed digest: random to whoever has not the key, and the key is destroyed"
NOT_STORED = "NULL: it would follow the secret batches"

STORED = {
    "meta": {
        "run_id": CHOSEN + ", and drawn by chance",
        "config": CHOSEN + "; paths included",
        "bundle_digest": "of the public model",
        "task": CHOSEN + ": template and words, no path",
        "class_examples": PUBLIC_DATA,
        "class_correct": PUBLIC_DATA,
        "data_commitments": KEYED,
        "validation_digest": PUBLIC_DATA,
        "environment": "of the libraries and the machine",
        "keys": "one-way names of 256-bit keys",
        "probe": "losses of made-up prompts",
        "wall_s": NOT_STORED,
        "stretches": "counts of rounds and records",
        "hosts": "names that owners gave, beside counts, keys' and keyed data's names as above",
        "epoch": "how often a server of hosts of their own was started",
        "epsilon_spent": "a function of the ledger",
        "epsilon_records": "a count",
        "source": CHOSEN,
        "is_simulated": CHOSEN,
        "outcome": "whether the rounds or the budget came to their end: planned, not computed",
        "parameter_digest": RELEASE,
        "worth_rounds": "of planned noise, and of public data or the configuration",
        "worth_is_bound": CHOSEN,
    },
    "rounds": {
        "round_index": "a count",
        "direction_seed": PUBLIC_SEED,
        "step_integers": RELEASE,
        "num_speakers": CHANNEL,
        "num_erased": "of packets as they were received, " + RELEASE,
        "is_skipped": "whether the run was interrupted here",
        "mean_estimates": RELEASE,
        "true_means": NOT_STORED,
        "squared_error_of_noise": NOT_STORED,
        "squared_error_of_radio": NOT_STORED,
        "share_clipped": NOT_STORED,
        "artificial_noise_std": "from the plan",
        "receiver_noise_std": CHANNEL
        + ": measured where no device sends; with the energy waveform "
        "of what was received, " + RELEASE,
        "amplitude_error_bound": CHANNEL,
        "noise_multiplier": "from the plan",
        "receive_scale": CHANNEL,
        "energies": "from the plan, whatever the numbers are",
        "weakest_gain": CHANNEL,
        "learning_rate": CHOSEN,
        "wall_s": NOT_STORED,
        "chain": "a digest of the other columns",
    },
    "rounds_head": {
        "only_row": "constant",
        "count": "a count",
        "chain": "a digest of rounds",
    },
    "evaluations": {
        "num_rounds": "a count",
        "loss": PUBLIC_DATA,
        "accuracy": PUBLIC_DATA,
        "epsilon": "a function of the ledger",
    },
    "privacy_ledger": {
        "sequence": "a count",
        "round_index": "a count",
        "device_index": CHANNEL,
        "attempt": "a count",
        "record": "see RECORD",
        "chain": "a digest of records",
    },
    "ledger_head": {
        "only_row": "constant",
        "count": "a count",
        "chain": "a digest of records",
    },
}
RECORD = {
    "version": "constant",
    "kind": CHOSEN,
    "round_index": "a count",
    "device_index": CHANNEL,
    "access": CHOSEN,
    "waveform": CHOSEN,
    "vote": CHOSEN,
    "unit": CHOSEN,
    "relation": CHOSEN,
    "sensitivity": CHOSEN,
    "sampling_probability": PUBLIC_N,
    "certified_noise_std": "from the plan",
    "receiver_noise_std": "from the plan; in a correction, measured where no device sends",
    "num_missing": CHOSEN,
    "amplitude_error_bound": CHANNEL,
    "noise_stream": "a one-way name of noise that is drawn whatever the data are",
}
COUNTED = {
    "owner": "a count",
    "run_id": CHOSEN + ", and drawn by chance",
    "round_index": "a count",
    "commitment": "one-way name of a 256-bit key",
    "release": "a digest of the order, which is public",
    "data": KEYED,
    "history": "a digest of public weights and of steps: " + RELEASE,
    "noise_multiplier": "from the plan",
    "sampling_rate": PUBLIC_N,
}
SENT = {
    RoundReport: {
        "run_id": CHOSEN,
        "round_index": "a count",
        "device_index": "a count",
        "participation": CHANNEL + "; a loss that is not finite counts as zero and silences nobody",
        "reason": "the kind of a radio's failure",
        "scale": "made of the noisy numbers alone, and heard with them: " + RELEASE,
    },
    DigestReport: {
        "run_id": CHOSEN,
        "round_index": "a count",
        "host": CHOSEN,
        "parameter_digest": RELEASE,
    },
}
SHOWN = {
    Status: {
        "run_id": CHOSEN + ", and drawn by chance",
        "folder": CHOSEN,
        "process": "a number of the server's machine",
        "source": CHOSEN,
        "state": "whether hosts are there",
        "rounds_done": "a count; how soon it rises anybody sees who hears the radio",
        "rounds_planned": CHOSEN,
        "speakers": CHANNEL,
        "erased": "of packets as they were received, " + RELEASE,
        "rounds_per_s": NOT_STORED,
        "evaluations": "see Evaluated",
        "epsilon_budget": CHOSEN,
        "releases": "a count, of the plan",
        "spent": "a function of the ledger",
        "hosts": "see HostStanding",
        "receiver": "see ReceiverState",
        "phases_s": NOT_STORED,
    },
    Evaluated: {
        "rounds": "a count",
        "loss": PUBLIC_DATA,
        "accuracy": PUBLIC_DATA,
        "epsilon": "a function of the ledger",
    },
    HostStanding: {
        "name": "that its owner gave",
        "devices": "a count",
        "is_here": "whether it answers at all",
        "away_s": "of a host that does not; of one that answers, how soon is not said",
        "radios": "see RadioState",
    },
    RadioState: {
        "temperature_c": "of a radio's chip, which computes nothing",
        "num_underflows": "of the link between a host and its radio",
    },
    ReceiverState: {
        "temperature_c": "of the server's radio",
        "overloaded_share": "of what was received, " + RELEASE,
        "num_overflows": "of the link between the server and its radio",
        "num_captures": "a count, of the plan",
    },
    RadioNote: {
        "device_index": "a count",
        "temperature_c": "of a radio's chip, which computes nothing; told by the clock",
        "num_underflows": "of the link between a host and its radio",
    },
}
FILES = {
    STORE_FILE: "see STORED",
    LEDGER_FILE: "see COUNTED",
    HEAD_FILE: "a count, and a hash of what is COUNTED",
    "summary.json": "made from the store alone",
    "report.html": "made from the store alone",
    "plots": "made from the store alone",
}

SETTINGS = {
    "federation.num_devices": 2,
    "optimizer.rounds": 4,
    "optimizer.batch_size": 4,
    "task.validation_examples": 20,
    "task.max_tokens": 24,
    "run.evaluation_interval": 2,
    "privacy.noise_source": "system",
    # Two thousand records, not thirteen: the records that no round draws are many either way.
    "privacy.delta": 1e-4,
}


@pytest.fixture(scope="module")
def task():
    return load_task("snips")


@pytest.fixture
def lines(task):
    spec, folder = task
    return (folder / spec.train).read_text("utf-8").splitlines()[:2000]


def start(folder, train, **changes):
    settings = {**SETTINGS, "task.train": str(train)}
    return Experiment.start(load_config("snips", {**settings, **changes}), folder)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def complete(folder, train, **changes):
    run = start(folder, train, **changes)
    try:
        assert run.run()
    finally:
        run.close()
    report.write_runs(report.read_runs(folder))
    return folder


def released(folder):
    """What both devices have written down of their own."""
    ledger = DeviceLedger(folder)
    try:
        return [release for owner in ledger.owners for release in ledger.releases(owner)]
    finally:
        ledger.close()


def nameless(release):
    return msgspec.structs.replace(release, data="", run_id="")


def contents(folder):
    """{table: {column or meta key: its values in order}} of a store."""
    connection = sqlite3.connect(folder / STORE_FILE)
    try:
        names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE sql != ''")]
        tables = {}
        for name in names:
            cursor = connection.execute(f"SELECT * FROM {name} ORDER BY 1")
            columns = [column for column, *_ in cursor.description]
            rows = cursor.fetchall()
            tables[name] = {c: [row[i] for row in rows] for i, c in enumerate(columns)}
        tables["meta"] = dict(zip(*tables["meta"].values(), strict=True))
        return tables
    finally:
        connection.close()


@pytest.fixture(scope="module")
def ended(tmp_path_factory, task):
    spec, folder = task
    base = tmp_path_factory.mktemp("private")
    lines = (folder / spec.train).read_text("utf-8").splitlines()[:2000]
    return complete(base / "run", write(base / "train.tsv", lines))


def test_everything_stored_has_a_reason(ended):
    assert {table: set(columns) for table, columns in contents(ended).items()} == {
        table: set(reasons) for table, reasons in STORED.items()
    }
    assert set(MechanismRecord.__struct_fields__) == set(RECORD)
    assert set(Release.__struct_fields__) == set(COUNTED)
    assert {path.name for path in ended.iterdir()} == set(FILES)


def test_what_a_run_with_real_keys_leaves_is_its_owners(ended):
    for path in [ended / STORE_FILE, ended / "summary.json", ended / "report.html",
                 *(ended / "plots").iterdir()]:  # fmt: skip
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    report.write_runs(report.read_runs(ended))  # and stays so when it is written again
    assert stat.S_IMODE((ended / "report.html").stat().st_mode) == 0o600


def test_no_pace_is_shown_not_even_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for keeps_secret in (True, False):
        out = Terminal()
        printer = ProgressPrinter(out)
        printer._keeps_time_secret = keeps_secret
        row = SimpleNamespace(
            round_index=0, mean_estimates=(1.0,), artificial_noise_std=0.1, receiver_noise_std=0.1
        )
        printer.update(Progress(1, 9, row, None, 77.7))
        evaluation = EvaluationRow(num_rounds=1, loss=1.0, accuracy=0.5, epsilon=0.1)
        printer.update(Progress(1, 9, row, evaluation, 77.7))
        assert ("77.7" in out.getvalue()) is not keeps_secret


def test_noise_that_anybody_can_make_again_counts_for_nobody(tmp_path, lines):
    """A software radio has no amplifier: somebody could draw its receiver noise again."""
    train = write(tmp_path / "train.tsv", lines)
    counted = {"privacy.trusted_noise_fraction": 0.01}
    with pytest.raises(PrivacyError, match=r"trusted_noise_fraction: got 0\.01.*a program draws"):
        start(tmp_path / "run", train, **counted)
    assert not (tmp_path / "run").exists()
    simulated = {"privacy.noise_source": "simulation"}
    start(tmp_path / "simulated", train, **counted, **simulated).close()


@pytest.mark.parametrize("source", ["system", "simulation"])
def test_a_run_folder_does_not_bring_the_receivers_noise_back(tmp_path, lines, source):
    """Superposed devices need some of it, so nobody may be able to take it off again."""
    run = start(
        tmp_path / "run", write(tmp_path / "t.tsv", lines), **{"privacy.noise_source": source}
    )
    try:
        folder_knows = build_radio_link(run.config)
        folder_knows.air.simulation.begin_sounding(0)
        run.loop.air.simulation.begin_sounding(0)
        own, other = (air.receiver.hear_samples(0) for air in (run.loop.air, folder_knows.air))
        assert (own == other).all() == (source == "simulation")
    finally:
        run.close()


def test_everything_sent_by_a_device_has_a_reason():
    for message, reasons in SENT.items():
        assert set(message.__struct_fields__) == set(reasons), message


def test_everything_shown_of_a_run_that_goes_on_has_a_reason():
    for shown, reasons in SHOWN.items():
        assert set(shown.__struct_fields__) == set(reasons), shown


def test_what_follows_the_secret_batches_is_not_stored(ended):
    tables = contents(ended)
    absent = [
        (table, column)
        for table, reasons in STORED.items()
        for column, reason in reasons.items()
        if reason == NOT_STORED
    ]
    assert len(absent) == 6
    for table, column in absent:
        values = tables[table][column]
        assert values == "null" if table == "meta" else set(values) == {None}, (table, column)
    summary = json.loads((ended / "summary.json").read_text())
    assert [summary[k] for k in ("wall_s", "rounds_per_s", "peak_rss_mb", "share_clipped")] == (
        [None] * 4
    )
    page = (ended / "report.html").read_text()
    assert "Neither time nor memory is recorded" in page
    assert "<th>wall s</th>" not in page  # no table of dashes
    assert "<td>-</td>" not in page


def test_store_and_keys_are_for_their_owner_only(tmp_path, lines):
    old = os.umask(0)
    try:
        run = start(tmp_path / "run", write(tmp_path / "train.tsv", lines))
        try:
            assert not run.run(should_stop=lambda: run.store.num_rounds() == 1)
            files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
            assert {path.name for path in files} >= {STORE_FILE, STORE_FILE + "-wal", KEYS_FILE}
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        finally:
            run.close()
    finally:
        os.umask(old)


def test_no_digest_of_the_data_can_be_computed_without_the_key(tmp_path, lines, monkeypatch):
    """The same data under other keys have another name; under the same keys, the same."""
    made = []
    train = write(tmp_path / "train.tsv", lines)
    for name in ("one", "two"):
        run = start(tmp_path / name, train)
        made.append(run.store.meta("data_commitments"))
        run.close()
    assert not set(made[0]) & set(made[1])


def same_keys(monkeypatch):
    """Both runs get these keys, as if the devices' generator had said the same twice."""
    count = iter(range(1000))
    monkeypatch.setattr(
        guard_keys.PrivateRandom,
        "generate_key",
        staticmethod(lambda: PrivateRandom.simulated_key(77, next(count) % 2)),
    )


def records_never_drawn(monkeypatch):
    """(device_index, record_index) -> drawn, noted while a run goes on."""
    drawn = {}
    draw = PrivateRandom.poisson_batch

    def note(self, release, num_records, probability):
        chosen = draw(self, release, num_records, probability)
        drawn.setdefault(self.commitment, set()).update(chosen.tolist())
        return chosen

    monkeypatch.setattr(PrivateRandom, "poisson_batch", note)
    return drawn


def test_a_record_that_no_round_drew_leaves_no_trace(tmp_path, lines, monkeypatch):
    """Names, sizes, times, digests: whatever followed the data would differ here."""
    drawn = records_never_drawn(monkeypatch)
    same_keys(monkeypatch)
    first = complete(tmp_path / "first" / "run", write(tmp_path / "train.tsv", lines))
    config = load_config("snips", SETTINGS)
    parts = split_iid(list(range(len(lines))), 2, config.run.seed)
    untouched = next(
        line
        for device, part in enumerate(parts)
        for position, line in enumerate(part)
        if position not in drawn[PrivateRandom(PrivateRandom.simulated_key(77, device)).commitment]
    )
    changed = list(lines)
    label = changed[untouched].partition("\t")[0]
    changed[untouched] = label + "\tsomething very different, and a good deal longer than before"
    train = write(tmp_path / "train.tsv", changed)  # the configuration names the same file
    second = complete(tmp_path / "second" / "run", train)

    tables, others = contents(first), contents(second)
    named = {"run_id", "data_commitments"}
    assert {k for k, v in tables["meta"].items() if others["meta"][k] != v} == named
    for by_key in (tables["meta"], others["meta"]):
        for key in named:
            del by_key[key]
    assert tables == others
    summaries = [json.loads((f / "summary.json").read_text()) for f in (first, second)]
    for summary in summaries:
        del summary["run_id"]
    assert summaries[0] == summaries[1]
    counted = [released(folder) for folder in (first, second)]
    assert counted[0] != counted[1]  # by the name of their data under their key, and of the run
    assert [nameless(r) for r in counted[0]] == [nameless(r) for r in counted[1]]


def test_keys_are_destroyed_when_the_run_is_complete(ended):
    assert not (ended / KEYS_FILE).exists()
    with pytest.raises(RunStoreError, match=r"has ended .*nothing to continue"):
        Experiment.resume(ended)


def test_resuming_an_ended_run_shows_it_and_destroys_what_a_crash_left(ended):
    (ended / KEYS_FILE).write_text('["00"]')
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["run", "--resume", str(ended), "--json"]) == 0
    assert json.loads(out.getvalue())["outcome"] == Outcome.COMPLETE
    assert not (ended / KEYS_FILE).exists()


def test_keys_are_destroyed_on_request_and_the_run_is_over(tmp_path, lines, capsys):
    folder = tmp_path / "run"
    run = start(folder, write(tmp_path / "train.tsv", lines))
    try:
        assert not run.run(should_stop=lambda: run.store.num_rounds() == 1)
        # Refused while somebody is at work on it.
        assert cli.main(["destroy-keys", str(folder)]) == 2
        assert "in use by another process" in capsys.readouterr().err
        assert (folder / KEYS_FILE).exists()
    finally:
        run.close()
    assert cli.main(["destroy-keys", str(folder)]) == 0
    assert "private keys destroyed" in capsys.readouterr().out
    assert not (folder / KEYS_FILE).exists()
    assert cli.main(["run", "--resume", str(folder)]) == 2
    assert "ended on request" in capsys.readouterr().err
    assert cli.main(["destroy-keys", str(folder)]) == 0
    assert "no private keys there" in capsys.readouterr().out


def test_validation_data_that_are_not_public_are_not_evaluated(tmp_path, lines, capsys):
    folder = tmp_path / "run"
    train = write(tmp_path / "train.tsv", lines)
    settings = {**SETTINGS, "task.train": str(train), "task.validation_is_public": False}
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    argv = ["run", *(a for pair in pairs for a in ("--set", pair)), "--out", str(folder)]
    assert cli.main(argv) == 0
    assert "validation_is_public" in capsys.readouterr().out
    evaluations = contents(folder)["evaluations"]
    assert set(evaluations["loss"]) == set(evaluations["accuracy"]) == {None}
    assert None not in evaluations["epsilon"]
    assert contents(folder)["meta"]["validation_digest"] == "null"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_after"] is None
    page = (folder / "report.html").read_text()
    assert "not declared public" in page
    assert "nothing may be evaluated, so what was learnt is not shown" in page
    assert "<th>accuracy before</th>" not in page
