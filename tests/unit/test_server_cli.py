"""The command line: a bad request ends in a clear error, exit code 2 and no run folder."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, file_digest
from edge_runtime.task_spec import TASKS_FOLDER, load_task
from radio.command_line import EXIT_BROKEN_PIPE
from radio.commands import cli as radio_cli
from server.commands import cli, run
from server.commands.settings import preset_or_file
from server.report.page import read_runs
from server.report.terminal import ProgressPrinter
from server.run.experiment import Progress

pytestmark = pytest.mark.usefixtures("outlined_pictures", "looked_at_once")

# Without privacy: no calibration, so that what is under test fails or passes quickly.
QUICK = (
    "--rounds", "2", "--set", "federation.num_devices=2", "--set", "optimizer.batch_size=2",
    "--set", "task.validation_examples=4", "--set", "task.max_tokens=16",
    "--set", "privacy.enabled=false",
)  # fmt: skip


@pytest.fixture
def refuse(tmp_path, capsys, monkeypatch):
    """refuse(*argv, *parts): the run is refused with all parts in its message, leaving nothing."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"

    def check(argv, *parts):
        assert cli.main(["run", *QUICK, *map(str, argv), "--out", str(out)]) == 2
        printed = capsys.readouterr()
        message = printed.err.splitlines()[-1]
        assert message.startswith("pairzero: ")
        assert "Traceback" not in printed.err
        for part in parts:
            assert part in message
        assert not out.exists(), f"left behind: {sorted(out.iterdir())}"
        assert not (tmp_path / "runs").exists()
        return message

    return check


@pytest.fixture
def bundle(tmp_path):
    return Path(shutil.copytree(BUNDLED_MODEL_FOLDER, tmp_path / "bundle"))


def use(bundle):
    return ["--set", f"model.bundle='{bundle}'"]


def replace_weights(bundle, change):
    """Change the weights of a bundle and sign it again: damage that no digest can find."""
    weights = load_file(bundle / "weights.safetensors")
    change(weights)
    save_file(weights, bundle / "weights.safetensors")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["digests"]["weights.safetensors"] = file_digest(bundle / "weights.safetensors")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# Settings


def test_unknown_preset(refuse):
    refuse(["snipz"], "'snipz'", "Did you mean 'snips'?", ".toml")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.round=3", ("'round'", "Did you mean 'rounds'?")),
        ("optimiser.rounds=3", ("[optimiser]", "Did you mean 'optimizer'?")),
        ("optimizer.clip=ten", ("optimizer.clip", "float")),
        ("federation.num_devices=0", ("federation.num_devices", "got 0", "at least 1")),
        ("radio.snr_db", ("--set", "SECTION.KEY=VALUE")),
        ("rounds=3", ("--set", "SECTION.KEY=VALUE")),
        ("description.words=3", ("description",)),
        ("optimizer.learning_rate=inf", ("optimizer.learning_rate", "got inf")),
        ("radio.min_gain=inf", ("radio.min_gain", "got inf")),
        ("radio.sample_rate_hz=inf", ("sample_rate_hz", "got inf")),
        ("optimizer.batch_size=1000000000000000000000000", ("optimizer.batch_size",)),
    ],
)
def test_a_bad_setting(refuse, override, parts):
    refuse(["--set", override], *parts)


def test_no_rounds(refuse):
    refuse(["--rounds", "0"], "optimizer.rounds: got 0, wanted at least 1")


def test_a_batch_larger_than_a_device_s_data(refuse):
    """Its sum would be divided by the nominal batch all the same: smaller steps than meant."""
    refuse(
        ["--set", "federation.num_devices=3000", "--set", "optimizer.batch_size=5"],
        "optimizer.batch_size", "got 5", "a device has 4", "0.8 times",
    )  # fmt: skip


def test_more_devices_than_examples(refuse):
    refuse(["--set", "federation.num_devices=100000"], "100000 devices", "at least one")


def test_prompts_longer_than_the_model(refuse):
    refuse(["--set", "task.max_tokens=4096"], "task.max_tokens", "got 4096", "positions")


def test_trainable_that_matches_no_tensor(refuse):
    refuse(["--set", 'model.trainable=["*.no_such.*"]'], "trainable", "no_such", "'all'")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["privacy.delta=0.01"], ("delta", "got 0.01", "wanted", "1e-5 is usual")),
        (["privacy.epsilon=1e-6"], ("epsilon", "wanted at least 0.001", "Allow a larger")),
        (["optimizer.clip=inf"], ("optimizer.clip", "finite")),
        (["privacy.unit=device", "power.policy=subsampled"], ("power.policy", "optimal, static")),
        (["radio.backend=ideal"], ("radio.backend", "privacy.enabled = false")),
    ],
)
def test_a_promise_that_cannot_be_made(refuse, overrides, parts):
    settings = [a for o in ["privacy.enabled=true", *overrides] for a in ("--set", o)]
    refuse(settings, *parts)


# The bundle


def test_no_bundle_there(refuse, tmp_path):
    refuse(use(tmp_path / "nowhere"), "nowhere", "not a bundle", "pairzero export")


@pytest.mark.parametrize("name", ["weights.safetensors", "layer.onnx", "tokenizer.json"])
def test_a_bundle_with_a_wrong_digest(refuse, bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    refuse(use(bundle), name, "sha256", "the manifest says", "export the bundle again")


def test_a_bundle_with_a_missing_file(refuse, bundle):
    (bundle / "layer.onnx").unlink()
    refuse(use(bundle), "layer.onnx is missing")


@pytest.mark.parametrize("content", ["", "{}", '{"format_version": 1'])
def test_a_bundle_with_a_damaged_manifest(refuse, bundle, content):
    (bundle / "manifest.json").write_text(content)
    refuse(use(bundle), "manifest.json", "Export the model again")


def losses_of_a_run(folder, *argv):
    assert cli.main(["run", *QUICK, *map(str, argv), "--out", str(folder), "--json"]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    return summary["loss_before"], summary["accuracy_before"]


def test_a_run_scores_its_own_task_s_words_whatever_the_bundle_was_exported_for(tmp_path, bundle):
    """Words and their order are the task's: a bundle of another task permutes no targets."""
    wanted = losses_of_a_run(tmp_path / "same")
    manifest = json.loads((bundle / "manifest.json").read_text())
    words = manifest["task"]["label_words"]
    manifest["task"]["label_words"] = dict(reversed(words.items()))
    manifest["label_token_ids"].reverse()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert losses_of_a_run(tmp_path / "other", *use(bundle)) == wanted
    reordered = write_task(tmp_path / "mine.toml", reverse=True)
    loss, accuracy = losses_of_a_run(tmp_path / "reordered", *reordered)
    assert (loss, accuracy) == (pytest.approx(wanted[0], rel=1e-5), wanted[1])


def test_a_graph_that_is_no_graph(refuse, bundle):
    (bundle / "layer.onnx").write_bytes(b"not onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["digests"]["layer.onnx"] = file_digest(bundle / "layer.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    refuse(use(bundle), "layer.onnx", "onnxruntime refuses it")


def test_a_bundle_with_nan_weights(refuse, bundle):
    def change(weights):
        weights["model.decoder.layers.0.fc1.weight"][3, 5] = np.nan

    replace_weights(bundle, change)
    refuse(use(bundle), "model.decoder.layers.0.fc1.weight")


def test_a_model_whose_loss_is_nan(refuse, bundle):
    """Finite weights within their range, and a feed-forward layer that overflows float32."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    layer = "model.decoder.layers.0"
    names = [f"{layer}.{part}.weight" for part in ("final_layer_norm", "fc1", "fc2")]
    for entry in manifest["tensors"]:
        if entry["name"] in names:
            entry.update(quantum_exponent=24, stored_dtype="float32")
    (bundle / "manifest.json").write_text(json.dumps(manifest))

    def change(weights):
        for name in names:
            weights[name] = np.full(weights[name].shape, 1e14, dtype=np.float32)

    replace_weights(bundle, change)
    settings = [*use(bundle), "--set", 'model.trainable=["*.layers.1.fc2.*"]']
    message = refuse(settings, "NaN")
    assert "bundle" in message or "learning rate" in message
    assert "NOT NULL" not in message


# The data


def data(path, content):
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("which", ["train", "validation"])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("cannot be read",)),
        (b"", ("no examples", "label<TAB>text")),
        (b"\n \n", ("no examples",)),
        (b"PlayMusic\tplay a song\nGetWeather rain\n", ("line 2", "label<TAB>text")),
        (b"PlayMusic\t \n", ("line 1", "label<TAB>text")),
        (b"OrderPizza\tone with cheese\n", ("line 1", "'OrderPizza'", "[label_words]")),
        (b"PlayMusic\tcaf\xe9\n", ("not UTF-8", "byte 13")),
    ],
)
def test_bad_data(refuse, tmp_path, which, content, parts):
    path = data(tmp_path / "examples.tsv", content)
    refuse(["--set", f"task.{which}='{path}'"], "examples.tsv", *parts)


def test_unknown_task(refuse):
    refuse(["--set", "task.name=weather"], "no task 'weather'", "Known: ", "snips")


def write_task(path, **changes):
    task, folder = load_task("snips")
    words = {**task.label_words, **changes.pop("label_words", {})}
    if changes.pop("reverse", False):
        words = dict(reversed(words.items()))
    text = {"template": task.template, "train": str(folder / task.train), **changes}
    text.setdefault("validation", str(folder / task.validation))
    lines = ['name = "snips"', *(f"{key} = {json.dumps(value)}" for key, value in text.items())]
    lines += ["[label_words]", *(f"{label} = {json.dumps(w)}" for label, w in words.items())]
    path.write_text("\n".join(lines))
    return ["--set", f"task.name='{path}'"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"template": "Intent:"}, ("template", "{text}")),
        ({"label_words": {"PlayMusic": "weather"}}, ("share a word",)),
        ({"train": ""}, ("task.train",)),
        ({"label_words": {"OrderPizza": "xylophones"}}, ("OrderPizza", "wanted one")),
        ({"template": "{text} Intent: "}, ("separator",)),
        ({"colour": "red"}, ("not a task file", "colour")),
    ],
)
def test_a_bad_task_file(refuse, tmp_path, changes, parts):
    refuse(write_task(tmp_path / "mine.toml", **changes), *parts)


def test_a_good_task_file_is_the_control(tmp_path, capsys):
    argv = ["run", *QUICK, *write_task(tmp_path / "mine.toml"), "--out", str(tmp_path / "run")]
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "mine"
    assert (TASKS_FOLDER / "snips.toml").is_file()


# The run folder


def test_a_run_that_is_already_there_is_not_touched(tmp_path, capsys):
    from server.store.run_store import RunStore

    RunStore.create(tmp_path, {"run_id": "mine"}).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert cli.main(["run", *QUICK, "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_where_the_run_folder_should_be(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert cli.main(["run", *QUICK, "--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_keys_of_another_run_in_the_folder_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "private_keys.json").write_text("mine")
    settings = ["--set", "privacy.enabled=true", "--set", "privacy.noise_source=system"]
    assert cli.main(["run", *QUICK, *settings, "--out", str(tmp_path)]) == 2
    assert "private_keys.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["private_keys.json"]
    assert (tmp_path / "private_keys.json").read_text() == "mine"


def test_resume_of_nothing(tmp_path, capsys):
    assert cli.main(["run", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "no run to continue" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_help_lists_the_presets(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    assert "snips" in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_cure(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "server.commands.run", None)
    assert cli.main(["run"]) == 2
    message = capsys.readouterr().err
    assert "server.commands.run" in message
    assert "pip install" in message


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path):
    settings = [*QUICK, "--set", "run.evaluation_interval=1", "--out", str(tmp_path / "run")]
    child = subprocess.Popen(
        [sys.executable, "-m", "server.commands.cli", "run", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(cli.__file__).parents[1],
    )  # fmt: skip
    child.stdout.readline()
    child.stdout.close()
    message = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(timeout=600) == EXIT_BROKEN_PIPE
    assert "Traceback" not in message


def test_a_run_says_how_many_prompts_it_shortened(tmp_path, capsys):
    for max_tokens, said in ((64, False), (16, True)):
        argv = ["run", *QUICK, "--set", f"task.max_tokens={max_tokens}"]
        assert cli.main([*argv, "--out", str(tmp_path / str(max_tokens))]) == 0
        assert ("longer than task.max_tokens = 16: " in capsys.readouterr().out) is said


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[optimizer]\nrounds = 2\n")
    argv = ["run", str(path), *QUICK, "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 0


@pytest.mark.parametrize("kernel", ["", "numpy"])
def test_a_run_without_the_kernel_says_so_once(tmp_path, kernel):
    """The build is optional and its failure silent, so the first run is where it must show."""
    done = subprocess.run(
        [sys.executable, "-m", "server.commands.cli", "run", *QUICK, "--out", tmp_path / "run"],
        env={**os.environ, "PAIRZERO_KERNEL": kernel},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout.count("several times slower") == (kernel == "numpy")


# The run folder


def test_an_empty_name_is_not_a_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", ""]) == 2
    assert "got an empty name" in capsys.readouterr().err
    assert cli.main(["run", *QUICK, "--out", ""]) == 2
    assert "--out: got an empty name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_written_into(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(["run", *QUICK, "--out", str(tmp_path)]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert cli.main(["run", *QUICK, "--out", str(folder), "--compare", "--json"]) == 0
    return folder


@pytest.fixture
def finished_copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "runs" / "copy"))


def test_resume_takes_no_other_folder(finished_copy, tmp_path, capsys):
    argv = ["run", "--resume", str(finished_copy), "--out", str(tmp_path / "elsewhere")]
    assert cli.main(argv) == 2
    assert "leave --out away" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("again", [["report"], ["run", "--resume"]])
def test_the_line_of_the_reference_stays(finished_copy, capsys, again):
    capsys.readouterr()
    assert cli.main([*again, str(finished_copy)]) == 0
    table = capsys.readouterr().out
    assert table.count("ideal (no radio)") == 1
    assert table.count("loopback+") == 1
    assert "ideal (no radio)" in (finished_copy / "report.html").read_text()


def block(folder, name):
    """Put something in the way of a part of the report."""
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_text("in the way") if name == "plots" else path.mkdir()
    return path


@pytest.mark.parametrize("name", ["plots", "summary.json", "report.html"])
def test_a_report_that_cannot_be_written_loses_nothing_and_can_be_made_again(
    finished_copy, capsys, name
):
    blocked = block(finished_copy, name)
    store = (finished_copy / "run.sqlite3").read_bytes()
    capsys.readouterr()
    assert cli.main(["run", "--resume", str(finished_copy)]) == 2
    printed = capsys.readouterr()
    assert "loopback+" in printed.out  # the table is there all the same
    assert "Traceback" not in printed.err
    assert "is safe in" in printed.err and "run.sqlite3" in printed.err
    assert f"pairzero report {finished_copy}" in printed.err
    assert (finished_copy / "run.sqlite3").read_bytes() == store
    blocked.unlink() if blocked.is_file() else blocked.rmdir()
    assert cli.main(["report", str(finished_copy)]) == 0
    assert (finished_copy / name).exists()
    assert not list(finished_copy.glob(".*.partial"))


def test_runs_are_listed_a_line_each(finished_copy, capsys):
    broken = finished_copy.parent / "broken"
    broken.mkdir()
    (broken / "run.sqlite3").write_bytes(b"no database" * 100)
    capsys.readouterr()
    assert cli.main(["list", str(finished_copy.parent)]) == 0
    printed = capsys.readouterr()
    title, line = printed.out.splitlines()
    assert title.split()[0] == "run"
    assert line.split()[:3] == ["copy", "complete", "2/2"]
    assert "broken" in printed.err and "damaged" in printed.err
    assert cli.main(["list", str(finished_copy)]) == 0
    assert "reference" in capsys.readouterr().out  # a run inside a run is one, too
    assert cli.main(["list", str(broken)]) == 0
    assert "no runs there" in capsys.readouterr().out


def test_a_run_is_named_after_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run._next_folder("my/voice.toml") == Path("runs/voice-1")
    (tmp_path / "runs" / "voice-1").mkdir(parents=True)
    assert run._next_folder("my/voice.toml") == Path("runs/voice-2")
    for radio, name in ((None, "snips"), ("virtual-pluto", "virtual-pluto"), ("ideal", "snips")):
        asked = argparse.Namespace(config=None, radio=radio)
        assert run._next_folder(preset_or_file(asked)) == Path(f"runs/{name}-1")


def test_a_long_source_keeps_its_distance_from_the_waveform(finished):
    summary = dict(read_runs(finished)[0].summary)
    summary["source"] = "virtual-pluto+pyadi-iio 0.0.21+libiio 0.24"
    out = io.StringIO()
    ProgressPrinter(out).table([summary], finished)
    head, line = out.getvalue().splitlines()[1:3]
    assert "libiio 0.24  coherent" in line
    assert head.index("waveform") == line.index("coherent")


def test_a_configuration_is_read_once_and_what_it_tells_is_told_once(tmp_path, capsys, caplog):
    (tmp_path / "mine.toml").write_text("[radio]\npilot_symbols = 512\n")
    words = ["--rounds", "2", "--set", "radio.waveform=energy", "--set", "task.max_tokens=24"]
    assert cli.main(["plan", str(tmp_path / "mine.toml"), *words]) == 0
    assert len([text for text in caplog.messages if "nothing reads it" in text]) == 1


def test_a_log_hears_of_rounds_between_evaluations_that_are_far_apart():
    now = [0.0]
    for keeps_secret in (False, True):
        out = io.StringIO()
        printer = ProgressPrinter(out, clock=lambda: now[0])
        printer._keeps_time_secret = keeps_secret  # when a line comes would tell the pace
        row = SimpleNamespace(
            round_index=7, mean_estimates=(1.0,), artificial_noise_std=0.1, receiver_noise_std=0.1
        )
        for passed_s in (1.0, 28.0, 2.0, 5.0):
            now[0] += passed_s
            printer.update(Progress(8, 308, row, None, 0.5))
        lines = out.getvalue().splitlines()
        assert [line.split() for line in lines] == (
            []
            if keeps_secret
            else [["8", "-", "-", "1.000", "0.100", "0.100", "-", "0.5", "10", "min"]]
        )


def test_a_column_that_nothing_may_stand_in_is_left_out(finished):
    summary = dict(read_runs(finished)[0].summary)
    reference = {**summary, "source": "ideal (no radio)", "epsilon": None, "peak_rss_mb": None}
    hidden = ("accuracy_before", "accuracy_after", "noise_nmse_db", "radio_nmse_db", "wall_s")
    private = {**summary, **dict.fromkeys([*hidden, "peak_rss_mb"])}
    out = io.StringIO()
    ProgressPrinter(out).table([private], finished)
    said = out.getvalue()
    assert not any(word in said for word in ("accuracy", "after", "dB", "wall s", "peak MB", " - "))
    assert "airtime: of a round" in said
    out = io.StringIO()
    ProgressPrinter(out).table([{**summary, "epsilon": 0.5}, reference], finished)
    head, first, second = (line.split("  ") for line in out.getvalue().splitlines()[1:4])
    assert "accuracy before" in head
    assert "none" in [cell.strip() for cell in second]  # no privacy is said, not dashed
    assert len("  ".join(head)) == len("  ".join(first)) == len("  ".join(second))


def test_a_disk_that_is_full_while_a_model_is_saved_is_told(finished, tmp_path):
    """A file of more than so much is refused, as on a disk with so much left."""
    program = "import sys; from server.commands.cli import main; sys.exit(main())"
    command = f"ulimit -f 3000; {sys.executable} -c '{program}' save {finished} out"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert done.returncode == 2
    assert "out: could not be written" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_a_place_are_told_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for command in (["measure"], ["replay", "missing"]):
        for place in ("file", "file/in", "/proc/pictures"):
            assert radio_cli.main([*command, "--plot", str(tmp_path / place)]) == 2
            assert "--plot: " in capsys.readouterr().err
    assert radio_cli.main(["measure", "--devices", "0", "--plot", str(tmp_path / "new")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
