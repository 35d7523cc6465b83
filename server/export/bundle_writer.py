"""Writes a bundle, whole or not at all."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt

from edge_runtime.bundle import (
    FLOAT32,
    FORMAT_VERSION,
    GRAPH_FILES,
    PAYLOAD_FILES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    file_digest,
    write_manifest,
)
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.task_spec import TaskSpec
from server.errors import ExportError
from server.export.families import Architecture
from server.export.storing import store_weights
from server.files import new_folder, write_tensors

LIBRARIES = ("pairzero", "torch", "transformers", "onnx")


@dataclass(frozen=True, slots=True)
class BundleContents:
    """Everything that goes into a bundle.

    ``weights`` are in torch's order and in the precision to store; ``graphs`` are serialised ONNX
    by file name; ``tokenizer_json`` is a Hugging Face tokenizers file. ``store`` and ``trainable``
    choose the form of the weights (`server.export.storing`).
    """

    source_model: str
    architecture: Architecture
    task: TaskSpec
    label_token_ids: tuple[int, ...]
    graphs: Mapping[str, bytes]
    weights: Mapping[str, npt.NDArray[Any]]
    tokenizer_json: str
    store: str = FLOAT32
    trainable: Sequence[str] = ()


def write_bundle(
    out: Path, contents: BundleContents, check: Callable[[Path], None] = lambda folder: None
) -> Path:
    """Write the bundle folder ``out``.

    Args:
        out: the folder.
        contents: what goes into it.
        check: given the folder, whole, before anybody else can see it; what it raises ends it.

    Guarantees: on any error, ``out`` is as it was and nothing is left beside it.

    Raises:
        ExportError: something is in the way, or the disk would not take it.
    """
    with new_folder(out, ExportError) as folder:
        _write_files(folder, contents)
        check(folder)
    return out


def _write_files(folder: Path, contents: BundleContents) -> None:
    for name in GRAPH_FILES:
        (folder / name).write_bytes(contents.graphs[name])
    (folder / TOKENIZER_FILE).write_text(contents.tokenizer_json, encoding="utf-8")
    stored = store_weights(contents.weights, contents.store, contents.trainable)
    write_tensors(folder / WEIGHTS_FILE, stored.arrays)
    # safetensors writes for the owner alone; a bundle is for whoever may read its other files.
    shutil.copymode(folder / TOKENIZER_FILE, folder / WEIGHTS_FILE)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        source_model=contents.source_model,
        architecture=contents.architecture.describe(),
        # Where the data lie is nobody else's business: bundles travel.
        task=msgspec.convert(contents.task.without_paths(), TaskSpec),
        label_token_ids=contents.label_token_ids,
        tensors=stored.entries,
        digests={name: file_digest(folder / name) for name in PAYLOAD_FILES},
        created_with={name: _version(name) for name in LIBRARIES},
        direction_generator=GENERATOR,
        family=contents.architecture.family.name,
    )
    write_manifest(folder, manifest)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
