"""What the README shows is something the commands understand."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from server.commands import cli
from server.commands.run import overrides
from server.config.files import parse_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_there_is_something_to_check():
    assert len(commands()) >= 8
    assert len(blocks("toml")) == 1


@pytest.mark.parametrize("command", [c for c in commands() if c[0].endswith("/pairzero")])
def test_every_pairzero_command_parses(command):
    args = cli._build_parser().parse_args(command[1:])
    if command[1] == "run":
        overrides(args)


def test_every_other_command_is_one_of_ours():
    known = {"make", ".venv/bin/pip", ".venv/bin/pairzero-device", ".venv/bin/pairzero-radio"}
    others = {c[0] for c in commands() if not c[0].endswith("/pairzero")}
    assert others <= known
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {c[1] for c in commands() if c[0] == "make"} <= set(targets)


def test_the_configuration_shown_is_valid():
    (block,) = blocks("toml")
    config = parse_config(tomllib.loads(block), source="README")
    assert config.task.name == "my-task.toml"


def test_every_file_it_names_is_there():
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    named = re.findall(r"`((?:server|edge_runtime|radio|benchmarks|docs)/[\w./-]+)`", README)
    assert linked and named
    for path in [*linked, *named]:
        assert (ROOT / path).exists(), path
