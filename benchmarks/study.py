"""A study whose finished parts are lines of a file: an interrupted one goes on where it was."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from server.run.environment import environment

Row = dict[str, Any]
Part = TypeVar("Part")


class Study:
    """Command line, file of parts, JSON with provenance.

    Args:
        description: of the script; its first paragraph is the help.
        quick: what --quick does.

    Attributes:
        parser: for options of one's own, before `begin`.
        rows: finished parts, those of the file first.
    """

    def __init__(self, description: str | None, *, quick: str) -> None:
        self.parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
        self.parser.add_argument("results", type=Path, help="a line a finished part")
        self.parser.add_argument("--quick", action="store_true", help=quick)
        self.parser.add_argument("--show", action="store_true", help="do nothing more")
        self.parser.add_argument("--json", type=Path, help="write everything there, and on what")
        self.rows: list[Row] = []

    def begin(self) -> argparse.Namespace:
        """Read the command line, and what is done."""
        self._args = self.parser.parse_args()
        if self._args.results.exists():
            lines = self._args.results.read_text("utf-8").splitlines()
            self.rows = [json.loads(line) for line in lines]
        return self._args

    def missing(self, wanted: Iterable[Part], name_of: Callable[[Row], Part]) -> list[Part]:
        """Parts that are not done; none where nothing more is to be.

        Args:
            wanted: names of the parts.
            name_of: the name of a row's.
        """
        done = [name_of(row) for row in self.rows]
        return [] if self._args.show else [part for part in wanted if part not in done]

    def add(self, row: Row, note: str) -> None:
        """A part is done: on the disk, and told."""
        with self._args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(note, file=sys.stderr, flush=True)

    def finish(self, **document: Any) -> None:
        """Write what was found, where it was asked for, with libraries and machine."""
        if self._args.json:
            text = json.dumps({"environment": environment(), **document}, indent=1)
            self._args.json.write_text(text + "\n", "utf-8")
