"""Architecture, native graph and interface checks: onnx and onnxruntime only, no torch."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from edge_runtime.bundle import EMBEDDING_FILE, GRAPH_FILES, LAST_LAYER_FILE, LAYER_FILE
from server.errors import ExportError
from server.export.dependencies import load
from server.export.families.opt import EMBEDDING, UNTIED_HEAD, OptArchitecture
from server.export.families.opt_graph import build_graphs
from server.export.interface import check_interfaces

TINY = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 12,
    "vocab_size": 20, "word_embed_proj_dim": 8, "max_position_embeddings": 10,
    "do_layer_norm_before": True, "has_final_layer_norm": True, "activation_function": "relu",
    "enable_bias": True, "layer_norm_elementwise_affine": True, "tie_word_embeddings": True,
}  # fmt: skip
POST_NORM = {
    "do_layer_norm_before": False, "has_final_layer_norm": False, "word_embed_proj_dim": 6,
}  # fmt: skip


def architecture(**changes):
    return OptArchitecture(**{**TINY, **changes})


@pytest.fixture
def run(plain_graphs):
    """run(graphs, architecture, inputs) -> losses, on random weights."""

    def run_one(graphs, arch, feeds, seed=0, scale=0.3):
        weights = random_weights(arch, seed, scale)
        content = {name: graph.SerializeToString() for name, graph in graphs.items()}
        return plain_graphs(content, weights, feeds, arch.num_hidden_layers)["loss"]

    return run_one


def random_weights(arch, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, scale, shape).astype(np.float32)
        for name, shape in arch.tensor_shapes().items()
    }


def feeds_for(ids, answer, target):
    return {
        "input_ids": np.array(ids, np.int64),
        "answer_position": np.array(answer, np.int64),
        "target": np.array(target, np.int64),
        "label_token_ids": np.array([3, 7, 11], np.int64),
    }


def test_importing_export_loads_no_heavy_library():
    code = (
        "import sys, server.export; "
        "heavy = {'torch', 'transformers', 'onnx', 'optimum', 'onnxruntime', 'tokenizers'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_library_is_explained():
    with pytest.raises(ExportError, match=r"pip install '\.\[export\]'"):
        load("a_library_that_is_not_there")


def test_published_125m_and_350m_have_the_published_number_of_parameters():
    opt_125m = architecture(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, ffn_dim=3072,
        vocab_size=50272, word_embed_proj_dim=768, max_position_embeddings=2048,
    )  # fmt: skip
    assert opt_125m.describe()["num_parameters"] == 125_239_296
    opt_350m = architecture(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096,
        vocab_size=50272, word_embed_proj_dim=512, max_position_embeddings=2048,
        do_layer_norm_before=False, has_final_layer_norm=False,
    )  # fmt: skip
    assert opt_350m.describe()["num_parameters"] == 331_196_416


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 9), ("num_hidden_layers", 0)])
def test_impossible_dimensions_are_refused_by_name(field, value):
    with pytest.raises(ExportError, match=field):
        architecture(**{field: value})


def test_unknown_variants_are_refused_with_the_other_road():
    with pytest.raises(ExportError, match=r"activation_function.*via='optimum'"):
        build_graphs(architecture(activation_function="silu"))


@pytest.mark.parametrize(
    "changes", [{}, POST_NORM, {"enable_bias": False}, {"tie_word_embeddings": False}]
)
def test_graph_has_the_interface_and_no_weights_inside(changes):
    arch = architecture(**changes)
    graphs = build_graphs(arch)
    check_interfaces(graphs, arch)
    for graph in graphs.values():
        onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
        assert len(graph.SerializeToString()) < 8_000
    assert (UNTIED_HEAD in arch.tensor_shapes()) is (not arch.tie_word_embeddings)


def test_same_dimensions_give_the_same_bytes():
    first, second = (
        {n: g.SerializeToString(deterministic=True) for n, g in build_graphs(arch).items()}
        for arch in (architecture(), architecture(num_hidden_layers=5))
    )
    assert list(first) == list(GRAPH_FILES)
    assert first == second  # the number of layers is no part of the graphs


def test_padding_and_later_tokens_do_not_touch_a_loss(run):
    arch = architecture()
    graph = build_graphs(arch)
    short = run(graph, arch, feeds_for([[2, 5, 6]], [2], [1]))
    padded = run(graph, arch, feeds_for([[2, 5, 6, 1, 1, 1]], [2], [1]))
    other = run(graph, arch, feeds_for([[2, 5, 6, 9, 9, 9]], [2], [1]))
    np.testing.assert_array_equal(padded, other)
    np.testing.assert_allclose(short, padded, atol=1e-6)


def test_order_of_tokens_matters_so_positions_are_read(run):
    arch = architecture()
    graph = build_graphs(arch)
    losses = run(graph, arch, feeds_for([[2, 5, 6, 9], [2, 6, 5, 9]], [3, 7], [1, 1]))
    assert abs(losses[0] - losses[1]) > 1e-4


def test_loss_is_finite_for_scores_far_beyond_the_range_of_exp(run):
    arch = architecture()
    graph = build_graphs(arch)
    loss = run(graph, arch, feeds_for([[2, 5]], [1], [0]), scale=200.0)
    assert np.isfinite(loss).all()
    assert loss.max() > 100


@pytest.mark.parametrize("name", GRAPH_FILES)
def test_interface_check_names_a_constant_large_enough_to_be_a_weight(name):
    arch = architecture()
    graphs = build_graphs(arch)
    graphs[name].graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "smuggled")
    )
    with pytest.raises(ExportError, match=f"{name}: constant smuggled"):
        check_interfaces(graphs, arch)


def test_interface_check_names_a_missing_graph_input_and_an_idle_one():
    arch = architecture()
    graphs = build_graphs(arch)
    with pytest.raises(ExportError, match=r"graphs: got \['embedding.onnx', 'layer.onnx'\]"):
        check_interfaces({n: g for n, g in graphs.items() if n != LAST_LAYER_FILE}, arch)
    with pytest.raises(ExportError, match=r"embedding\.onnx: input model\.decoder\.embed_tokens"):
        check_interfaces(graphs, architecture(word_embed_proj_dim=6))
    with pytest.raises(ExportError, match=r"layer\.onnx: input fc1\.bias: got shape \(12,\)"):
        check_interfaces(graphs, architecture(enable_bias=False))
    for name, tensor in ((LAYER_FILE, "fc2.weight"), (EMBEDDING_FILE, EMBEDDING)):
        damaged = build_graphs(arch)
        for node in damaged[name].graph.node:
            node.input[:] = ["elsewhere" if read == tensor else read for read in node.input]
        with pytest.raises(ExportError, match=f"{name}: no node reads {tensor}"):
            check_interfaces(damaged, arch)
