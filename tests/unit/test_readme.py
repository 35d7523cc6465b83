"""What the README and the pages show is something the commands understand, and carry out."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from server.commands import cli
from server.commands.settings import overrides
from server.config.files import load_config

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FIRST_SCREEN = 60
NEED_HARDWARE = ("calibrate", "silence", "record")
"""Sub-commands whose examples ask for radios that are there."""


def blocks(language, path):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), flags=re.DOTALL)


def commands(path):
    """Command lines of a page: its blocks, and the cells of tables."""
    lines = [line for block in blocks("sh", path) for line in block.splitlines() if line.strip()]
    lines += re.findall(r"\| `(pairzero[^`]*)` \|", path.read_text("utf-8"))
    return [shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in lines]


ALL = [(path.name, command) for path in PAGES for command in commands(path)]


def test_there_is_something_to_check():
    assert len(ALL) >= 25
    assert len(commands(README)) >= 8


def test_the_first_screen_is_one():
    assert len(README.read_text("utf-8").splitlines()) <= FIRST_SCREEN


@pytest.mark.parametrize("command", [c for _, c in ALL if c[0] == "pairzero"], ids=" ".join)
def test_every_pairzero_command_parses(command):
    args = cli._build_parser().parse_args(command[1:])
    if command[1] == "run":
        overrides(args)


def test_every_other_command_is_one_of_ours():
    known = {"make", "pip", "pairzero", "pairzero-device", "pairzero-radio"}
    assert {command[0] for _, command in ALL} <= known
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {command[1] for _, command in ALL if command[0] == "make"} <= set(targets)


def test_the_files_to_copy_make_a_run(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "your-data.md"
    task, configuration = blocks("toml", page)
    (data,) = blocks("tsv", page)
    assert (task.splitlines()[0], configuration.splitlines()[0]) == ("# my-task.toml", "# my.toml")
    for name, text in (
        ("my-task.toml", task), ("my.toml", configuration), ("train.tsv", data),
        ("validate.tsv", data),
    ):  # fmt: skip
        (tmp_path / name).write_text(text, "utf-8")
    assert tomllib.loads(task)["name"] == "my-task"
    assert load_config(str(tmp_path / "my.toml")).federation.num_devices == 2
    monkeypatch.chdir(tmp_path)
    asked = [command[1:] for command in commands(page) if command[:1] == ["pairzero"]]
    plan, run = asked[:2]
    assert cli.main(plan) == 0
    assert "This run cannot learn" in capsys.readouterr().out
    assert cli.main(run) == 0
    assert "Report: runs/my-1/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_it_names_is_there(path):
    text = path.read_text("utf-8")
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:server|edge_runtime|radio|benchmarks|docs|tests)/[\w./-]+)`", text)
    for link in linked:
        assert (path.parent / link).exists(), link
    for name in named:
        assert (ROOT / name).exists(), name
