"""Looking ahead and searching from a guess change how often is asked, never the answer."""

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


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(-50, 1100), st.integers(0, 200))
def test_the_search_finds_the_smallest_whatever_the_guess(lowest, width, answer, roughness):
    highest = lowest + width
    found = smallest_index(
        lambda index: index >= answer,
        lambda index: index >= answer + roughness,
        lowest=lowest,
        highest=highest,
    )
    assert found == (max(lowest, answer) if answer <= highest else None)


@pytest.mark.parametrize("guess", [0, 3])
def test_a_good_guess_saves_questions(guess):
    asked = []
    smallest_index(
        lambda index: asked.append(index) or index >= 500_000,
        lambda index: index >= 500_000 + guess,
        lowest=0,
        highest=2**20,
    )
    assert len(asked) < 10
