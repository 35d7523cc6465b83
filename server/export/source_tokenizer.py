"""The source's tokenizer as one ``tokenizers`` file that feeds the tokens the source feeds.

A device has no transformers, so what a prompt becomes there is decided here, and compared with what
the source makes of real prompts before a bundle is written. Two things are settled on the way:

* What the source puts *behind* a text (some append ``</s>``) is left out: the answer is read where
  the prompt ends, and a word would follow there, not an end.
* A source that puts nothing *before* a text gets the tokenizer's own first token, ``</s>``, as OPT
  was trained, unless its configuration says ``add_bos_token: false``. ``bos_token_id`` of the
  model's config.json is not asked: checkpoints exist where it names another token than the one
  their tokenizer feeds. Other families' tokenizers are taken at their word.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.families import OPT
from server.errors import ExportError
from server.export.dependencies import load

logger = logging.getLogger(__name__)

OPT_SPECIAL_TOKENS = {
    "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
}  # fmt: skip

SAMPLE_TEXTS = (
    "a text",
    "Will it rain tomorrow? It was great",
    " two  spaces, a tab\tand a line\nbreak ",
    "naïve café, 東京 and 🙂 (3.14%)",
)
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class SourceTokenizer:
    """What the source makes of a text, and what a bundle makes of it.

    Attributes:
        name: of the model, for messages.
        source: the ``transformers`` tokenizer; None where the bundled one is made from the model's
            own file, and there is no other to compare it with.
        bundled: the ``tokenizers.Tokenizer`` that goes into the bundle.
        first: tokens that the bundle puts first although the source does not.
        last: tokens that the source puts last and the bundle does not.
    """

    name: str
    source: Any
    bundled: Any
    first: tuple[int, ...]
    last: tuple[int, ...]

    def check(self, texts: Sequence[str]) -> None:
        """Compare the tokens of some texts.

        Raises:
            ExportError: the bundle would feed other tokens than the source.
        """
        if self.source is None:
            return
        for text in (*SAMPLE_TEXTS, *texts):
            ids = list(self.source(text)["input_ids"])
            if self.last and ids[-len(self.last) :] == list(self.last):
                ids = ids[: -len(self.last)]
            wanted, got = [*self.first, *ids], self.bundled.encode(text).ids
            if got != wanted:
                raise ExportError(
                    f"{self.name}: the bundle would feed other tokens than the model's own "
                    f"tokenizer: {text[:40]!r} becomes {got[:8]}, wanted {wanted[:8]}. Save the "
                    "tokenizer again with tokenizer.save_pretrained of a current transformers."
                )


def load_tokenizer(model: str | Path, config: Any) -> SourceTokenizer:
    """The model's tokenizer.

    Raises:
        ExportError: there is none, or it has tokens the model has no embedding for.
    """
    transformers, tokenizers = load("transformers"), load("tokenizers")
    # Bare vocab.json and merges.txt do not say which tokens are special; transformers would add
    # GPT-2's, for which OPT has no embedding.
    is_bare = Path(model).is_dir() and not (Path(model) / "tokenizer_config.json").is_file()
    special = OPT_SPECIAL_TOKENS if is_bare and config.model_type == OPT.name else {}
    try:
        try:
            source = transformers.AutoTokenizer.from_pretrained(
                str(model), config=config, use_fast=True, **special
            )
        except ValueError:
            # A class of another transformers (its 5 writes TokenizersBackend); tokenizer.json says
            # all that the class would add, and what the bundle feeds is compared below.
            source = transformers.PreTrainedTokenizerFast.from_pretrained(str(model), **special)
        # A Tokenizer of our own: setting a post-processor must not reach into transformers'.
        bundled = tokenizers.Tokenizer.from_str(source.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises OSError, TypeError, AttributeError, ... here
        raise ExportError(
            f"{model}: no usable tokenizer there ({first_line(error)}). Put tokenizer.json, or "
            "vocab.json and merges.txt, beside the weights."
        ) from error
    bundled.no_padding()
    bundled.no_truncation()
    if bundled.get_vocab_size() <= len(bundled.get_added_tokens_decoder()):
        raise ExportError(
            f"{model}: the tokenizer knows special tokens only. Put tokenizer.json, or "
            "vocab.json and merges.txt, beside the weights."
        )
    largest_id = max(bundled.get_vocab().values())
    if largest_id >= config.vocab_size:
        raise ExportError(
            f"{model}: the tokenizer has token id {largest_id}, the model's vocab_size is "
            f"{config.vocab_size}. Model and tokenizer do not belong together."
        )
    before, behind = _special_tokens(bundled)
    first = () if before or config.model_type != OPT.name else _first_token(model, source)
    if first or behind:
        # Before behind: what a source puts last would hide where the prompt ends.
        pieces = [(bundled.id_to_token(i), i) for i in (*first, *before)]
        bundled.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join([*(token for token, _ in pieces), "$A"]), special_tokens=pieces
        )
        logger.info("%s: tokenizer set to put %r first and nothing last.", model, pieces)
    return SourceTokenizer(str(model), source, bundled, first, behind)


def _special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and behind every text."""
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    whole = tokenizer.encode(_PROBE).ids
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    start = starts[0] if starts else 0
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])


def _first_token(model: str | Path, source: Any) -> tuple[int, ...]:
    """The token OPT was trained to see first, or nothing where the source refuses it by name."""
    path = Path(model) / "tokenizer_config.json"
    try:
        if path.is_file() and json.loads(path.read_text("utf-8")).get("add_bos_token") is False:
            return ()
    except (ValueError, AttributeError) as error:
        raise ExportError(f"{path}: not a tokenizer's configuration ({error}).") from error
    if source.bos_token_id is None:
        raise ExportError(
            f"{model}: the tokenizer names no first token (bos_token), and OPT was trained to see "
            '"</s>" first. Add it to tokenizer_config.json: "bos_token": "</s>".'
        )
    return (int(source.bos_token_id),)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
