"""A bundle that was changed, cut or made by another version never opens as a sound one.

Invariant: what runs is what was exported, or a BundleError that says what to do.
"""

import json
import shutil

import msgspec
import pytest

from edge_runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    PAYLOAD_FILES,
    READ_VERSIONS,
    file_digest,
    open_bundle,
    write_manifest,
)
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.errors import BundleError


@pytest.fixture
def folder(tiny_bundle_folder, tmp_path):
    return shutil.copytree(tiny_bundle_folder, tmp_path / "bundle")


def change_manifest(folder, **changes):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_bundle_opens(folder, tiny_bundle):
    bundle = open_bundle(folder)
    assert bundle.manifest == tiny_bundle.manifest
    assert bundle.digest == tiny_bundle.digest
    assert bundle.manifest.direction_generator == GENERATOR
    for path in (bundle.weights_path, bundle.tokenizer_path):
        assert path.is_file()


def test_a_manifest_is_read_as_it_was_written(folder):
    manifest = open_bundle(folder).manifest
    write_manifest(folder, manifest)
    assert open_bundle(folder).manifest == manifest


@pytest.mark.parametrize("name", PAYLOAD_FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "append", "empty"])
def test_a_changed_file_is_named(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(
        {"flip": content, "cut": content[:-1], "append": content + b" ", "empty": b""}[damage]
    )
    with pytest.raises(BundleError, match=f"{name}: sha256 is {file_digest(path)}, the manifest"):
        open_bundle(folder)


@pytest.mark.parametrize("name", PAYLOAD_FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(folder)


def test_a_folder_without_a_manifest_is_an_unfinished_bundle(folder, tmp_path):
    (folder / MANIFEST_FILE).unlink()
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"no manifest\.json there.*pairzero export"):
            open_bundle(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version": "\xff"}', b"PK\x03\x04",
     b"[" * 5000, b'{"architecture":' * 3000],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: not a manifest of format"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": "all"},
        {"digests": None},
        {"surprise": 1},
        {"tensors": [{"name": "w", "shape": [1.5], "stored_dtype": "f", "quantum_exponent": 0}]},
        {"label_token_ids": ["x"]},
        {"task": "snips"},
        {"task": {"name": "x", "template": "no text", "label_words": {"a": "b", "c": "d"}}},
    ],
)
def test_a_manifest_with_other_fields_is_refused(folder, changes):
    change_manifest(folder, **changes)
    with pytest.raises(BundleError, match=r"not a manifest of format 4 .*Export the model again"):
        open_bundle(folder)


@pytest.mark.parametrize("version", [0, READ_VERSIONS[0] - 1, FORMAT_VERSION + 1, -1])
def test_another_version_is_refused_before_anything_else_is_looked_at(folder, version):
    # The second had a single graph of the whole model.
    change_manifest(folder, format_version=version, source_model="facebook/opt-125m")
    (folder / "layer.onnx").rename(folder / "graph.onnx")
    with pytest.raises(
        BundleError,
        match=f"format {version}, this pairzero reads 3 and {FORMAT_VERSION}.*"
        "pairzero export facebook/opt-125m OUT --task TASK",
    ):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size"])
@pytest.mark.parametrize("value", [0, -1, "3", None, True])
def test_dimensions_that_a_forward_pass_needs_are_counts(folder, name, value):
    architecture = json.loads((folder / MANIFEST_FILE).read_text())["architecture"]
    change_manifest(folder, architecture=architecture | {name: value})
    with pytest.raises(BundleError, match=rf"architecture\.{name} is|not a manifest of format"):
        open_bundle(folder)


def test_a_manifest_without_digests_opens_nothing(folder):
    change_manifest(folder, digests={})
    with pytest.raises(BundleError, match="the manifest says None"):
        open_bundle(folder)


def test_a_manifest_too_large_to_read_is_not_read(folder):
    with (folder / MANIFEST_FILE).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match=f"larger than {MAX_MANIFEST_BYTES} bytes, refused"):
        open_bundle(folder)


def test_the_bundles_digest_follows_its_manifest(folder):
    bundle = open_bundle(folder)
    before = bundle.digest
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, source_model="other"))
    assert open_bundle(folder).digest != before
