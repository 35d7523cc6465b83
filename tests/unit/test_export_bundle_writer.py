"""A bundle is written whole or not at all."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle import GRAPH_FILES, file_digest, open_bundle
from edge_runtime.lattice import choose_quantum_exponent
from edge_runtime.task_spec import TaskSpec
from server.errors import ExportError
from server.export import bundle_writer
from server.export.bundle_writer import BundleContents, write_bundle
from server.export.families.opt import OptArchitecture

TASK = TaskSpec(
    name="toy",
    template="{text} It was",
    label_words={"b": "book", "a": "music"},
    separator="\n",
    train="/home/somebody/train.tsv",
    validation="validation.tsv",
)


@pytest.fixture
def contents():
    architecture = OptArchitecture(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, vocab_size=12,
        word_embed_proj_dim=8, max_position_embeddings=6, do_layer_norm_before=True,
        has_final_layer_norm=True, activation_function="relu", enable_bias=True,
        layer_norm_elementwise_affine=True, tie_word_embeddings=True,
    )  # fmt: skip
    weights = {
        name: np.full(shape, 1.5, dtype=np.float16 if "fc" in name else np.float32)
        for name, shape in architecture.tensor_shapes().items()
    }
    return BundleContents(
        source_model="someone/opt-tiny", architecture=architecture,
        task=TASK, label_token_ids=(5, 9),
        graphs=dict.fromkeys(GRAPH_FILES, b"not really a graph"), weights=weights,
        tokenizer_json="{}",
    )  # fmt: skip


def test_what_is_written_opens_and_says_what_it_is(tmp_path, contents):
    out = write_bundle(tmp_path / "deep" / "bundle", contents)
    manifest = open_bundle(out).manifest
    assert manifest.source_model == "someone/opt-tiny"
    assert manifest.task == msgspec.structs.replace(TASK, train="", validation="")
    assert manifest.task.labels == ("b", "a")
    assert manifest.label_token_ids == (5, 9)
    assert [entry.name for entry in manifest.tensors] == list(contents.weights)
    by_name = {entry.name: entry for entry in manifest.tensors}
    fc1 = by_name["model.decoder.layers.0.fc1.weight"]
    assert (fc1.stored_dtype, fc1.shape) == ("float16", (8, 8))
    assert fc1.quantum_exponent == choose_quantum_exponent(1.5)
    assert by_name["model.decoder.final_layer_norm.bias"].stored_dtype == "float32"
    assert manifest.architecture["num_parameters"] == sum(w.size for w in contents.weights.values())
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_equal_contents_give_equal_files(tmp_path, contents):
    first, second = (write_bundle(tmp_path / name, contents) for name in "ab")
    for path in first.iterdir():
        assert file_digest(path) == file_digest(second / path.name)


def test_an_empty_folder_may_be_filled(tmp_path, contents):
    (tmp_path / "bundle").mkdir()
    open_bundle(write_bundle(tmp_path / "bundle", contents))


@pytest.mark.parametrize("kind", ["file", "filled folder"])
def test_something_in_the_way_is_refused_and_untouched(tmp_path, contents, kind):
    out = tmp_path / "bundle"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    with pytest.raises(ExportError, match="there is something already"):
        write_bundle(out, contents)
    assert (out if kind == "file" else out / "mine").read_text() == "mine"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path, contents, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(bundle_writer, "write_manifest", fail)
    with pytest.raises(ExportError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", contents)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_as_readable_as_the_rest(tmp_path, contents):
    out = write_bundle(tmp_path / "bundle", contents)
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1


def test_weights_that_are_not_finite_never_become_a_bundle(tmp_path, contents):
    weights = dict(contents.weights)
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(Exception, match="NaN"):
        write_bundle(tmp_path / "bundle", dataclasses.replace(contents, weights=weights))
    assert list(tmp_path.iterdir()) == []


def test_manifest_holds_no_path_of_this_machine(tmp_path, contents):
    out = write_bundle(tmp_path / "bundle", contents)
    assert "somebody" not in (out / "manifest.json").read_text()
    assert str(tmp_path) not in json.dumps(json.loads((out / "manifest.json").read_text()))
