"""What a task is: a prompt template, and which word stands for which label.

The model is asked to continue a prompt, MeZO style: the text goes into a template
("{text} Intent:"), and the label whose word the model finds likeliest is its answer. A task is a
small TOML file, so a new one needs no code:

    name = "snips"
    template = "{text} Intent:"
    [label_words]
    PlayMusic = "play"
    GetWeather = "weather"

Between prompt and word stands the task's ``separator``, one space unless the file says otherwise.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.input_files import read_settings
from edge_runtime.protocol.errors import TaskError

TASKS_FOLDER = Path(__file__).parent / "assets" / "tasks"


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task as its file states it.

    Attributes:
        name: short name, also the name of its file.
        template: the prompt; contains ``{text}`` once and ends where the separator begins.
        label_words: label -> word the model should say, in class order; without white space around.
        separator: what stands between prompt and word: a space, "" or a line feed, for instance.
        train: training data, relative to the task file; may be given elsewhere instead.
        validation: validation data, likewise.
    """

    name: str
    template: str
    label_words: dict[str, str]
    separator: str = " "
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
        if spaced := [word for word in self.label_words.values() if word != word.strip()]:
            raise TaskError(
                f"task {self.name!r}: the words {spaced} have white space around them. What stands "
                f"between prompt and word is the separator (now {self.separator!r}): set that."
            )
        if self.template[-1:].isspace() and self.separator[:1].isspace():
            raise TaskError(
                f"task {self.name!r}: the template ends in white space and the separator "
                f"{self.separator!r} adds more, which no model has seen before a word. End the "
                'template earlier, or set separator = "".'
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in class order."""
        return tuple(self.label_words)

    def without_paths(self) -> dict[str, Any]:
        """The task as plain values, without where its data lie: what travels and is stored."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {k: v for k, v in plain.items() if k not in ("train", "validation")}

    def answered(self, text: str, word: str) -> str:
        """The prompt for a text with an answer behind it."""
        return self.template.replace("{text}", text) + self.separator + word


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
        task = msgspec.convert(read_settings(path), TaskSpec)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: not a task file: {error}") from error
    return task, path.parent
