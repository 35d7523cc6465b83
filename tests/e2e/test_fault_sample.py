"""Two faults of the campaign's: what is left of a run is whole (`benchmarks/fault_campaign.py`)."""

import pytest
from fault_lab import MUST_BE_NONE, Kind, run_with_faults


@pytest.mark.takes_long
def test_a_run_that_something_happens_to_twice_ends_whole(tmp_path):
    left = run_with_faults(tmp_path, Kind.PLAIN, seed=6, num_faults=2, haste=2.0)
    assert left["outcome"] == "complete"
    assert sum(left["faults"].values()) == 2
    assert left["rounds_of_all"] > 0
    assert {what: left[what] for what in MUST_BE_NONE} == dict.fromkeys(MUST_BE_NONE, 0)
