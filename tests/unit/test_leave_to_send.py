"""Hosts' own radios, from the server's side: leave for what is waited for, silence before more."""

import contextlib
import threading

import pytest

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining.messages import LeaveAsked, NumbersSent, SilenceSent
from edge_runtime.joining.own_radio import LEAVE_S, Leave
from edge_runtime.protocol.orders import AtHand
from radio.errors import RadioUnavailableError
from server.hosts.broker import Broker
from server.hosts.own_radios import SILENT_WITHIN_S, OwnRadios

PATIENCE_S = 60.0
HOLD_S = 2.0
LONGEST_S = LEAVE_S + HOLD_S + SILENT_WITHIN_S


class Control:
    """As much of a channel as is asked."""

    asking = (0, 7)


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture(scope="module")
def broker():
    with Broker() as served:
        yield served


@pytest.fixture
def ends(broker):
    """(make, link of host "pi"): make(**more) -> OwnRadios of devices 0 and 1 of host "pi"."""
    with contextlib.ExitStack() as opened:
        server, host = (
            opened.enter_context(contextlib.closing(NatsLink(broker.url, name)))
            for name in ("server", "pi")
        )

        def make(**more):
            own = OwnRadios(
                server, "run", Control(), {"pi": (0, 1), "pj": (2,)}, max_hold_s=HOLD_S, **more
            )
            return opened.enter_context(contextlib.closing(own))

        yield make, host


def leave_of(link, device=0, sequence=7):
    return Leave(link, "pz.run.air.pi", AtHand(0, sequence), device)


def test_leave_is_given_for_the_order_that_is_waited_for_and_for_ones_own_devices(ends):
    make, link = ends
    make()
    leave_of(link).ask()
    with pytest.raises(RadioUnavailableError, match="too late: its order is not waited for"):
        leave_of(link, sequence=6).ask()
    with pytest.raises(RadioUnavailableError, match="device 2 is none of pi's"):
        leave_of(link, device=2).ask()


def test_where_nobody_answers_there_is_no_leave(ends):
    _, link = ends
    with pytest.raises(RadioUnavailableError, match="the server is gone"):
        leave_of(link).ask()
    leave_of(link).give_back()  # and that is no matter


def test_samples_and_numbers_are_refused_on_a_real_air(ends):
    make, _ = ends
    own = make()
    for message in (NumbersSent(0, 7, 0, (1.0,)),):
        assert "this run's air is a real one" in own._hear("pi", message).reason


def test_it_is_waited_for_until_all_who_had_leave_are_silent(ends):
    make, link = ends
    clock = Clock()
    own = make(clock=clock)
    own.wait_until_silent()  # nobody has any
    leave_of(link, 0).ask()
    leave_of(link, 1).ask()
    is_over = threading.Event()
    waiting = threading.Thread(target=lambda: (own.wait_until_silent(), is_over.set()))
    waiting.start()
    leave_of(link, 1).give_back()
    assert not is_over.wait(0.2)
    leave_of(link, 0).give_back()
    assert is_over.wait(PATIENCE_S)
    waiting.join()


def test_who_is_gone_is_silent_after_the_longest_hold(ends, caplog):
    make, link = ends
    clock = Clock()
    own = make(clock=clock)
    leave_of(link).ask()
    assert own._left_s() == LONGEST_S
    clock.now_s += LONGEST_S
    own.wait_until_silent()
    assert "may still be heard" not in caplog.text


def test_who_a_server_before_gave_leave_to_is_waited_for_too(ends):
    make, link = ends
    own = make(clock=Clock(), may_be_held=True)
    assert own._left_s() == LONGEST_S
    assert own._hear("pj", SilenceSent(2)).__class__.__name__ == "Agreed"
    for device in (0, 1):
        leave_of(link, device).give_back()
    own.wait_until_silent()


def test_leave_that_comes_again_counts_from_the_last_time(ends):
    make, link = ends
    clock = Clock()
    own = make(clock=clock)
    own._hear("pi", LeaveAsked(0, 7, 0))
    clock.now_s += LONGEST_S - 1.0
    leave_of(link).ask()
    assert own._left_s() == LONGEST_S
