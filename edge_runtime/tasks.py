"""A task: how a labelled text becomes a prompt, and which word stands for which label.

The model is asked to continue a prompt, MeZO style: the text goes into a template
("{text} Intent:"), and the label whose word the model finds likeliest is its answer. A task is a
small TOML file, so a new one needs no code:

    name = "snips"
    template = "{text} Intent:"
    [label_words]
    PlayMusic = "play"
    GetWeather = "weather"

Data are tab-separated lines, ``label<TAB>text``, UTF-8.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edge_runtime.protocol.errors import BundleError, TaskError

Int64Array = npt.NDArray[np.int64]

PAD_TOKEN_ID = 1
TASKS_FOLDER = Path(__file__).parent / "assets" / "tasks"


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task as its file states it.

    Attributes:
        name: short name, also the name of its file.
        template: the prompt; contains ``{text}`` once and ends where the answer begins.
        label_words: label -> word the model should say, in class order.
        train: training data, relative to the task file; may be given elsewhere instead.
        validation: validation data, likewise.
    """

    name: str
    template: str
    label_words: dict[str, str]
    train: str = ""
    validation: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.template.count("{text}") != 1:
            raise TaskError(
                f"task {self.name!r}: template is {self.template!r}, wanted exactly one {{text}}."
            )
        if len(self.label_words) < 2:
            raise TaskError(
                f"task {self.name!r}: {len(self.label_words)} label words, wanted at least two."
            )
        if empty := [label for label, word in self.label_words.items() if not word.strip()]:
            raise TaskError(f"task {self.name!r}: labels {empty} have no word, wanted one each.")
        if len(set(self.label_words.values())) < len(self.label_words):
            raise TaskError(f"task {self.name!r}: two labels share a word: {self.label_words}.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in class order."""
        return tuple(self.label_words)


def available_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with pairzero."""
    return tuple(sorted(path.stem for path in TASKS_FOLDER.glob("*.toml")))


def load_task(name_or_path: str) -> tuple[TaskSpec, Path]:
    """Load a task by name, or from a ``.toml`` file; returns it and the folder it refers to.

    Raises:
        TaskError: no such task, or the file does not describe one.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = TASKS_FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        raise TaskError(
            f"task: no task {name_or_path!r}. Known: {', '.join(available_tasks())}; "
            "or give the path of a task file ending in .toml."
        )
    try:
        with path.open("rb") as file:
            task = msgspec.convert(tomllib.load(file), TaskSpec)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: not a task file: {error}") from error
    return task, path.parent


@dataclass(frozen=True, slots=True)
class Example:
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
        # Not splitlines(): that also breaks at U+2028 and friends, which end no line of a file.
        lines = path.read_text(encoding="utf-8").split("\n")
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
            raise TaskError(
                f"{path}, line {number}: label {label!r} has no word in task {task.name!r}. "
                f"Add it under [label_words]; known labels: {', '.join(index_of)}."
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


def label_token_ids(task: TaskSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The one token of each label word (with the space that precedes it in a prompt).

    Raises:
        TaskError: a word is not exactly one token, or two words begin with the same one.
    """
    ids: list[int] = []
    for label, word in task.label_words.items():
        tokens = tokenizer.encode(" " + word.strip(), add_special_tokens=False)
        if len(tokens.ids) != 1:
            raise TaskError(
                f"task {task.name!r}, label {label!r}: the word {word!r} is {len(tokens.ids)} "
                f"tokens {tokens.tokens} of this model, wanted one. Choose a more common word."
            )
        ids.append(tokens.ids[0])
    if len(set(ids)) < len(ids):
        raise TaskError(f"task {task.name!r}: two label words are the same token: {ids}.")
    return tuple(ids)


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

    def doubled(self) -> Batch:
        """The same rows twice."""
        return Batch(
            input_ids=np.concatenate([self.input_ids, self.input_ids]),
            answer_position=np.concatenate(
                [self.answer_position, self.answer_position + self.input_ids.size]
            ),
            target=np.concatenate([self.target, self.target]),
        )


class PromptSet:
    """Tokenised prompts of one owner (a device's data, or the validation set)."""

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
        prompts = [task.template.replace("{text}", example.text) for example in examples]
        self._rows = [
            _shorten(np.array(encoding.ids, dtype=np.int64), max_tokens)
            for encoding in tokenizer.encode_batch(prompts)
        ]
        self._targets = np.array([example.label_index for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._rows)

    def digest(self) -> str:
        """SHA-256 of every prompt's tokens and target: the data as the model meets them.

        It tells two data sets apart, so it is for comparison within a device; see
        `PrivateRandom.commit_to_data` for a name that may be stored.
        """
        sha = hashlib.sha256()
        for row, target in zip(self._rows, self._targets, strict=True):
            sha.update(np.array([len(row), target, *row], dtype="<i8").tobytes())
        return sha.hexdigest()

    def batch(self, indices: Sequence[int] | Int64Array) -> Batch:
        """The chosen examples as one batch, padded to the longest of them."""
        rows = [self._rows[int(i)] for i in indices]
        width = max(len(row) for row in rows)
        input_ids = np.full((len(rows), width), PAD_TOKEN_ID, dtype=np.int64)
        for row_index, row in enumerate(rows):
            input_ids[row_index, : len(row)] = row
        ends = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        return Batch(
            input_ids=input_ids,
            answer_position=np.arange(len(rows), dtype=np.int64) * width + ends,
            target=self._targets[np.asarray(indices, dtype=np.int64)],
        )

    def batches_by_length(self, indices: Sequence[int] | Int64Array, max_rows: int) -> list[Batch]:
        """The chosen examples in batches of at most ``max_rows``, similar lengths together.

        Less padding, so fewer wasted multiplications; no example, no batch.
        """
        order = sorted((int(i) for i in indices), key=lambda i: len(self._rows[i]))
        return [
            self.batch(order[start : start + max_rows]) for start in range(0, len(order), max_rows)
        ]


def _shorten(row: Int64Array, max_tokens: int) -> Int64Array:
    """A prompt that is too long keeps its first token and its end, where the answer is asked."""
    if len(row) <= max_tokens:
        return row
    return np.concatenate([row[:1], row[len(row) - (max_tokens - 1) :]])
