"""Which label does a model give a text? The one whose word it finds likeliest behind the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.processors import usable_processors
from edge_runtime.tasks import Example, PromptSet
from server.model.tuned import TunedModel

CHUNK = 50


@dataclass(frozen=True, slots=True)
class Prediction:
    """One text with its label, and the share of each label word among all label words."""

    text: str
    label: str
    probabilities: dict[str, float]


def predict(model: TunedModel, texts: Iterable[str]) -> Iterator[Prediction]:
    """Label texts, in order, as they come: fifty at a time.

    Raises:
        TaskError: a word of the task is not one token behind some text.
    """
    workers = usable_processors()
    # One thread a pass, as in a run: the same bits, so the same answers.
    forward = OnnxForward(
        model.bundle, model.weights, label_token_ids=model.label_token_ids, num_workers=workers
    )
    try:
        rest = iter(texts)
        while chunk := list(islice(rest, CHUNK * workers)):
            yield from _predict(model, forward, chunk)
    finally:
        forward.close()


def _predict(model: TunedModel, forward: OnnxForward, texts: Sequence[str]) -> Iterator[Prediction]:
    examples = [Example(0, text) for text in texts]
    prompts = PromptSet(examples, model.task, model.tokenizer, model.max_tokens)
    batches = [
        prompts.batch(range(start, min(start + CHUNK, len(texts))))
        for start in range(0, len(texts), CHUNK)
    ]
    scores = np.concatenate([o.scores for o in forward.run_many(batches)]).astype(np.float64)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for text, row in zip(texts, shares, strict=True):
        yield Prediction(
            text=text,
            label=model.task.labels[int(np.argmax(row))],
            probabilities=dict(zip(model.task.labels, row.tolist(), strict=True)),
        )
