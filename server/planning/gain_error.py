"""How well a device's gain is known from its pilot, and what follows for the price of a round.

A device arrives within 1 +- eta of the common level. One record may then weigh up to 1 + eta, and
the noise that covers it may arrive as weak as 1 - eta (`server.privacy.mechanism`).
"""

from __future__ import annotations

from typing import TypeVar

from radio.arrays import Float64Array
from radio.waveforms.error_model import (
    amplitude_error_bound,
    gain_error_variance,
    noise_power_upper_bound,
)
from server.config.radio import RadioSection

_Number = TypeVar("_Number", float, Float64Array)

MAX_AMPLITUDE_ERROR = 0.5
"""A device whose gain is known worse than this stays silent: its noise price would explode."""


def gain_error_bound(
    radio: RadioSection, noise_power: float, noise_symbols: int, failure_probability: float
) -> float:
    """sqrt(v ln(1/p)), with v from an upper confidence limit of the noise power.

    Args:
        radio: pilots and their amplitude.
        noise_power: as measured.
        noise_symbols: silent samples that it was measured from.
        failure_probability: p, of either statement.

    Returns:
        The bound on the error of a gain; over the gain itself it is eta.
    """
    upper = noise_power_upper_bound(noise_power, noise_symbols, failure_probability)
    variance = gain_error_variance(upper, radio.pilot_symbols, radio.max_amplitude)
    return amplitude_error_bound(variance, 1.0, failure_probability)


def sensitivity_growth(eta: _Number) -> _Number:
    """(1 + eta) / (1 - eta), for one round or many."""
    return (1.0 + eta) / (1.0 - eta)
