import math

import numpy as np
import pytest

from radio import units
from radio.errors import RadioConfigurationError


@pytest.mark.parametrize(
    ("ratio", "decibel"), [(1.0, 0.0), (10.0, 10.0), (0.5, -3.0102999566398120), (100.0, 20.0)]
)
def test_power_ratio_known_values(ratio, decibel):
    assert units.db_from_power_ratio(ratio) == pytest.approx(decibel, abs=1e-12)
    assert units.power_ratio_from_db(decibel) == pytest.approx(ratio, rel=1e-14)


@pytest.mark.parametrize(
    ("ratio", "decibel"), [(1.0, 0.0), (10.0, 20.0), (2.0, 6.0205999132796239)]
)
def test_amplitude_ratio_known_values(ratio, decibel):
    assert units.db_from_amplitude_ratio(ratio) == pytest.approx(decibel, abs=1e-12)
    assert units.amplitude_ratio_from_db(decibel) == pytest.approx(ratio, rel=1e-14)


def test_zero_is_minus_infinity_both_ways():
    assert units.db_from_power_ratio(0.0) == -math.inf
    assert units.db_from_amplitude_ratio(0.0) == -math.inf
    assert units.power_ratio_from_db(-math.inf) == 0.0
    assert units.amplitude_ratio_from_db(-math.inf) == 0.0


@pytest.mark.parametrize("bad", [-1.0, -1e-300, math.nan, math.inf])
@pytest.mark.parametrize("function", [units.db_from_power_ratio, units.db_from_amplitude_ratio])
def test_bad_ratio_is_refused(function, bad):
    with pytest.raises(RadioConfigurationError, match="ratio: got"):
        function(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e5])
@pytest.mark.parametrize("function", [units.power_ratio_from_db, units.amplitude_ratio_from_db])
def test_bad_decibel_is_refused(function, bad):
    with pytest.raises(RadioConfigurationError, match="ratio_db: got"):
        function(bad)


def test_full_scale_tone_is_zero_dbfs():
    tone = np.exp(2j * np.pi * 0.0625 * np.arange(64)).astype(np.complex64)
    assert units.mean_power_dbfs(tone) == pytest.approx(0.0, abs=1e-6)
    assert units.peak_dbfs(tone) == pytest.approx(0.0, abs=1e-6)
    assert units.mean_power_dbfs(tone / np.float32(2)) == pytest.approx(-6.0206, abs=1e-4)


def test_peak_and_mean_differ_on_a_pulse():
    pulse = np.zeros(100, dtype=np.complex64)
    pulse[7] = 0.6 + 0.8j
    assert units.peak_dbfs(pulse) == pytest.approx(0.0, abs=1e-6)
    assert units.mean_power(pulse) == pytest.approx(0.01, rel=1e-6)
    assert units.mean_power_dbfs(pulse) == pytest.approx(-20.0, abs=1e-5)


def test_silence_is_minus_infinity_dbfs():
    silence = np.zeros(4, dtype=np.complex64)
    assert units.mean_power_dbfs(silence) == -math.inf
    assert units.peak_dbfs(silence) == -math.inf
