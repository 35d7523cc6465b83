"""A whole device on aarch64, emulated: what it does there is what it does here.

`make test-arm64` makes the root (`tests/get_arm64_root.sh`). Times and memory in an emulator are
nobody's: only bits, losses and words are compared.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from tests.support.stored_bundles import store_again

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARM64 = ROOT / ".venv" / "arm64"
LIMIT_S = 240
SIGNS = (
    "lanes_4 position = {1u << 0, 1u << 1, 1u << 2, 1u << 3}",
    "lanes_4 position = {1u << 3, 1u << 2, 1u << 1, 1u << 0}",
)
"""Which bit is whose, in the code for registers of four; and another order."""

pytestmark = pytest.mark.arm64


def emulated(*arguments, **environment):
    """A command of the root's Python; it ends, whatever the emulator does."""
    return subprocess.run(
        [ARM64 / "run", *map(str, arguments)],
        env={**os.environ, "LIMIT_S": str(LIMIT_S), **environment},
        capture_output=True, text=True, check=False, timeout=2 * LIMIT_S,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def root():
    """The root, or a word of why there is none."""
    if not (ARM64 / "run").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "there is no root of aarch64: make test-arm64 makes it, or says what it lacks"
        )


@pytest.fixture(scope="module")
def both(root, tmp_path_factory):
    """(there, here): what `checks.py` says on aarch64 and on this machine."""
    said = []
    stored = tmp_path_factory.mktemp("stored")
    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    store_again(bundle, stored / "int16", "int16")
    store_again(bundle, stored / "int8", "int8", ["*.layers.2.*"])
    for ran in (
        emulated(HERE / "checks.py", stored),
        subprocess.run(
            [sys.executable, HERE / "checks.py", stored],
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        ),
    ):  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        said.append(json.loads(ran.stdout.splitlines()[-1]))
    return said


def test_it_is_another_machine():
    ran = emulated("-c", "import platform; print(platform.machine())")
    assert ran.stdout.strip() == "aarch64" != platform.machine()


def test_two_hundred_steps_of_eight_directions_leave_the_same_bits(both):
    there, here = both
    assert there["kernel"] == "c"
    assert there["digest"] == here["digest"]


def test_losses_on_moved_weights_agree(both):
    there, here = both
    assert there["losses"] == pytest.approx(here["losses"], abs=1e-5)
    assert len(set(there["losses"])) == len(there["losses"]) > 1


@pytest.mark.parametrize("form", ["int16", "int8"])
def test_small_weights_take_the_same_steps_and_are_read_as_the_same(both, form):
    there, here = (one[form] for one in both)
    assert there["digest"] == here["digest"] != both[0]["digest"]
    assert there["losses"] == pytest.approx(here["losses"], abs=1e-5)


def test_a_round_over_the_software_radio_passes_its_own_checks(both):
    assert both[0]["selftest_devices"] == 2


def test_a_profile_has_the_phases_that_it_has_here(both):
    there, here = both
    assert there["profile"]["is_complete"]
    assert there["profile"]["phases"] == here["profile"]["phases"]
    assert there["profile"]["peak_rss_bytes"] > 0


def test_doctor_says_what_it_cannot_find_out():
    """No program of another architecture starts a child without the kernel's help."""
    ran = emulated("-m", "edge_runtime.cli", "doctor")
    assert ran.returncode == 1
    assert "ok       64-bit Python 3.11" in ran.stdout
    assert "ok       kernel in C" in ran.stdout
    assert "bundled model intact" in ran.stdout
    assert "PROBLEM  onnxruntime: its probe could not start (" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_a_kernel_whose_signs_are_in_another_order_is_noticed(both, tmp_path):
    """The check can fail: the same source, but for which bit is whose sign."""
    ours = tmp_path / "ours"
    shutil.copytree(ARM64 / "ours", ours)
    kernel = ours / "edge_runtime" / "kernel"
    core = (kernel / "core.c").read_text()
    right, wrong = SIGNS
    assert core.count(right) == 1
    (kernel / "core.c").write_text(core.replace(right, wrong))
    include = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-fPIC",
         "-shared", "-DPy_LIMITED_API=0x030B0000", f"-I{include}", kernel / "core.c",
         kernel / "module.c", "-o", kernel / "_native.abi3.so"],
        check=True,
    )  # fmt: skip
    ran = emulated(HERE / "checks.py", OURS=str(ours))
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1])["digest"] != both[1]["digest"]
