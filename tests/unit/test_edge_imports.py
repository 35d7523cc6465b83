"""What an import loads: a device must not need the server's libraries, nor a record the device's.

In a process of its own, since this one has long loaded everything.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_after(modules):
    """Top-level names in sys.modules after importing ``modules`` in a fresh interpreter."""
    program = (
        f"import json, sys; import {', '.join(modules)}; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return set(json.loads(finished.stdout))


SERVER_SIDE = {"torch", "transformers", "scipy", "server", "dp_accounting", "matplotlib", "onnx",
               "optimum", "accelerate"}  # fmt: skip
CASES = {
    "protocol": (
        ["edge_runtime.protocol.rounds", "edge_runtime.protocol.wire",
         "edge_runtime.protocol.direction", "edge_runtime.protocol.errors"],
        {"numpy", "msgspec"},
        SERVER_SIDE | {"onnxruntime", "tokenizers", "safetensors", "radio"},
    ),
    "agent": (
        ["edge_runtime.agent", "edge_runtime.control.inprocess"],
        {"numpy", "msgspec", "onnxruntime", "tokenizers", "safetensors", "radio"},
        SERVER_SIDE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_import_loads_what_it_needs_and_nothing_of_the_server(name):
    modules, wanted, forbidden = CASES[name]
    loaded = loaded_after(modules)
    assert wanted <= loaded
    assert not loaded & forbidden, f"{modules} load {sorted(loaded & forbidden)}"
