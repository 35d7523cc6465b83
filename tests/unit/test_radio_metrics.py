import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.metrics import nmse_db, snr_db


def test_nmse_of_a_ten_percent_error_is_minus_twenty_db():
    truths = np.array([1.0, -2.0, 0.0, 3.0])
    assert nmse_db(1.1 * truths, truths) == pytest.approx(-20.0)


def test_nmse_counts_both_parts_of_a_complex_error():
    # abs(0.6 + 0.8j) = 1: as large as the truth.
    assert nmse_db([1 + 0.6 + 0.8j], [1.0]) == pytest.approx(0.0)


def test_exact_estimates_are_minus_infinity():
    assert nmse_db([1.0, 2.0], [1.0, 2.0]) == -math.inf


def test_snr_known_values():
    assert snr_db(100.0, 1.0) == pytest.approx(20.0)
    assert snr_db(0.0, 1.0) == -math.inf


@pytest.mark.parametrize(
    ("estimates", "truths", "message"),
    [
        ([1.0], [1.0, 2.0], "shapes"),
        ([], [], "at least one"),
        ([math.nan], [1.0], "finite"),
        ([1.0], [math.inf], "finite"),
        ([1.0, 2.0], [0.0, 0.0], "all are zero"),
    ],
)
def test_undefined_metrics_are_refused(estimates, truths, message):
    with pytest.raises(RadioConfigurationError, match=message):
        nmse_db(estimates, truths)


@pytest.mark.parametrize(("signal", "noise"), [(-1.0, 1.0), (1.0, 0.0), (1.0, math.nan)])
def test_bad_powers_are_refused(signal, noise):
    with pytest.raises(RadioConfigurationError, match="power: got"):
        snr_db(signal, noise)
