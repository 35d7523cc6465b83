import dataclasses
import math

import numpy as np
import pytest
from coherent_errors import csi_bias, csi_variance, rounding_error_bound
from scipy import integrate, special

from radio.errors import RadioConfigurationError
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import (
    amplitude_error_bound,
    csi_covariance,
    gain_error_variance,
    noise_power_upper_bound,
    receiver_noise_std,
)
from radio.waveforms.zadoff_chu import zadoff_chu


def noise_free_round(waveform, gains, scalars, receive_scale, tx_gains=None):
    medium = SoftwareMedium(
        num_devices=waveform.num_devices,
        sample_rate_hz=1e6,
        noise_power=0.0,
        noise_rng=np.random.default_rng(0),
    )
    medium.set_gains(gains)
    tx_gains = receive_scale / np.asarray(gains) if tx_gains is None else tx_gains
    for k, scalar in enumerate(scalars):
        burst = waveform.modulate([scalar], complex(tx_gains[k]))
        medium.add(k, burst, waveform.payload_offset_samples)
    return waveform.demodulate(medium.capture(0, waveform.payload_samples), receive_scale)


def test_noise_free_round_is_exact_within_rounding_error_bound():
    rng = np.random.default_rng(2)
    waveform = CoherentWaveform(num_devices=5)
    for scale in (1e-6, 1e-3, 1.0):
        gains = rng.standard_normal(5) + 1j * rng.standard_normal(5)
        scalars = scale * rng.uniform(-1, 1, 5)
        reception = noise_free_round(waveform, gains, scalars, 0.125)
        # The scalars and tx gains are float64, so one more rounding of either is included.
        assert abs(reception.sum_estimates[0] - scalars.sum()) <= rounding_error_bound(scalars)
        assert abs(reception.quadrature_estimates[0]) <= rounding_error_bound(scalars)
        assert reception.noise_power == 0.0
        assert reception.receiver_noise_std == 0.0


def test_numbers_follow_one_another_and_each_is_heard_as_if_alone():
    rng = np.random.default_rng(8)
    one = CoherentWaveform(num_devices=3)
    many = dataclasses.replace(one, num_scalars=5)
    gains = rng.standard_normal(3) + 1j * rng.standard_normal(3)
    scalars = rng.uniform(-1, 1, (3, 5))
    medium = SoftwareMedium(
        num_devices=3, sample_rate_hz=1e6, noise_power=0.0, noise_rng=np.random.default_rng(0)
    )
    medium.set_gains(gains)
    for k in range(3):
        burst = many.modulate(scalars[k].tolist(), complex(0.125 / gains[k]))
        assert burst.shape == (5 * one.payload_symbols,)
        # The peak is that of the largest number, not of their sum.
        peak = 0.125 / abs(gains[k]) * np.max(np.abs(scalars[k]))
        assert np.max(np.abs(burst)) == pytest.approx(peak, rel=1e-6)
        medium.add(k, burst, many.payload_offset_samples)
    reception = many.demodulate(medium.capture(0, many.payload_samples), 0.125)
    for q in range(5):
        alone = noise_free_round(one, gains, scalars[:, q], 0.125)
        assert reception.sum_estimates[q] == alone.sum_estimates[0]
        assert reception.quadrature_estimates[q] == alone.quadrature_estimates[0]
    assert many.payload_samples - one.payload_samples == 4 * one.payload_symbols


def test_more_numbers_than_a_frame_has_room_for_are_refused():
    CoherentWaveform(num_devices=1, payload_symbols=256, num_scalars=256)
    with pytest.raises(RadioConfigurationError, match=r"257 numbers of 256 symbols are 65792"):
        CoherentWaveform(num_devices=1, payload_symbols=256, num_scalars=257)


def test_sign_and_scale_survive():
    waveform = CoherentWaveform(num_devices=1)
    for scalar in (0.5, -0.5, 0.0):
        assert noise_free_round(waveform, [1j], [scalar], 0.25).sum_estimates[0] == pytest.approx(
            scalar, abs=1e-7
        )


def test_a_stale_phase_shows_in_the_quadrature_estimate():
    waveform = CoherentWaveform(num_devices=1)
    turned = np.exp(1j * math.radians(30))
    reception = noise_free_round(waveform, [turned], [1.0], 0.5, tx_gains=[0.5])
    assert reception.sum_estimates[0] == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    assert reception.quadrature_estimates[0] == pytest.approx(0.5, abs=1e-6)


def test_sounding_recovers_gains_without_noise():
    waveform = CoherentWaveform(num_devices=3, pilot_symbols=37, guard_symbols=5, noise_symbols=8)
    medium = SoftwareMedium(
        num_devices=3, sample_rate_hz=1.0, noise_power=0.0, noise_rng=np.random.default_rng(0)
    )
    gains = np.array([1.0, -0.3j, 0.01 + 0.02j])
    medium.set_gains(gains)
    for k in range(3):
        burst, offset = waveform.sounding_burst(k, 0.5)
        assert burst.shape == (37,)
        assert burst.dtype == np.complex64
        medium.add(k, burst, offset)
    estimate = waveform.estimate_gains(medium.capture(0, waveform.sounding_samples), 0.5)
    np.testing.assert_allclose(estimate.gains, gains, rtol=2**-22)
    assert estimate.error_variance == estimate.noise_power == 0.0
    with pytest.raises(ValueError, match="read-only"):
        estimate.gains[0] = 1.0


def test_noise_power_is_read_from_the_silence_only():
    waveform = CoherentWaveform(num_devices=1, noise_symbols=4)
    capture = np.full(waveform.payload_samples, 100.0, dtype=np.complex64)
    capture[:4] = [1, 1j, -1, 2]
    reception = waveform.demodulate(capture, 2.0)
    assert reception.noise_power == pytest.approx(7 / 4)
    assert reception.receiver_noise_std == pytest.approx(math.sqrt(7 / 4 / 2 / 64) / 2.0)
    capture = np.zeros(waveform.sounding_samples, dtype=np.complex64)
    capture[:4] = [1, 1j, -1, 2]
    estimate = waveform.estimate_gains(capture, 0.5)
    assert estimate.error_variance == pytest.approx(7 / 4 / 1024 / 0.25)


def test_lengths_and_airtime_of_the_default_frames():
    waveform = CoherentWaveform(num_devices=5)
    assert waveform.sounding_samples == 256 + 5 * (1024 + 32)
    assert waveform.payload_samples == 256 + 64
    assert waveform.airtime_s(1e6) == pytest.approx((5536 + 320) * 1e-6)


def test_waveform_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CoherentWaveform(num_devices=1).payload_symbols = 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.sounding_burst(2, 1.0), r"device_index: got 2, wanted 0\.\.1"),
        (lambda w: w.sounding_burst(0, 0.0), "amplitude: got 0.0"),
        (lambda w: w.modulate([math.nan], 1.0), "wanted a finite product"),
        (lambda w: w.modulate([1.0], complex(math.inf, 0)), "wanted a finite product"),
        (lambda w: w.modulate([1e200], 1e200), "wanted a finite product"),
        (lambda w: w.demodulate(np.zeros(3, np.complex64), 1.0), "one payload frame"),
        (lambda w: w.demodulate(np.zeros(w.payload_samples, np.complex64), 0.0), "receive_scale"),
        (lambda w: w.demodulate(np.full(w.payload_samples, np.nan), 1.0), "capture: sample 0 is"),
        (lambda w: w.estimate_gains(np.zeros((2, 2)), 1.0), "one sounding frame"),
        (lambda w: w.estimate_gains(np.zeros(w.sounding_samples), -1.0), "amplitude: got"),
        (lambda w: w.airtime_s(0.0), "sample_rate_hz: got"),
        (lambda w: CoherentWaveform(num_devices=0), "num_devices: got 0"),
        (lambda w: CoherentWaveform(num_devices=1, guard_symbols=-1), "guard_symbols: got -1"),
        (lambda w: CoherentWaveform(num_devices=1, noise_symbols=0), "noise_symbols: got 0"),
        (lambda w: zadoff_chu(6, 3), "gcd is 3"),
        (lambda w: zadoff_chu(0), "length: got 0"),
        (lambda w: csi_covariance([[1.0]], [0.0], 0.1), "gains: one is zero"),
        (lambda w: csi_covariance([[1.0], [2.0]], [1.0], 0.1), "scalars and gains: got shapes"),
        (lambda w: amplitude_error_bound(0.1, 0.0, 0.1), "min_gain: got"),
        (lambda w: amplitude_error_bound(0.1, 1.0, 1.0), "failure_probability: got"),
        (lambda w: noise_power_upper_bound(1.0, 0, 0.1), "num_samples: got 0"),
        (lambda w: csi_covariance([[math.inf]], [1.0], 0.1), "scalars: sample 0"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(call, message):
    with pytest.raises(RadioConfigurationError, match=message):
        call(CoherentWaveform(num_devices=2))


def test_zadoff_chu_is_shared_and_read_only():
    assert zadoff_chu(64) is zadoff_chu(64)
    with pytest.raises(ValueError, match="read-only"):
        zadoff_chu(64)[0] = 0


def test_zadoff_chu_phase_stays_exact_at_large_length():
    # n = L - 1, odd L, root 1: n (n + 1) = (L - 1) L, a multiple of 2 L, so the phase is 0.
    for length in (1_000_003, 3):
        assert zadoff_chu(length)[-1] == pytest.approx(1.0, abs=1e-15)


def test_formula_known_values_and_limits():
    assert gain_error_variance(0.5, 1000, 0.5) == pytest.approx(0.5 / 250)
    assert receiver_noise_std(2.0, 100, 0.5) == pytest.approx(0.2)
    assert csi_variance([2.0, 0.0], [0.5j, 1.0], 0.01) == pytest.approx(4 * 0.005 / 0.25)
    assert csi_bias([1.0], [1.0], 0.0) == 0.0
    assert csi_bias([1.0, -3.0], [1.0, 1.0], 1e9) == pytest.approx(2.0)
    # P(|e| > x) = 1/e at x = sqrt(v).
    assert amplitude_error_bound(0.04, 0.5, math.exp(-1)) == pytest.approx(0.4)
    assert amplitude_error_bound(0.0, 0.5, 1e-9) == 0.0


def truncated_mean_of_ratio(gain, error_variance, threshold):
    """E[Re(h / h_hat); abs(h_hat) > threshold] by quadrature over abs(h_hat)."""

    def integrand(radius):
        # exp(-(r^2 + h^2) / v) I_1(2 r h / v), with the exponential of ive taken out.
        decay = math.exp(-((radius - gain) ** 2) / error_variance)
        return (
            2 * gain / error_variance * decay * special.ive(1, 2 * radius * gain / error_variance)
        )

    stop = gain + 12 * math.sqrt(error_variance)
    return integrate.quad(integrand, threshold, stop, epsabs=1e-12, limit=200)[0]


@pytest.mark.parametrize("error_variance", [0.1, 0.5, 1.0, 3.0])
def test_csi_bias_equals_quadrature(error_variance):
    gain = 0.8
    expected = truncated_mean_of_ratio(gain, error_variance, 0.0) - 1.0
    assert csi_bias([1.0], [gain * 1j], error_variance) == pytest.approx(expected, abs=1e-8)


def test_noise_power_upper_bound_guarantees_the_inequality():
    for num_samples in (1, 16, 256, 4096):
        for probability in (0.5, 1e-4, 1e-12):
            limit = noise_power_upper_bound(2.0, num_samples, probability)
            ratio = 2.0 / limit
            chernoff = num_samples * (ratio - 1 - math.log(ratio))
            assert chernoff >= -math.log(probability)
            # Oracle: the exact Gamma tail is below the Chernoff bound.
            assert special.gammainc(num_samples, num_samples * ratio) <= probability
    assert noise_power_upper_bound(1.0, 256, 1e-9) == pytest.approx(10**0.187, rel=1e-3)
    assert noise_power_upper_bound(0.0, 256, 1e-9) == 0.0
    assert noise_power_upper_bound(1.0, 1, 1e-320) == math.inf
