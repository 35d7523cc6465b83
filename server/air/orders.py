"""Orders to the devices, and what their answers mean for a round."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edge_runtime.control.channel import Answers, ControlChannel
from edge_runtime.protocol import errors as edge_errors
from edge_runtime.protocol.errors import EdgeError, NonFiniteScalarError
from edge_runtime.protocol.orders import OrderMessage, Refusal
from edge_runtime.protocol.rounds import Participation, SilenceOrder
from radio import errors as radio_errors
from radio.errors import RadioError, RadioNotSilentError
from server.errors import HostsMissingError

_logger = logging.getLogger(__name__)


def ask(
    control: ControlChannel, message: OrderMessage, hosts: Sequence[str] | None = None
) -> Answers:
    """Give an order; what was answered.

    Raises:
        RadioNotSilentError: a device may be on the air that should not be; nothing may go on.
    """
    answers = control.ask(message, hosts)
    for refusal in answers.refusals.values():
        if refusal.kind == RadioNotSilentError.__name__:
            raise RadioNotSilentError(refusal.reason)
    return answers


def have_done(control: ControlChannel, message: OrderMessage) -> Answers:
    """Give an order that no host has a reason to refuse; what was answered.

    Raises:
        EdgeError, RadioError: one refuses.
    """
    answers = ask(control, message)
    for refusal in answers.refusals.values():
        raise error_of(refusal)
    return answers


def silence_all(control: ControlChannel, run_id: str, round_index: int) -> tuple[int, ...]:
    """Everybody ends what it holds, and says so.

    Returns:
        Devices whose last burst ended before that, by a limit of their own, ascending: what was
        captured may or may not hold it.

    Raises:
        RadioNotSilentError: of devices that are not known to be silent.
        HostsMissingError: hosts that did not answer; theirs end by their own limit.
        EdgeError, RadioError: a host refuses.
    """
    answers = have_done(control, SilenceOrder(run_id, round_index))
    check_none_missing(answers, round_index)
    ended = [r for r in answers.reports if r.participation is Participation.ENDED_EARLY]
    for report in ended:
        _logger.warning(
            "round %d: what device %d held ended before it was told to: its link was lost, or a "
            "round takes longer than radio.max_hold_s",
            round_index,
            report.device_index,
        )
    return tuple(report.device_index for report in ended)


def those_who(did: Participation, answers: Answers) -> tuple[int, ...]:
    """Devices that did as they were told, ascending.

    Raises:
        NonFiniteScalarError: all who were to speak could not.
        EdgeError, RadioError: nobody did as told, and a host refuses.
    """
    speakers = tuple(r.device_index for r in answers.reports if r.participation is did)
    for host, refusal in answers.refusals.items():
        if not speakers and not answers.missing:
            raise error_of(refusal)
        _logger.warning("%s is silent: %s", host, refusal.reason)
    dropped = [r for r in answers.reports if r.participation is Participation.DROPPED]
    if dropped and not speakers and not answers.missing:
        raise NonFiniteScalarError(
            f"round {dropped[0].round_index}: no device could speak. "
            f"Device {dropped[0].device_index} says: {dropped[0].reason}; its log has the details. "
            "If losses are not finite the model has diverged: lower optimizer.learning_rate."
        )
    return speakers


def check_none_missing(answers: Answers, round_index: int) -> None:
    """Return if every host has answered.

    Raises:
        HostsMissingError: one has not.
    """
    if answers.missing:
        raise HostsMissingError(
            f"round {round_index}: no answer of {', '.join(answers.missing)} in time. The run "
            "pauses; what was paid stays paid. See whether they and the network are up, and "
            "continue with --resume."
        )


def error_of(refusal: Refusal) -> Exception:
    """A refusal as the error that it was on the host."""
    for module, base in ((edge_errors, EdgeError), (radio_errors, RadioError)):
        kind = getattr(module, refusal.kind, None)
        if isinstance(kind, type) and issubclass(kind, base):
            return kind(refusal.reason)
    return EdgeError(f"{refusal.kind}: {refusal.reason}")
