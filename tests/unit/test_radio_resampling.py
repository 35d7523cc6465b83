"""A burst on another clock: tones where they should be, and every sample of them."""

import numpy as np
import pytest

from radio.software_air.resampling import resampled

LENGTH = 4096


def tone(cycles, positions):
    return np.exp(2j * np.pi * cycles * positions / LENGTH)


@pytest.mark.parametrize("share", [-0.45, -0.35, -0.2, 0.01, 0.25, 0.43, 0.45])
@pytest.mark.parametrize("ratio", [1.0 + 50e-6, 1.0 - 50e-6, 1.001, 1.0])
@pytest.mark.parametrize("start", [0.0, 0.5, 4095.9, -3.25, 1e7 + 0.125])
def test_tones_keep_their_amplitude_and_turn_at_the_other_rate(share, ratio, start):
    cycles = round(share * LENGTH)
    period = tone(cycles, np.arange(LENGTH))
    count = 3 * LENGTH
    heard = resampled(period, start, ratio, count)
    expected = tone(cycles, start % LENGTH + ratio * np.arange(count))
    assert 10 * np.log10(np.mean(np.abs(heard - expected) ** 2)) < -57.0


def test_a_constant_passes_unchanged():
    heard = resampled(np.full(100, 0.5 - 0.25j), 3.7, 1.0 + 30e-6, 1000)
    np.testing.assert_allclose(heard, 0.5 - 0.25j, rtol=1e-14)


def test_a_rate_of_one_at_a_whole_position_is_the_burst_itself():
    burst = np.random.default_rng(0).standard_normal(50) * (1 + 2j)
    np.testing.assert_allclose(resampled(burst, 7.0, 1.0, 80), np.resize(np.roll(burst, -7), 80))


def test_a_burst_shorter_than_the_filter_is_read_round_and_round():
    period = tone(LENGTH // 4, np.arange(4))
    heard = resampled(period, 0.25, 1.0, 8)
    np.testing.assert_allclose(heard, tone(LENGTH // 4, 0.25 + np.arange(8)), atol=1e-3)
