"""Self-noise and bias of the energy waveform against simulation.

H0 of every test: errors of `estimate_sum` have mean 0 and the variance of `sum_variance`. The
errors of a trial are sums of thousands of random products, nearly Gaussian: over n trials of
predicted variances v the sum of squared errors spreads by sqrt(2 sum v^2). Thresholds at alpha =
1e-6, from the normal quantile 4.9, with a tenth on top for tails that are not Gaussian.
"""

import dataclasses
import math
import time

import numpy as np
import pytest

from radio.measurement import Setting, measure_energy
from radio.measurement import energy as energy_measurement
from radio.software_air.channel_models import AwgnChannel
from radio.waveforms.energy import BandEnergies, EnergyWaveform, Mapping
from radio.waveforms.energy_error_model import (
    measured_sum_variance,
    pilot_relative_error,
    silence_relative_error,
    sum_variance,
)

WAVEFORM = EnergyWaveform(plateau_samples=1 << 12, bandwidth_hz=150e3)
POWER = WAVEFORM.full_power_amplitude**2
FULL = (1.0, 1.0)
QUANTILE = 4.9 * 1.1


def simulate(waveform, num_devices, snr_db, max_offset_hz, seed, num_trials=1500):
    """(errors, predicted variances) of trials with random numbers, offsets, delays and phases."""
    rng = np.random.default_rng(seed)
    size = waveform.plateau_samples
    noise_power = POWER * 10 ** (-snr_db / 10)
    positions = np.arange(size) / waveform.sample_rate_hz

    def noise():
        parts = rng.standard_normal((2, size)) * math.sqrt(noise_power / 2)
        return parts[0] + 1j * parts[1]

    errors, variances = [], []
    for _ in range(num_trials):
        shares = rng.uniform(-1, 1, num_devices)
        offsets_hz = rng.uniform(-max_offset_hz, max_offset_hz, num_devices)
        capture = noise()
        for share, offset_hz in zip(shares, offsets_hz, strict=True):
            burst = np.roll(waveform.burst(share, FULL, rng), int(rng.integers(size)))
            capture += burst * np.exp(2j * math.pi * (offset_hz * positions + rng.random()))
        plateau, silence = (
            waveform.energies(samples.astype(np.complex64)) for samples in (capture, noise())
        )
        estimate = waveform.estimate_sum(plateau, silence, POWER, num_devices)
        errors.append(estimate - shares.sum())
        variances.append(
            sum_variance(waveform, shares, offsets_hz, noise_power=noise_power, arrival_power=POWER)
        )
    return np.array(errors), np.array(variances)


def is_as_predicted(errors, variances):
    spread = math.sqrt(2 * np.sum(np.square(variances)))
    return abs(np.sum(np.square(errors)) - np.sum(variances)) <= QUANTILE * spread


SIGNED, SELF_NORMALISED = Mapping.SIGNED, Mapping.SELF_NORMALISED


@pytest.mark.parametrize(
    ("mapping", "num_devices", "snr_db", "max_offset_hz", "taper"),
    [
        (SIGNED, 1, 40.0, 0.0, 1.0),
        (SIGNED, 2, 0.0, 20e3, 0.1),
        (SIGNED, 5, 40.0, 20e3, 0.1),
        (SIGNED, 10, 10.0, 20e3, 0.1),
        (SIGNED, 10, -10.0, 0.0, 0.5),
        # The ratio's formula is of first order in the noise: not below 0 dB.
        (SELF_NORMALISED, 1, 40.0, 0.0, 1.0),
        (SELF_NORMALISED, 5, 40.0, 20e3, 0.1),
        (SELF_NORMALISED, 10, 10.0, 20e3, 0.1),
    ],
)
def test_the_error_is_the_predicted_one_and_has_no_mean(
    mapping, num_devices, snr_db, max_offset_hz, taper
):
    waveform = dataclasses.replace(WAVEFORM, mapping=mapping, taper=taper)
    errors, variances = simulate(waveform, num_devices, snr_db, max_offset_hz, seed=num_devices)
    assert is_as_predicted(errors, variances)
    # Negative control: half as much again, or as much less, would be noticed.
    assert not is_as_predicted(errors, variances * 1.5)
    assert not is_as_predicted(errors, variances / 1.5)
    if mapping is SIGNED:
        assert abs(np.sum(errors)) <= QUANTILE * math.sqrt(np.sum(variances))


def test_bands_that_offsets_move_apart_interfere_less():
    together, apart = (
        sum_variance(WAVEFORM, [1.0, 1.0], offsets, noise_power=0.0, arrival_power=POWER)
        for offsets in ([0.0, 0.0], [-20e3, 20e3])
    )
    kappa = WAVEFORM.window_constant
    assert together == pytest.approx((2 * kappa + 2 * (kappa - 1)) / WAVEFORM.num_bins)
    assert apart < 0.77 * together


@pytest.mark.parametrize(("num_devices", "wanted_db"), [(5, -33.0), (10, -33.0), (20, -31.0)])
def test_the_default_plateau_is_as_quiet_as_it_says(num_devices, wanted_db):
    """Predicted NMSE of the mean for numbers uniform on the range, 65.5 ms, 20 dB, 20 kHz."""
    waveform = EnergyWaveform()
    rng = np.random.default_rng(3)
    power = waveform.full_power_amplitude**2
    error, signal = 0.0, 0.0
    for _ in range(400):
        shares = rng.uniform(-1, 1, num_devices)
        error += sum_variance(
            waveform, shares, rng.uniform(-20e3, 20e3, num_devices),
            noise_power=power / 100, arrival_power=power,
        )  # fmt: skip
        signal += shares.sum() ** 2
    assert 10 * math.log10(error / signal) < wanted_db
    assert waveform.plateau_s == pytest.approx(0.065536)


@pytest.mark.parametrize("mapping", Mapping)
def test_the_error_can_be_told_from_what_was_heard(mapping):
    """Mean energies of five equal devices: the same variance as from their numbers."""
    waveform = dataclasses.replace(WAVEFORM, mapping=mapping)
    noise_power = POWER / 10
    per_band = noise_power * waveform.num_guarded_bins / waveform.plateau_samples
    silence = BandEnergies(per_band, per_band)
    for share in (-0.7, 0.0, 0.3):
        a, b = (5 * POWER * power + per_band for power in waveform.powers(share))
        told = measured_sum_variance(
            waveform, BandEnergies(a, b), silence, arrival_power=POWER, num_speakers=5
        )
        known = sum_variance(
            waveform, [share] * 5, np.zeros(5), noise_power=noise_power, arrival_power=POWER
        )
        assert told == pytest.approx(known, rel=1e-9)


def test_gains_that_are_measured_against_one_silence_are_wrong_together():
    """Ten devices in much noise: the shared part decides, and independent errors would not do."""
    waveform = EnergyWaveform(plateau_samples=1 << 13)
    setting = Setting(channel=AwgnChannel(), snr_db=-8.0, num_trials=300, seed=2)
    measurement = measure_energy(waveform, setting, num_devices=10)
    assert abs(measurement.deviation_std) <= measurement.deviation_limit_std
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy_measurement, "silence_relative_error", lambda *_: 0.0)
        independent = measure_energy(waveform, setting, num_devices=10)
    assert independent.simulated_nmse_db == measurement.simulated_nmse_db
    assert independent.deviation_std > independent.deviation_limit_std
    # Of one pilot's error the silence is a part.
    for silence in (1e-4, 1e-2, 1.0):
        part, whole = (
            f(waveform, 0.05, silence) for f in (silence_relative_error, pilot_relative_error)
        )
        assert 0 < part < whole


def test_a_capture_is_read_in_much_less_than_its_airtime():
    waveform = EnergyWaveform()
    capture = waveform.burst(0.5, FULL, np.random.default_rng(0))
    waveform.energies(capture)
    started = time.process_time()
    for _ in range(5):
        waveform.energies(capture)
    # A tenth is wanted (benchmarks); here only that it could keep up with a radio at all.
    assert (time.process_time() - started) / 5 < waveform.plateau_s
