"""How much noise a run needs: the smallest multiplier that meets the budget, on the safe side."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from server.errors import ConfigurationError, PrivacyError
from server.privacy.composition import (
    FFT_DELTA_PER_ROUND,
    GRID_POINTS_PER_OCTAVE,
    MAX_NOISE_MULTIPLIER,
    MIN_EPSILON,
    MIN_NOISE_MULTIPLIER,
    Composer,
    History,
    PriceClass,
    grid_index_below,
    grid_multiplier,
    loss_interval_for,
    make_history,
)
from server.privacy.gaussian import central_limit_multiplier, gdp_mu_of
from server.privacy.grid_search import smallest_index

RECORD_SLACK = 1e-6
"""What a caller may lose in floating point between the calibrated multiplier and a record's own."""

# The search goes down from a safe multiplier, found on a loss grid this much coarser.
_COARSENING = 8.0


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    num_rounds: int,
    num_records: int,
    csi_delta: float = 0.0,
    spent: Sequence[History] = (),
) -> float:
    """The smallest noise multiplier for ``num_rounds`` equal rounds within (epsilon, delta).

    Bisection over the multiplier grid of `composition` with the accountant's own arithmetic. The
    sum of the artificial noises then needs the standard deviation
    multiplier * sensitivity * (1 + eta) / (1 - eta), eta the amplitude error bound.

    Args:
        epsilon: budget of one device.
        delta: total failure probability of the promise.
        sampling_probability: Poisson rate q of one example in one round; 1 without subsampling.
        num_rounds: rounds in which the device speaks.
        num_records: n, how many units the promise protects: all examples of all devices (or the
            number of devices where whole devices are protected).
        csi_delta: part of delta set aside for channel estimation failures.
        spent: what the devices' accounts hold already; the rounds are composed onto each of them.

    Guarantees:
        * a record with at least (1 - 1e-6) of the returned multiplier can be composed
          ``num_rounds`` times by ``Accountant(epsilon=..., delta=..., csi_delta=...)`` onto every
          account of ``spent`` (onto an empty one, if there is none); asserted before returning;
        * at most 0.1 % above the smallest multiplier that the accountant accepts (or at the floor
          of `composition.MIN_NOISE_MULTIPLIER`).

    Raises:
        ConfigurationError: a value out of range, an epsilon too small for the arithmetic (1e-3,
            where rounds are subsampled), or delta >= 1 / num_records: at such a delta a
            mechanism that publishes a random example in the clear would be called private.
        PrivacyError: no amount of noise meets the budget with the arithmetic used here.
    """
    multipliers = calibrate_noise_schedule(
        epsilon=epsilon,
        delta=delta,
        sampling_probability=sampling_probability,
        offsets=(0,) * num_rounds,
        num_records=num_records,
        csi_delta=csi_delta,
        spent=spent,
    )
    return multipliers[0]


def calibrate_noise_schedule(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    offsets: Sequence[int],
    num_records: int,
    csi_delta: float = 0.0,
    spent: Sequence[History] = (),
) -> tuple[float, ...]:
    """The smallest noise multipliers of a given shape within (epsilon, delta), one a round.

    As `calibrate_noise_multiplier`, for rounds that differ: round t has the multiplier
    2^(offsets[t] / GRID_POINTS_PER_OCTAVE) times a common one, which is searched for. Few different
    offsets make it fast.

    Args:
        epsilon: budget of one device.
        delta: total failure probability of the promise.
        sampling_probability: Poisson rate q of one example in one round.
        offsets: steps of the multiplier grid above the round with the least noise.
        num_records: n, how many units the promise protects.
        csi_delta: part of delta set aside for channel estimation failures.
        spent: what the devices' accounts hold already.

    Raises:
        ConfigurationError, PrivacyError: see `calibrate_noise_multiplier`.
    """
    _check_request(epsilon, delta, sampling_probability, len(offsets), num_records, csi_delta)
    return _calibrated(
        epsilon, delta, sampling_probability, tuple(offsets), csi_delta, tuple(spent)
    )


@functools.lru_cache(maxsize=256)
def _calibrated(
    epsilon: float,
    delta: float,
    sampling_probability: float,
    offsets: tuple[int, ...],
    csi_delta: float,
    spent: tuple[History, ...],
) -> tuple[float, ...]:
    """`calibrate_noise_schedule` of a request that can be.

    A function of its arguments that takes seconds: a plan asks for each policy, a run and its
    reference one after the other.
    """
    num_rounds = len(offsets)
    rounds_at = Counter(offsets)
    mechanism_delta = math.nextafter(delta - csi_delta, 0.0) if csi_delta else delta
    accounts = tuple(dict.fromkeys(spent)) or ((),)
    already = max(sum(count for _, count in account) for account in accounts)
    reserve = (already + num_rounds) * FFT_DELTA_PER_ROUND
    if mechanism_delta <= reserve:
        raise ConfigurationError(
            f"delta: got {delta}, of which {mechanism_delta:.3g} is left for "
            f"{already + num_rounds} rounds; "
            f"the composition sets aside {reserve:.3g} of it for rounding in its arithmetic, so no "
            "noise and no epsilon would do. Wanted a larger delta (it must stay below 1/n), or "
            "fewer rounds."
        )
    interval = loss_interval_for(epsilon)

    def make_figure(loss_interval: float) -> Callable[[int], float]:
        composer = Composer(loss_interval=loss_interval, delta=mechanism_delta)

        dearest_first = sorted(accounts, key=composer.epsilon, reverse=True)

        def epsilon_at(grid_index: int) -> float:
            """Epsilon of the dearest account, or of the first that is too dear."""
            prices = {
                PriceClass(float(sampling_probability), grid_index + offset): count
                for offset, count in rounds_at.items()
            }
            dearest = 0.0
            for account in dearest_first:
                dearest = max(dearest, composer.epsilon(_with_rounds(account, prices)))
                if dearest > epsilon:
                    break
            return dearest

        return epsilon_at

    lowest = grid_index_below(MIN_NOISE_MULTIPLIER) + 1
    highest = grid_index_below(MAX_NOISE_MULTIPLIER)
    epsilon_at = make_figure(interval)
    near = central_limit_multiplier(
        gdp_mu_of(epsilon, mechanism_delta), sampling_probability, already + num_rounds
    )
    index = smallest_index(
        epsilon_at,
        # A coarse grid only overstates epsilon, so its answer is safe, near, and found in no time.
        make_figure(interval * _COARSENING),
        epsilon,
        lowest=lowest,
        highest=highest,
        guess=grid_index_below(max(near, MIN_NOISE_MULTIPLIER)),
        points_per_octave=GRID_POINTS_PER_OCTAVE,
    )
    if index is None:
        raise PrivacyError(
            f"no noise meets epsilon {epsilon} at delta {delta} (csi_delta {csi_delta}) over "
            f"{num_rounds} rounds with sampling probability {sampling_probability}. Allow a larger "
            "epsilon, or plan fewer rounds."
        )
    multipliers = {
        offset: grid_multiplier(index + offset) * (1.0 + 2.0 * RECORD_SLACK) for offset in rounds_at
    }
    is_covered = all(
        grid_index_below(multiplier * (1.0 - RECORD_SLACK)) >= index + offset
        for offset, multiplier in multipliers.items()
    )
    if not is_covered or epsilon_at(index) > epsilon:
        raise PrivacyError(
            f"calibration failed its own check at multipliers {sorted(multipliers.values())}; "
            "nothing was started. Please report the arguments."
        )
    return tuple(multipliers[offset] for offset in offsets)


def multiplier_above(noise_multiplier: float) -> float:
    """The next noise multiplier that is priced at least as high as asked, `RECORD_SLACK` included.

    For plans of rounds without subsampling: what is planned with it costs at most what it should.

    Raises:
        TooLittleNoiseError: below the floor of `composition`.
    """
    index = grid_index_below(noise_multiplier)
    if grid_multiplier(index) < noise_multiplier:
        index += 1
    return grid_multiplier(index) * (1.0 + 2.0 * RECORD_SLACK)


def check_delta(delta: float, num_units: int) -> None:
    """Return if a delta says something of so many records or devices.

    Raises:
        ConfigurationError: it is not below one in so many.
    """
    if not 0 < delta < 1 / num_units:
        raise ConfigurationError(
            f"delta: got {delta}, wanted 0 < delta < 1 / {num_units} = {1 / num_units:.3g}. At "
            "a larger delta a mechanism that publishes one random record in the clear would be "
            "called private. 1e-5 is usual."
        )


def _with_rounds(account: History, prices: Mapping[PriceClass, int]) -> History:
    counts = dict(account)
    for price, count in prices.items():
        counts[price] = counts.get(price, 0) + count
    return make_history(counts)


def _check_request(
    epsilon: float,
    delta: float,
    sampling_probability: float,
    num_rounds: int,
    num_records: int,
    csi_delta: float,
) -> None:
    """Refuse what cannot be meant."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigurationError(f"epsilon: got {epsilon}, wanted a finite number > 0.")
    if sampling_probability < 1 and epsilon < MIN_EPSILON:
        raise ConfigurationError(
            f"epsilon: got {epsilon:g}, wanted at least {MIN_EPSILON:g}: below it the losses of "
            "subsampled rounds cannot be told from those of the grid that they are computed on. "
            "Allow a larger epsilon; models that are tuned to less learn nothing."
        )
    if num_rounds < 1:
        raise ConfigurationError(f"num_rounds: got {num_rounds}, wanted >= 1.")
    if num_records < 1:
        raise ConfigurationError(f"num_records: got {num_records}, wanted >= 1.")
    check_delta(delta, num_records)
    if not 0 <= csi_delta < delta:
        raise ConfigurationError(
            f"csi_delta: got {csi_delta}, wanted 0 <= csi_delta < delta = {delta}. Lower the "
            "failure probability of the channel bound."
        )
    if not 0 < sampling_probability <= 1:
        raise ConfigurationError(
            f"sampling_probability: got {sampling_probability}, wanted a number in (0, 1]. It is "
            "batch_size / num_examples."
        )
