"""``pairzero export``, ``save`` and ``predict``: models on their way in and out."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edge_runtime.bundle import MANIFEST_FILE, Manifest
from edge_runtime.task_spec import TaskSpec, load_task
from edge_runtime.tasks import read_examples
from server.errors import ConfigurationError
from server.export import export_bundle
from server.export.stored_again import store_again
from server.model.label_prediction import Prediction
from server.model.label_prediction import predict as label_texts
from server.model.tuned import (
    BUNDLE_FOLDER,
    HUGGING_FACE_FOLDER,
    TunedModel,
    load_model,
    save_model,
)

NUM_COMPARED_TEXTS = 200
STANDARD_INPUT = "-"
NOTHING_SAID = Prediction(label="", text="", probabilities={})


def export(args: argparse.Namespace) -> int:
    """Turn a Hugging Face OPT into a bundle, or a bundle into one of smaller weights."""
    if (Path(args.model) / MANIFEST_FILE).is_file():
        if args.task is not None:
            raise ConfigurationError(f"--task: {args.model} is a bundle, and has a task. Leave it.")
        out = store_again(Path(args.model), args.out, store=args.store, trainable=args.trainable)
        return _say_where(out)
    if args.task is None:
        raise ConfigurationError("--task: wanted a task name or a task file, for its label words.")
    task, folder = load_task(args.task)
    texts = [
        example.text
        for name in (task.train, task.validation)
        if name and (folder / name).is_file()
        for example in read_examples(folder / name, task)[:NUM_COMPARED_TEXTS]
    ]
    out = export_bundle(
        args.model, args.out, task=task, via=args.via, texts=texts,
        store=args.store, trainable=args.trainable,
    )  # fmt: skip
    return _say_where(out)


def _say_where(out: Path) -> int:
    # For its name alone no digest of all of it is taken.
    task = msgspec.json.decode((out / MANIFEST_FILE).read_bytes(), type=Manifest).task
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: bundle for task {task.name!r}, {size_mb:.1f} MB")
    return 0


def save(args: argparse.Namespace) -> int:
    """Write the tuned model of a run as a bundle and as a Hugging Face folder."""
    model = load_model(args.run, num_rounds=args.rounds, best=args.best)
    out = save_model(model, args.out)
    print(f"{out / BUNDLE_FOLDER}: bundle for task {model.task.name!r}, {model.num_rounds} rounds")
    print(f"{out / HUGGING_FACE_FOLDER}: the same weights for transformers")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Label texts, a line for a line, in order; a line without a text gets no label."""
    model = load_model(args.model, num_rounds=args.rounds, best=args.best)
    if args.labelled:
        return _compare(args, model)
    texts, asked = itertools.tee(_texts(args.file, model.task))
    predictions = label_texts(model, (text for text in texts if text))
    for text in asked:
        prediction = next(predictions) if text else NOTHING_SAID
        print(_in_json(prediction) if args.json else f"{prediction.label}\t{prediction.text}")
        sys.stdout.flush()
    return 0


def _in_json(prediction: Prediction) -> str:
    return json.dumps(
        {
            "label": prediction.label or None,
            "text": prediction.text,
            "probabilities": prediction.probabilities,
        },
        ensure_ascii=False,
    )


def _compare(args: argparse.Namespace, model: TunedModel) -> int:
    """Label texts whose labels are known, and say how many were right."""
    if args.file == STANDARD_INPUT:
        raise ConfigurationError("--labelled: wanted a file, not standard input.")
    task = model.task
    examples = read_examples(Path(args.file), task)
    correct = 0
    predictions = label_texts(model, [example.text for example in examples])
    for example, prediction in zip(examples, predictions, strict=True):
        correct += prediction.label == task.labels[example.label_index]
        if not args.json:
            print(f"{prediction.label}\t{prediction.text}")
    accuracy = correct / len(examples)
    if args.json:
        print(json.dumps({"examples": len(examples), "correct": correct, "accuracy": accuracy}))
    else:
        print(f"{correct} of {len(examples)} right, {accuracy:.1%}", file=sys.stderr)
    return 0


def _texts(file: str, task: TaskSpec) -> Iterator[str]:
    """The lines of a file or of standard input, as they are said to the model."""
    if file == STANDARD_INPUT:
        yield from _lines(sys.stdin.buffer, "standard input", task)
        return
    try:
        with Path(file).open("rb") as lines:
            yield from _lines(lines, file, task)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror}).") from error


def _lines(lines: Iterable[bytes], name: str, task: TaskSpec) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{name}, line {number}: not UTF-8 text ({error.reason})."
            ) from error
        label, tab, _ = text.partition("\t")
        if number == 1 and tab and label in task.labels:
            raise ConfigurationError(
                f"{name}: starts with the label {label!r}. For label<TAB>text lines add --labelled."
            )
        yield text
