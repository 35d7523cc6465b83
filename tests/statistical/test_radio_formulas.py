"""Formula against simulation. H0 of every test: the program follows the formula in its docstring.

Two-sided false-alarm probability ALPHA per test; every threshold is computed from it. Where a
variance is tested, n is large enough that a standard deviation wrong by 5% is missed with at most
probability ALPHA (computed by `check_variance` itself), and the same data scaled by 1.05 must be
rejected: the negative control. Seeds are fixed, so a failure is a defect, not luck.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
from coherent_errors import csi_variance
from scipy import integrate, special, stats

from radio.measurement import Setting, measure_coherent
from radio.software_air.channel_models import AwgnChannel, RayleighBlockFading
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import (
    amplitude_error_bound,
    csi_covariance,
    gain_error_variance,
    noise_power_limits,
    noise_power_upper_bound,
    receiver_noise_std,
)

ALPHA = 1e-6
Z = NormalDist().inv_cdf(1 - ALPHA / 2)
DEFECT = 1.05


def is_mean_right(values, expected, std):
    """Statistic: (mean - expected) sqrt(n) / std ~ N(0, 1) under H0."""
    return abs(np.mean(values) - expected) * math.sqrt(len(values)) <= Z * std


def is_variance_right(values, std):
    """Statistic: sum of squares / variance ~ chi-square(n) under H0 (Gaussian, mean known 0)."""
    total = np.sum(np.square(values)) / std**2
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], len(values))
    return low <= total <= high


def check_variance(values, std):
    """Accept the formula, reject it when the noise is 5% larger or smaller, with stated power."""
    n = len(values)
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], n)
    assert stats.chi2.cdf(high / DEFECT**2, n) <= ALPHA, "n is too small to see the defect"
    assert stats.chi2.sf(low * DEFECT**2, n) <= ALPHA, "n is too small to see the defect"
    assert is_variance_right(values, std)
    assert not is_variance_right(DEFECT * values, std)
    assert not is_variance_right(values / DEFECT, std)


def dkw_distance(n):
    """P(KS distance > this) <= ALPHA for any continuous law (Dvoretzky-Kiefer-Wolfowitz)."""
    return math.sqrt(math.log(2 / ALPHA) / (2 * n))


def complex_normal(rng, variance, size):
    parts = rng.standard_normal((size, 2)) * math.sqrt(variance / 2)
    return parts[:, 0] + 1j * parts[:, 1]


def make_medium(num_devices, noise_power, seed):
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=1e6,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
    )
    medium.set_gains(np.ones(num_devices))
    return medium


def test_receiver_noise_is_white_circular_gaussian_of_the_stated_power():
    """w ~ CN(0, N0): N0/2 per part, Gaussian, parts and neighbours uncorrelated. n = 100,000."""
    noise_power, n = 0.37, 100_000
    noise = make_medium(1, noise_power, seed=1).capture(0, n).astype(np.complex128)
    std = math.sqrt(noise_power / 2)
    for part in (noise.real, noise.imag):
        assert is_mean_right(part, 0.0, std)
        check_variance(part, std)
        distance = stats.kstest(part / std, "norm").statistic
        assert distance <= dkw_distance(n)
        # Control: Laplace noise of the same variance.
        laplace = np.random.default_rng(2).laplace(scale=std / math.sqrt(2), size=n)
        assert stats.kstest(laplace / std, "norm").statistic > dkw_distance(n)
    # Products of independent unit normals have mean 0 and variance 1.
    crosswise = noise.real * noise.imag / std**2
    neighbours = noise.real[:-1] * noise.real[1:] / std**2
    assert is_mean_right(crosswise, 0.0, 1.0)
    assert is_mean_right(neighbours, 0.0, 1.0)
    # Control: 5% correlation between the parts.
    leaked = noise.real * (0.05 * noise.real + math.sqrt(1 - 0.05**2) * noise.imag) / std**2
    assert not is_mean_right(leaked, 0.0, 1.0)


def test_rayleigh_power_is_exponential_and_phases_are_uniform():
    """abs(h)^2 ~ Exp(mean_power_gain), arg h ~ U. KS distance, n = 100,000, DKW threshold."""
    n = 100_000
    gains = RayleighBlockFading(mean_power_gain=0.25).gains(np.random.default_rng(3), n)
    power = np.abs(gains) ** 2 / 0.25
    limit = dkw_distance(n)
    assert stats.kstest(power, "expon").statistic <= limit
    assert stats.kstest(DEFECT**2 * power, "expon").statistic > limit
    line_of_sight = AwgnChannel().gains(np.random.default_rng(4), n)
    for block in (gains, line_of_sight):
        turns = np.angle(block) / (2 * np.pi) + 0.5
        assert stats.kstest(turns, "uniform").statistic <= limit
    # Control: phases on three quarters of the circle.
    assert stats.kstest(0.75 * turns, "uniform").statistic > limit


def test_gain_estimate_error_has_the_predicted_variance():
    """h_hat - h ~ CN(0, N0 / (L A^2)). n = 24,000 real errors (4 devices, 3,000 soundings)."""
    waveform = CoherentWaveform(num_devices=4, pilot_symbols=24, guard_symbols=2, noise_symbols=8)
    noise_power, amplitude = 0.5, 0.4
    gains = np.array([1.0, -0.5j, 0.1 + 0.1j, 0.0])
    medium = make_medium(4, noise_power, seed=5)
    medium.set_gains(gains)
    for k in range(4):
        burst, offset = waveform.sounding_burst(k, amplitude)
        medium.add(k, burst, offset)
    estimates = [
        waveform.estimate_gains(medium.capture(0, waveform.sounding_samples), amplitude)
        for _ in range(3000)
    ]
    errors = np.array([estimate.gains - gains for estimate in estimates])
    variance = gain_error_variance(noise_power, 24, amplitude)
    parts = np.concatenate([errors.real.ravel(), errors.imag.ravel()])
    check_variance(parts, math.sqrt(variance / 2))
    assert is_mean_right(parts, 0.0, math.sqrt(variance / 2))
    # The reported variance is unbiased: relative std 1 / sqrt(noise_symbols) each.
    reported = np.array([estimate.error_variance for estimate in estimates]) / variance
    assert is_mean_right(reported, 1.0, 1 / math.sqrt(8))


def test_receiver_noise_std_is_the_spread_of_the_sum_estimate():
    """sum_estimate ~ N(sum_k s_k, N0 / (2 L c^2)). n = 24,000 receptions at a per-symbol SNR < 0.

    Smallest defect caught besides 5%: the whole of N0 instead of half (3 dB).
    """
    waveform = CoherentWaveform(num_devices=3, payload_symbols=16, noise_symbols=8)
    noise_power, receive_scale = 2.0, 0.3
    scalars = np.array([0.7, -0.2, 0.1])
    gains = np.array([0.5j, 1.0, -0.4 - 0.4j])
    medium = make_medium(3, noise_power, seed=6)
    medium.set_gains(gains)
    for k in range(3):
        burst = waveform.modulate([scalars[k]], receive_scale / gains[k])
        medium.add(k, burst, waveform.payload_offset_samples)
    receptions = [
        waveform.demodulate(medium.capture(0, waveform.payload_samples), receive_scale)
        for _ in range(24_000)
    ]
    std = receiver_noise_std(noise_power, 16, receive_scale)
    errors = np.array([reception.sum_estimates[0] for reception in receptions]) - scalars.sum()
    check_variance(errors, std)
    assert is_mean_right(errors, 0.0, std)
    assert not is_variance_right(errors, math.sqrt(2) * std)
    # All arrive in phase, so the quadrature part is noise of the same size and independent.
    quadrature = np.array([reception.quadrature_estimates[0] for reception in receptions])
    check_variance(quadrature, std)
    assert is_mean_right(errors * quadrature / std**2, 0.0, 1.0)
    # Noise power as measured is unbiased, and independent of the estimate's error.
    measured = np.array([reception.noise_power for reception in receptions]) / noise_power
    assert is_mean_right(measured, 1.0, 1 / math.sqrt(8))
    assert is_mean_right((measured - 1) * math.sqrt(8) * errors / std, 0.0, 1.0)


def test_each_of_eight_numbers_is_heard_as_well_as_one_alone():
    """NMSE of each number within 1 dB of one alone at the same energy. n = 4,000 trials.

    At an equal peak, where a clip of sqrt(8) times the size lowers the level of arrival as much, it
    is 10 log10 8 = 9 dB more. The mean squared error of n trials spreads by sqrt(2 / n), 0.1 dB.
    """
    rng = np.random.default_rng(12)
    noise_power, n, num_scalars, length = 0.5, 4_000, 8, 64
    one = CoherentWaveform(num_devices=1, payload_symbols=length)
    many = CoherentWaveform(num_devices=1, payload_symbols=length, num_scalars=num_scalars)
    medium = make_medium(1, noise_power, seed=13)
    medium.set_gains(np.array([1.0]))

    def squared_errors(waveform, level=1.0):
        errors = []
        for _ in range(n):
            scalars = rng.uniform(-1, 1, waveform.num_scalars)
            medium.begin_round(rng)
            burst = waveform.modulate(scalars.tolist(), level)
            medium.add(0, burst, waveform.payload_offset_samples)
            heard = waveform.demodulate(medium.capture(0, waveform.payload_samples), level)
            errors.append(np.square(np.subtract(heard.sum_estimates, scalars)))
        return np.mean(errors, axis=0)

    (alone,) = squared_errors(one)
    together_db = 10 * np.log10(squared_errors(many) / alone)
    assert together_db.shape == (num_scalars,)
    assert np.all(np.abs(together_db) < 1.0)
    at_equal_peak_db = 10 * np.log10(squared_errors(many, 1.0 / math.sqrt(8)) / alone)
    assert np.all(np.abs(at_equal_peak_db - 10 * math.log10(8)) < 1.0)
    assert many.payload_samples - many.payload_offset_samples == num_scalars * length


def test_the_errors_of_one_payload_have_the_predicted_covariance():
    """Errors of two numbers share the gains' errors: covariance `csi_covariance`. n = 40,000.

    Products of two Gaussians spread by at most sqrt(2) of the variances' product; 6 standard
    errors. Control: a covariance of zero would be seen.
    """
    rng = np.random.default_rng(14)
    n, error_variance = 40_000, 1e-5
    gains = np.array([1.0, 2j, -1.5 + 0.5j])
    scalars = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.8]])
    e = rng.standard_normal((2, n, 3)) * math.sqrt(error_variance / 2)
    ratio = gains / (gains + e[0] + 1j * e[1])
    errors = (ratio - 1.0).real @ scalars
    wanted = csi_covariance(scalars, gains, error_variance)
    assert wanted[0, 0] == pytest.approx(csi_variance(scalars[:, 0], gains, error_variance))
    got = errors.T @ errors / n
    spread = 6 * math.sqrt(2 / n) * math.sqrt(wanted[0, 0] * wanted[1, 1])
    assert np.all(np.abs(got - wanted) < spread)
    assert abs(wanted[0, 1]) > spread


def test_csi_error_adds_the_predicted_variance():
    """Re(sum_k (h_k / h_hat_k - 1) s_k) ~ N(0, csi_variance). n = 40,000, abs(h)^2 = 1e5 v or more.

    Second order is 2e-5 relative, far below the 3.5% that the threshold resolves.
    """
    rng = np.random.default_rng(7)
    n, error_variance = 40_000, 1e-5
    gains = np.array([1.0, 2j, -1.5 + 0.5j])
    scalars = np.array([1.0, -0.6, 0.3])
    noisy = gains + complex_normal(rng, error_variance, 3 * n).reshape(n, 3)
    errors = ((gains / noisy - 1) * scalars).sum(axis=1).real
    check_variance(errors, math.sqrt(csi_variance(scalars, gains, error_variance)))


def test_csi_bias_of_a_badly_heard_gain():
    """E[Re(h / h_hat); abs(h_hat) > m] = quadrature of the Bessel form. n = 200,000.

    The same quadrature at m = 0 is held against `csi_bias` in the unit tests. The truncated ratio
    is bounded by abs(h) / m, so its mean obeys the central limit theorem; control: 5% in v.
    """
    n, gain, variance, threshold = 200_000, 1.0, 0.8, 0.3

    def expected(v):
        def integrand(r):
            decay = math.exp(-((r - gain) ** 2) / v)
            return 2 * gain / v * decay * special.ive(1, 2 * r * gain / v)

        return integrate.quad(integrand, threshold, gain + 12 * math.sqrt(v))[0]

    noisy = gain + complex_normal(np.random.default_rng(8), variance, n)
    ratio = np.where(np.abs(noisy) > threshold, gain / noisy, 0).real
    assert is_mean_right(ratio, expected(variance), np.std(ratio))
    assert not is_mean_right(ratio, expected(variance * DEFECT**2), np.std(ratio))


def test_selection_at_the_threshold_weakens_the_arrival():
    """abs(h) = m: E[Re(h / h_hat) | abs(h_hat) >= m] = 1 - sqrt(v / pi) / m to first order.

    n about 100,000 speakers; second order (v / m^2 = 1e-4) is added to the threshold.
    """
    n, gain, variance = 200_000, 0.1, 1e-6
    noisy = gain + complex_normal(np.random.default_rng(9), variance, n)
    ratio = (gain / noisy[np.abs(noisy) >= gain]).real
    expected = 1 - math.sqrt(variance / math.pi) / gain
    slack = Z * np.std(ratio) / math.sqrt(ratio.size) + variance / gain**2
    assert abs(ratio.mean() - expected) <= slack
    assert abs(ratio.mean() - 1.0) > 10 * slack


@pytest.mark.parametrize("failure_probability", [0.3, 0.03])
def test_amplitude_error_bound_fails_as_often_as_stated(failure_probability):
    """P(abs(e) > eta min_gain) = p exactly; P(abs(h / h_hat - 1) > eta and speaks) <= p.

    Exact binomial tails, n = 400,000; control: v under-estimated by 10%.
    """
    n, variance, min_gain = 400_000, 4e-4, 0.1
    rng = np.random.default_rng(10)
    error = complex_normal(rng, variance, n)
    gain = 0.12
    estimate = gain + error

    def is_rate_right(v):
        bound = amplitude_error_bound(v, min_gain, failure_probability)
        num_failures = int(np.sum(np.abs(error) > bound * min_gain))
        low, high = stats.binom.ppf([ALPHA / 2, 1 - ALPHA / 2], n, failure_probability)
        return low <= num_failures <= high

    assert is_rate_right(variance)
    assert not is_rate_right(0.9 * variance)
    bound = amplitude_error_bound(variance, min_gain, failure_probability)
    speaks = np.abs(estimate) >= min_gain
    off = np.abs(gain / estimate - 1) > bound
    assert np.sum(speaks & off) <= stats.binom.ppf(1 - ALPHA, n, failure_probability)
    # Control: without the threshold, small estimates break the bound more often than stated.
    weak = 0.02 + error
    broken = np.sum(np.abs(0.02 / weak - 1) > bound)
    assert broken > stats.binom.ppf(1 - ALPHA, n, failure_probability)


def test_noise_power_upper_bound_covers():
    """P(limit < N0) <= p, exact binomial tail, n = 100,000; control: the measured power itself."""
    n, num_samples, probability = 100_000, 16, 0.01
    rng = np.random.default_rng(11)
    measured = rng.gamma(num_samples, 1 / num_samples, n)
    factor = noise_power_upper_bound(1.0, num_samples, probability)
    allowed = stats.binom.ppf(1 - ALPHA, n, probability)
    assert np.sum(measured * factor < 1.0) <= allowed
    assert np.sum(measured < 1.0) > allowed


def test_noise_power_limits_cover_on_both_sides():
    """As above, for either limit; control: the lower limit at a hundred times the probability."""
    n, num_samples, probability = 100_000, 16, 1e-3
    measured = np.random.default_rng(12).gamma(num_samples, 1 / num_samples, n)
    lower, upper = noise_power_limits(1.0, num_samples, probability)
    assert upper == noise_power_upper_bound(1.0, num_samples, probability)
    allowed = stats.binom.ppf(1 - ALPHA, n, probability)
    assert np.sum(measured * lower > 1.0) <= allowed
    assert np.sum(measured * upper < 1.0) <= allowed
    too_high, _ = noise_power_limits(1.0, num_samples, 100 * probability)
    assert np.sum(measured * too_high > 1.0) > allowed


@pytest.mark.parametrize(
    ("channel", "snr_db"),
    [(AwgnChannel(), 0.0), (AwgnChannel(), 30.0), (RayleighBlockFading(), 15.0)],
)
def test_whole_chain_matches_the_predicted_error(channel, snr_db):
    """Squared error over 600 rounds of 4 devices against the sum of predicted variances.

    Threshold: the program's own, a tail bound of the weighted chi-square at 1e-6. Smallest defect:
    a factor 2 in the predicted variance, as when N0 is taken per real part.
    """
    measurement = measure_coherent(
        CoherentWaveform(num_devices=4, pilot_symbols=256, payload_symbols=32),
        Setting(channel=channel, snr_db=snr_db, num_trials=600, seed=12),
    )
    assert abs(measurement.deviation_std) <= measurement.deviation_limit_std
    # Control: the same errors against half and twice the predicted variance.
    if isinstance(channel, AwgnChannel):
        ratio = 1 + measurement.deviation_std * measurement.relative_spread
        for wrong in (ratio / 2, ratio * 2):
            deviation = (wrong - 1) / measurement.relative_spread
            assert abs(deviation) > measurement.deviation_limit_std
