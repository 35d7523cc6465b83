"""Where the C library of libiio is, so that its Python binding finds it.

The binding asks the system's linker and nobody else. On a machine where nobody may install
packages, libiio can lie unpacked in a folder instead: the one that PAIRZERO_LIBIIO names, or
``libiio/lib`` in the Python environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER_VARIABLE = "PAIRZERO_LIBIIO"
_LIBRARY = "libiio.so.0"


def unpacked_folder() -> Path | None:
    """The folder with libiio in it, if it is not the system's; None if there is none."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else Path(sys.prefix) / "libiio" / "lib"
    return folder if (folder / _LIBRARY).exists() else None


@contextlib.contextmanager
def findable_libiio() -> Iterator[None]:
    """Within it, ``import iio`` finds an unpacked libiio where the system has none.

    Raises:
        OSError: the unpacked library, or one that it needs, cannot be loaded.
    """
    folder = None if ctypes.util.find_library("iio") else unpacked_folder()
    if folder is None:
        yield
        return
    library = _load(folder)
    ask_the_system = ctypes.util.find_library

    def find_library(name: str) -> str | None:
        return str(library) if name == "iio" else ask_the_system(name)

    ctypes.util.find_library = find_library
    try:
        yield
    finally:
        ctypes.util.find_library = ask_the_system


def _load(folder: Path) -> Path:
    """Load libiio and, before it, what of the same folder it needs."""
    library = folder / _LIBRARY
    waiting = [path for path in sorted(folder.glob("*.so.*")) if path.name != _LIBRARY]
    while waiting:
        # One that needs another of them fails until that one is there.
        failed = [path for path in waiting if not _is_loaded(path)]
        if len(failed) == len(waiting):
            break
        waiting = failed
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return library


def _is_loaded(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
