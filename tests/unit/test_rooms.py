"""The house stays in order: few files on a floor, none long, and the configuration at the doors."""

import ast
from pathlib import Path

import edge_runtime
import radio
import server

PRODUCT = [Path(package.__file__).parent for package in (server, edge_runtime, radio)]
ROOT = PRODUCT[0]
LONGEST_FILE, MOST_FILES_AT_TOP, MOST_TAKERS = 450, 10, 15
OPEN_ROOMS = ("commands", "config")


def takers(name):
    """Functions outside commands and config that take a configuration of a type, whole."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0]
        if room in OPEN_ROOMS:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(
                    a.annotation is not None and name in ast.unparse(a.annotation) for a in every
                ):
                    found.append((room, f"{path.stem}.{node.name}"))
    return found


def test_few_functions_take_it_whole_and_none_in_planning_power_privacy_and_store():
    found = takers("RunConfig")
    assert 5 < len(found) <= MOST_TAKERS, found  # it does find them
    assert {room for room, _ in found} <= {"run", "air", "report"}


def test_what_is_planned_is_all_that_planning_is_given():
    rooms = {room for room, _ in takers("PlanConfig")}
    assert "planning" in rooms
    assert not rooms & {"power", "privacy", "export", "model"}


def test_no_file_is_long_and_few_lie_at_the_top():
    for package in PRODUCT:
        for path in package.rglob("*.py"):
            assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE, path
    assert len(list(ROOT.glob("*.py"))) <= MOST_FILES_AT_TOP


def test_a_docstring_says_what_the_thing_is():
    """Who comes from an index reads it without the lines around it."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    for package in PRODUCT:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                said = ast.get_docstring(node) if isinstance(node, kinds) else None
                assert not (said or "").startswith(("Of ", "The same")), f"{path}: {node.name}"
