"""Llamas: exported, checked against torch, tuned and saved; and what is refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import make_batch
from edge_runtime.protocol.errors import BundleError
from edge_runtime.task_spec import load_task
from server.commands import cli
from server.errors import ExportError
from server.export import export_bundle
from server.export.families import llama_graph
from server.export.random_models import write_random_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_torch_thread", "outlined_pictures"),
]

TASK, _ = load_task("snips")
MODELS = {
    "one head of keys": {"num_key_value_heads": 1},
    "three heads of keys": {"num_key_value_heads": 3, "rope_theta": 1e5},
    "as many keys as queries, a head of its own": {
        "num_key_value_heads": 6, "tie_word_embeddings": False, "head_dim": 10,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """(folder of the model, folder of its bundle)."""
    folder = tmp_path_factory.mktemp("llama")
    # A large spread makes attention sharp, so that a wrong head or angle would show.
    model = write_random_llama(
        folder / "model", words=TASK.label_words.values(), init_std=0.2, **MODELS[request.param]
    )
    return model, export_bundle(model, folder / "bundle", task=TASK)


def losses_of_torch(model_folder, bundle, batch):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder, attn_implementation="eager").float()
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(batch.input_ids)).logits.flatten(0, 1)
    scores = logits[torch.from_numpy(batch.answer_position)]
    scores = scores[:, list(bundle.manifest.label_token_ids)]
    target = torch.from_numpy(batch.target)
    return torch.nn.functional.cross_entropy(scores, target, reduction="none").numpy()


@pytest.mark.parametrize(("rows", "width"), [(64, 30), (1, 100), (5, 7)])
def test_losses_are_torchs(exported, rows, width):
    model, folder = exported
    bundle = open_bundle(folder)
    rng = np.random.default_rng(1)
    vocabulary = int(bundle.manifest.architecture["vocab_size"])
    prompts = [rng.integers(4, vocabulary, rng.integers(1, width + 1)) for _ in range(rows)]
    batch = make_batch(prompts, width)
    forward = OnnxForward(bundle, ParameterStore.from_bundle(bundle))
    got, wanted = forward.run(batch).losses, losses_of_torch(model, bundle, batch)
    assert wanted.std() > 0.1 or rows == 1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_the_tensors_are_torchs_in_its_order(exported):
    from transformers import LlamaForCausalLM

    model, folder = exported
    named = LlamaForCausalLM.from_pretrained(model).named_parameters()
    wanted = [(name, tuple(parameter.shape)) for name, parameter in named]
    bundle = open_bundle(folder)
    assert [(entry.name, entry.shape) for entry in bundle.manifest.tensors] == wanted
    assert bundle.manifest.family == "llama"


def exchanged_heads(self, x, kind, perm, real=llama_graph._Builder.heads):
    y = real(self, x, kind, perm)
    if kind != "q":
        return y
    order = [1, 0, *range(2, self.architecture.num_attention_heads)]
    return self.add("Gather", [y, self.integers("test/order", order)], "test/exchanged", axis=1)


def turned_by_wrong_angles(self, real=llama_graph._Builder.angles):
    real(self)
    for node in self.nodes:
        if list(node.output) == ["angle/even"]:  # 1, 3, 5 for 0, 2, 4
            node.input[0] = self._constant("test/one", np.array(1.0, np.float64))
            node.input[1] = self._constant("test/end", np.array(self.architecture.head_dim + 1.0))


def keys_late_by_one(self, real=llama_graph._Builder.angles):
    """Angles are of differences: late by one are the keys' alone."""
    real(self)
    late = self._constant("test/next", np.array(1.0, np.float32))
    y = self.add("Add", ["angle/positions", late], "test/positions")
    y = self.add("Mul", [y, "angle/frequency"], "test/half")
    cos, sin = (self.add(op, [y], f"test/{op}") for op in ("Cos", "Sin"))
    minus = self.add("Neg", [sin], "test/minus")
    self.add("Concat", [cos, cos], "test/cos", axis=1)
    self.add("Concat", [minus, sin], "test/sine", axis=1)


def turned_late(self, x, kind, real=llama_graph._Builder.turned):
    y = real(self, x, kind)
    if kind == "k":
        for node in self.nodes:
            if node.output[0] in ("k_straight", "k_across"):
                node.input[1] = node.input[1].replace("angle/", "test/")
    return y


MUTATIONS = {
    "query heads exchanged": {"heads": exchanged_heads},
    "keys turned one position late": {"angles": keys_late_by_one, "turned": turned_late},
    "other frequencies": {"angles": turned_by_wrong_angles},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_negative_control_a_wrong_graph_never_becomes_a_bundle(
    exported, tmp_path, monkeypatch, mutation
):
    model, _ = exported
    for name, changed in MUTATIONS[mutation].items():
        monkeypatch.setattr(llama_graph._Builder, name, changed)
    with pytest.raises(ExportError, match="the graphs and torch differ by"):
        export_bundle(model, tmp_path / "bundle", task=TASK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling: got 'linear'"),
        ({"attention_bias": True}, "attention_bias: got True, wanted False"),
        ({"mlp_bias": True}, "mlp_bias: got True, wanted False"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', wanted 'silu'"),
        ({"sliding_window": 64}, "sliding_window: got 64, wanted None"),
        ({"num_key_value_heads": 4}, "wanted a multiple of num_key_value_heads = 4"),
        ({"head_dim": 7}, "head_dim: got 7, wanted an even number"),
        ({"rope_theta": -1.0}, r"rope_theta: got -1\.0, wanted a number above 0"),
        ({"model_type": "mistral"}, "model_type is 'mistral', wanted 'opt' or 'llama'"),
        ({"intermediate_size": "x"}, "x"),
    ],
)
def test_what_these_graphs_do_not_do_is_refused_by_name(tmp_path, changes, words):
    model = write_random_llama(tmp_path / "model", words=TASK.label_words.values())
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ExportError, match=words):
        export_bundle(model, tmp_path / "bundle", task=TASK)
    assert not (tmp_path / "bundle").exists()


def test_optimums_road_is_opts_alone(exported, tmp_path):
    with pytest.raises(ExportError, match=r"is of the family 'llama'\. Export with via='native'"):
        export_bundle(exported[0], tmp_path / "bundle", task=TASK, via="optimum")


def test_a_family_that_nobody_knows_is_refused(exported, tmp_path):
    import shutil

    folder = shutil.copytree(exported[1], tmp_path / "bundle")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"family": "llama"', '"family": "alpaca"'))
    with pytest.raises(BundleError, match="family is 'alpaca', this pairzero knows opt, llama"):
        open_bundle(folder)


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_run_tunes_it_and_leaves_it_for_transformers(exported, tmp_path, capsys, form):
    model, folder = exported
    if form == "int8":
        trained = ["--store", "int8", "--trainable", "*.layers.2.*"]
        assert cli.main(["export", str(folder), str(tmp_path / "small"), *trained]) == 0
        folder = tmp_path / "small"
    run = [
        "run", "snips", "--rounds", "3", "--set", f"model.bundle={folder}", "--json",
        "--set", 'model.trainable=["*.layers.2.*"]', "--set", "federation.num_devices=2",
        "--set", "optimizer.batch_size=4", "--set", "privacy.enabled=false",
        "--set", "radio.backend=ideal", "--set", "task.validation_examples=40",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    capsys.readouterr()
    assert cli.main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    assert cli.main(["save", str(tmp_path / "run"), str(tmp_path / "saved")]) == 0
    saved = open_bundle(tmp_path / "saved" / "bundle")
    weights = ParameterStore.from_bundle(saved, None)
    assert weights.digest() == summary["parameter_digest"]
    hugging_face = tmp_path / "saved" / "hugging_face"
    tuned, before = (load_file(f / "model.safetensors") for f in (hugging_face, model))
    name = "model.layers.2.mlp.down_proj.weight"
    assert np.abs(tuned[name] - before[name].astype(np.float32)).max() > 1e-3
    rng = np.random.default_rng(2)
    batch = make_batch([rng.integers(4, 200, 12) for _ in range(6)], 12)
    got = OnnxForward(saved, weights).run(batch).losses
    np.testing.assert_allclose(got, losses_of_torch(hugging_face, saved, batch), atol=1e-4)
