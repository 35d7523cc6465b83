"""A run on weights of 16 and 8 bits, from the preset to the model that it leaves."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.parameters import ParameterStore
from edge_runtime.prefix_cache import PrefixCache
from server.config.files import load_config
from server.model.tuned import load_model
from tests.support.asking import call
from tests.support.stored_bundles import store_again

pytestmark = pytest.mark.usefixtures("outlined_pictures")

SETTINGS = [
    "--rounds", "4", "--set", "federation.num_devices=2", "--set", "optimizer.batch_size=4",
    "--set", "optimizer.directions=2", "--set", "privacy.epsilon=8",
    "--set", "task.validation_examples=40",
]  # fmt: skip


@pytest.fixture(scope="module", params=["int16", "int8"])
def stored(request, tmp_path_factory):
    """The bundled model in this form, what the preset trains in 16 bits."""
    trained = load_config("snips", {}).model.trainable if request.param == "int8" else []
    folder = tmp_path_factory.mktemp("stored") / request.param
    return store_again(open_bundle(BUNDLED_MODEL_FOLDER), folder, request.param, trained)


@pytest.fixture(scope="module")
def run(stored, tmp_path_factory):
    """(run folder, summary)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = [*SETTINGS, "--set", f"model.bundle={stored.folder}"]
    code, out, err = call("run", "snips", *settings, "--out", folder, "--json")
    assert code == 0, err
    return folder, json.loads(out)


def test_the_steps_of_the_run_give_the_weights_it_ended_with(stored, run):
    folder, summary = run
    model = load_model(folder)  # which replays them
    assert model.weights.digest() == summary["parameter_digest"]
    assert model.weights.digest() != ParameterStore.from_bundle(stored, None).digest()


def test_another_run_of_the_same_is_the_same_and_one_on_float32_is_not(stored, run, tmp_path):
    settings = [*SETTINGS, "--set", f"model.bundle={stored.folder}"]
    code, out, err = call("run", "snips", *settings, "--out", tmp_path / "again", "--json")
    assert code == 0, err
    assert json.loads(out)["parameter_digest"] == run[1]["parameter_digest"]
    code, out, err = call("run", "snips", *SETTINGS, "--out", tmp_path / "float32", "--json")
    assert code == 0, err
    assert json.loads(out)["parameter_digest"] != run[1]["parameter_digest"]
    # Nothing but rounding lies between them.
    assert abs(json.loads(out)["accuracy_before"] - run[1]["accuracy_before"]) <= 0.05


def test_what_is_saved_holds_the_same_bits_in_both_folders(stored, run, tmp_path):
    code, _, err = call("save", run[0], tmp_path / "model")
    assert code == 0, err
    saved = open_bundle(tmp_path / "model" / "bundle")
    weights = ParameterStore.from_bundle(saved, None)
    assert weights.digest() == run[1]["parameter_digest"]
    kinds = {entry.name: entry.kept_as for entry in stored.manifest.tensors}
    assert {entry.name: entry.kept_as for entry in saved.manifest.tensors} == kinds
    floats = load_file(tmp_path / "model" / "hugging_face" / "model.safetensors")
    assert set(floats) == set(kinds)
    for name, array in floats.items():
        assert array.dtype == np.float32
        assert array.tobytes() == weights.as_float32(name).tobytes()


def test_kept_prefixes_change_no_bit_and_leave_no_file(stored, run, tmp_path):
    settings = [*SETTINGS, "--set", f"model.bundle={stored.folder}"]
    kept = ["--set", "model.prefix_cache_mb=20", "--out", tmp_path / "kept", "--json"]
    code, out, err = call("run", "snips", *settings, *kept)
    assert code == 0, err
    for said in ("parameter_digest", "accuracy_before", "accuracy_after"):
        assert json.loads(out)[said] == run[1][said]
    names = [
        sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "kept", run[0])
    ]
    assert names[0] == names[1]


def test_the_reference_takes_over_what_the_run_has_kept(stored, tmp_path, monkeypatch):
    made, real = [], PrefixCache.__init__

    def init(self, *arguments):
        made.append(self)
        real(self, *arguments)

    monkeypatch.setattr(PrefixCache, "__init__", init)
    settings = [*SETTINGS, "--set", f"model.bundle={stored.folder}"]
    kept = ["--set", "model.prefix_cache_mb=20", "--compare", "--out", tmp_path / "kept", "--json"]
    code, out, err = call("run", "snips", *settings, *kept)
    assert code == 0, err
    (cache,) = made
    # The same examples and directions, so nothing but noise and radio lies between the two.
    assert json.loads(out)["reference"]["accuracy_before"] == json.loads(out)["accuracy_before"]
    assert len(cache) > 40


def test_a_bundle_is_stored_again_by_a_command_and_only_from_floats(stored, tmp_path):
    trained = load_config("snips", {}).model.trainable if "int8" in stored.folder.name else []
    words = ["--store", stored.folder.name, *(["--trainable", *trained] if trained else [])]
    code, said, err = call("export", BUNDLED_MODEL_FOLDER, tmp_path / "again", *words)
    assert code == 0, err
    assert "bundle for task 'snips', " in said
    again = open_bundle(tmp_path / "again")
    assert again.manifest.tensors == stored.manifest.tensors
    assert again.manifest.digests == stored.manifest.digests
    for arguments, words in (
        ((stored.folder, tmp_path / "b", "--store", "int16"), "only from float32"),
        ((BUNDLED_MODEL_FOLDER, tmp_path / "b"), "stored again in 16 or 8 bits"),
        ((BUNDLED_MODEL_FOLDER, tmp_path / "b", "--task", "snips"), "is a bundle, and has a task"),
        ((tmp_path, tmp_path / "b"), "--task: wanted a task name"),
    ):
        code, _, err = call("export", *arguments)
        assert code == 2 and words in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_eight_bits_are_not_trained_and_that_is_said_in_a_sentence(stored, tmp_path):
    settings = [
        *SETTINGS, "--set", f"model.bundle={stored.folder}", "--set", "model.trainable=all",
        "--set", "optimizer.learning_rate=1e-4",
    ]  # fmt: skip
    code, _, err = call("run", "snips", *settings, "--out", tmp_path / "run")
    if "int16" in stored.folder.name:
        assert code == 0, err
        return
    assert code == 2
    assert "is stored in 8 bits" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
