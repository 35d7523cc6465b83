"""Losses of two tiny OPTs, written by torch, met by onnxruntime alone."""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent
PROVENANCE = json.loads((FOLDER / "tiny_opt_losses.json").read_text(encoding="utf-8"))


def load_case(case):
    """The arrays of one case, by group."""
    assert PROVENANCE["format"] == 3, f"unknown format; to regenerate: {PROVENANCE['regenerate']}"
    groups = {"graph": {}, "weight": {}, "input": {}, "output": {}}
    with np.load(FOLDER / "tiny_opt_losses.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            if key.startswith(f"{case}/") and ":" in key:
                group, name = key.removeprefix(f"{case}/").split(":", 1)
                groups[group][name] = arrays[key]
    graphs = {name: array.tobytes() for name, array in groups["graph"].items()}
    return graphs, groups["weight"], groups["input"], groups["output"]


@pytest.fixture
def run(plain_graphs):
    def run_one(graphs, weights, inputs):
        float32 = {name: array.astype(np.float32) for name, array in weights.items()}
        return plain_graphs(graphs, float32, inputs, num_layers=2)

    return run_one


def assert_meets(got, wanted, case):
    for name, value in wanted.items():
        worst = float(np.abs(got[name] - value).max())
        assert worst <= PROVENANCE["tolerance"], (
            f"{case}: {name} differs from torch's by {worst:.1e}, wanted at most "
            f"{PROVENANCE['tolerance']} ({PROVENANCE['tolerance_reason']}). If the graph was "
            f"changed on purpose: {PROVENANCE['regenerate']}"
        )


@pytest.mark.parametrize("case", PROVENANCE["cases"])
def test_stored_graphs_meet_torch(case, run):
    graphs, weights, inputs, wanted = load_case(case)
    assert_meets(run(graphs, weights, inputs), wanted, case)


@pytest.mark.parametrize("case", PROVENANCE["cases"])
def test_padding_changes_nothing(case, run):
    graphs, weights, inputs, wanted = load_case(case)
    rows, width = inputs["input_ids"].shape
    wider = np.pad(inputs["input_ids"], ((0, 0), (0, 5)), constant_values=1)
    row, column = np.divmod(inputs["answer_position"], width)
    padded = {**inputs, "input_ids": wider, "answer_position": row * (width + 5) + column}
    assert rows == len(wider)
    assert_meets(run(graphs, weights, padded), wanted, case)


@pytest.mark.parametrize("case", PROVENANCE["cases"])
def test_graphs_built_today_meet_torch(case, run):
    pytest.importorskip("onnx")
    from server.export.families.opt import OptArchitecture
    from server.export.families.opt_graph import build_graphs

    _, weights, inputs, wanted = load_case(case)
    projected = case == "post_norm_projected"
    architecture = OptArchitecture(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=40,
        word_embed_proj_dim=12 if projected else 16, max_position_embeddings=16,
        do_layer_norm_before=not projected, has_final_layer_norm=not projected,
        activation_function="relu", enable_bias=True, layer_norm_elementwise_affine=True,
        tie_word_embeddings=True,
    )  # fmt: skip
    graphs = {n: g.SerializeToString() for n, g in build_graphs(architecture).items()}
    assert_meets(run(graphs, weights, inputs), wanted, case)


def test_negative_control_a_slightly_wrong_weight_is_seen(run):
    case = PROVENANCE["cases"][0]
    graphs, weights, inputs, wanted = load_case(case)
    name = "model.decoder.layers.1.self_attn.q_proj.weight"
    wrong = {**weights, name: weights[name] * np.float16(1.01)}
    got = run(graphs, wrong, inputs)
    with pytest.raises(AssertionError, match="differs from torch"):
        assert_meets(got, wanted, case)
