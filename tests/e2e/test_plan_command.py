"""`pairzero plan`, and the refusal of runs that noise would drown, as a person meets them."""

import json
import math
import re

import numpy as np
import pytest

from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import derive_direction_seed, direction_seeds
from server.commands.cli import main
from server.config.files import load_config
from server.planning.scalar_rms import typical_number
from server.power.catalogue import POLICIES
from server.run.data import load_run_data

SMALL = [
    "--set", "privacy.unit=device", "--set", "privacy.delta=1e-3", "--set", "task.max_tokens=24",
]  # fmt: skip


def test_the_table_has_a_line_for_every_policy_that_plans_and_a_verdict(capsys):
    assert main(["plan", "snips", *SMALL, "--rounds", "30"]) == 0
    out = capsys.readouterr().out
    for name in ("*optimal", "static", "selection", "equal_split", "perfect", "paper"):
        assert f"\n{name:>{len(name) + (not name.startswith('*'))}s} " in out
    assert "Not for this run: sign, subsampled, limited" in out
    assert "This run cannot learn" in out
    assert "no receiver noise counted" in out
    assert re.search(
        r"On the air 2\.\d+ ms a round, 0 s in all\. Computing, .* takes about \d+ s", out
    )


def test_the_price_of_trusting_the_receiver_is_shown(capsys):
    arguments = ["plan", *SMALL, "--rounds", "30", "--set", "radio.snr_db=0", "--json"]
    assert main(arguments) == 0
    none, everything = json.loads(capsys.readouterr().out)["by_trusted_noise_fraction"]
    assert everything["noise_std"] < none["noise_std"]
    assert everything["effective_rounds"] > none["effective_rounds"]
    trusting = [*arguments, "--set", "privacy.trusted_noise_fraction=1"]
    assert main(trusting) == 0
    document = json.loads(capsys.readouterr().out)
    own = next(e for e in document["policies"] if e["policy"] == document["policy"])
    assert own["noise_std"] == everything["noise_std"]
    assert document["promise"].endswith("100% of the receiver noise counted")


def test_one_json_object_and_a_picture(capsys, tmp_path):
    picture = tmp_path / "new" / "plan.png"
    assert main(["plan", *SMALL, "--rounds", "30", "--json", "--plot", str(picture)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [entry["policy"] for entry in document["policies"]] == list(POLICIES)
    assert document["policy"] == "optimal"
    assert document["can_learn"] is False
    assert document["airtime_s_per_round"] == pytest.approx(2.86e-3, rel=0.1)
    assert document["computing_s_per_round"] > 0.0
    assert any("federation.num_devices" in text for text in document["what_would_help"])
    for entry in document["policies"]:
        if "refusal" in entry:
            assert entry["refusal"]
            continue
        assert len(entry["own_noise_std_of_rounds"]) == 30
        assert (entry["epsilon"] is None) is not entry["keeps_a_promise"]
        total = math.hypot(entry["own_noise_std"], entry["radio_noise_std"])
        assert entry["noise_std"] == pytest.approx(total)
        if entry["keeps_a_promise"]:
            assert entry["epsilon"] <= document["epsilon"]


def test_what_cannot_be_drawn_or_planned_is_said(capsys):
    assert main(["plan", "--plot", "plan.pdf"]) == 2
    assert ".png" in capsys.readouterr().err
    assert main(["plan", "--plot", "/proc/plan.png"]) == 2  # before anything is planned
    assert "/proc/plan.png: could not be written" in capsys.readouterr().err
    assert main(["plan", "--set", "privacy.enabled=false", "--set", "radio.backend=ideal"]) == 2
    assert "ideal" in capsys.readouterr().err


def test_a_run_that_noise_would_drown_is_refused_before_anything_is_written(capsys, tmp_path):
    folder = tmp_path / "run"
    command = ["run", *SMALL, "--rounds", "30", "--out", str(folder)]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "cannot learn" in message
    assert "federation.num_devices = " in message
    assert not folder.exists()
    few = ["--set", "optimizer.learning_rate=1e-6", "--set", "task.validation_examples=20"]
    assert main([*command, *few, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 30


def test_a_private_user_is_told_that_it_is_not_known_and_how_to_know(capsys, tmp_path):
    """Without public data the clip stands in for a typical number: a bound, and no estimate."""
    private = ["--set", "task.validation_is_public=false", "--set", "privacy.noise_source=system",
               "--set", "optimizer.batch_size=2"]  # fmt: skip
    short = ["--rounds", "60"]
    assert main(["plan", "snips", *private, *short, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["typical_number_is_bound"] is True
    assert main(["plan", "snips", *private, *short]) == 0
    out = capsys.readouterr().out
    assert "unknown, at most what stands there" in out
    assert "How long it takes is unknown: there are no public examples to time." in out
    few = ["--rounds", "4", "--set", "task.max_tokens=24"]
    folder = tmp_path / "run"
    assert main(["run", "snips", *private, *few, "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "worth without it: unknown, at most " in out
    assert "Set optimizer.typical_number" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["worth_is_bound"] is True
    page = (folder / "report.html").read_text()
    assert f"without noise: unknown, at most {summary['worth_rounds']:.3g}." in page
    known = ["--set", "optimizer.typical_number=0.01"]
    assert main(["run", "snips", *private, "--rounds", "40", *known, "--out", "never"]) == 2
    assert "cannot learn" in capsys.readouterr().err


def test_a_typical_number_is_that_of_public_data_and_moves_no_weight():
    config = load_config(
        "snips", {"optimizer.directions": 2, "optimizer.clip": 5.0, "task.max_tokens": 24}
    )
    data = load_run_data(config)
    weights = ParameterStore.from_bundle(data.bundle, config.model.trainable, 1)
    forward = OnnxForward(data.bundle, weights, label_token_ids=data.label_token_ids)
    try:
        before = weights.digest()
        found = typical_number(config, forward, weights, data.validation)
        assert weights.digest() == before
        # The definition once more: means over 80 examples of vectors held within the ball.
        (batch,) = data.validation.batches_by_length(range(80), 80)
        scale, squares = 2.0**-10, []
        for index in range(2):
            seed = derive_direction_seed(0, index)
            here = forward.run_many([batch])[0].losses.astype(float)
            columns = []
            for own in direction_seeds(seed, 2):
                with weights.moved(own, scale):
                    columns.append((forward.run_many([batch])[0].losses - here) / scale)
            vectors = np.stack(columns, axis=1)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            squares += np.square((vectors * np.minimum(1.0, 5.0 / norms)).mean(axis=0)).tolist()
        assert found.value == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-3)
        assert "80 public examples" in found.origin
        assert typical_number(config, forward, weights, None).value == 5.0 / math.sqrt(2.0)
        known = load_config("snips", {"optimizer.typical_number": 0.5})
        assert typical_number(known, forward, weights, data.validation).value == 0.5
    finally:
        forward.close()
        weights.close()
