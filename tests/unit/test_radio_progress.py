"""What a person is told while something takes long."""

import io

import pytest

from radio.progress import CountedWork, in_words


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"), (59.6, "60 s"), (119.0, "119 s"), (120.0, "2 min"), (3540.0, "59 min"),
        (3599.0, "1 h 0 min"), (5400.0, "1 h 30 min"), (36000.0, "10 h"), (360000.0, "100 h"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_one_or_two_units(seconds, words):
    assert in_words(seconds) == words


def carried_out(out, seconds_each, total=4):
    clock = iter(range(0, 10**6, seconds_each))
    work = CountedWork(total, "trials", out, clock=lambda: float(next(clock)))
    for done in range(total):
        work(done)
    work.end()
    return out.getvalue()


def test_a_log_gets_a_line_at_once_and_then_one_each_half_minute():
    assert carried_out(io.StringIO(), 1) == "4 trials ...\n"
    lines = carried_out(io.StringIO(), 20).splitlines()
    assert lines == ["4 trials ...", "2/4 trials, 40 s left"]


def test_a_terminal_gets_a_bar_that_goes_away():
    said = carried_out(Terminal(), 90)
    assert said.count("\r") == 5
    assert "[####################....................] 2/4 trials, 3 min left" in said
    assert said.endswith("\r\033[K")
    assert "\n" not in said
