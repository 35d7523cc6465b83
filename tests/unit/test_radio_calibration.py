"""Calibration: gains as they are, errors as large as they say, and an end to every validity."""

import dataclasses
import math

import numpy as np
import pytest

from radio.errors import RadioCalibrationError, RadioConfigurationError
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, CalibrationLimits, Moment, calibrate

WAVEFORM = EnergyWaveform(plateau_samples=1 << 12, num_scalars=2)
NOW = Moment(round_index=40, clock_s=1000.0, temperature_c=41.0)
LIMITS = CalibrationLimits(max_rounds=10)


def measure(gains, noise_power, *, amplitude=0.5, seed=0, silent=(), bands=None):
    """A calibration over a software medium with carriers of their own.

    Bands, where given, weigh what is sent in each of them [num_scalars, 2].
    """
    rng = np.random.default_rng(seed)
    medium = SoftwareMedium(
        num_devices=len(gains), sample_rate_hz=1e6, noise_power=noise_power, noise_rng=rng
    )
    medium.set_gains(gains)
    medium.set_carrier_offsets_hz(rng.uniform(-20e3, 20e3, len(gains)))

    def listen():
        return WAVEFORM.energies(medium.listen(WAVEFORM.plateau_samples))

    silence, pilots = listen(), {}
    for device in range(len(gains)):
        if device not in silent:
            pilot = WAVEFORM.pilot(amplitude, rng)
            if bands is not None:
                pilot = shaped(pilot, bands)
            medium.hold(device, pilot)
        pilots[device] = listen()
        medium.fall_silent(device)
    return calibrate(
        WAVEFORM,
        num_devices=len(gains),
        silence=silence,
        pilots=pilots,
        amplitude=amplitude,
        made=NOW,
    )


def shaped(burst, bands):
    """A burst whose bands are louder or fainter, as echoes make them."""
    spectrum = np.fft.fft(burst)
    for first, gain in zip(WAVEFORM.bands_in_bins().ravel(), np.ravel(bands), strict=True):
        spectrum[first : first + WAVEFORM.num_bins] *= gain
    return np.fft.ifft(spectrum).astype(np.complex64)


UNEQUAL = np.array([[1.0, 0.7], [0.5, 0.9]])


@pytest.mark.parametrize("bands", [np.ones((2, 2)), UNEQUAL], ids=["equal", "unequal"])
def test_gains_are_measured_within_the_errors_that_are_stated(bands):
    gains = np.array([1.0, 0.5j, -0.1])
    errors, stated = [], []
    for seed in range(120):
        calibration = measure(gains, noise_power=2e-4, seed=seed, bands=bands)
        true = np.abs(gains[:, None, None]) ** 2 * np.square(bands)
        errors.append(calibration.power_gains / true - 1)
        stated.append(calibration.relative_errors)
    # Bands of a device that are taken together err together: a square for each trial and device.
    ratios = np.mean((np.array(errors) / np.array(stated)) ** 2, axis=(0, 2, 3))
    assert np.all(np.abs(ratios - 1) < 5 * math.sqrt(2 / 120)), ratios
    spreads = np.sqrt(np.mean(np.square(errors), axis=(0, 2, 3)))
    assert spreads[2] > 3 * spreads[0]  # the weak device is known worse


def test_bands_that_are_alike_are_known_together_and_others_each_by_itself():
    alike, unlike = (
        np.mean([
            measure([1.0], noise_power=1e-3, seed=seed, bands=bands).relative_errors
            for seed in range(40)
        ])
        for bands in (np.ones((2, 2)), UNEQUAL)
    )  # fmt: skip
    assert alike < 0.75 * unlike
    calibration = measure([1.0], noise_power=1e-5, bands=UNEQUAL)
    np.testing.assert_allclose(calibration.gains(0), UNEQUAL, rtol=0.1)


def test_a_band_that_has_faded_is_not_heard_and_the_others_are():
    faded = np.array([[1.0, 0.9], [1.0, 0.01]])
    calibration = measure([1.0, 1.0], noise_power=1e-3, bands=faded)
    assert calibration.hears.tolist() == [[True, False], [True, False]]
    assert calibration.is_heard(0)
    assert not calibration.without(0).is_heard(0)
    assert calibration.without(0).is_heard(1)


def test_a_device_that_sent_nothing_or_drowns_is_not_heard_and_has_no_gain():
    calibration = measure([1.0, 1.0, 1e-4], noise_power=2e-3, silent=(1,))
    assert [calibration.is_heard(k) for k in range(3)] == [True, False, False]
    np.testing.assert_allclose(calibration.gains(0), np.ones((2, 2)), rtol=0.1)
    for device in (1, 2):
        with pytest.raises(RadioCalibrationError, match=f"device {device}: its gain is known to"):
            calibration.gains(device)


def test_a_device_that_was_not_asked_is_not_heard():
    silence = np.full((2, 2), 1e-9)
    calibration = calibrate(
        WAVEFORM, num_devices=2, silence=silence, pilots={}, amplitude=1.0, made=NOW
    )
    assert not calibration.is_heard(0)
    assert np.all(np.isinf(calibration.relative_errors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round_index": 50}, "10 rounds old, wanted fewer than 10"),
        ({"round_index": 39}, "-1 rounds old"),
        ({"clock_s": 1601.0}, "601.0 s old, wanted at most 600 s"),
        ({"clock_s": 999.0}, "-1.0 s old"),
        ({"temperature_c": 35.9}, "made at 41 degrees Celsius, it is 35.9 now, wanted within 5"),
    ],
)
def test_a_calibration_ends_by_rounds_time_and_temperature(changes, message):
    calibration = measure([1.0], noise_power=0.0)
    for fine in ({}, {"round_index": 49}, {"clock_s": 1600.0}, {"temperature_c": 45.9},
                 {"temperature_c": None}):  # fmt: skip
        calibration.check_fresh(dataclasses.replace(NOW, **fine), LIMITS)
    with pytest.raises(RadioCalibrationError, match=message):
        calibration.check_fresh(dataclasses.replace(NOW, **changes), LIMITS)


def test_what_was_measured_cannot_be_changed():
    calibration = measure([1.0], noise_power=0.0)
    assert isinstance(calibration, Calibration)
    with pytest.raises(ValueError, match="read-only"):
        calibration.power_gains[0, 0, 0] = 2.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: CalibrationLimits(max_rounds=0),
        lambda: CalibrationLimits(max_rounds=1, max_age_s=0.0),
        lambda: CalibrationLimits(max_rounds=1, max_drift_k=math.nan),
        lambda: measure([1.0], noise_power=0.0, amplitude=0.0),
    ],
)
def test_impossible_arguments_are_refused(make):
    with pytest.raises(RadioConfigurationError, match="wanted"):
        make()
