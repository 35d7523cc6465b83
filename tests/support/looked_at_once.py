"""Hundreds of runs read the same few files on one machine, and find the same every time."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_KNOWN: dict[tuple[Any, ...], Any] = {}


def _known(*key: Any, find: Callable[[], Any]) -> Any:
    """Found once, by everything that it was found from; what is wrong is said anew every time."""
    if key not in _KNOWN:
        _KNOWN[key] = find()
    return _KNOWN[key]


def _content_of(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
    except OSError:
        return None


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Examples, tokenizers, what these make of those, and whether a loss follows its company.

    Runs in a process of their own do all of it.
    """
    from edge_runtime import pass_shapes
    from edge_runtime.joining import host, preparation
    from edge_runtime.task_spec import TaskSpec
    from edge_runtime.tasks import Example, PromptSet, load_tokenizer, read_examples
    from server.run import data

    tokenise, follows = PromptSet.__init__, pass_shapes.losses_follow_company

    def read_once(path: Path, task: TaskSpec) -> list[Example]:
        content = _content_of(path)
        if content is None:
            return read_examples(path, task)
        key = ("examples", content, repr(task))
        return list(_known(*key, find=lambda: tuple(read_examples(path, task))))

    def load_once(path: Path) -> Any:
        content = _content_of(path)
        if content is None:
            return load_tokenizer(path)
        tokenizer = _known("tokenizer", content, find=lambda: load_tokenizer(path))
        _KNOWN["content", id(tokenizer)] = content
        return tokenizer

    def tokenise_once(
        self: PromptSet,
        examples: Sequence[Example],
        task: TaskSpec,
        tokenizer: Any,
        max_tokens: int,
    ) -> None:
        def find() -> dict[str, Any]:
            tokenise(self, examples, task, tokenizer, max_tokens)
            self.digest()
            return dict(vars(self))

        of = _KNOWN.get(("content", id(tokenizer))) or tokenizer.to_str()
        key = ("prompts", of, repr(task), tuple(examples), max_tokens)
        vars(self).update(_known(*key, find=find))

    def look_once(forward: Any, **of: int) -> Any:
        key = ("company", forward.frozen_name, *of.values())
        return _known(*key, find=lambda: follows(forward, **of))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptSet, "__init__", tokenise_once)
        patch.setattr(pass_shapes, "losses_follow_company", look_once)
        patch.setattr(data, "read_examples", read_once)
        for module in (data, host, preparation):
            patch.setattr(module, "load_tokenizer", load_once)
        yield
