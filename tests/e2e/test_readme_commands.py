"""The first screen's table, command by command, as a stranger would type it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.study
@pytest.mark.takes_long
def test_every_command_of_the_first_screen_does_what_it_is_there_for(tmp_path):
    lines = re.findall(r"\| `(pairzero[^`]*)` \|", (ROOT / "README.md").read_text("utf-8"))
    assert len(lines) == 8
    own, *others = lines  # files to copy are tests/unit/test_readme.py's
    assert own == "pairzero run my.toml"
    for line in sorted(others, key=lambda line: "RUN" in line):
        program, *words = line.replace("RUN", "runs/snips-1").split()
        done = subprocess.run(
            [Path(sys.executable).parent / program, *words],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert done.stdout
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "snips-1", "virtual-pluto-1", "virtual-pluto-2",
    }  # fmt: skip
