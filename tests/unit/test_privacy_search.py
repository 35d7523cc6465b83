"""Looking ahead and searching from a guess change how often is asked, never the answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.privacy.affordability import Affordability
from server.privacy.composition import PriceClass, make_history
from server.privacy.grid_search import smallest_index

CHEAP, DEAR = PriceClass(0.01, 4096), PriceClass(0.01, 0)


class CountingComposer:
    """Epsilon is the number of rounds, a dear one counting ten; notes how often it is asked."""

    def __init__(self):
        self.asked = 0

    def epsilon(self, history):
        self.asked += 1
        return sum(count * (10 if price == DEAR else 1) for price, count in history)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 250)), max_size=30))
def test_the_answer_is_that_of_composing(questions):
    composer = CountingComposer()
    affordability = Affordability(composer, epsilon=100.0)
    for num_dear, wanted in questions:
        others = make_history({DEAR: num_dear})
        truth = wanted + 10 * num_dear <= 100
        assert affordability.is_affordable(others, CHEAP, wanted) is truth


def test_thousands_of_equal_rounds_are_asked_about_a_few_times():
    composer = CountingComposer()
    affordability = Affordability(composer, epsilon=5000.0)
    affordable = [affordability.is_affordable((), CHEAP, n) for n in range(1, 6001)]
    assert sum(affordable) == 5000
    assert composer.asked < 60


figures = st.sampled_from(
    [
        lambda x: 2.0 ** (-x / 100.0),
        lambda x: 2.0 ** (-x / 7.0),
        lambda x: 1.0 if x < 0 else 0.25,
        lambda x: math.inf if x < 0 else 2.0 ** (-x / 100.0),
        lambda x: 3.0 if x < -20 else (1.0 + 1e-9 if x < 0 else 0.0),
    ]
)


@given(
    figures, st.integers(0, 1000), st.integers(0, 1000), st.integers(-50, 1100),
    st.integers(0, 200), st.integers(-100, 2100),
)  # fmt: skip
def test_the_search_finds_the_smallest_whatever_the_guess_and_the_figure(
    figure, lowest, width, answer, roughness, guess
):
    highest = lowest + width

    def shifted(by):
        # At most 1 from ``by`` on.
        at_border = figure(0)
        return lambda x: figure(x - by) / at_border if at_border else float(x < by) * 2.0

    asked = []
    found = smallest_index(
        lambda x: asked.append(x) or shifted(answer)(x),
        shifted(answer + roughness),
        1.0,
        lowest=lowest,
        highest=highest,
        guess=guess,
        points_per_octave=100.0,
    )
    wanted = [x for x in range(lowest, highest + 1) if shifted(answer)(x) <= 1.0]
    assert found == (wanted[0] if wanted else None)
    if found is not None:
        assert found in asked
        assert found == lowest or found - 1 in asked
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("power", [0.9, 1.2, 2.0])
def test_a_power_is_found_with_a_few_questions(power):
    asked = []
    found = smallest_index(
        lambda x: asked.append(x) or 2.0 ** (-power * (x - 500_000.3) / 1024.0),
        lambda x: 1.001 * 2.0 ** (-power * (x - 500_000.3) / 1024.0),
        1.0,
        lowest=0,
        highest=2**20,
        guess=498_000,
        points_per_octave=1024.0,
    )
    assert found == 500_001
    assert len(asked) <= 5
