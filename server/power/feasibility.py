"""Can a plan learn anything? Three numbers to read before a run is started."""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Float64Array
from server.errors import ConfigurationError
from server.numeric import check_not_negative, check_positive


def noise_to_clip_ratio(*, mean_noise_std: float, clip: float) -> float:
    """Noise of the mean estimate in units of the clip; far above 1 nothing is learnt in a round."""
    check_positive("clip", clip)
    check_not_negative("mean_noise_std", mean_noise_std)
    return mean_noise_std / clip


def information_ceiling_nats(
    *, num_rounds: int, num_devices: int, num_scalars: int, clip: float, sum_noise_std: float
) -> float:
    """At most this much information reaches the server in the whole run, in nats.

    sum_t Q/2 ln(1 + K^2 gamma^2 / (Q x)): the capacity of Q Gaussian channels whose inputs, the
    sums of K vectors of Q numbers, have a norm of at most K gamma, with noise variance x on each.
    Infinite without noise.

    Args:
        num_rounds: T.
        num_devices: K.
        num_scalars: Q.
        clip: gamma, the bound on the norm of one device's scalars.
        sum_noise_std: sqrt(x), all noise on each received sum, in units of the scalar.

    Raises:
        ConfigurationError: a value out of range.

    Source: theory.md, section 4.6, for Q = 1. For more, equal shares of the power give the most.
    """
    check_positive("clip", clip)
    check_not_negative("sum_noise_std", sum_noise_std)
    _check_count(num_rounds=num_rounds, num_devices=num_devices, num_scalars=num_scalars)
    if sum_noise_std == 0:
        return math.inf
    amplitude_ratio = num_devices * clip / sum_noise_std
    per_number = math.log1p(amplitude_ratio * amplitude_ratio / num_scalars)
    return 0.5 * num_rounds * num_scalars * per_number


def effective_rounds(mean_noise_std: Float64Array, typical_number: float) -> float:
    """How many rounds without noise a run is worth: sum_t S / (S + nu_t).

    The best step on a number of power S under noise of variance nu is shorter by that factor
    (Wiener), and with it the progress of the round.

    Args:
        mean_noise_std: sqrt(nu_t), of each round's means; infinite where nobody speaks.
        typical_number: sqrt(S), root mean square of a mean number before noise.

    Raises:
        ConfigurationError: a value out of range.

    Source: theory.md, section 4.4.
    """
    check_positive("typical_number", typical_number)
    if np.any(np.isnan(mean_noise_std)) or np.any(mean_noise_std < 0.0):
        raise ConfigurationError("mean_noise_std: wanted numbers >= 0.")
    return float(np.sum(1.0 / (1.0 + np.square(mean_noise_std / typical_number))))


def _check_count(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigurationError(f"{name}: got {value}, wanted >= 1.")
