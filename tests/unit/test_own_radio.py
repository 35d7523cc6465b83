"""A device's own radio: nothing is held without leave, and nothing longer than it may be."""

import threading

import numpy as np
import pytest

from edge_runtime.joining.own_radio import LEAVE_S, OwnRadio
from edge_runtime.uplink import SlottedUplink
from radio.errors import RadioNotSilentError, RadioTimeoutError, RadioUnavailableError
from radio.transceiver import Mode, Transceiver

BURST = np.full(8, 0.5, np.complex64)
LONG_S, SOON_S = 1e6, 0.02
PATIENCE_S = 60.0


class Radio(Transceiver):
    """Is loud or not, and remembers what it was told."""

    sample_rate_hz, max_amplitude, source, is_simulated = 1e6, 1.0, "a radio", True
    modes = frozenset({Mode.HELD})

    def __init__(self):
        self.told = []
        self.fell_silent = threading.Event()
        self.during_hold = lambda: None
        self.failures = []

    def _hold(self, burst):
        self.during_hold()
        self.told.append("hold")
        self.fell_silent.clear()

    def _fall_silent(self):
        if self.failures:
            raise self.failures.pop()
        self.told.append("silent")
        self.fell_silent.set()

    def _close(self):
        self.told.append("closed")


class Leave:
    """Gives leave unless told otherwise."""

    def __init__(self):
        self.told, self.refusal, self.before = [], None, lambda: None

    def ask(self):
        self.before()
        if self.refusal is not None:
            raise self.refusal
        self.told.append("asked")

    def give_back(self):
        self.told.append("given back")


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def radio():
    return Radio()


@pytest.fixture
def leave():
    return Leave()


@pytest.fixture
def opened(radio, leave):
    """opened(max_hold_s, clock) -> an OwnRadio, closed at the end."""
    made = []

    def make(max_hold_s=LONG_S, **more):
        made.append(OwnRadio(radio, leave, max_hold_s=max_hold_s, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_it_holds_with_leave_and_gives_it_back_when_it_is_silent(radio, leave, opened):
    own = opened()
    own.hold(BURST)
    assert (radio.told, leave.told) == (["hold"], ["asked"])
    own.fall_silent()
    assert (radio.told, leave.told) == (["hold", "silent"], ["asked", "given back"])
    assert not own.take_ended_early()
    own.fall_silent()  # nothing to give back a second time
    assert leave.told == ["asked", "given back"]


def test_without_leave_nothing_is_held(radio, leave, opened):
    leave.refusal = RadioUnavailableError("too late")
    with pytest.raises(RadioUnavailableError, match="too late"):
        opened().hold(BURST)
    assert radio.told == []


def test_what_is_held_too_long_ends_by_itself_and_says_so_once(radio, leave, opened):
    own = opened(SOON_S)
    own.hold(BURST)
    assert radio.fell_silent.wait(PATIENCE_S)
    own.fall_silent()
    assert own.take_ended_early()
    assert not own.take_ended_early()
    assert leave.told == ["asked", "given back"]
    radio.fell_silent.clear()
    own.hold(BURST)
    assert radio.fell_silent.wait(PATIENCE_S)  # and again


def test_a_burst_that_is_ended_in_time_is_not_ended_again(radio, opened):
    own = opened(0.2)
    own.hold(BURST)
    own.fall_silent()
    radio.fell_silent.clear()
    assert not radio.fell_silent.wait(0.5)
    assert radio.told == ["hold", "silent"]
    assert not own.take_ended_early()


def test_a_link_that_is_lost_ends_it_at_once(radio, opened):
    own = opened()
    own.end_now()  # nothing is held: nothing to end
    own.hold(BURST)
    assert not own.take_ended_early()
    own.end_now()
    assert radio.fell_silent.wait(PATIENCE_S)
    assert own.take_ended_early()


def test_a_link_that_is_lost_between_leave_and_burst_ends_it_too(radio, leave, opened):
    own = opened()
    leave.before = own.end_now
    radio.during_hold = lambda: radio.fell_silent.wait(PATIENCE_S)
    with pytest.raises(RadioTimeoutError, match="and a link that is up"):
        own.hold(BURST)
    assert radio.told[-1] == "silent"


def test_a_process_that_was_stopped_before_it_held_does_not_stay_on_the_air(radio, opened):
    clock = Clock()
    own = opened(clock=clock)

    def stopped():
        clock.now_s += LEAVE_S + 0.1

    radio.during_hold = stopped
    with pytest.raises(RadioTimeoutError, match=r"on the air 10\.1 s after leave was asked for"):
        own.hold(BURST)
    assert radio.told == ["hold", "silent"]


def test_a_radio_that_does_not_fall_silent_is_told_again(radio, opened):
    own = opened(SOON_S)
    radio.failures = [RadioNotSilentError("loud"), OSError("cut"), ValueError("nonsense")]
    own.hold(BURST)
    assert radio.fell_silent.wait(PATIENCE_S)
    assert radio.failures == []


def test_a_hold_that_replaces_one_has_its_own_time(radio, leave, opened):
    own = opened(LONG_S)
    own.hold(BURST)
    own.hold(BURST)
    assert leave.told == ["asked", "asked"]
    assert radio.told == ["hold", "hold"]


def test_closing_closes_the_radio_and_ends_the_thread(radio, leave, opened):
    own = opened()
    own.hold(BURST)
    own.close()
    assert radio.told == ["hold", "closed"]
    assert leave.told == ["asked", "given back"]
    assert not [t for t in threading.enumerate() if t.name == "dead man a radio"]


def test_an_uplink_tells_what_its_radio_says(opened):
    own = opened(SOON_S)
    uplink = SlottedUplink(own, waveform=None)
    assert not uplink.take_ended_early()
    own.hold(BURST)
    assert own._radio.fell_silent.wait(PATIENCE_S)
    assert uplink.take_ended_early()


def test_it_is_the_radio_that_it_was_given(radio, opened):
    own = opened()
    assert own.sample_rate_hz == 1e6
    assert own.max_amplitude == 1.0
    assert (own.source, own.name) == ("a radio", "a radio")
    assert own.is_simulated
    assert own.modes == {Mode.HELD}
    assert own.temperature_c is None and own.take_health() is None
