"""Whom the promise protects, against which change, and how far that change moves the sum.

A privacy number means nothing without these two words, so no function here has a default for them.
"""

from __future__ import annotations

import enum
import math
from fractions import Fraction

from edge_runtime.number_grid import SHIFT_GROWTH
from edge_runtime.protocol.errors import PromiseError
from edge_runtime.protocol.rounds import Access, Vote

SUM_SHIFT_GROWTH = 1.0 + 2.0**-20
"""What rounding on the way to a receiver of the sum may do to a sensitivity: sqrt(1 + 2^-19), or
more (`server.privacy.receiver_noise`)."""


class PrivacyUnit(enum.StrEnum):
    """Whom the promise protects: one EXAMPLE of one device, or everything a DEVICE holds."""

    EXAMPLE = "example"
    DEVICE = "device"


class NeighbouringRelation(enum.StrEnum):
    """When two data sets count as neighbours.

    ZERO_OUT_ONE: in one of them a unit counts nothing: its place is kept, and it contributes 0
        wherever it is drawn. How many units there are is the same in both, and public, for the
        sampling rate is fixed from it. (Add-or-remove-one would have to hide that number as well.)
        An absent device sends 0.
    REPLACE_ONE: one unit differs; a stronger promise at the same epsilon, with twice the shift.

    Source: "zero-out" of Kairouz et al. 2021 (DP-FTRL) and Ponomareva et al. 2023, section 2.
    """

    ZERO_OUT_ONE = "zero_out_one"
    REPLACE_ONE = "replace_one"


def sum_sensitivity(
    *, clip: float, batch_size: int, unit: PrivacyUnit, relation: NeighbouringRelation
) -> float:
    """How far one unit can move the sum of the transmitted vectors, in the Euclidean norm.

    A device sends p = ball((1/b) sum_i ball(g_i)), Q numbers, with b the *nominal* batch size and
    ball(v) = v min(1, gamma/norm(v)). The second ball is 1-Lipschitz, so it never adds. Circular
    noise of one std on every number covers a shift of this norm in any direction, so Q does not
    enter::

                             zero out one      replace one
        one example              gamma / b        2 gamma / b
        one whole device           gamma            2 gamma

    Noise, amplitude errors and subsampling are left out; see
    `server.privacy.mechanism.MechanismRecord`.

    Args:
        clip: gamma, the bound on the norms of one example's gradients and of a device's scalars.
        batch_size: b, the divisor that devices use, whatever a Poisson batch really holds.
        unit: whom the promise protects.
        relation: which change it survives.

    Guarantees: the result is at least the real number of the table (the division rounds up).

    Raises:
        PromiseError: a clip that is not finite and positive, a batch below one, or a unit or
            relation that is not a member of its enum.

    Source: theory.md, section 3.
    """
    if not isinstance(unit, PrivacyUnit) or not isinstance(relation, NeighbouringRelation):
        raise PromiseError(
            f"sum_sensitivity: got unit {unit!r} and relation {relation!r}, wanted a member of "
            "PrivacyUnit and of NeighbouringRelation. Say which promise is meant."
        )
    if not (math.isfinite(clip) and clip > 0):
        raise PromiseError(
            f"clip: got {clip}, wanted a finite number > 0. Without a clip one example can move "
            "the sum without limit, and no noise protects it."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise PromiseError(f"batch_size: got {batch_size!r}, wanted an integer >= 1.")
    distance = clip if relation is NeighbouringRelation.ZERO_OUT_ONE else 2.0 * clip
    if not math.isfinite(distance):
        raise PromiseError(f"clip: got {clip}, too large for float64. Choose a smaller one.")
    if unit is PrivacyUnit.DEVICE:
        return distance
    quotient = distance / batch_size
    if Fraction(quotient) * batch_size < Fraction(distance):
        quotient = math.nextafter(quotient, math.inf)
    return quotient


def vote_sensitivity(num_votes: int) -> float:
    """How far one unit can move a device's signs, in the Euclidean norm: 2 sqrt(Q).

    A record may turn every one of Q signs from -1 to 1, however large the batch; so may a whole
    device, under either relation.

    Guarantees: at least the real number (rounded up).

    Raises:
        PromiseError: not a number of votes.
    """
    if isinstance(num_votes, bool) or not isinstance(num_votes, int) or num_votes < 1:
        raise PromiseError(f"num_votes: got {num_votes!r}, wanted an integer >= 1.")
    root = math.sqrt(num_votes)
    if Fraction(root) ** 2 < num_votes:
        root = math.nextafter(root, math.inf)
    return 2.0 * root


def release_sensitivity(
    *,
    access: Access,
    vote: Vote,
    directions: int,
    clip: float,
    batch_size: int,
    unit: PrivacyUnit,
    relation: NeighbouringRelation,
) -> float:
    """How far one unit can move what the noise is added to: numbers on their grid, or signs.

    With what rounding on the way to a receiver of the sum may tell of them.

    Args:
        access: who meets what is said.
        vote: whether it is signs, and where their noise comes in.
        directions: Q.
        clip: gamma.
        batch_size: b.
        unit: whom the promise protects.
        relation: which change it survives.

    Raises:
        PromiseError: see `sum_sensitivity` and `vote_sensitivity`.
    """
    on_the_way = SUM_SHIFT_GROWTH if access is Access.SUPERPOSED else 1.0
    if vote is Vote.NOISE_AFTER:  # signs lie on any grid
        return on_the_way * vote_sensitivity(directions)
    bound = sum_sensitivity(clip=clip, batch_size=batch_size, unit=unit, relation=relation)
    return on_the_way * SHIFT_GROWTH * bound
