"""Architecture, native graph and interface checks: onnx and onnxruntime only, no torch."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from edge_runtime.onnx_runtime import onnxruntime
from server.errors import ExportError
from server.export.architecture import EMBEDDING, UNTIED_HEAD, OptArchitecture
from server.export.dependencies import load
from server.export.graph import build_graph
from server.export.interface import check_interface

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


def run(graph, arch, feeds, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.normal(0, scale, shape).astype(np.float32)
        for name, shape in arch.tensor_shapes().items()
    }
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["loss"], {**weights, **feeds})[0]


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
        build_graph(architecture(activation_function="silu"))


@pytest.mark.parametrize(
    "changes", [{}, POST_NORM, {"enable_bias": False}, {"tie_word_embeddings": False}]
)
def test_graph_has_the_interface_and_no_weights_inside(changes):
    arch = architecture(**changes)
    graph = build_graph(arch)
    check_interface(graph, arch.tensor_shapes())
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
    assert len(graph.SerializeToString()) < 15_000
    assert (UNTIED_HEAD in arch.tensor_shapes()) is (not arch.tie_word_embeddings)


def test_same_dimensions_give_the_same_bytes():
    first, second = (build_graph(architecture()) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_padding_and_later_tokens_do_not_touch_a_loss():
    arch = architecture()
    graph = build_graph(arch)
    short = run(graph, arch, feeds_for([[2, 5, 6]], [2], [1]))
    padded = run(graph, arch, feeds_for([[2, 5, 6, 1, 1, 1]], [2], [1]))
    other = run(graph, arch, feeds_for([[2, 5, 6, 9, 9, 9]], [2], [1]))
    np.testing.assert_array_equal(padded, other)
    np.testing.assert_allclose(short, padded, atol=1e-6)


def test_order_of_tokens_matters_so_positions_are_read():
    arch = architecture()
    graph = build_graph(arch)
    losses = run(graph, arch, feeds_for([[2, 5, 6, 9], [2, 6, 5, 9]], [3, 7], [1, 1]))
    assert abs(losses[0] - losses[1]) > 1e-4


def test_loss_is_finite_for_scores_far_beyond_the_range_of_exp():
    arch = architecture()
    graph = build_graph(arch)
    loss = run(graph, arch, feeds_for([[2, 5]], [1], [0]), scale=200.0)
    assert np.isfinite(loss).all()
    assert loss.max() > 100


def test_interface_check_names_a_constant_large_enough_to_be_a_weight():
    arch = architecture()
    graph = build_graph(arch)
    graph.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "smuggled")
    )
    with pytest.raises(ExportError, match="smuggled"):
        check_interface(graph, arch.tensor_shapes())


def test_interface_check_names_a_missing_input_and_an_idle_one():
    arch = architecture()
    graph = build_graph(arch)
    shapes = arch.tensor_shapes()
    with pytest.raises(ExportError, match="extra"):
        check_interface(graph, {**shapes, "extra": (3,)})
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == EMBEDDING:
                node.input[index] = "elsewhere"
    with pytest.raises(ExportError, match=f"{EMBEDDING}: no node"):
        check_interface(graph, shapes)
