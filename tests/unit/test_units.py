"""Units for systemd: it understands them, and the programs understand what they start."""

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "firmware_notes" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
INSTALLED = "/opt/pairzero/bin/"
PROGRAMS = {"pairzero-device": "edge_runtime.cli", "pairzero": "server.commands.cli"}


def read(path):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(path.read_text("utf-8"))
    return unit


def test_there_is_one_for_each_end():
    assert [path.name for path in UNITS] == ["pairzero-device.service", "pairzero-server.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_guardian_of_a_radio_outlives_the_program_and_nothing_else_is_written(path):
    service = read(path)["Service"]
    assert service["KillMode"] == "process"
    assert service["ProtectSystem"] == "strict"
    assert service["User"] == "pairzero"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_understands_it(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    text = path.read_text("utf-8").replace(f"{INSTALLED}pairzero-device", "/bin/true")
    (tmp_path / path.name).write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / path.name],
        capture_output=True, text=True, check=False, timeout=120,
    ).stderr  # fmt: skip
    assert [line for line in said.splitlines() if path.name in line] == []


def started_by(path, environment):
    """The program and its words, with the environment's in them."""
    words = read(path)["Service"]["ExecStart"].replace("$PAIRZERO_JOIN", environment)
    words = words[words.rindex(INSTALLED) :].removesuffix("'").replace('"$$@"', environment)
    program, *rest = shlex.split(words)
    return PROGRAMS[program.removeprefix(INSTALLED)], rest


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("pairzero-device.service", "/etc/pairzero/pi1.pairzero --data nowhere.tsv",
         "nowhere.tsv: no such file"),
        ("pairzero-server.service", "nowhere.toml --out run", "nowhere.toml"),
        ("pairzero-server.service", "--resume run", "run: "),
    ],
)  # fmt: skip
def test_the_program_understands_what_it_is_started_with(name, environment, words, tmp_path):
    module, rest = started_by(FOLDER / name, environment)
    ran = subprocess.run(
        [sys.executable, "-m", module, *rest],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "usage:" not in ran.stderr
    assert '"level": "error"' in ran.stderr
    # As far as this: the files are not here.
    assert words in ran.stderr or "pi1.pairzero" in ran.stderr
