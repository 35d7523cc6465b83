"""A run leaves a model to use: saved for transformers and as a bundle, and asked for labels."""

import errno
import io
import json
import shutil
import sqlite3
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.parameters import ParameterStore
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import read_examples
from server.errors import ConfigurationError, RunStoreError
from server.model import tuned
from server.model.tuned import load_model, save_model
from server.store.run_store import STORE_FILE
from tests.support.asking import call

ROUNDS = 30
SETTINGS = [
    "--rounds", str(ROUNDS), "--set", "federation.num_devices=2",
    "--set", "optimizer.batch_size=8", "--set", "privacy.enabled=false",
    "--set", "radio.backend=ideal", "--set", "run.evaluation_interval=10",
    "--set", "optimizer.learning_rate=2e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run folder, summary) of a short run on the whole validation file."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    code, out, err = call("run", "snips", *SETTINGS, "--out", folder, "--json")
    assert code == 0, err
    return folder, json.loads(out)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "model"
    code, said, err = call("save", run[0], out)
    assert code == 0, err
    assert str(out / "bundle") in said and str(out / "hugging_face") in said
    return out


@pytest.fixture(scope="module")
def validation():
    task, folder = load_task("snips")
    return task, folder / task.validation


def test_the_run_moved_the_model(run):
    _, summary = run
    assert summary["accuracy_after"] != summary["accuracy_before"]


def test_both_hold_the_very_bits_the_run_ended_with(run, saved):
    _, summary = run
    bundle = open_bundle(saved / "bundle")
    weights = ParameterStore.from_bundle(bundle)
    assert weights.digest() == summary["parameter_digest"]
    stored = load_file(saved / "hugging_face" / "model.safetensors")
    assert set(stored) == set(weights.tensors)
    assert all(np.array_equal(stored[name], w) for name, w in weights.tensors.items())
    assert summary["run_id"] in bundle.manifest.source_model
    assert bundle.manifest.task.labels == load_task("snips")[0].labels


@pytest.mark.usefixtures("one_torch_thread")
def test_transformers_gives_the_accuracy_of_the_run_s_table(run, saved, validation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, info = transformers.OPTForCausalLM.from_pretrained(
        saved / "hugging_face", output_loading_info=True
    )
    assert not info["unexpected_keys"] and not set(info["missing_keys"]) - {"lm_head.weight"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved / "hugging_face")
    task, path = validation
    words = [
        tokenizer(f"x{task.separator}{word}")["input_ids"][-1] for word in task.label_words.values()
    ]
    of_length = defaultdict(list)  # those of one length at once, so that nothing is padded
    for example in read_examples(path, task):
        tokens = tokenizer(task.template.replace("{text}", example.text))["input_ids"]
        of_length[len(tokens)].append((tokens, example.label_index))
    correct = []
    with torch.inference_mode():
        for prompts in of_length.values():
            tokens, labels = zip(*prompts, strict=True)
            logits = model.eval()(torch.tensor(tokens)).logits[:, -1, words]
            correct.extend((logits.argmax(dim=1) == torch.tensor(labels)).tolist())
    assert len(correct) == 700
    assert np.mean(correct) == run[1]["accuracy_after"]


@pytest.mark.parametrize("which", ["run", "bundle"])
def test_predict_agrees_with_the_run_s_table(run, saved, validation, which):
    model = {"run": run[0], "bundle": saved / "bundle"}[which]
    code, out, err = call("predict", model, validation[1], "--labelled")
    assert code == 0, err
    assert f"{run[1]['accuracy_after']:.1%}" in err
    assert len(out.splitlines()) == 700
    code, out, _ = call("predict", model, validation[1], "--labelled", "--json")
    assert json.loads(out)["accuracy"] == run[1]["accuracy_after"]


def test_a_saved_bundle_can_be_tuned_on(saved, tmp_path):
    argv = ["run", "snips", *SETTINGS, "--rounds", "2", "--set", f"model.bundle={saved / 'bundle'}"]
    code, _, err = call(*argv, "--out", tmp_path / "run", "--json")
    assert code == 0, err


def test_any_round_can_be_had(run, tmp_path):
    folder, summary = run
    start = load_model(folder, num_rounds=0)
    base = ParameterStore.from_bundle(open_bundle(BUNDLED_MODEL_FOLDER))
    assert start.weights.digest() == base.digest()
    best = load_model(folder, best=True)
    assert best.num_rounds == summary["best_after_rounds"]
    half = {load_model(folder, num_rounds=n).weights.digest() for n in (0, 10, 20, ROUNDS)}
    assert len(half) == 4
    for count in (-1, ROUNDS + 1):
        with pytest.raises(ConfigurationError, match=f"got {count}, the run has finished 30"):
            load_model(folder, num_rounds=count)
    code, out, _ = call("save", folder, tmp_path / "half", "--rounds", "10")
    assert (code, "10 rounds" in out) == (0, True)


def test_the_report_shows_classes_baseline_and_the_best_evaluation(run):
    folder, summary = run
    classes = summary["classes"]
    assert list(classes) == list(load_task("snips")[0].labels)
    assert sum(c["examples"] for c in classes.values()) == 700
    correct = sum(c["correct"] for c in classes.values())
    assert correct / 700 == pytest.approx(summary["accuracy_after"])
    majority = max(c["examples"] for c in classes.values()) / 700
    assert summary["majority_accuracy"] == pytest.approx(majority, abs=1e-5)
    assert summary["best_accuracy"] >= summary["accuracy_after"]
    page = (folder / "report.html").read_text()
    assert "By class, after 30 rounds" in page
    assert all(label in page for label in classes)
    assert f"right for {summary['majority_accuracy']:.1%}" in page


# What is refused


def test_a_changed_step_does_not_pass_for_the_run_s_weights(run, tmp_path):
    folder = Path(shutil.copytree(run[0], tmp_path / "copy"))
    connection = sqlite3.connect(folder / STORE_FILE)
    with connection:
        connection.execute("UPDATE rounds SET step_integers = '[1]' WHERE round_index=5")
    connection.close()
    with pytest.raises(RunStoreError, match=r"the chain of its rounds breaks at round 5"):
        load_model(folder)


def test_another_bundle_is_not_moved_by_the_run_s_steps(tmp_path):
    bundle = Path(shutil.copytree(BUNDLED_MODEL_FOLDER, tmp_path / "bundle"))
    argv = ["run", "snips", *SETTINGS, "--rounds", "1", "--set", f"model.bundle={bundle}"]
    assert call(*argv, "--out", tmp_path / "run")[0] == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "source_model": "another"}))
    code, _, err = call("save", tmp_path / "run", tmp_path / "out")
    assert code == 2
    assert "not the bundle that the run was started with" in err
    assert not (tmp_path / "out").exists()


def test_nothing_in_the_way_is_overwritten_and_a_failure_leaves_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    code, _, err = call("save", run[0], tmp_path)
    assert (code, "something already" in err) == (2, True)

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tuned, "write_manifest", no_space)
    with pytest.raises(ConfigurationError, match="No space left"):
        save_model(load_model(run[0]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_neither_is_named(tmp_path):
    code, _, err = call("predict", tmp_path, "-")
    assert code == 2
    assert "neither a run" in err
    code, _, err = call("predict", BUNDLED_MODEL_FOLDER, "-", "--best")
    assert code == 2
    assert "no rounds to choose from" in err


# Texts as they come


def with_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_texts_are_labelled_in_order_from_a_file_and_from_standard_input(
    saved, tmp_path, monkeypatch
):
    content = b"\xef\xbb\xbfplay some music\r\n\nwhat is the weather like today ?\n"
    (tmp_path / "texts.txt").write_bytes(content)
    code, from_file, err = call("predict", saved / "bundle", tmp_path / "texts.txt")
    assert code == 0, err
    with_input(monkeypatch, content)
    assert call("predict", saved / "bundle", "-")[1] == from_file
    lines = [line.split("\t") for line in from_file.splitlines()]
    # A line for a line, so that answers can be laid beside texts.
    assert [text for _, text in lines] == [
        "play some music",
        "",
        "what is the weather like today ?",
    ]
    assert lines[1] == ["", ""]
    assert {label for label, text in lines if text} <= set(load_task("snips")[0].labels)
    with_input(monkeypatch, content)
    code, out, _ = call("predict", saved / "bundle", "-", "--json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert [d["label"] for d in documents] == [label or None for label, _ in lines]
    assert documents[1] == {"label": None, "text": "", "probabilities": {}}
    for document in (documents[0], documents[2]):
        shares = document["probabilities"]
        assert sum(shares.values()) == pytest.approx(1.0)
        assert max(shares, key=shares.get) == document["label"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PlayMusic\tplay a song\n", "add --labelled"),
        (b"\xff\xfe\n", "line 1: not UTF-8"),
    ],
)
def test_lines_that_cannot_be_meant_are_named(saved, tmp_path, content, words):
    (tmp_path / "texts.txt").write_bytes(content)
    code, out, err = call("predict", saved / "bundle", tmp_path / "texts.txt")
    assert (code, out) == (2, "")
    assert words in err
    assert call("predict", saved / "bundle", tmp_path / "none.txt")[0] == 2
    assert call("predict", saved / "bundle", "-", "--labelled")[0] == 2
