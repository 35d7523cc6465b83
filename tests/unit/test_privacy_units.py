import math
from fractions import Fraction

import pytest

from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit, sum_sensitivity
from edge_runtime.protocol.errors import PromiseError

ADD = NeighbouringRelation.ZERO_OUT_ONE
REPLACE = NeighbouringRelation.REPLACE_ONE


@pytest.mark.parametrize(
    ("unit", "relation", "expected"),
    [
        (PrivacyUnit.EXAMPLE, ADD, 100.0 / 16),
        (PrivacyUnit.EXAMPLE, REPLACE, 200.0 / 16),
        (PrivacyUnit.DEVICE, ADD, 100.0),
        (PrivacyUnit.DEVICE, REPLACE, 200.0),
    ],
)
def test_sum_sensitivity_is_the_table_of_the_theory(unit, relation, expected):
    assert sum_sensitivity(clip=100.0, batch_size=16, unit=unit, relation=relation) == expected


@pytest.mark.parametrize("clip", [0.1, 1.0, 3.7, 1e-9])
@pytest.mark.parametrize("batch_size", [3, 7, 11, 16, 49])
def test_sum_sensitivity_guarantees_rounding_up(clip, batch_size):
    value = sum_sensitivity(
        clip=clip, batch_size=batch_size, unit=PrivacyUnit.EXAMPLE, relation=ADD
    )
    assert Fraction(value) >= Fraction(clip) / batch_size
    assert value <= clip / batch_size * (1 + 1e-15)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan, 1.7e308])
def test_a_clip_that_bounds_nothing_is_refused(clip):
    with pytest.raises(PromiseError, match="clip"):
        sum_sensitivity(clip=clip, batch_size=16, unit=PrivacyUnit.EXAMPLE, relation=REPLACE)


@pytest.mark.parametrize("batch_size", [0, -3, 1.5, True])
def test_a_batch_size_that_is_no_count_is_refused(batch_size):
    with pytest.raises(PromiseError, match="batch_size"):
        sum_sensitivity(clip=1.0, batch_size=batch_size, unit=PrivacyUnit.EXAMPLE, relation=ADD)


def test_there_is_no_default_promise():
    with pytest.raises(TypeError):
        sum_sensitivity(clip=1.0, batch_size=1)
    with pytest.raises(PromiseError, match="which promise"):
        sum_sensitivity(clip=1.0, batch_size=1, unit="example", relation=ADD)
