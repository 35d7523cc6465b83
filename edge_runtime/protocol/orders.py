"""What travels: an order to a host, numbered, and the host's one answer to it.

The number, and the epoch of the connection that it belongs to, tell an answer to this order from a
late or doubled one to another. A refusal is an answer too: nothing a host says crosses to the
server as an exception.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edge_runtime.protocol.rounds import (
    DigestReport,
    DigestRequest,
    NumbersHold,
    PacketHold,
    PilotHold,
    RoundPlan,
    RoundReport,
    RoundResult,
    RunEnded,
    SilenceOrder,
    SoundingOrder,
)

OrderMessage = (
    RoundPlan
    | RoundResult
    | SoundingOrder
    | PilotHold
    | NumbersHold
    | PacketHold
    | SilenceOrder
    | DigestRequest
    | RunEnded
)
"""What a server may have a host do."""

Report = RoundReport | DigestReport
"""What a host may say of it."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="order"):
    """A message to hosts, to be carried out once and answered once.

    Attributes:
        epoch: of the connection; an order of an older one is nobody's any more.
        sequence: rises with every order of a run.
        message: what is to be done; it names the run.
    """

    epoch: int
    sequence: int
    message: OrderMessage


@dataclass(slots=True)
class AtHand:
    """The order that a host is carrying out; what is sent meanwhile is sent during it."""

    epoch: int = -1
    sequence: int = -1


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a host did not do as it was told.

    Attributes:
        kind: the name of the error's class.
        reason: for a person; nothing of the host's data.
    """

    kind: str
    reason: str


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="answer"):
    """What one host says to one order.

    Attributes:
        run_id: of the run that the host serves.
        epoch: that of the order.
        sequence: likewise.
        host: its name.
        reports: of its devices, or of its weights; none where the order asks for none.
        refusal: None where it was carried out.
    """

    run_id: str
    epoch: int
    sequence: int
    host: str
    reports: tuple[Report, ...] = ()
    refusal: Refusal | None = None
