"""Where a condition ends."""

import math

from radio.bisection import bisect


def test_it_ends_between_two_neighbours_and_asks_no_more():
    asked = []

    def holds(x):
        asked.append(x)
        return x * x <= 2.0

    low, high = bisect(holds, 0.0, 1e6, 10_000)
    assert high == math.nextafter(low, math.inf)
    assert low * low <= 2.0 < high * high
    assert len(asked) == len(set(asked)) < 100


def test_it_stops_after_so_many_halvings():
    assert bisect(lambda x: x < 1.0, 0.0, 8.0, 2) == (0.0, 2.0)


def test_ends_that_are_taken_for_granted_are_not_asked():
    assert bisect(lambda x: False, 1.0, math.nextafter(1.0, 2.0), 9) == (
        1.0,
        math.nextafter(1.0, 2.0),
    )
    assert bisect(lambda x: True, 5e-324, 1e-323, 9) == (5e-324, 1e-323)
