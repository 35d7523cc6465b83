"""Impairments: sizes as stated, and names."""

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.impairments import IMPAIRMENTS, Impairments, impairments_from_name


def test_carriers_lie_within_twice_the_crystals_error_and_share_the_receivers():
    impairments = Impairments(crystal_ppm=10.0)
    sets = [
        impairments.carrier_offsets_hz(915e6, 20, np.random.default_rng(seed)) for seed in range(50)
    ]
    assert impairments.largest_offset_hz(915e6) == pytest.approx(18.3e3)
    assert max(np.max(np.abs(offsets)) for offsets in sets) <= 18.3e3
    assert max(np.ptp(offsets) for offsets in sets) <= 18.3e3  # between two devices likewise
    # The receiver's own error moves all of a set together.
    assert np.std([np.mean(offsets) for offsets in sets]) > 3e3
    assert not Impairments().carrier_offsets_hz(915e6, 3, np.random.default_rng(0)).any()


def test_path_gains_have_mean_power_one_and_the_stated_spread():
    gains = Impairments(path_loss_spread_db=10.0).path_gains(5)
    assert np.mean(gains**2) == pytest.approx(1.0)
    assert 20 * np.log10(gains[0] / gains[-1]) == pytest.approx(10.0)
    # In a geometric row of distances each step costs as many dB.
    np.testing.assert_allclose(np.diff(np.log(gains)), np.log(gains[1] / gains[0]))
    assert Impairments().path_gains(4).tolist() == [1.0] * 4
    assert Impairments(path_loss_spread_db=6.0).path_gains(1).tolist() == [1.0]


def test_names_are_found_and_others_refused():
    assert impairments_from_name("ideal") == Impairments()
    assert not impairments_from_name("ideal").tells_devices_apart
    assert impairments_from_name("pluto-stock").tells_devices_apart
    with pytest.raises(RadioConfigurationError, match="got 'pluto', wanted one of"):
        impairments_from_name("pluto")
    assert set(IMPAIRMENTS) >= {"ideal", "pluto-stock", "uncorrected"}


@pytest.mark.parametrize("name", ["crystal_ppm", "path_loss_spread_db"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_impossible_impairments_are_refused(name, value):
    with pytest.raises(RadioConfigurationError, match=f"{name}: got"):
        Impairments(**{name: value})
