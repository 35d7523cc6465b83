"""``pairzero-device profile``: what it says of memory is what the kernel says, phase by phase."""

import json
import math
import mmap
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.cli import main
from edge_runtime.profiling import memory
from edge_runtime.profiling.phases import PhaseMeter
from edge_runtime.profiling.prediction import KNOWN, dimensions_of
from edge_runtime.profiling.sensors import EnergyMeter
from edge_runtime.protocol.errors import ProfileError
from tests.support.stored_bundles import store_again

MB = 1e6
ROUND = ["frozen prefix", "move", "pass", "restore and step", "transmit"]
ONCE = ["open bundle", "load weights", "open sessions"]


def fresh(*arguments, code=""):
    """A process of its own: the memory of another test is not in it."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom edge_runtime.cli import main\nmain()", *arguments],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_profile_says_every_phase_and_leaves_valid_files(tmp_path):
    document, picture = tmp_path / "p.json", tmp_path / "p.svg"
    said = fresh("profile", "--rounds", "3", "--json", str(document), "--plot", str(picture))
    found = json.loads(document.read_text())
    assert found["is_complete"] and found["rounds"] == 3
    assert [phase["name"] for phase in found["phases"]] == [*ONCE, *ROUND]
    assert [phase["turns"] for phase in found["phases"]] == [1, 1, 1, 1, 2, 2, 1, 1]
    by_name = {phase["name"]: phase for phase in found["phases"]}
    assert by_name["pass"]["tokens_per_s"] > 0 and by_name["move"]["tokens_per_s"] is None
    assert by_name["move"]["weight_bytes"] == 4 * found["trainable"] == 4 * 1_136_000
    for phase in found["phases"]:
        assert phase["peak_rss_bytes"] >= phase["anonymous_bytes"] + phase["file_bytes"] - MB
        assert phase["seconds"] >= 0 and phase["pss_bytes"] > 0
        assert phase["name"] in said
    assert found["energy_counter"] is None or found["step_j"] > 0.0
    assert "by formula and not measured" in said
    root = xml.etree.ElementTree.fromstring(picture.read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == len(found["phases"])


def test_with_one_sided_differences_there_is_a_clean_pass_and_a_frozen_prefix(tmp_path):
    document = tmp_path / "p.json"
    fresh(
        "profile", "--directions", "3", "--difference", "one_sided", "--rounds", "2",
        "--trainable", "*.layers.2.*", "--json", str(document),
    )  # fmt: skip
    found = json.loads(document.read_text())
    turns = {phase["name"]: phase["turns"] for phase in found["phases"]}
    assert turns == {
        **dict.fromkeys(ONCE, 1), "frozen prefix": 1, "clean pass": 1, "move": 3, "pass": 3,
        "restore and step": 1, "transmit": 1,
    }  # fmt: skip
    assert found["trainable"] < found["weights"]


def test_the_largest_phase_is_the_peak_of_a_process_that_was_never_set_back(tmp_path):
    document, whole = tmp_path / "p.json", tmp_path / "whole.json"
    fresh("profile", "--rounds", "3", "--json", str(document))
    never = "import edge_runtime.profiling.memory as m; m.set_peak_back = lambda: None"
    fresh("profile", "--rounds", "3", "--json", str(whole), code=never)
    largest = max(p["peak_rss_bytes"] for p in json.loads(document.read_text())["phases"])
    last = json.loads(whole.read_text())["phases"][-1]["peak_rss_bytes"]
    assert largest == pytest.approx(last, rel=0.03)


def test_what_is_predicted_without_a_model_is_near_what_is_measured_with_it(tmp_path):
    config, predicted, measured = (tmp_path / name for name in ("c.json", "a.json", "b.json"))
    architecture = open_bundle(BUNDLED_MODEL_FOLDER).manifest.architecture
    config.write_text(json.dumps(architecture))
    for batch, seq in (("16", "64"), ("8", "64")):
        size = ["--batch", batch, "--seq", seq]
        fresh("profile", "--dimensions", str(config), *size, "--json", str(predicted))
        fresh("profile", *size, "--rounds", "2", "--json", str(measured))
        peak = max(p["peak_rss_bytes"] for p in json.loads(measured.read_text())["phases"])
        assert json.loads(predicted.read_text())["peak"] == pytest.approx(peak, rel=0.10)


@pytest.mark.parametrize(
    ("form", "trainable"), [("int16", []), ("int8", ["--trainable", "*.layers.2.*"])]
)
def test_small_weights_are_predicted_and_their_bytes_are_counted(tmp_path, form, trainable):
    config, document = tmp_path / "c.json", tmp_path / "p.json"
    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    config.write_text(json.dumps(bundle.manifest.architecture))
    stored = store_again(bundle, tmp_path / "bundle", form, trainable[1:])
    size = ["--batch", "16", "--seq", "64"]
    fresh(
        "profile", str(stored.folder), *size, *trainable, "--rounds", "2", "--json", str(document)
    )
    found = json.loads(document.read_text())
    peak = max(phase["peak_rss_bytes"] for phase in found["phases"])
    fresh(
        "profile", "--dimensions", str(config), "--store", form, *size, *trainable,
        "--json", str(document),
    )  # fmt: skip
    assert json.loads(document.read_text())["peak"] == pytest.approx(peak, rel=0.10)

    by_name = {phase["name"]: phase for phase in found["phases"]}
    entries = stored.manifest.tensors
    moved = [e for e in entries if not trainable or ".layers.2." in e.name]
    vectors = sum(4 * math.prod(e.shape) for e in moved if len(e.shape) == 1)
    matrices = sum(2 * math.prod(e.shape) for e in moved if len(e.shape) == 2)
    assert by_name["move"]["weight_bytes"] == vectors
    assert by_name["restore and step"]["weight_bytes"] == vectors + matrices
    # Two thirds of what these matrices took, or less: nobody holds them as float32.
    assert found["weight_bytes"] < 0.66 * 4 * found["weights"]


def test_the_dimensions_of_opt_give_its_number_of_weights():
    assert KNOWN["125m"].num_weights == 125_239_296
    assert KNOWN["350m"].num_weights == 331_196_416
    assert KNOWN["1.3b"].num_weights == 1_315_758_080
    manifest = open_bundle(BUNDLED_MODEL_FOLDER).manifest
    dimensions = dimensions_of(manifest.architecture, "here")
    assert dimensions.num_weights == manifest.architecture["num_parameters"]


def test_a_phase_that_takes_100_megabytes_is_seen_with_them_and_no_other_is():
    code = """
import numpy as np
from edge_runtime.profiling.phases import PhaseMeter
meter = PhaseMeter()
for _ in range(3):
    with meter.phase("before"):
        pass
    with meter.phase("large"):
        taken = np.ones(100_000_000, np.uint8)
        del taken
    with meter.phase("after"):
        pass
for phase in meter.phases(3):
    print(phase.name, phase.peak_rss_bytes, phase.anonymous_bytes + phase.file_bytes)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peaks = {name: int(peak) for name, peak, _ in map(str.split, ran.stdout.splitlines())}
    assert peaks["large"] - peaks["before"] == pytest.approx(100 * MB, abs=3 * MB)
    assert peaks["after"] - peaks["before"] == pytest.approx(0, abs=3 * MB)


def test_what_is_killed_leaves_the_phases_before(tmp_path):
    document = tmp_path / "p.json"
    killed = """
import os, signal
from edge_runtime.forward import OnnxForward
def die(self, begun):
    os.kill(os.getpid(), signal.SIGKILL)
OnnxForward.finish = die
"""
    ran = subprocess.run(
        [sys.executable, "-c", f"{killed}\nfrom edge_runtime.cli import main\nmain()", "profile",
         "--json", document],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ran.returncode == -9
    found = json.loads(document.read_text())
    assert not found["is_complete"]
    assert [phase["name"] for phase in found["phases"]] == ONCE
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["--seq", "129"], "--seq: got 129, this model has 128 positions"),
        (["--batch", "0"], "--batch: got 0, wanted 1 or more"),
        (["--threads", "0"], "--threads: got 0, wanted 1 or more"),
        (["--rounds", "0"], "--rounds: got 0, wanted 1 to 100000"),
        (["--directions", "257"], "--directions: got 257, wanted 1 to 256"),
        (["--trainable", "*.nothing"], "'*.nothing' matches none of the"),
        (["--batch", "1000000"], "MB more, and "),
        (["--json", "nowhere/p.json"], "nowhere/p.json: could not be written"),
        (["--plot", "."], ".: could not be written"),
        (["--dimensions", "13b"], "--dimensions: got '13b', wanted one of 125m, 350m, 1.3b"),
        (["--dimensions", "125m", "--seq", "4096"], "--seq: got 4096, wanted 1 to 2048"),
        (["--dimensions", "125m", "--batch", "0"], "--batch: got 0"),
        (["--store", "int16"], "--store goes with --dimensions"),
        (
            ["--dimensions", "125m", "--store", "int8", "--trainable", "no.such"],
            "'no.such' matches none of the",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_before_anything_is_done(
    tmp_path, monkeypatch, arguments, words, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "wanted a JSON object"),
        ("{", "wanted one of"),
        (json.dumps({"hidden_size": True}), "hidden_size: got True"),
        (json.dumps({"hidden_size": 1}), "ffn_dim: got None, wanted a whole number"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text, words, capsys):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["profile", "--dimensions", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_a_kernel_that_does_not_tell_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    assert main(["profile"]) == 2
    assert "A profile needs Linux with /proc" in capsys.readouterr().err
    monkeypatch.setattr(memory, "_SELF", tmp_path / "gone")
    with pytest.raises(ProfileError, match="clear_refs"):
        memory.set_peak_back()
    assert memory.proportional_bytes() is None
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "status").write_text("VmHWM:\t 1 kB\n")
    with pytest.raises(ProfileError, match="says nothing of RssAnon, RssFile"):
        memory.resident()


def test_turns_that_are_not_counted_still_show_their_memory():
    class Joules(EnergyMeter):
        counter = "a test"
        so_far = 0.0

        def joules(self):
            self.so_far += 1.0
            return self.so_far

    meter = PhaseMeter(Joules())
    meter.is_counting = False
    with meter.phase("p", tokens=10):
        # A map of its own: an allocation may find what earlier tests have freed, resident already.
        with mmap.mmap(-1, 40_000_000) as large:
            np.frombuffer(large, np.uint8)[...] = 1
    assert meter.phases(0) == []
    meter.is_counting = True
    for _ in range(4):
        with meter.phase("p", tokens=10):
            pass
    (phase,) = meter.phases(2)
    assert phase.turns == 2
    assert phase.energy_j == 1.0
    assert phase.tokens_per_s > 0
    assert phase.peak_rss_bytes > memory.resident().total + 30 * MB
