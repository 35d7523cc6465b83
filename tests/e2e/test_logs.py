"""What programs log for whoever collects it: an object a line, whatever is said."""

import datetime
import json
import logging
import subprocess
import sys

import pytest

from radio.logs import JsonLines


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("server.commands.cli", ["run", "nowhere"], "no preset 'nowhere'"),
        ("edge_runtime.cli", ["join", "nats://127.0.0.1:1", "--name", "pi", "--data", __file__],
         "nobody answers at 127.0.0.1:1"),
    ],
)  # fmt: skip
def test_an_error_is_a_line_of_json(module, arguments, words):
    ran = subprocess.run(
        [sys.executable, "-m", module, "--log-format", "json", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    said = json.loads(line)
    assert words in said["message"]
    assert said["level"] == "error"
    at = datetime.datetime.fromisoformat(said["time"])
    assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 600.0


def test_a_server_that_waits_says_so_in_json_at_any_level():
    ran = subprocess.run(
        [sys.executable, "-m", "server.commands.cli", "--log-format", "json", "serve", "snips",
         "--set", 'radio.waveform="energy"', "--set", 'privacy.noise_source="system"',
         "--wait", "0.2"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    said = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [each["level"] for each in said] == ["info", "info", "error"]
    assert "waits for 5 devices" in said[0]["message"]
    assert said[1]["message"].startswith("pairzero-device join")


def test_whatever_is_said_stays_one_line_and_a_cause_comes_with_it():
    try:
        raise ValueError("as it was")
    except ValueError:
        record = logging.getLogger("here").makeRecord(
            "here", logging.WARNING, "", 0, 'a "%s"\nand µ', ("line",), sys.exc_info()
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert said["message"] == 'a "line"\nand µ'
    assert (said["level"], said["logger"]) == ("warning", "here")
    assert "ValueError: as it was" in said["error"]
