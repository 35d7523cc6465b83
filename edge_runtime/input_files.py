"""Reading what a person has named, in whole: never without end, never more than is meant."""

from __future__ import annotations

import errno
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_SETTINGS_BYTES = 1 << 20
"""Of a configuration or task file: a thousand times what one takes."""


def read_whole(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of a regular file, which a resumed run can read again.

    Raises:
        OSError: it cannot be read; it is a pipe or a device, which may never end; or it has more
            than ``max_bytes``.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, wanted a file", str(path))
    if max_bytes is not None and found.st_size > max_bytes:
        raise OSError(
            errno.EFBIG, f"{found.st_size:,} bytes, wanted at most {max_bytes:,}", str(path)
        )
    return path.read_bytes()


def read_settings(path: Path) -> dict[str, Any]:
    """A TOML document of a person's.

    Raises:
        OSError: as `read_whole`; it may have `MAX_SETTINGS_BYTES`.
        ValueError: it is not UTF-8 or not TOML.
        RecursionError: it is nested too deeply.
    """
    # utf-8-sig: editors on Windows put a byte-order mark first.
    return tomllib.loads(read_whole(path, MAX_SETTINGS_BYTES).decode("utf-8-sig"))
