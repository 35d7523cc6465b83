"""From a Hugging Face folder to a bundle, on both roads, against torch."""

import numpy as np
import pytest

from edge_runtime.bundle import GRAPH_FILES, open_bundle
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.errors import TaskError
from edge_runtime.task_spec import TaskSpec
from server.errors import ExportError
from server.export import export_bundle

pytestmark = [
    # torch's tracing exporter and optimum announce their own retirement.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

TASK = TaskSpec(
    name="toy",
    template="{text} Intent:",
    label_words={"PlayMusic": "music", "GetWeather": "weather", "RateBook": "book"},
)
STYLES = {
    "pre_norm": {},
    "post_norm_projected": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
}
TEXTS = ("play some music", "what is the weather like today ?", "rate this book")
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=STYLES)
def model_folder(request, tmp_path_factory):
    pytest.importorskip("torch")
    from server.export.random_models import write_random_opt

    folder = tmp_path_factory.mktemp("opt") / request.param
    # A large spread makes attention sharp, so that a wrong mask or head split would show.
    changes = {**STYLES[request.param], "init_std": 0.2}
    return write_random_opt(folder, size="tiny", seed=3, **changes)


def prompts(bundle):
    """Padded prompts of TEXTS: ids [3, width], lengths, positions of the answers."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    rows = [tokenizer.encode(TASK.template.replace("{text}", text)).ids for text in TEXTS]
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), 1, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths, np.arange(len(rows)) * ids.shape[1] + lengths - 1


def run_bundle(folder, target, plain_graphs):
    """Losses (and scores) of a bundle, from its files alone."""
    from safetensors.numpy import load_file

    bundle = open_bundle(folder)
    ids, _, answer_position = prompts(bundle)
    feeds = {n: w.astype(np.float32) for n, w in load_file(bundle.weights_path).items()}
    assert list(feeds) != [] and set(feeds) == {e.name for e in bundle.manifest.tensors}
    inputs = {"input_ids": ids, "answer_position": answer_position, "target": target}
    inputs["label_token_ids"] = np.array(bundle.manifest.label_token_ids)
    graphs = {name: (bundle.folder / name).read_bytes() for name in GRAPH_FILES}
    return plain_graphs(graphs, feeds, inputs, bundle.num_layers)


def run_torch(model_folder, bundle_folder, target):
    import torch
    from transformers import OPTForCausalLM

    bundle = open_bundle(bundle_folder)
    ids, lengths, answer_position = prompts(bundle)
    model = OPTForCausalLM.from_pretrained(model_folder).float().eval()
    mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
    with torch.inference_mode():
        logits = model(torch.from_numpy(ids), attention_mask=mask).logits
    scores = logits.flatten(0, 1)[torch.from_numpy(answer_position)]
    scores = scores[:, list(bundle.manifest.label_token_ids)]
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(target), reduction="none")
    return {"loss": loss.numpy(), "scores": scores.numpy()}


def test_both_roads_agree_with_torch_and_with_each_other(model_folder, tmp_path, plain_graphs):
    pytest.importorskip("optimum.exporters.onnx")
    target = np.array([0, 1, 2])
    results, manifests = {}, {}
    for via in ("native", "optimum"):
        out = export_bundle(model_folder, tmp_path / via, task=TASK, via=via)
        results[via] = run_bundle(out, target, plain_graphs)
        manifests[via] = open_bundle(out).manifest
    wanted = run_torch(model_folder, tmp_path / "native", target)
    assert wanted["loss"].std() > 1e-3
    for got in results.values():
        for name, value in got.items():
            scale = max(1.0, float(np.abs(wanted[name]).max()))
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=TOLERANCE * scale)
    assert manifests["native"].tensors == manifests["optimum"].tensors
    assert manifests["native"].label_token_ids == manifests["optimum"].label_token_ids
    same = ("weights.safetensors", "tokenizer.json")
    assert all(manifests["native"].digests[f] == manifests["optimum"].digests[f] for f in same)


FORMS = {"int16": [], "int8": [], "int8 and 16": ["*.layers.1.*", "*.embed_positions.weight"]}


@pytest.mark.parametrize("form", FORMS)
def test_small_weights_are_the_models_as_near_as_their_bits_allow(model_folder, tmp_path, form):
    from safetensors.numpy import load_file

    store, trainable = form.split()[0], FORMS[form]
    out = export_bundle(model_folder, tmp_path / "b", task=TASK, store=store, trainable=trainable)
    bundle, source = open_bundle(out), load_file(model_folder / "model.safetensors")
    weights = ParameterStore.from_bundle(bundle, None)
    kinds = set()
    for entry in bundle.manifest.tensors:
        wanted = source[entry.name].astype(np.float32)
        off = np.abs(weights.as_float32(entry.name) - wanted)
        largest = np.abs(wanted).max(axis=-1, keepdims=True)
        is_moved = ".layers.1." in entry.name or "embed_positions" in entry.name
        kinds.add(entry.kept_as)
        if wanted.ndim == 1:
            assert entry.kept_as == "float32" and off.max() <= largest * 2.0**-21
        elif store == "int16" or (trainable and is_moved):
            assert entry.kept_as == "int16" and off.max() <= 2.0 * 2.0**-16
        else:
            assert entry.kept_as == "int8" and (off <= largest / 254 * 1.0001).all()
    assert kinds == {"float32", *(["int16"] if store == "int16" or trainable else [])} | (
        {"int8"} if store == "int8" else set()
    )


def test_negative_control_a_device_that_reads_small_weights_wrongly_is_no_bundle(
    model_folder, tmp_path, monkeypatch
):
    real = ParameterStore.expand

    def without_directions(self, name, out, rows=None):
        self._away.clear()
        real(self, name, out, rows)

    def wrong_rows(self, name, out, rows=None):
        real(self, name, out, None if rows is None else rows[::-1].copy())

    for wrong, words in (
        (without_directions, "with the stored weights, moved"),
        (wrong_rows, "with the weights as stored"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(ParameterStore, "expand", wrong)
            with pytest.raises(ExportError, match=words):
                export_bundle(model_folder, tmp_path / "b", task=TASK, store="int16")
    assert list(tmp_path.iterdir()) == []


def test_label_words_must_be_one_token_each_and_nothing_is_written(model_folder, tmp_path):
    task = TaskSpec(name="toy", template="{text}", label_words={"A": "music", "B": "xylophone"})
    with pytest.raises(TaskError, match=r"'B'.*'xylophone'.*tokens \["):
        export_bundle(model_folder, tmp_path / "bundle", task=task)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused_before_any_work(tmp_path):
    with pytest.raises(ExportError, match=r"via: got 'magic', wanted 'native' or 'optimum'"):
        export_bundle("no/model", tmp_path / "bundle", task=TASK, via="magic")
    with pytest.raises(ExportError, match=r"store: got 'int4', wanted one of float32, int16, int8"):
        export_bundle("no/model", tmp_path / "bundle", task=TASK, store="int4")
    with pytest.raises(ExportError, match="stored as int16, every tensor can be trained"):
        export_bundle("no/model", tmp_path / "bundle", task=TASK, store="int16", trainable=["*"])
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExportError, match="there is something already"):
        export_bundle("no/model", tmp_path, task=TASK)


@pytest.mark.parametrize("via", ["native", "optimum"])
def test_negative_control_a_detached_head_never_becomes_a_bundle(
    model_folder, tmp_path, monkeypatch, via
):
    import onnx
    from safetensors.numpy import load_file

    from server.export import interface, via_optimum
    from server.export.families import opt_graph

    embedding = load_file(model_folder / "model.safetensors")["model.decoder.embed_tokens.weight"]
    sound = interface.loss_head

    def detached(hidden, head_weight):
        nodes, constants = sound(hidden, "folded_head")
        folded = onnx.numpy_helper.from_array(embedding.astype(np.float32), "folded_head")
        return nodes, [*constants, folded]

    monkeypatch.setattr(opt_graph, "loss_head", detached)
    monkeypatch.setattr(via_optimum, "loss_head", detached)
    # With the first line of defence, and without it.
    with pytest.raises(ExportError, match=r"no node reads model\.decoder\.embed_tokens"):
        export_bundle(model_folder, tmp_path / "bundle", task=TASK, via=via)
    monkeypatch.setattr("server.export.self_check.check_interfaces", lambda *_: None)
    with pytest.raises(ExportError, match="language-model head: moved, and no output"):
        export_bundle(model_folder, tmp_path / "bundle", task=TASK, via=via)
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_equal_value_stay_apart_on_optimums_road(tmp_path):
    # torch's exporter merges initialisers of equal value: every fresh bias is zero, every norm 1.
    torch = pytest.importorskip("torch")
    from transformers import OPTForCausalLM

    from server.export.random_models import write_random_opt

    folder = write_random_opt(tmp_path / "opt", size="tiny")
    model = OPTForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(float("norm.weight" in name))
    model.save_pretrained(folder)
    open_bundle(export_bundle(folder, tmp_path / "bundle", task=TASK, via="optimum"))


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu"},
        {"layer_norm_elementwise_affine": False},
        # Galactica's, all at once.
        {
            "activation_function": "gelu", "layer_norm_elementwise_affine": False,
            "enable_bias": False,
        },
    ],
    ids=["gelu", "plain norms", "galactica"],
)  # fmt: skip
def test_gelu_and_norms_without_weights_take_the_native_road(tmp_path, changes, plain_graphs):
    pytest.importorskip("torch")
    from server.export.random_models import write_random_opt

    folder = write_random_opt(tmp_path / "opt", size="tiny", seed=3, init_std=0.2, **changes)
    target = np.array([0, 1, 2])
    out = export_bundle(folder, tmp_path / "bundle", task=TASK)
    got, wanted = run_bundle(out, target, plain_graphs), run_torch(folder, out, target)
    for name, value in got.items():
        scale = max(1.0, float(np.abs(wanted[name]).max()))
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=TOLERANCE * scale)


def test_another_activation_takes_optimums_road(tmp_path):
    pytest.importorskip("torch")
    from server.export.random_models import write_random_opt

    folder = write_random_opt(tmp_path / "opt", size="tiny", activation_function="silu")
    with pytest.raises(ExportError, match=r"activation_function.*via='optimum'"):
        export_bundle(folder, tmp_path / "native", task=TASK)
    open_bundle(export_bundle(folder, tmp_path / "optimum", task=TASK, via="optimum"))
