"""Self-noise and bias of the energy waveform against simulation.

H0 of every test: errors of `estimate_sums` have mean 0 and the variances of `sum_variances`. The
errors of a trial, one for each number, are sums of thousands of random products, nearly Gaussian:
over n trials of predicted variances v the sum of squared errors spreads by sqrt(2 sum v^2).
Thresholds at alpha = 1e-6, from the normal quantile 4.9, with a tenth on top for tails that are not
Gaussian.
"""

import dataclasses
import math

import numpy as np
import pytest

from radio.measurement import Setting, measure_energy
from radio.measurement import energy as energy_measurement
from radio.software_air.channel_models import AwgnChannel
from radio.software_air.phasors import turn, turns
from radio.waveforms.energy import EnergyWaveform, Mapping
from radio.waveforms.energy_error_model import (
    measured_sum_variances,
    pilot_relative_errors,
    silence_relative_errors,
    sum_variances,
)

ONE = EnergyWaveform(plateau_samples=1 << 12)
THREE = EnergyWaveform(sample_rate_hz=4e6, plateau_samples=1 << 13, num_scalars=3)
QUANTILE = 4.9 * 1.1


def simulate(waveform, num_devices, snr_db, max_offset_hz, seed, num_trials=1500):
    """(errors, predicted variances) of trials with random numbers, offsets, delays and phases."""
    rng = np.random.default_rng(seed)
    size, num_scalars = waveform.plateau_samples, waveform.num_scalars
    power = float(waveform.arrival_power(1.0))
    noise_power = waveform.full_power_amplitude**2 * 10 ** (-snr_db / 10)

    def noise():
        parts = rng.standard_normal((2, size)) * math.sqrt(noise_power / 2)
        return parts[0] + 1j * parts[1]

    errors, variances = [], []
    for _ in range(num_trials // num_scalars):
        shares = rng.uniform(-1, 1, (num_devices, num_scalars)) / math.sqrt(num_scalars)
        offsets_hz = rng.uniform(-max_offset_hz, max_offset_hz, num_devices)
        capture = noise()
        for k, offset_hz in enumerate(offsets_hz):
            burst = waveform.burst(shares[k], 1.0, rng)
            shares[k] *= burst.scale
            shifted = np.roll(burst.samples, int(rng.integers(size)))
            rotation = turns(offset_hz / waveform.sample_rate_hz, size)
            capture += shifted * (rotation * turn(rng.random()))
        plateau, silence = (
            waveform.energies(samples.astype(np.complex64)) for samples in (capture, noise())
        )
        estimates = waveform.estimate_sums(plateau, silence, power, num_devices)
        errors.extend(estimates - shares.sum(axis=0))
        variances.extend(
            sum_variances(
                waveform, shares, offsets_hz, noise_power=noise_power, arrival_power=power
            )
        )
    return np.array(errors), np.array(variances)


def is_as_predicted(errors, variances):
    spread = math.sqrt(2 * np.sum(np.square(variances)))
    return abs(np.sum(np.square(errors)) - np.sum(variances)) <= QUANTILE * spread


SIGNED, SELF_NORMALISED = Mapping.SIGNED, Mapping.SELF_NORMALISED


@pytest.mark.parametrize(
    ("waveform", "mapping", "num_devices", "snr_db", "max_offset_hz", "taper"),
    [
        (ONE, SIGNED, 1, 40.0, 0.0, 1.0),
        (ONE, SIGNED, 2, 0.0, 20e3, 0.1),
        (THREE, SIGNED, 2, 0.0, 20e3, 0.1),
        (THREE, SIGNED, 5, 40.0, 20e3, 0.1),
        (THREE, SIGNED, 10, 10.0, 20e3, 0.1),
        (ONE, SIGNED, 10, -10.0, 0.0, 0.5),
        # The ratio's formula is of first order in the noise: not below 0 dB.
        (ONE, SELF_NORMALISED, 1, 40.0, 0.0, 1.0),
        (THREE, SELF_NORMALISED, 5, 40.0, 20e3, 0.1),
        (ONE, SELF_NORMALISED, 10, 10.0, 20e3, 0.1),
    ],
)
def test_the_error_is_the_predicted_one_and_has_no_mean(
    waveform, mapping, num_devices, snr_db, max_offset_hz, taper
):
    waveform = dataclasses.replace(waveform, mapping=mapping, taper=taper)
    errors, variances = simulate(waveform, num_devices, snr_db, max_offset_hz, seed=num_devices)
    assert is_as_predicted(errors, variances)
    # Negative control: half as much again, or as much less, would be noticed.
    assert not is_as_predicted(errors, variances * 1.5)
    assert not is_as_predicted(errors, variances / 1.5)
    if mapping is SIGNED:
        assert abs(np.sum(errors)) <= QUANTILE * math.sqrt(np.sum(variances))


def test_bands_that_offsets_move_apart_interfere_less():
    narrow = EnergyWaveform(sample_rate_hz=4e6, plateau_samples=1 << 14, num_scalars=16)
    shares = np.ones((2, 16))
    together, apart = (
        sum_variances(narrow, shares, offsets, noise_power=0.0, arrival_power=1.0)
        for offsets in ([0.0, 0.0], [-20e3, 20e3])
    )
    kappa = narrow.window_constant
    assert together == pytest.approx((2 * kappa + 2 * (kappa - 1)) / narrow.num_bins)
    assert np.all(apart < 0.77 * together)


@pytest.mark.parametrize(("num_devices", "wanted_db"), [(5, -35.5), (10, -32.5), (20, -29.0)])
def test_eight_numbers_in_one_capture_are_as_quiet_as_one_was(num_devices, wanted_db):
    """Predicted NMSE of the mean for vectors of norm 0.4: 20 MS/s, 6.6 ms, 10 dB, 20 kHz."""
    waveform = EnergyWaveform(sample_rate_hz=20e6, plateau_samples=1 << 17, num_scalars=8)
    rng = np.random.default_rng(3)
    error, signal = 0.0, 0.0
    for _ in range(200):
        shares = rng.uniform(-1, 1, (num_devices, 8))
        shares *= 0.4 / np.linalg.norm(shares, axis=1, keepdims=True)
        error += sum_variances(
            waveform, shares, rng.uniform(-20e3, 20e3, num_devices),
            noise_power=waveform.full_power_amplitude**2 / 10,
            arrival_power=waveform.arrival_power(1.0),
        ).sum()  # fmt: skip
        signal += np.square(shares.sum(axis=0)).sum()
    assert 10 * math.log10(error / signal) < wanted_db
    assert waveform.plateau_s < 7e-3


@pytest.mark.parametrize("mapping", Mapping)
def test_the_error_can_be_told_from_what_was_heard(mapping):
    """Mean energies of five equal devices: the same variances as from their numbers."""
    waveform = dataclasses.replace(THREE, mapping=mapping)
    power = float(waveform.arrival_power(1.0))
    noise_power = power / 10
    silence = np.full((3, 2), noise_power * waveform.num_guarded_bins / waveform.plateau_samples)
    shares = np.array([-0.7, 0.0, 0.3])
    told = measured_sum_variances(
        waveform,
        5 * power * waveform.powers(shares) + silence,
        silence,
        arrival_power=power,
        num_speakers=5,
    )
    known = sum_variances(
        waveform, np.tile(shares, (5, 1)), np.zeros(5), noise_power=noise_power,
        arrival_power=power,
    )  # fmt: skip
    np.testing.assert_allclose(told, known, rtol=1e-9)


def test_devices_at_one_frequency_are_summed_in_closed_form():
    """The sum over pairs, and the square of the sum less the squares."""
    shares = np.random.default_rng(4).uniform(-0.5, 0.5, (6, 3))
    closed, pairs = (
        sum_variances(THREE, shares, offsets, noise_power=1e-3, arrival_power=1.0)
        for offsets in (np.zeros(6), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1e-9]))
    )
    np.testing.assert_allclose(closed, pairs, rtol=1e-9)


def test_gains_that_are_measured_against_one_silence_are_wrong_together():
    """Sixteen devices in much noise: the shared part decides, independent errors would not do."""
    waveform = EnergyWaveform(plateau_samples=1 << 12)
    setting = Setting(channel=AwgnChannel(), snr_db=-6.0, num_trials=400, seed=2)
    power, saved, predict = [], [], energy_measurement.variances_of_gains

    def note(said, errors, shared):
        together, independent = predict(said, errors, shared), predict(said, errors, 0.0 * shared)
        power.append(np.sum(np.square(said.sum(axis=0))))
        saved.append(np.sum(together - independent))
        return together

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy_measurement, "variances_of_gains", note)
        measurement = measure_energy(waveform, setting, num_devices=16)
    assert abs(measurement.deviation_std) <= measurement.deviation_limit_std
    error, predicted = (
        10 ** (nmse_db / 10) * sum(power)
        for nmse_db in (measurement.simulated_nmse_db, measurement.predicted_nmse_db)
    )
    independent = predicted - sum(saved)
    deviation_std = (error - independent) / (measurement.relative_spread * independent)
    assert deviation_std > measurement.deviation_limit_std
    # Of one pilot's error the silence is a part.
    for silence in (1e-4, 1e-2, 1.0):
        part, whole = (
            f(waveform, 0.05, silence) for f in (silence_relative_errors, pilot_relative_errors)
        )
        assert 0 < part < whole
