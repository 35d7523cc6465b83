"""Loading a Hugging Face OPT: what comes out, and the words when it cannot."""

import json
import shutil

import numpy as np
import pytest

from server.errors import ConfigurationError, ExportError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def libraries():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def random_opt(libraries, tmp_path_factory):
    from server.export.random_opt import write_random_opt

    return write_random_opt(tmp_path_factory.mktemp("opt") / "tiny-opt", size="tiny")


@pytest.fixture
def model_folder(random_opt, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shutil.copytree(random_opt, tmp_path / "tiny-opt")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    from server.export.hugging_face import load_opt

    return load_opt(folder)


def test_tensor_names_order_and_shapes_are_torchs(model_folder):
    source = load(model_folder)
    weights = source.stored_weights()
    shapes = {name: array.shape for name, array in weights.items()}
    assert list(shapes.items()) == list(source.architecture.tensor_shapes().items())
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    assert source.name == "tiny-opt"


@pytest.mark.parametrize(
    "changes",
    [
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        {"tie_word_embeddings": False},
        {"enable_bias": False},
        {"_remove_final_layer_norm": True},
    ],
)
def test_variants_have_torchs_tensors_too(libraries, tmp_path, changes):
    from server.export.random_opt import write_random_opt

    source = load(write_random_opt(tmp_path / "opt", size="tiny", **changes))
    shapes = {name: array.shape for name, array in source.stored_weights().items()}
    assert list(shapes.items()) == list(source.architecture.tensor_shapes().items())


def test_tokenizer_of_vocab_and_merges_is_the_same_and_starts_with_the_end_token(model_folder):
    fast = load(model_folder).tokenizer
    model = json.loads((model_folder / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model_folder / name).unlink()
    (model_folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (model_folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), "utf-8")
    slow = load(model_folder).tokenizer
    for text in ("play some music Intent:", "naïve", " two  spaces", ""):
        assert slow.encode(text).ids == fast.encode(text).ids
        assert slow.encode(text).ids[0] == 2


def test_a_local_folder_without_config_is_explained(tmp_path):
    with pytest.raises(ExportError, match=r"no config\.json there"):
        load(tmp_path)


def test_a_file_is_explained(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ExportError, match="a file, wanted"):
        load(tmp_path / "model.safetensors")


def test_an_unreachable_hub_model_is_explained(libraries, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="facebook/opt-125m"):
        load("nobody/no-such-model")


def test_another_architecture_is_refused(model_folder):
    change_config(model_folder, model_type="gpt2")
    with pytest.raises(ExportError, match=r"model_type is 'gpt2', wanted 'opt'"):
        load(model_folder)


def test_missing_weights_file_is_explained(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="weights could not be read"):
        load(model_folder)


def test_missing_tokenizer_is_explained(model_folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model_folder / name).unlink()
    with pytest.raises(ExportError, match=r"Put tokenizer\.json"):
        load(model_folder)


def test_a_checkpoint_that_lacks_a_tensor_is_never_filled_with_random_numbers(model_folder):
    from safetensors.numpy import load_file, save_file

    weights = load_file(model_folder / "model.safetensors")
    del weights["model.decoder.layers.1.fc2.weight"]
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks 1 tensors.*layers\.1\.fc2\.weight"):
        load(model_folder)


def test_weights_that_are_not_finite_are_refused_by_name(model_folder):
    from safetensors.numpy import load_file, save_file

    weights = load_file(model_folder / "model.safetensors")
    weights["model.decoder.layers.1.fc2.bias"][3] = np.nan
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.fc2\.bias holds NaN"):
        load(model_folder)


def test_a_tokenizer_larger_than_the_model_is_refused(model_folder):
    path = model_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["zzzz"] = 99_999
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ExportError, match="do not belong together"):
        load(model_folder)


def test_random_opt_is_the_same_for_the_same_seed_and_unknown_sizes_are_refused(
    random_opt, tmp_path
):
    from server.export.random_opt import write_random_opt

    again = write_random_opt(tmp_path / "again", size="tiny")
    other = write_random_opt(tmp_path / "other", size="tiny", seed=1)
    weights = [(f / "model.safetensors").read_bytes() for f in (random_opt, again, other)]
    assert weights[0] == weights[1] != weights[2]
    with pytest.raises(ConfigurationError, match=r"tiny, 125m, 350m, 1\.3b"):
        write_random_opt(tmp_path / "no", size="13b")
    with pytest.raises(ConfigurationError, match=r"vocab\.json"):
        write_random_opt(tmp_path / "no", size="tiny", tokenizer_folder=tmp_path)
