"""What a run notes of the machine."""

import subprocess
import sys

import numpy as np

CHILD = "from server.run.environment import peak_rss_mb; print(peak_rss_mb())"


def test_the_memory_of_a_program_is_its_own_and_not_its_parents():
    ballast = np.ones(50_000_000)  # 400 MB, which a child would begin with
    printed = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, check=True, text=True
    )
    assert ballast.nbytes == 4e8
    assert 20.0 < float(printed.stdout) < 300.0
