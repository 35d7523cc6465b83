"""Products of small matrices wake no threads that spin beside the passes of a model."""

import os
import subprocess
import sys

import pytest

CODE = """
import MODULE
import os
import numpy as np
matrix = np.ones((600, 600))
(matrix @ matrix).sum()
print(os.environ["OPENBLAS_NUM_THREADS"], len(os.listdir("/proc/self/task")))
"""


def ran(module, **environment):
    said = subprocess.run(
        [sys.executable, "-c", CODE.replace("MODULE", module)],
        env={**{k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}, **environment},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return tuple(map(int, said))


@pytest.mark.parametrize(
    "module", ["radio.metrics", "edge_runtime.lattice", "server.numeric", "server.commands.cli"]
)
def test_numpy_has_one_thread_unless_somebody_says_otherwise(module):
    assert ran(module) == (1, 1)
    assert ran(module, OPENBLAS_NUM_THREADS="2")[0] == 2
