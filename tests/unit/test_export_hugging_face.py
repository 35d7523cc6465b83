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
def libraries(one_torch_thread):
    pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def random_opt(libraries, tmp_path_factory):
    from server.export.random_models import write_random_opt

    return write_random_opt(tmp_path_factory.mktemp("opt") / "tiny-opt", size="tiny")


@pytest.fixture
def model_folder(random_opt, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shutil.copytree(random_opt, tmp_path / "tiny-opt")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    from server.export.hugging_face import load_model

    return load_model(folder)


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
    from server.export.random_models import write_random_opt

    source = load(write_random_opt(tmp_path / "opt", size="tiny", **changes))
    shapes = {name: array.shape for name, array in source.stored_weights().items()}
    assert list(shapes.items()) == list(source.architecture.tensor_shapes().items())


def test_tokenizer_of_vocab_and_merges_is_the_same_and_starts_with_the_end_token(model_folder):
    fast = load(model_folder).tokenizer.bundled
    model = json.loads((model_folder / "tokenizer.json").read_text())["model"]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model_folder / name).unlink()
    (model_folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (model_folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), "utf-8")
    slow = load(model_folder).tokenizer.bundled
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


# The tokens a bundle feeds are those the source feeds


def change_tokenizer(folder, **changes):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def template(*pieces):
    """A post-processor that puts tokens before ("</s>") and behind the text ("$A")."""
    special = {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}
    single = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if piece == "$A"
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in pieces
    ]
    return {
        "type": "TemplateProcessing", "single": single, "special_tokens": special,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
    }  # fmt: skip


@pytest.mark.parametrize("bos_token_id", [0, None, 2])
def test_the_tokenizer_s_own_first_token_counts_and_not_the_config_s(model_folder, bos_token_id):
    change_config(model_folder, bos_token_id=bos_token_id)
    tokenizer = load(model_folder).tokenizer
    tokenizer.check(["play some music"])
    assert tokenizer.bundled.encode("play").ids[0] == 2
    assert (tokenizer.first, tokenizer.last) == ((), ())


@pytest.mark.parametrize("pieces", [("</s>", "$A", "</s>"), ("$A", "</s>")])
def test_an_end_that_the_tokenizer_appends_is_not_fed(model_folder, pieces):
    change_tokenizer(model_folder, post_processor=template(*pieces))
    tokenizer = load(model_folder).tokenizer
    assert tokenizer.source("play").input_ids[-1] == 2
    ids = tokenizer.bundled.encode("play").ids
    assert (ids[0], ids.count(2)) == (2, 1)
    tokenizer.check(["play some music"])


@pytest.mark.parametrize(("add_bos_token", "first"), [(None, 2), (True, 2), (False, None)])
def test_a_tokenizer_that_puts_nothing_first_gets_opts_token_unless_it_says_no(
    model_folder, add_bos_token, first
):
    change_tokenizer(model_folder, post_processor=template("$A"))
    path = model_folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "add_bos_token": add_bos_token}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    tokenizer = load(model_folder).tokenizer
    assert (tokenizer.bundled.encode("play").ids[0] == 2) is (first == 2)
    tokenizer.check(["play some music"])


def test_a_tokenizer_without_a_first_token_is_explained(model_folder):
    change_tokenizer(model_folder, post_processor=template("$A"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = model_folder / name
        settings = json.loads(path.read_text())
        settings.pop("bos_token")
        path.write_text(json.dumps(settings))
    with pytest.raises(ExportError, match=r'names no first token.*"bos_token": "</s>"'):
        load(model_folder)


def test_negative_control_other_tokens_never_become_a_bundle(model_folder, tmp_path, monkeypatch):
    from edge_runtime.task_spec import TaskSpec
    from server.export import export_bundle
    from server.export import source_tokenizer as module

    task = TaskSpec("toy", "{text} Intent:", {"A": "music", "B": "book"})
    special = module._special_tokens
    monkeypatch.setattr(module, "_special_tokens", lambda t: ((2, 2), special(t)[1] or (2,)))
    with pytest.raises(ExportError, match="would feed other tokens than the model's own"):
        export_bundle(model_folder, tmp_path / "bundle", task=task)
    assert not (tmp_path / "bundle").exists()


# Checkpoints as people have them


def rewrite_weights(folder, change):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 250540281\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_named(model_folder, name):
    (model_folder / name).write_text(POINTER)
    with pytest.raises(ExportError, match=rf"{name}: a Git LFS pointer.*git lfs pull"):
        load(model_folder)


@pytest.mark.parametrize("content", [b"", b"not a tensor in sight" * 100, None])
def test_a_damaged_weights_file_is_one_named_line(model_folder, content):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ExportError, match="the weights could not be read") as refused:
        load(model_folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": 3}'])
def test_a_damaged_config_is_one_named_line(model_folder, content):
    (model_folder / "config.json").write_text(content)
    with pytest.raises(ExportError) as refused:
        load(model_folder)
    assert "\n" not in str(refused.value)
    assert str(model_folder) in str(refused.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_quantised_checkpoint_is_refused(model_folder, method):
    change_config(
        model_folder,
        quantization_config={"quant_method": method, "load_in_8bit": True, "bits": 4},
    )
    with pytest.raises(ExportError, match=r"is quantised .*unquantised checkpoint"):
        load(model_folder)


def test_left_over_tensors_are_refused_by_name(model_folder):
    """A LoRA delta beside the weights is part of what the model says."""
    name = "model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
    rewrite_weights(model_folder, lambda w: w.update({name: np.ones((4, 64), np.float16)}))
    with pytest.raises(ExportError, match=rf"no place for 1 tensors.*{name}.*merge adapters"):
        load(model_folder)


def test_half_a_model_is_refused(model_folder):
    change_config(model_folder, num_hidden_layers=1)
    with pytest.raises(ExportError, match=r"no place for 16 tensors.*layers\.1.*num_hidden_layers"):
        load(model_folder)


def test_what_old_ports_left_behind_does_no_harm(model_folder):
    rewrite_weights(model_folder, lambda w: w.update({"decoder.version": np.ones(1, np.float16)}))
    load(model_folder)


def test_an_adapter_is_refused(model_folder):
    (model_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"adapter_config\.json: .*Merge it"):
        load(model_folder)


def test_random_opt_is_the_same_for_the_same_seed_and_unknown_sizes_are_refused(
    random_opt, tmp_path
):
    from server.export.random_models import write_random_opt

    again = write_random_opt(tmp_path / "again", size="tiny")
    other = write_random_opt(tmp_path / "other", size="tiny", seed=1)
    weights = [(f / "model.safetensors").read_bytes() for f in (random_opt, again, other)]
    assert weights[0] == weights[1] != weights[2]
    with pytest.raises(ConfigurationError, match=r"tiny, 125m, 350m, 1\.3b"):
        write_random_opt(tmp_path / "no", size="13b")
    with pytest.raises(ConfigurationError, match=r"vocab\.json"):
        write_random_opt(tmp_path / "no", size="tiny", tokenizer_folder=tmp_path)


def test_a_checkpoint_that_transformers_5_saved_is_taken(model_folder):
    before = load(model_folder).tokenizer.bundled.to_str()
    path = model_folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend"}
    path.write_text(json.dumps(settings))
    source = load(model_folder)
    source.tokenizer.check(["play some music"])
    assert source.tokenizer.bundled.to_str() == before


def test_a_checkpoint_that_ran_with_another_attention_is_taken(model_folder):
    change_config(model_folder, _attn_implementation="flash_attention_2")
    load(model_folder)


def test_tensors_of_a_compiled_model_are_called_what_they_are(model_folder, capfd):
    def compile_names(weights):
        for name in list(weights):
            weights[f"_orig_mod.{name}"] = weights.pop(name)

    rewrite_weights(model_folder, compile_names)
    with pytest.raises(ExportError, match=r"called _orig_mod\..*model\._orig_mod\.save_pretrained"):
        load(model_folder)
    assert capfd.readouterr().err == ""  # the library's own pages of names are kept back


@pytest.mark.parametrize("value", ["x", None, 64.5])
def test_a_dimension_that_is_no_number_is_named(model_folder, value):
    change_config(model_folder, hidden_size=value)
    with pytest.raises(ExportError, match=r"hidden_size: got .*, wanted a whole number >= 1"):
        load(model_folder)


def test_what_the_recipe_writes_can_be_exported_for_the_bundled_tasks(libraries, tmp_path):
    import make_random_opt

    from edge_runtime.task_spec import available_tasks, load_task
    from edge_runtime.tasks import label_token_ids

    assert make_random_opt.main(["--size", "tiny", "--out", str(tmp_path / "opt")]) == 0
    tokenizer = load(tmp_path / "opt").tokenizer.bundled
    for name in available_tasks():
        task, _ = load_task(name)
        assert len(label_token_ids(task, tokenizer)) == len(task.labels)
