"""The self-check passes a true graph and catches frozen uses: its negative controls.

No torch here: the reference is a second, sound copy of the graph in onnxruntime.
"""

import numpy as np
import onnx
import pytest

from edge_runtime.bundle import EMBEDDING_FILE, LAST_LAYER_FILE, LAYER_FILE
from server.errors import ExportError
from server.export.families.opt import EMBEDDING, POSITIONS, OptArchitecture
from server.export.families.opt_graph import build_graphs
from server.export.self_check import BoundGraphs, check_graphs

LABELS = (3, 7, 11)
Q_PROJ = "model.decoder.layers.0.self_attn.q_proj.weight"


def architecture():
    return OptArchitecture(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, vocab_size=40,
        word_embed_proj_dim=16, max_position_embeddings=30, do_layer_norm_before=True,
        has_final_layer_norm=True, activation_function="relu", enable_bias=True,
        layer_norm_elementwise_affine=True, tie_word_embeddings=True,
    )  # fmt: skip


def make_weights(arch):
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(float("norm.weight" in name), 0.02, shape).astype(np.float32)
        for name, shape in arch.tensor_shapes().items()
    }


def check(damage=None, sound_interface=True, monkeypatch=None):
    """Run the self-check on graphs that ``damage(graphs, weights)`` may have changed."""
    arch = architecture()
    weights = make_weights(arch)
    sound = BoundGraphs(build_graphs(arch), arch, weights, np.array(LABELS))
    graphs = build_graphs(arch)
    if damage is not None:
        damage(graphs, weights)
    if not sound_interface:
        monkeypatch.setattr("server.export.self_check.check_interfaces", lambda *_: None)
    return check_graphs(
        graphs, arch, weights, sound.run,
        label_token_ids=LABELS, rng=np.random.default_rng(0),
    )  # fmt: skip


def freeze(op_type, file_name, name, tensor=None):
    """Damage: the nodes of one kind read a constant copy of a tensor instead of the input.

    This is what constant folding and prepacking do: right at first, deaf to training. A layer's
    input ``name`` is frozen at the value of the layer's ``tensor``.
    """

    def damage(graphs, weights):
        graph = graphs[file_name].graph
        copy = onnx.numpy_helper.from_array(weights[tensor or name].copy(), "folded")
        graph.initializer.append(copy)
        hits = 0
        for node in graph.node:
            if node.op_type != op_type:
                continue
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = "folded"
                    hits += 1
        assert hits == 1

    return damage


def test_a_true_graph_passes_and_every_use_is_counted():
    report = check()
    # 36 tensors, the embedding twice, the two k_proj biases not at all.
    assert report.num_uses_moved == len(architecture().tensor_shapes()) + 1 - 2
    assert report.exempt == tuple(
        f"model.decoder.layers.{layer}.self_attn.k_proj.bias" for layer in (0, 1)
    )
    assert report.max_relative_error == 0.0


def test_a_frozen_tensor_is_caught_by_the_interface_already():
    with pytest.raises(ExportError, match=r"no node reads self_attn\.q_proj\.weight"):
        check(freeze("Gemm", LAYER_FILE, "self_attn.q_proj.weight", Q_PROJ))


@pytest.mark.parametrize("use", ["token lookup", "language-model head"])
def test_negative_control_frozen_use_with_label_words(monkeypatch, use):
    def damage(graphs, weights):
        copy = onnx.numpy_helper.from_array(weights[EMBEDDING].copy(), "folded")
        is_lookup = use == "token lookup"
        graph = graphs[EMBEDDING_FILE if is_lookup else LAST_LAYER_FILE].graph
        graph.initializer.append(copy)
        reads = "input_ids" if is_lookup else "label_token_ids"
        (node,) = (n for n in graph.node if list(n.input) == [EMBEDDING, reads])
        node.input[0] = "folded"

    with pytest.raises(ExportError, match=f"{EMBEDDING}.*{use}"):
        check(damage, False, monkeypatch)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(0, "self_attn.q_proj.weight"), (1, "fc1.weight"), (0, "self_attn.q_proj.bias")],
)
def test_negative_control_frozen_single_use_is_named(monkeypatch, layer, name):
    tensor, file_name = f"model.decoder.layers.{layer}.{name}", (LAYER_FILE, LAST_LAYER_FILE)[layer]
    with pytest.raises(ExportError, match=f"{tensor}, as"):
        check(freeze("Gemm", file_name, name, tensor), False, monkeypatch)


@pytest.mark.parametrize("op_type", ["LayerNormalization", "Slice"])
def test_negative_control_frozen_norm_and_positions(monkeypatch, op_type):
    file_name, name, tensor = {
        "LayerNormalization": (
            LAST_LAYER_FILE, "final_layer_norm.bias", "model.decoder.layers.1.final_layer_norm.bias"
        ),
        "Slice": (EMBEDDING_FILE, POSITIONS, POSITIONS),
    }[op_type]  # fmt: skip
    with pytest.raises(ExportError, match=f"{tensor}, as"):
        check(freeze(op_type, file_name, name, tensor), False, monkeypatch)


def drop_causal_mask(graphs, weights):
    graph = graphs[LAYER_FILE].graph
    for node in graph.node:
        if node.op_type == "Trilu":
            node.op_type = "Mul"
            node.input[1] = "position/axis_float"
            del node.attribute[:]
    zero = onnx.numpy_helper.from_array(np.float32(0).reshape(1), "position/axis_float")
    graph.initializer.append(zero)


def exchange_query_and_key(graphs, weights):
    for node in graphs[LAST_LAYER_FILE].graph.node:
        for index, name in enumerate(node.input):
            for one, other in (("q_proj", "k_proj"), ("k_proj", "q_proj")):
                if f"self_attn.{one}" in name:
                    node.input[index] = name.replace(one, other)
                    break


@pytest.mark.parametrize("damage", [drop_causal_mask, exchange_query_and_key])
def test_negative_control_a_wrongly_wired_graph_disagrees(damage):
    with pytest.raises(ExportError, match=r"differ by|no output"):
        check(damage)


def test_a_vocabulary_too_small_to_check_with_is_explained():
    arch = architecture()
    weights = make_weights(arch)
    with pytest.raises(ExportError, match="vocab_size"):
        check_graphs(
            build_graphs(arch), arch, weights, lambda _: {},
            label_token_ids=range(39), rng=np.random.default_rng(0),
        )  # fmt: skip
