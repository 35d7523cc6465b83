"""The energy waveform's power plan: a level for each number, and silence where it must."""

import math

import numpy as np
import pytest

from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, Moment
from server.errors import ConfigurationError
from server.power.energy_waveform import plan_energy

QUIET = np.zeros((1, 2))
NOISY = np.full((1, 2), 0.02)


def calibration(gains, errors=None, silence=QUIET):
    """Amplitude gains of one number [num_devices, 2], or of several [num_devices, Q, 2]."""
    power = np.square(np.array(gains, dtype=float))
    relative = np.full(power.shape, 0.01) if errors is None else np.array(errors, dtype=float)
    shape = (len(power), -1, 2)
    power, relative = power.reshape(shape), relative.reshape(shape)
    quiet = np.broadcast_to(silence, power.shape[1:])
    return Calibration(power, relative, quiet, Moment(0, 0.0))


def plan(gains, errors=None, silence=QUIET, **changes):
    options = {
        "max_amplitude": 0.9, "scalar_bound": 20.0, "noise_std": 1.5, "air_noise_std": 1.5,
        "min_gain": 0.3,
    }  # fmt: skip
    known = calibration(gains, errors, silence)
    return plan_energy(
        waveform=EnergyWaveform(num_scalars=known.power_gains.shape[1]),
        calibration=known,
        **{**options, **changes},
    )


def weights(power, number=0):
    return {k: each[number] for k, each in power.weights.items()}


def test_everybody_reaches_the_level_or_weighs_what_it_arrives_with():
    gains = [(1.0, 0.8), (0.5, 0.4), (2.0, 0.45)]
    power = plan(gains)
    assert power.participants == (0, 1, 2)
    assert power.silent == ()
    assert power.receive_scale in [pytest.approx(0.9 * weaker) for weaker in (0.8, 0.4, 0.45)]
    for k, both in enumerate(gains):
        arrival = math.sqrt(power.weights[k][0]) * power.receive_scale
        for amplitude, gain in zip(power.band_amplitudes[k], both, strict=True):
            assert amplitude * gain == pytest.approx(arrival)  # the same in both bands
            assert 0 < amplitude <= 0.9
    assert max(weights(power).values()) == 1.0
    assert power.full_range == 20.0 + 4 * 1.5
    assert set(power.artificial_noise_std.values()) == {1.5}


def test_where_nothing_disturbs_all_weigh_the_same_and_in_noise_the_weak_weigh_less():
    gains = [(1.0, 1.0), (0.5, 0.5), (0.2, 0.2)]
    assert set(weights(plan(gains, min_gain=0.1)).values()) == {1.0}
    found = weights(plan(gains, silence=NOISY, min_gain=0.1))
    assert found[0] == 1.0
    assert 0.0 < found[2] < found[1]


def test_without_anything_to_weigh_the_plan_is_that_of_equals():
    power = plan([(0.5, 0.5)] * 4, silence=NOISY)
    assert set(weights(power).values()) == {1.0}
    assert power.receive_scale == pytest.approx(0.45)


def test_orders_say_what_the_plan_says():
    power = plan([(1.0, 0.8), (0.2, 1.0), (0.5, 0.5)])
    assert [order.device_index for order in power.orders()] == [0, 2]
    for order in power.orders():
        bands = order.bands
        assert bands.amplitudes == power.band_amplitudes[order.device_index]
        assert bands.full_range == power.full_range
        assert order.artificial_noise_std == 1.5
        assert order.tx_gain == 0


def test_the_weak_and_the_unheard_are_silent():
    power = plan(
        [(1.0, 1.0), (1.0, 0.29), (1.0, 1.0), (0.3, 0.3)],
        errors=[(0.01, 0.01), (0.01, 0.01), (0.01, math.inf), (0.25, 0.25)],
    )
    assert power.participants == (0, 3)
    assert power.silent == (1, 2)


@pytest.mark.parametrize(
    ("gains", "changes"),
    [([(0.1, 0.1)] * 3, {}), ([(1.0, 1.0), (0.1, 0.1)], {"min_participants": 2})],
)
def test_too_few_are_nobody(gains, changes):
    power = plan(gains, **changes)
    assert power.participants == power.orders() == ()
    assert power.silent == tuple(range(len(gains)))
    assert power.receive_scale == power.weakest_gain == 0.0


def test_each_number_has_a_level_of_its_own_and_a_device_says_those_that_it_reaches_with():
    """Echoes: device 0 has faded in the bands of number 1, device 1 in one of those of number 2."""
    gains = [
        [(1.0, 1.0), (0.01, 1.0), (1.0, 0.9)],
        [(0.5, 0.5), (0.6, 0.7), (1.0, 0.1)],
        [(0.8, 0.8), (0.9, 0.8), (0.4, 0.4)],
    ]
    power = plan(gains)
    assert power.participants == (0, 1, 2)
    said = np.array([power.weights[k] for k in range(3)]) > 0
    assert said.tolist() == [[True, False, True], [True, True, False], [True, True, True]]
    amplitudes = np.array([power.band_amplitudes[k] for k in range(3)]).reshape(3, 3, 2)
    assert np.array_equal(amplitudes.any(axis=2), said)
    arrivals = amplitudes * np.array(gains)
    for number, level in enumerate(power.levels):
        of_equals = arrivals[:, number][said[:, number]]
        np.testing.assert_allclose(of_equals, level)  # without noise all weigh the same
    assert power.levels == pytest.approx((0.45, 0.9 * 0.6, 0.9 * 0.4))
    assert power.receive_scale == min(power.levels)
    assert power.weakest_gain == 0.4
    unheard = plan(gains, errors=[[(0.01, 0.01), (9.0, 0.01), (0.01, 0.01)]] * 3)
    assert unheard.levels[1] == 0.0  # nobody can say it
    assert all(each[1] == 0.0 for each in unheard.weights.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"max_amplitude": 0.0},
        {"scalar_bound": math.inf},
        {"min_gain": math.nan},
        {"noise_std": -1.0},
        {"noise_std": math.inf},
        {"air_noise_std": -1.0},
    ],
)
def test_impossible_arguments_are_refused(changes):
    with pytest.raises(ConfigurationError, match=f"{next(iter(changes))}: got"):
        plan([(1.0, 1.0)], **changes)
