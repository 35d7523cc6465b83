"""The whole configuration stops at the doors: what is behind them takes the values it needs."""

import ast
from pathlib import Path

import server

ROOT = Path(server.__file__).parent
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
    assert 5 < len(found) <= 15, found  # it does find them
    assert {room for room, _ in found} <= {"run", "air", "report"}


def test_what_is_planned_is_all_that_planning_is_given():
    rooms = {room for room, _ in takers("PlanConfig")}
    assert "planning" in rooms
    assert not rooms & {"power", "privacy", "export", "model"}
