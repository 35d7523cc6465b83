"""Folders that appear whole or not at all, and JSON that every reader understands.

A result folder is written hidden beside its place, then renamed once.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from radio.checks import check_takes_files
from server.errors import ServerError


def check_is_free(out: Path, error_type: type[ServerError]) -> None:
    """Refuse to write where something is already.

    Raises:
        error_type: ``out`` exists and is not an empty folder.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise error_type(
            f"{out}: there is something already, wanted a new folder. "
            "Choose another name, or delete it first."
        )


def check_can_be_written(file: Path, error_type: type[ServerError]) -> None:
    """Find out before long work whether its result has a place; nothing is left there.

    Raises:
        error_type: the folder takes no files, or ``file`` is a folder.
    """
    if file.is_dir():
        raise error_type(f"{file}: this is a folder, wanted the name of a file.")
    try:
        check_takes_files(file.parent)
    except OSError as error:
        raise error_type(
            f"{file}: could not be written ({error.strerror or error}). "
            "Name a file in a folder that you may write into."
        ) from error


@contextmanager
def new_folder(out: Path, error_type: type[ServerError]) -> Iterator[Path]:
    """The hidden folder to write into; it becomes ``out`` when the block ends.

    Guarantees: on any error, ``out`` is as it was and nothing is left beside it.

    Raises:
        error_type: something is in the way, or the disk would not take it.
    """
    check_is_free(out, error_type)
    target = out.absolute()
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise error_type(
            f"{out}: could not be written ({error.strerror or error}). "
            "Check the space on the disk and the folder's permissions."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file.

    Raises:
        OSError: the disk would not take it; the library raises a class of its own.
    """
    try:
        save_file(dict(tensors), str(path), metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def to_json(document: dict[str, Any]) -> str:
    """A document as JSON; an infinite figure becomes the text "infinity", which float() reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return "infinity" if value == math.inf else value

    return json.dumps(plain(document), indent=1, allow_nan=False)
