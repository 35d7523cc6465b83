"""The energy waveform's power plan: one level for all, in both bands, and silence where it must."""

import math

import numpy as np
import pytest

from radio.waveforms.energy import BandEnergies, EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, Moment
from server.errors import ConfigurationError
from server.power.energy_waveform import plan_energy

QUIET = BandEnergies(0.0, 0.0)


def calibration(gains, errors=None, silence=QUIET):
    """Amplitude gains [num_devices, 2]."""
    power = np.square(np.array(gains, dtype=float))
    relative = np.full(power.shape, 0.01) if errors is None else np.array(errors, dtype=float)
    return Calibration(power, relative, silence, Moment(0, 0.0))


def plan(gains, errors=None, silence=QUIET, **changes):
    options = {
        "max_amplitude": 0.9, "scalar_bound": 20.0, "noise_std": 1.5, "air_noise_std": 1.5,
        "min_gain": 0.3,
    }  # fmt: skip
    return plan_energy(
        waveform=EnergyWaveform(),
        calibration=calibration(gains, errors, silence),
        **{**options, **changes},
    )


def test_everybody_reaches_the_level_or_weighs_what_it_arrives_with():
    gains = [(1.0, 0.8), (0.5, 0.4), (2.0, 0.45)]
    power = plan(gains)
    assert power.participants == (0, 1, 2)
    assert power.silent == ()
    assert power.receive_scale in [pytest.approx(0.9 * weaker) for weaker in (0.8, 0.4, 0.45)]
    for k, both in enumerate(gains):
        arrival = math.sqrt(power.weights[k]) * power.receive_scale
        for amplitude, gain in zip(power.band_amplitudes[k], both, strict=True):
            assert amplitude * gain == pytest.approx(arrival)  # the same in both bands
            assert 0 < amplitude <= 0.9
    assert max(power.weights.values()) == 1.0
    assert power.full_range == 20.0 + 4 * 1.5
    assert set(power.artificial_noise_std.values()) == {1.5}


def test_where_nothing_disturbs_all_weigh_the_same_and_in_noise_the_weak_weigh_less():
    gains = [(1.0, 1.0), (0.5, 0.5), (0.2, 0.2)]
    assert set(plan(gains, min_gain=0.1).weights.values()) == {1.0}
    weights = plan(gains, silence=BandEnergies(0.02, 0.02), min_gain=0.1).weights
    assert weights[0] == 1.0
    assert 0.0 < weights[2] < weights[1]


def test_without_anything_to_weigh_the_plan_is_that_of_equals():
    power = plan([(0.5, 0.5)] * 4, silence=BandEnergies(0.02, 0.02))
    assert set(power.weights.values()) == {1.0}
    assert power.receive_scale == pytest.approx(0.45)


def test_orders_say_what_the_plan_says():
    power = plan([(1.0, 0.8), (0.2, 1.0), (0.5, 0.5)])
    assert [order.device_index for order in power.orders()] == [0, 2]
    for order in power.orders():
        bands = order.bands
        assert (bands.amplitude_a, bands.amplitude_b) == power.band_amplitudes[order.device_index]
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
    assert power.receive_scale == 0.0


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
