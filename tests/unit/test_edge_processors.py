"""How many processors may be used: what a process is bound to, and what a container gives it."""

import os

import pytest

from edge_runtime.processors import usable_processors

BOUND = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, BOUND), ("max 100000", BOUND), ("50000 100000", 1), ("100000 100000", 1),
        ("150000 100000", min(2, BOUND)), ("99900000 100000", BOUND), ("nonsense", BOUND),
        ("1 0", BOUND), ("0 100000", 1),
    ],
)  # fmt: skip
def test_the_smaller_of_affinity_and_quota(said, wanted, tmp_path):
    cgroup = tmp_path / "cpu.max"
    if said is not None:
        cgroup.write_text(said + "\n")
    assert usable_processors(cgroup) == wanted


def test_a_process_that_is_bound_to_one_uses_one(tmp_path):
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everything)})
    try:
        assert usable_processors(tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, everything)
