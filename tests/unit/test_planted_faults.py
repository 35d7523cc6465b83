"""The list of faults fits the program: each can be planted, and names tests that are there."""

import ast
import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("plant", ROOT / "tests/planted_faults/plant.py")
plant = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plant)
FAULTS = plant.read_list()


def file_of(fault, root):
    return root / (fault["where"].partition(":")[0].replace(".", "/") + ".py")


def copied(fault, tmp_path):
    path = file_of(fault, tmp_path)
    path.parent.mkdir(parents=True)
    shutil.copy(file_of(fault, ROOT), path)
    return path


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_a_fault_can_be_planted_and_is_still_a_program(fault, tmp_path):
    path = copied(fault, tmp_path)
    plant.plant(fault, tmp_path)
    planted = path.read_text()
    ast.parse(planted)
    assert planted != file_of(fault, ROOT).read_text()
    for test in fault["test"].split():
        assert (ROOT / test.partition("::")[0]).exists()


def test_names_are_different_and_what_is_gone_is_told(tmp_path):
    assert len({fault["name"] for fault in FAULTS}) == len(FAULTS)
    fault = FAULTS[0]
    copied(fault, tmp_path)
    with pytest.raises(plant.FaultError, match="stands 0 times"):
        plant.plant({**fault, "was": "what nobody wrote"}, tmp_path)
    with pytest.raises(plant.FaultError, match="no such definition"):
        plant.plant({**fault, "where": fault["where"] + "_no_such"}, tmp_path)
