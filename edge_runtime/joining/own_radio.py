"""A device's own radio: on the air as long as somebody waits for what it holds, and no longer.

A held burst has no end of its own. Told to stop it is by the server, which may be gone; so

* before a burst is held the server is asked whether its order is still waited for, and a burst that
  takes longer than `LEAVE_S` from there to the air is ended at once: it would be heard in another
  round (`server.hosts.own_radios` knows what it has given leave to);
* a burst ends by itself when it has been held for the longest that the device's owner allows, or
  when the link to the broker is lost, whatever the server does;
* behind that stands the radio's guardian, for a process that hangs or is killed
  (`radio.pluto.guardian`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.control.nats_link import NatsLink
from edge_runtime.joining import messages
from edge_runtime.joining.messages import LeaveAsked, OnAir, SilenceSent
from edge_runtime.protocol.errors import LinkError, WireError
from edge_runtime.protocol.orders import AtHand
from radio.arrays import Complex64Array
from radio.errors import RadioTimeoutError, RadioUnavailableError
from radio.held_radio import AroundHeldRadio
from radio.transceiver import Transceiver

_logger = logging.getLogger(__name__)

LEAVE_S = 10.0
"""From the question to the air. A hold takes some exchanges with a radio: milliseconds."""

GUARDIAN_BEHIND_S = 1.0
"""By which the guardian's limit is longer: it ends the whole process."""

_ASK_S = 5.0
_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Leave:
    """Whether somebody waits for what a device is about to send.

    Attributes:
        link: to the broker.
        subject: where the server listens.
        at_hand: the order that is being carried out.
        device_index: whose leave it is.
    """

    link: NatsLink
    subject: str
    at_hand: AtHand
    device_index: int

    def ask(self) -> None:
        """Return if somebody does.

        Raises:
            RadioUnavailableError: nobody, for all that is known here.
        """
        now = self.at_hand
        self._say(LeaveAsked(now.epoch, now.sequence, self.device_index))

    def give_back(self) -> None:
        """The device is silent again, and it does not matter if nobody hears of it."""
        with contextlib.suppress(RadioUnavailableError):
            self._say(SilenceSent(self.device_index))

    def _say(self, message: OnAir) -> None:
        try:
            reply = self.link.request(self.subject, messages.encode(message), _ASK_S)
            reason = "the server is gone"
            if reply is not None:
                reason = messages.refusal_of(messages.decode(reply))
        except (LinkError, WireError) as error:
            raise RadioUnavailableError(f"leave to send: {error}") from error
        if reason:
            raise RadioUnavailableError(f"leave to send: {reason}")


class OwnRadio(AroundHeldRadio):
    """A transmitter that holds bursts, with a limit of its own.

    Guarantees, beside those of the radio behind it: nothing is held without leave; what is held
    ends after ``max_hold_s``, or when `end_now` is called, from a thread that waits for nothing
    else.

    Args:
        radio: which can hold; it is closed with this one.
        leave: asked before every burst.
        max_hold_s: longest that one is held, in seconds, > 0.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        radio: Transceiver,
        leave: Leave,
        *,
        max_hold_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(radio)
        self._leave, self._max_hold_s, self._clock = leave, max_hold_s, clock
        self._turn = threading.Lock()  # who begins a hold, and who ends one that is overdue
        self._look = threading.Event()
        self._held_until_s: float | None = None
        self._is_ended = self._ended_early = False
        self._num_cuts = self._cuts_when_held = 0
        self._has_leave = False
        self._dead_man = threading.Thread(
            target=self._end_what_is_overdue, name=f"dead man {radio.name}", daemon=True
        )
        self._dead_man.start()

    def take_ended_early(self) -> bool:
        """Whether, since this was asked last, a burst ended before it was told to."""
        with self._turn:
            ended, self._ended_early = self._ended_early, False
        return ended

    def end_now(self) -> None:
        """End what is held, if anything is; from any thread, which does not wait for it."""
        self._num_cuts += 1
        self._look.set()

    def _hold(self, burst: Complex64Array) -> None:
        begun_s, num_cuts = self._clock(), self._num_cuts
        self._leave.ask()
        self._has_leave = True
        with self._turn:
            # Before it is held: whatever becomes of this thread, it ends.
            self._cuts_when_held, self._is_ended = num_cuts, False
            self._held_until_s = self._clock() + self._max_hold_s
            self._look.set()
        self._radio.hold(burst)
        took_s = self._clock() - begun_s
        if self._is_ended or took_s > LEAVE_S:
            # The link was lost meanwhile; or this process was stopped, and it may be another round.
            self._radio.fall_silent()
            raise RadioTimeoutError(
                f"{self.name}: a burst was on the air {took_s:.1f} s after leave was asked for, "
                f"wanted {LEAVE_S:g} s at most, and a link that is up. It was ended."
            )

    def _fall_silent(self) -> None:
        self._radio.fall_silent()
        with self._turn:
            self._held_until_s = None
        self._return_leave()

    def _close(self) -> None:
        self._look.set()
        try:
            self._radio.close()
        finally:
            self._dead_man.join()
            self._return_leave()

    def _return_leave(self) -> None:
        if self._has_leave:
            self._has_leave = False
            self._leave.give_back()

    def _end_what_is_overdue(self) -> None:
        while not self._is_closed:
            until_s = self._held_until_s
            self._look.wait(None if until_s is None else max(0.0, until_s - self._clock()))
            self._look.clear()
            with self._turn:
                if not self._is_overdue():
                    continue
                self._is_ended = self._ended_early = True
                was_cut = self._cuts_when_held != self._num_cuts
                why = "the link was lost" if was_cut else f"held for {self._max_hold_s:g} s"
                _logger.warning("%s: ended what it held: %s", self.name, why)
                try:
                    self._radio.fall_silent()
                    self._held_until_s = None
                except Exception as error:
                    # Nothing may keep it from trying again; the guardian stands behind it.
                    _logger.error("%s: %s", self.name, error)
            if self._held_until_s is not None:
                time.sleep(_AGAIN_S)

    def _is_overdue(self) -> bool:
        if self._held_until_s is None or self._is_closed:
            return False
        return self._cuts_when_held != self._num_cuts or self._held_until_s <= self._clock()
