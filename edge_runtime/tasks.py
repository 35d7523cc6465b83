"""Labelled texts become prompts: reading, tokenising, batching.

Prompt, separator and word (`edge_runtime.task_spec`) are tokenised as the one text they are,
because a tokenizer joins what stands side by side (" play" is one token, and so is its space): the
word's token is the last one, and the model is fed what comes before it.

Data are tab-separated lines, ``label<TAB>text``, UTF-8; a byte-order mark is skipped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from edge_runtime.input_files import read_whole
from edge_runtime.protocol.errors import BundleError, TaskError
from edge_runtime.task_spec import TaskSpec
from radio.arrays import Int64Array

_logger = logging.getLogger(__name__)


PAD_TOKEN_ID = 1


class Example(NamedTuple):
    """One labelled text; ``label_index`` counts in the task's class order."""

    label_index: int
    text: str


def read_examples(path: Path, task: TaskSpec) -> list[Example]:
    """Read ``label<TAB>text`` lines.

    Raises:
        TaskError: the file is missing, empty, not UTF-8, or a line is malformed or has a label
            without a word; the message names the line.
    """
    try:
        # Neither splitlines(), which breaks at U+2028 and friends, nor text mode, which breaks at a
        # lone carriage return: a line ends at a line feed. (One before it is white space.)
        lines = read_whole(path).decode("utf-8-sig").split("\n")
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    index_of = {label: index for index, label in enumerate(task.labels)}
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise TaskError(f"{path}, line {number}: got {line[:60]!r}, wanted label<TAB>text.")
        if label not in index_of:
            hint = f"Add it under [label_words]; known labels: {', '.join(index_of)}."
            if text.strip() in index_of:
                hint = "The columns are swapped: a line is label<TAB>text."
            raise TaskError(
                f"{path}, line {number}: label {label!r} has no word in task {task.name!r}. {hint}"
            )
        examples.append(Example(index_of[label], text.strip()))
    if not examples:
        raise TaskError(f"{path}: no examples in it, wanted at least one label<TAB>text line.")
    return examples


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        BundleError: it is not one.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every cause
        raise BundleError(f"{path}: not a tokenizer file: {error}") from error


def label_token_ids(task: TaskSpec, tokenizer: Tokenizer, text: str = "a text") -> tuple[int, ...]:
    """The one token of each label word, behind the prompt for ``text``.

    Raises:
        TaskError: a word is not exactly one token there, or two words are the same one.
    """
    answered = {
        label: tokenizer.encode(task.answered(text, word))
        for label, word in task.label_words.items()
    }
    shared = _common_prefix([encoding.ids for encoding in answered.values()])
    ids = tuple(encoding.ids[-1] for encoding in answered.values())
    for label, encoding in answered.items():
        if len(encoding.ids) != len(shared) + 1:
            tokens = encoding.tokens[len(shared) :]
            raise TaskError(
                f"task {task.name!r}, label {label!r}: the word {task.label_words[label]!r} is "
                f"{len(tokens)} tokens {tokens} of this model, wanted one. Choose a more common "
                "word, or another separator."
            )
    if len(set(ids)) < len(ids):
        raise TaskError(f"task {task.name!r}: two label words are the same token: {ids}.")
    return ids


def warn_if_merged(task: TaskSpec, tokenizer: Tokenizer, text: str = "a text") -> None:
    """Warn where the end of the template and the words become one token.

    What the model is fed then ends earlier than the template says.
    """
    prompt = tokenizer.encode(task.template.replace("{text}", text))
    rows = [tokenizer.encode(task.answered(text, w)).ids for w in task.label_words.values()]
    fed = _common_prefix(rows)
    if fed[: len(prompt.ids)] != prompt.ids:
        _logger.warning(
            "task %r: the end of the template (tokens %s) and the words are tokenised together; "
            "the model is fed %d tokens of the prompt's %d. If that is not meant, end the template "
            "earlier or set another separator.",
            task.name,
            prompt.tokens[-2:],
            len(fed),
            len(prompt.ids),
        )


def _common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with; never a whole row."""
    prefix: list[int] = []
    for column in zip(*(row[:-1] for row in rows), strict=False):
        if len(set(column)) > 1:
            break
        prefix.append(column[0])
    return prefix


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts ready for a forward pass.

    Attributes:
        input_ids: right padded token ids [batch, sequence].
        answer_position: flat index of the last prompt token of each row [batch]; the hidden state
            there predicts the answer.
        target: class index of each row [batch].
    """

    input_ids: Int64Array
    answer_position: Int64Array
    target: Int64Array

    @property
    def num_examples(self) -> int:
        """Rows of the batch."""
        return len(self.target)

    def prompts(self) -> list[Int64Array]:
        """The tokens of each row up to the answer, without padding."""
        rows, width = self.input_ids.shape
        ends = self.answer_position - np.arange(rows) * width + 1
        return [row[:end] for row, end in zip(self.input_ids, ends.tolist(), strict=True)]

    def doubled(self) -> Batch:
        """This batch with every row twice."""
        return Batch(
            input_ids=np.concatenate([self.input_ids, self.input_ids]),
            answer_position=np.concatenate(
                [self.answer_position, self.answer_position + self.input_ids.size]
            ),
            target=np.concatenate([self.target, self.target]),
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One example as the model meets it.

    Attributes:
        tokens: of the prompt [length].
        target: class index.
    """

    tokens: Int64Array
    target: int


def batches_by_length(prompts: Sequence[Prompt], max_rows: int) -> tuple[list[Batch], Int64Array]:
    """Prompts in batches of at most ``max_rows``, similar lengths together, whoever's they are.

    Less padding, so fewer wasted multiplications; no prompt, no batch.

    Returns:
        The batches, and which prompt each of their rows is, batch after batch [num_prompts].
    """
    order = np.array(
        sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens)), dtype=np.int64
    )
    return [
        _padded([prompts[i] for i in order[start : start + max_rows]])
        for start in range(0, len(order), max_rows)
    ], order


def _padded(prompts: Sequence[Prompt]) -> Batch:
    """One batch, padded to the longest."""
    rows = [prompt.tokens for prompt in prompts]
    targets = np.array([prompt.target for prompt in prompts], dtype=np.int64)
    return pad_rows(rows, targets, width=max(len(row) for row in rows))


def pad_rows(rows: Sequence[Int64Array], targets: Int64Array, *, width: int) -> Batch:
    """Prompts of at most ``width`` tokens as one batch; each is answered at its own last token."""
    input_ids = np.full((len(rows), width), PAD_TOKEN_ID, dtype=np.int64)
    for row_index, row in enumerate(rows):
        input_ids[row_index, : len(row)] = row
    ends = np.array([len(row) - 1 for row in rows], dtype=np.int64)
    return Batch(
        input_ids=input_ids,
        answer_position=np.arange(len(rows), dtype=np.int64) * width + ends,
        target=targets,
    )


class PromptSet:
    """Tokenised prompts of one owner (a device's data, or the validation set).

    Attributes:
        num_shortened: prompts that were longer than ``max_tokens`` and lost their middle.

    Raises:
        TaskError: a word is not one token behind every text.
    """

    num_shortened: int

    def __init__(
        self,
        examples: Sequence[Example],
        task: TaskSpec,
        tokenizer: Tokenizer,
        max_tokens: int,
    ) -> None:
        # A tokenizer.json saved after training may pad and cut; the answer would be asked at a pad.
        if tokenizer.padding is not None or tokenizer.truncation is not None:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the caller's stays as it is
            tokenizer.no_padding()
            tokenizer.no_truncation()
        first_word = next(iter(task.label_words.values()))
        answered = [task.answered(example.text, first_word) for example in examples]
        encodings = tokenizer.encode_batch(answered)
        word_token = label_token_ids(task, tokenizer)[0]
        for number, encoding in enumerate(encodings):
            if encoding.ids[-1] != word_token:
                raise TaskError(
                    f"task {task.name!r}: behind example {number + 1} the word {first_word!r} "
                    "becomes another token than behind others. Let the template end in fixed text "
                    "after {text}."
                )
        prompts = [np.array(encoding.ids[:-1], dtype=np.int64) for encoding in encodings]
        self._rows = [_shorten(prompt, max_tokens) for prompt in prompts]
        self.num_shortened = sum(len(prompt) > max_tokens for prompt in prompts)
        self._targets = np.array([example.label_index for example in examples], dtype=np.int64)
        self._digest = ""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._rows)

    def digest(self) -> str:
        """SHA-256 of every prompt's tokens and target: the data as the model meets them.

        It tells two data sets apart, so it is for comparison within a device; see
        `PrivateRandom.commit_to_data` for a name that may be stored.
        """
        if not self._digest:
            heads = np.stack([[len(row) for row in self._rows], self._targets], axis=1)
            parts = [part for pair in zip(heads, self._rows, strict=True) for part in pair]
            flat = np.concatenate(parts).astype("<i8", copy=False)
            self._digest = hashlib.sha256(flat.tobytes()).hexdigest()
        return self._digest

    def chosen(self, indices: Iterable[int]) -> list[Prompt]:
        """These examples, in this order."""
        return [Prompt(self._rows[int(i)], int(self._targets[int(i)])) for i in indices]

    def batch(self, indices: Sequence[int] | Int64Array) -> Batch:
        """The chosen examples as one batch, padded to the longest of them."""
        return _padded(self.chosen(indices))

    def batches_by_length(self, indices: Sequence[int] | Int64Array, max_rows: int) -> list[Batch]:
        """The chosen examples in batches; see the function of that name."""
        return batches_by_length(self.chosen(indices), max_rows)[0]


def _shorten(row: Int64Array, max_tokens: int) -> Int64Array:
    """A prompt that is too long keeps its first token and its end, where the answer is asked."""
    if len(row) <= max_tokens:
        return row
    return np.concatenate([row[:1], row[len(row) - (max_tokens - 1) :]])
