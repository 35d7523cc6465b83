"""What a wheel holds, what may import what, and what a device needs to run a round."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = ("radio", "edge_runtime", "server")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STANDARD_LIBRARY = sys.stdlib_module_names


def run(*argv, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


# The list of packages


def test_the_packages_are_the_folders_with_an_init():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in TOP_LEVEL
        for path in (ROOT / name).rglob("__init__.py")
    }
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == folders
    assert len(listed) == len(folders)


def test_every_module_lies_in_a_listed_package():
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    for name in TOP_LEVEL:
        for path in (ROOT / name).rglob("*.py"):
            assert ".".join(path.parent.relative_to(ROOT).parts) in listed, path


def test_no_folder_of_tests_hides_a_package():
    assert not {path.name for path in (ROOT / "tests").rglob("*") if path.is_dir()} & set(TOP_LEVEL)


def test_the_oldest_versions_that_are_tested_are_those_that_are_promised():
    """`make test-lowest` installs them; a bound that nobody tests is a guess."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    promised = [*PYPROJECT["build-system"]["requires"], *PYPROJECT["project"]["dependencies"]]
    for name in ("device", "hosts", "broker", "server", "export", "gguf", "plan", "pluto"):
        promised += extras[name]
    bounds = {
        name: found[1]
        for requirement in promised
        if (found := re.search(r">=([0-9.]+)", requirement))
        and (name := re.match(r"[\w-]+", requirement)[0])
    }
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    apart = {"torch", "dp-accounting"}  # see the file; and what tests alone need
    assert {k: v for k, v in bounds.items() if k not in apart} == {
        k: v for k, v in tested.items() if k not in apart
    }


def test_every_command_exists():
    import importlib

    for name, target in PYPROJECT["project"]["scripts"].items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_the_device_extra_has_nothing_of_the_server():
    extras = PYPROJECT["project"]["optional-dependencies"]
    device = " ".join([*PYPROJECT["project"]["dependencies"], *extras["device"]])
    for name in ("torch", "transformers", "scipy", "dp-accounting", "matplotlib", "onnx>"):
        assert name not in device


# The wheel


def files_on_disk(folder, pattern):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    setuptools = pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    # From 70.1 on setuptools makes wheels without the package "wheel".
    if tuple(map(int, setuptools.__version__.split(".")[:2])) < (70, 1):
        pytest.importorskip("wheel")
    tree = tmp_path_factory.mktemp("tree")
    # A copy, so that no build folder appears in the repository; with what must stay out.
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in (*TOP_LEVEL, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    built = run(
        "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--no-build-isolation", "--no-index", "--wheel-dir", "wheels", ".", cwd=tree,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = (tree / "wheels").glob("*.whl")
    assert wheel.name.startswith(f"pairzero-{version('pairzero')}-cp311-abi3-")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module(wheel_names):
    for name in TOP_LEVEL:
        assert files_on_disk(name, "*.py") <= wheel_names


def test_the_wheel_holds_assets_and_presets(wheel_names):
    assets = files_on_disk("edge_runtime/assets", "*")
    presets = files_on_disk("server/presets", "*.toml")
    assert {Path(name).name for name in assets} >= {"layer.onnx", "manifest.json", "snips.toml"}
    assert presets
    assert assets | presets <= wheel_names


def test_the_wheel_holds_the_kernel_built_for_every_later_python(wheel_names):
    assert "edge_runtime/kernel/_native.abi3.so" in wheel_names


def test_the_wheel_holds_nothing_else(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(TOP_LEVEL)
    assert any(name.endswith("/LICENSE") for name in wheel_names)


# Who may import whom


def lint_imports(config):
    return run("-c", "from importlinter.cli import lint_imports_command as c; c()",
               "--no-cache", "--config", config)  # fmt: skip


def test_the_import_contracts_are_kept():
    pytest.importorskip("importlinter")
    result = lint_imports("pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    num_contracts = len(PYPROJECT["tool"]["importlinter"]["contracts"])
    assert f"Contracts: {num_contracts} kept, 0 broken" in result.stdout


def test_a_broken_import_contract_would_be_noticed(tmp_path):
    pytest.importorskip("importlinter")
    config = tmp_path / "importlinter.toml"
    config.write_text(
        '[tool.importlinter]\nroot_packages = ["radio", "edge_runtime"]\n'
        '[[tool.importlinter.contracts]]\nname = "wrong way round"\ntype = "layers"\n'
        'layers = ["radio", "edge_runtime"]\n'
    )
    result = lint_imports(config)
    assert result.returncode == 1
    assert "0 kept, 1 broken" in result.stdout


def imported_names(path):
    """Top-level names of every import in a file, also of those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


ON_REQUEST = {
    "radio/recordings/drawing.py": {"matplotlib"},
    "radio/pluto/context.py": {"iio"},
    "radio/pluto/driver.py": {"adi"},
    "radio/recordings/sigmf.py": {"sigmf"},
    "edge_runtime/control/nats_link.py": {"nats"},
    "edge_runtime/control/broker_disk.py": {"nats"},
    "edge_runtime/control/bundle_store.py": {"nats"},
    "edge_runtime/control/step_log.py": {"nats"},
    "edge_runtime/control/seal.py": {"nacl"},
}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("radio", {"numpy", "radio"}),
        ("edge_runtime/protocol", {"numpy", "msgspec", "edge_runtime"}),
        (
            "edge_runtime",
            {"numpy", "msgspec", "onnxruntime", "tokenizers", "safetensors", "radio",
             "edge_runtime"},
        ),
    ],
)  # fmt: skip
def test_a_package_imports_what_its_extra_installs_and_no_more(folder, allowed):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        # On request: each says what to install where it cannot be had.
        on_request = ON_REQUEST.get(path.relative_to(ROOT).as_posix(), set())
        assert imported_names(path) - STANDARD_LIBRARY - on_request <= allowed, path


def named_libraries(path):
    """Imports, and the strings that could be imports by name ("optimum" is an option's value)."""
    nodes = ast.walk(ast.parse(path.read_text()))
    strings = {n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str}
    words = {text.split(".")[0] for text in strings if " " not in text}
    return imported_names(path) | (words - {"optimum"})


def test_training_frameworks_live_in_the_exporter_alone():
    heavy = {"torch", "transformers", "onnx", "optimum", "accelerate"}
    users = {
        path.relative_to(ROOT).parts[:2]
        for name in TOP_LEVEL
        for path in (ROOT / name).rglob("*.py")
        if named_libraries(path) & heavy
    }
    assert users == {("server", "export")}


# What a device needs at run time

BLOCKED_RUN = """
import json, sys

BLOCKED = {"torch", "transformers", "optimum", "onnx", "scipy", "dp_accounting", "matplotlib",
           "server", "pandas", "sklearn"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked: a device does not have it")
        return None

sys.meta_path.insert(0, Blocker())
try:
    import server
except ImportError:
    pass
else:
    sys.exit("the block does not block")

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER
from edge_runtime.selftest import run_selftest

result = run_selftest(BUNDLED_MODEL_FOLDER, task_name="snips", num_devices=2)
present = sorted(BLOCKED & {name.split(".")[0] for name in sys.modules})
print(json.dumps([result.num_devices, result.parameter_digest, present]))
"""


def test_a_device_runs_a_round_with_nothing_of_the_server_installed():
    done = run("-W", "error", "-c", BLOCKED_RUN)
    assert done.returncode == 0, done.stderr
    num_devices, digest, present = json.loads(done.stdout)
    assert num_devices == 2
    assert len(digest) == 64
    assert present == []


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("server.commands.cli", ["torch", "onnxruntime", "matplotlib", "scipy"]),
        ("radio.commands.cli", ["onnxruntime", "msgspec", "tokenizers", "server", "edge_runtime"]),
        ("edge_runtime.cli", ["onnxruntime", "server"]),
    ],
)
def test_help_answers_without_the_heavy_libraries(module, banned):
    program = (
        "import importlib, json, sys\n"
        "try:\n"
        f"    code = importlib.import_module({module!r}).main(['--help'])\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "assert code == 0, code\n"
        f"print(json.dumps([n for n in {banned!r} if n in sys.modules]))\n"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_run_in_one_process_needs_no_client_of_a_broker():
    """`pip install '.[server]'` brings none; who has one shall not load it either."""
    program = "import sys, server.commands.run, edge_runtime.cli; print('nats' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
