"""Writes a model with random weights as a Hugging Face folder, without any network.

For measuring time, memory and correctness where no trained weights can be had: dimensions and
tokenizer are real, what it says is noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server.errors import ConfigurationError
from server.export.dependencies import load

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""OPT's ids 0 to 3."""

DIMENSIONS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 256,
        "max_position_embeddings": 128,
    },
    "125m": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
    },
    "350m": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096,
        "word_embed_proj_dim": 512, "do_layer_norm_before": False,
    },
    "1.3b": {
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192,
    },
}  # fmt: skip
"""Published dimensions; what is absent is transformers' default, which is OPT's own."""

LLAMA_DIMENSIONS: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip

TOKENIZER_TEXT = (
    "play some music and add this song to my list . book a table at the best restaurant in town . "
    "what is the weather like today ? rate this book four out of five . find me a film or a movie "
    "at the cinema . is it good or bad , great or terrible , positive or negative ? yes or no . "
    "search for a picture . the question is about my card , my bank account and my money ."
)
"""Words that a tokenizer made on the spot knows whole."""


def write_random_opt(
    out: Path,
    *,
    size: str,
    tokenizer_folder: Path | None = None,
    words: Iterable[str] = (),
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write config, weights (float16, as OPT is published) and tokenizer into the folder ``out``.

    Every tensor is random, biases and norms too: with torch's own start (zeros and ones) tensors
    would be equal, and an export that mixes them up would go unseen.

    Args:
        out: the folder; made if absent.
        size: "tiny", "125m", "350m" or "1.3b".
        tokenizer_folder: holds vocab.json and merges.txt; None makes a small byte-level tokenizer.
        words: that this one knows whole, too.
        seed: of the weights.
        changes: fields of ``OPTConfig`` that differ from the size's own.

    Raises:
        ConfigurationError: unknown size, or a tokenizer folder without the files.
    """
    if size not in DIMENSIONS:
        raise ConfigurationError(f"size: got {size!r}, wanted one of {', '.join(DIMENSIONS)}.")
    transformers = load("transformers")
    if tokenizer_folder is not None:
        tokenizer = read_tokenizer(tokenizer_folder)
    else:
        tokenizer = make_tokenizer(" ".join((TOKENIZER_TEXT, *words)))
    dimensions = {**DIMENSIONS[size], **changes}
    if size == "tiny":
        dimensions.setdefault("vocab_size", tokenizer.get_vocab_size())
    config = transformers.OPTConfig(**dimensions)
    return _write(out, transformers.OPTForCausalLM, config, config.init_std, tokenizer, seed)


def write_random_llama(
    out: Path, *, words: Iterable[str] = (), seed: int = 0, init_std: float = 0.02, **changes: Any
) -> Path:
    """Write a small Llama in the same way, three query heads to a head of keys if nothing is said.

    Args:
        out: the folder; made if absent.
        words: that its tokenizer knows whole.
        seed: of the weights.
        init_std: their spread.
        changes: fields of ``LlamaConfig``.
    """
    transformers = load("transformers")
    tokenizer = make_tokenizer(" ".join((TOKENIZER_TEXT, *words)))
    dimensions = {**LLAMA_DIMENSIONS, "vocab_size": tokenizer.get_vocab_size(), **changes}
    config = transformers.LlamaConfig(**dimensions)
    return _write(out, transformers.LlamaForCausalLM, config, init_std, tokenizer, seed)


def _write(
    out: Path, network: Any, config: Any, init_std: float, tokenizer: Any, seed: int
) -> Path:
    torch, transformers = load("torch"), load("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with load("transformers.modeling_utils").no_init_weights():
            model = network(config)
        model.tie_weights()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0.0, init_std)
                if name.endswith("norm.weight"):
                    parameter.add_(1.0)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>",
    )  # fmt: skip
    fast.save_pretrained(out)
    return out


def read_tokenizer(folder: Path) -> Any:
    """OPT's byte-level BPE from vocab.json and merges.txt, with ``</s>`` first."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ConfigurationError(
                f"{folder}: no {name} there, wanted a folder with vocab.json and merges.txt. "
                "Leave the folder out for a small tokenizer made on the spot."
            )
    models = load("tokenizers.models")
    return _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))


def make_tokenizer(text: str = TOKENIZER_TEXT) -> Any:
    """A small byte-level BPE that can write any text and knows the words of ``text`` whole."""
    tokenizer = _byte_level(load("tokenizers.models").BPE())
    trainer = load("tokenizers.trainers").BpeTrainer(
        vocab_size=4096,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(load("tokenizers.pre_tokenizers").ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}"], trainer)
    return tokenizer


def _byte_level(model: Any) -> Any:
    tokenizers = load("tokenizers")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    end_id = SPECIAL_TOKENS.index("</s>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", end_id)]
    )
    return tokenizer
