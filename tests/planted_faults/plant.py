"""Plant faults that would break a promise, one at a time, each in a copy; a test must fail of it.

The list is `faults.toml` beside this file. A fault that no test sees is a test that is missing::

    python tests/planted_faults/plant.py               # all of them; make test-planted
    python tests/planted_faults/plant.py "one key"     # those with that in their names
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge_runtime.processors import usable_processors

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("faults.toml")
PACKAGES = ("radio", "edge_runtime", "server")
TIMEOUT_S = 900.0
_SIDE_BY_SIDE = 2 + usable_processors()
"""As with the tests themselves: much of one is waiting for a process to begin."""


class FaultError(Exception):
    """A fault of the list that cannot be planted: what it changes is not there, or twice."""


def read_list() -> list[dict[str, Any]]:
    """The faults, in their order."""
    faults: list[dict[str, Any]] = tomllib.loads(LIST.read_text("utf-8"))["fault"]
    return faults


def plant(fault: dict[str, Any], root: Path) -> None:
    """Change a copy.

    Raises:
        FaultError: a definition or a text in it is not there exactly once.
    """
    module, _, name = fault["where"].partition(":")
    path = root / f"{module.replace('.', '/')}.py"
    source = path.read_text("utf-8")
    first, last = _lines_of(source, name.split("."))
    lines = source.splitlines(keepends=True)
    text = "".join(lines[first:last])
    for was, becomes in [(fault["was"], fault["is"]), *fault.get("also", [])]:
        if text.count(was) != 1:
            raise FaultError(
                f"{fault['name']}: {was!r} stands {text.count(was)} times in {fault['where']}, "
                "wanted once. Bring the list up to date."
            )
        text = text.replace(was, becomes)
    path.write_text("".join([*lines[:first], text, *lines[last:]]), "utf-8")


def _lines_of(source: str, names: list[str]) -> tuple[int, int]:
    """First line of a definition, and the one after its last."""
    body: list[ast.stmt] = ast.parse(source).body
    found: ast.stmt | None = None
    for name in names:
        found = next(
            (
                node for node in body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
            ),
            None,
        )  # fmt: skip
        if found is None:
            raise FaultError(f"{'.'.join(names)}: no such definition. Bring the list up to date.")
        body = found.body  # type: ignore[attr-defined]
    assert found is not None
    assert found.end_lineno is not None
    return found.lineno - 1, found.end_lineno


def copy_to(folder: Path) -> None:
    """Sources and tests, with the kernel as it is built."""
    for name in (*PACKAGES, "tests", "benchmarks", "firmware_notes"):  # with what is compiled
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def run_test(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a copy, of its own packages."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p",
               "no:cacheprovider", *words]  # fmt: skip
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, timeout=TIMEOUT_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def is_caught(fault: dict[str, Any]) -> bool:
    """Whether its test fails of it: fails, and not merely cannot be run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        plant(fault, folder)
        done = run_test(folder, *fault["test"].split())
    was_run = done.returncode == 1 and "ImportError while" not in done.stdout
    if not was_run:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return was_run


def main() -> int:
    wanted = sys.argv[1:]
    faults = [f for f in read_list() if not wanted or any(part in f["name"] for part in wanted)]
    missed = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        copy_to(Path(name))
        tests = dict.fromkeys(word for fault in faults for word in fault["test"].split())
        # A test that fails without any fault catches none.
        done = run_test(Path(name), "-n", str(_SIDE_BY_SIDE), "--dist", "worksteal", *tests)
        if done.returncode != 0:
            print(f"{done.stdout[-2000:]}\nfails without any fault")
            return 1
        for fault, caught in zip(faults, pool.map(is_caught, faults), strict=True):
            print(f"{'caught' if caught else 'NOT SEEN':10s}{fault['name']}   ({fault['test']})")
            sys.stdout.flush()
            missed += [] if caught else [fault["name"]]
    print(f"{len(faults) - len(missed)} passed, {len(missed)} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
