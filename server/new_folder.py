"""A result folder appears whole or not at all: written hidden beside its place, then one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
