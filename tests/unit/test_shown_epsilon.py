"""An epsilon on a page is a promise: rounded up, wherever it stands."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.privacy.shown import shown_epsilon


@given(st.floats(0.0, 1e6), st.integers(0, 9))
def test_what_stands_there_is_kept_and_no_more_than_a_digit_is_given_away(epsilon, digits):
    shown = Fraction(shown_epsilon(epsilon, digits))
    assert Fraction(epsilon) <= shown < Fraction(epsilon) + Fraction(1, 10**digits)


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(0.8812, "0.882"), (0.875, "0.875"), (0.881, "0.882"), (1.0, "1.000"), (0.0, "0.000"),
     (1e-9, "0.001"), (math.inf, "inf"), (None, "none")],
)  # fmt: skip
def test_by_example(epsilon, shown):
    assert shown_epsilon(epsilon) == shown


def test_nothing_else_in_the_server_prints_one_to_nearest():
    """A format with digits right behind an epsilon's name would be to nearest again."""
    import re
    from pathlib import Path

    import server

    pattern = re.compile(r"(epsilon|spent)[\w.\"'\]()\[]*:[0-9.]*[ef]\}")
    for path in Path(server.__file__).parent.rglob("*.py"):
        assert not pattern.search(path.read_text("utf-8")), path
