import math

import numpy as np
import pytest

from server.errors import ConfigurationError
from server.power.channel_inversion import PowerPlan, plan_static

REQUEST = {
    "max_amplitude": 1.0,
    "scalar_bound": 4.0,
    "required_noise_std": 2.0,
    "min_gain": 0.1,
}


def plan(gains, **changes):
    return plan_static(gain_estimates=np.asarray(gains), **{**REQUEST, **changes})


def test_the_weakest_participant_fixes_the_level_and_all_arrive_alike():
    gains = np.array([1.0 + 0j, 0.5j, -2.0])
    result = plan(gains)
    noise_std = 2.0 / math.sqrt(3)
    assert result.receive_scale == pytest.approx(0.5 / (4.0 + 8 * noise_std), rel=2e-6)
    for k in range(3):
        assert result.tx_gains[k] * gains[k] == pytest.approx(result.receive_scale, rel=1e-12)
        assert result.artificial_noise_std[k] == pytest.approx(noise_std, rel=1e-15)
    assert result.participants == (0, 1, 2)
    assert result.silent == ()


def test_a_device_in_a_deep_fade_is_silent_and_the_others_carry_its_noise():
    result = plan([1.0, 0.05, 1.0])
    assert result.participants == (0, 2)
    assert result.silent == (1,)
    assert result.artificial_noise_std[0] == pytest.approx(2.0 / math.sqrt(2))
    assert result.sum_noise_std >= 2.0


def test_a_gain_at_the_threshold_speaks():
    assert plan([0.1, math.nextafter(0.1, 0.0)]).participants == (0,)


def test_if_everybody_is_silent_nobody_speaks_and_nothing_is_sent():
    result = plan([0.01, 0.0])
    assert result == PowerPlan((), (0, 1), 0.0, {}, {})
    assert result.sum_noise_std == 0.0


def test_the_ideal_mode_has_no_noise():
    result = plan([1.0, 1.0], required_noise_std=0.0)
    assert result.sum_noise_std == 0.0
    assert result.receive_scale == pytest.approx(0.25, rel=2e-6)


def test_a_sample_at_the_peak_stays_below_full_scale_in_complex64():
    rng = np.random.default_rng(5)
    gains = rng.standard_normal(200) + 1j * rng.standard_normal(200)
    result = plan(gains, min_gain=1e-6, max_amplitude=0.7)
    peak = 4.0 + 8 * result.artificial_noise_std[0]
    sequence = np.exp(2j * np.pi * rng.random(64)).astype(np.complex64)
    for gain in result.tx_gains.values():
        burst = (np.complex64(gain * peak) * sequence).astype(np.complex64)
        assert np.max(np.abs(burst)) <= 0.7


def test_a_plan_cannot_be_changed():
    result = plan([1.0])
    with pytest.raises(TypeError):
        result.tx_gains[0] = 2.0
    with pytest.raises(AttributeError):
        result.receive_scale = 2.0
    with pytest.raises(ConfigurationError, match="tx_gains"):
        PowerPlan((0,), (), 1.0, {}, {0: 0.0})


@pytest.mark.parametrize("gains", [[], [[1.0]], 1.0, [math.nan], [complex(0, math.inf)]])
def test_gains_that_are_no_estimate_are_refused(gains):
    with pytest.raises(ConfigurationError, match="gain_estimates"):
        plan(gains)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_amplitude": 0.0},
        {"max_amplitude": math.inf},
        {"scalar_bound": 0.0},
        {"scalar_bound": math.inf},
        {"required_noise_std": -1.0},
        {"required_noise_std": math.nan},
        {"min_gain": 0.0},
        {"peak_factor": 0.0},
        {"max_amplitude": 1e-308, "scalar_bound": 1e308},
    ],
)
def test_a_request_nobody_can_mean_is_refused(changes):
    with pytest.raises(ConfigurationError):
        plan([1.0], **changes)
