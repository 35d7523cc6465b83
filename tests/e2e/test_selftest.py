"""One round with what a device has installed."""

import json
import shutil
from pathlib import Path

import pytest

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER
from edge_runtime.protocol.errors import EdgeError
from edge_runtime.selftest import run_selftest


def made_for_another_task(folder):
    bundle = Path(shutil.copytree(BUNDLED_MODEL_FOLDER, folder / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["task"]["name"] = "another"
    manifest["task"]["label_words"] = {"Yes": "update", "No": "rate"}
    manifest["label_token_ids"] = manifest["label_token_ids"][:2]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_the_words_are_those_of_the_task_whatever_the_bundle_was_exported_for(tmp_path):
    wanted = run_selftest(BUNDLED_MODEL_FOLDER, task_name="snips", num_devices=2)
    bundle = made_for_another_task(tmp_path)
    got = run_selftest(bundle, task_name="snips", num_devices=2)
    # Batches are secret and drawn afresh, so the scalars differ; seven words are scored in both.
    assert got.num_parameters == wanted.num_parameters
    assert got.true_mean != 0.0


def test_without_a_task_it_is_the_bundle_s_own(tmp_path):
    """Whatever the bundle was made for; no data of it are needed."""
    bundle = made_for_another_task(tmp_path)
    got = run_selftest(bundle, num_devices=3)
    assert got.num_devices == 3
    assert got.true_mean != 0.0


def test_more_devices_than_examples_are_refused(tmp_path):
    (tmp_path / "few.tsv").write_text("Yes\tplay\nNo\tstop\n", "utf-8")
    (tmp_path / "few.toml").write_text(
        'name = "few"\ntrain = "few.tsv"\nvalidation = "few.tsv"\ntemplate = "{text}"\n'
        '[label_words]\nYes = "update"\nNo = "rate"\n'
    )
    with pytest.raises(EdgeError, match="2 examples for 3 devices"):
        run_selftest(BUNDLED_MODEL_FOLDER, task_name=str(tmp_path / "few.toml"), num_devices=3)
