"""``pairzero list``: the runs in a folder. Nothing is loaded before there is one to show."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from server.errors import RunStoreError, ServerError
from server.store.records import STORE_FILE


def list_runs(args: argparse.Namespace) -> int:
    """A line for every run in a folder, and for what calls itself one and cannot be read.

    Raises:
        RunStoreError: the folder itself cannot be read.
    """
    folders = _run_folders(args.folder)
    if not folders:
        print(f"{args.folder}: no runs there.")
        return 0
    # Here and not above: a store is opened with more libraries than a folder is looked through.
    from server.report import page as report
    from server.report.terminal import list_line, list_notes, list_title

    print(list_title())
    summaries = []
    for folder in folders:
        try:
            summary = report.read_runs(folder)[0].summary
            print(list_line(folder, summary))
            summaries.append(summary)
        except ServerError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
    for note in list_notes(summaries):
        print(note)
    return 0


def _run_folders(folder: Path) -> list[Path]:
    """Folders with a store in them; of one that cannot be looked into, a word."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        if folder == Path("runs"):  # where runs go unless somebody says otherwise
            return []
        raise RunStoreError(f"{folder}: no such folder.") from None
    except OSError as error:
        raise RunStoreError(f"{folder}: cannot be read ({error.strerror}).") from error
    found = []
    for path in (folder / name for name in names):
        try:
            os.stat(path / STORE_FILE)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            print(f"{path.name}: cannot be read ({error.strerror}).", file=sys.stderr)
            continue
        found.append(path)
    return found
