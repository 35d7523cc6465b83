"""The properties of testing.md section 2 for units, frame and medium."""

import math

import numpy as np
import pytest
from coherent_errors import rounding_error_bound
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from radio import units
from radio.errors import RadioSaturationError
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.error_model import (
    amplitude_error_bound,
    noise_power_upper_bound,
)
from radio.waveforms.zadoff_chu import zadoff_chu

ratios = st.floats(1e-200, 1e200)
decibels = st.floats(-1500.0, 1500.0)
PAIRS = [
    (units.db_from_power_ratio, units.power_ratio_from_db),
    (units.db_from_amplitude_ratio, units.amplitude_ratio_from_db),
]
pairs = st.sampled_from(PAIRS)


@settings(deadline=None)  # a busy machine is not a defect
@given(pairs, ratios)
def test_units_round_trip_from_linear(pair, ratio):
    to_db, from_db = pair
    assert from_db(to_db(ratio)) == pytest.approx(ratio, rel=1e-12)


@settings(deadline=None)  # a busy machine is not a defect
@given(pairs, decibels)
def test_units_round_trip_from_db(pair, decibel):
    to_db, from_db = pair
    assert to_db(from_db(decibel)) == pytest.approx(decibel, rel=1e-12, abs=1e-12)


@settings(deadline=None)  # a busy machine is not a defect
@given(pairs, ratios, ratios)
def test_units_are_monotone(pair, first, second):
    to_db, from_db = pair
    low, high = sorted((first, second))
    assert to_db(low) <= to_db(high)
    assert from_db(to_db(low)) <= from_db(to_db(high)) * (1 + 1e-12)


@settings(deadline=None)  # a busy machine is not a defect
@given(pairs, st.floats(1e-100, 1e100), st.floats(1e-100, 1e100))
def test_db_sums_are_linear_products(pair, first, second):
    to_db, _ = pair
    assert to_db(first) + to_db(second) == pytest.approx(to_db(first * second), abs=1e-9)


@settings(deadline=None)  # a busy machine is not a defect
@given(ratios)
def test_amplitude_db_is_power_db_of_the_square_root(ratio):
    assert units.db_from_amplitude_ratio(math.sqrt(ratio)) == pytest.approx(
        units.db_from_power_ratio(ratio), abs=1e-9
    )


waveforms = st.builds(
    CoherentWaveform,
    num_devices=st.integers(1, 6),
    pilot_symbols=st.integers(1, 40),
    payload_symbols=st.integers(1, 40),
    guard_symbols=st.integers(0, 9),
    noise_symbols=st.integers(1, 20),
)
amplitudes = st.floats(2**-10, 1.0)
complex_gains = st.builds(
    lambda magnitude, phase: magnitude * np.exp(1j * phase),
    st.floats(0.01, 10.0),
    st.floats(-math.pi, math.pi),
)


@settings(deadline=None)  # a busy machine is not a defect
@given(waveforms)
def test_frame_positions_never_overlap_and_keep_their_guards(waveform):
    occupied = np.zeros(waveform.sounding_samples, dtype=int)
    ends = [waveform.noise_symbols]
    for k in range(waveform.num_devices):
        burst, offset = waveform.sounding_burst(k, 1.0)
        assert offset >= ends[-1]
        occupied[offset : offset + burst.size] += 1
        assert offset + burst.size + waveform.guard_symbols <= waveform.sounding_samples
        ends.append(offset + burst.size + waveform.guard_symbols)
    assert occupied.max() == 1
    assert occupied.sum() == waveform.num_devices * waveform.pilot_symbols
    assert not occupied[: waveform.noise_symbols].any()
    assert ends[-1] == waveform.sounding_samples
    payload_end = waveform.payload_offset_samples + waveform.modulate([1.0], 1.0).size
    assert payload_end == waveform.payload_samples


@settings(deadline=None)  # a busy machine is not a defect
@given(waveforms, amplitudes, st.integers(0, 50), st.data())
def test_frames_recover_gains_and_sum_at_any_start(waveform, amplitude, start, data):
    num_devices = waveform.num_devices
    gains = np.array([data.draw(complex_gains) for _ in range(num_devices)])
    scalars = np.array([data.draw(st.floats(-1.0, 1.0)) for _ in range(num_devices)])
    assume(np.all((scalars == 0) | (np.abs(scalars) > 1e-25)))
    medium = make_medium(num_devices, gains)
    for k in range(num_devices):
        burst, offset = waveform.sounding_burst(k, amplitude)
        medium.add(k, burst, start + offset)
    estimate = waveform.estimate_gains(medium.capture(start, waveform.sounding_samples), amplitude)
    np.testing.assert_allclose(estimate.gains, gains, rtol=2**-21)
    medium.clear()
    for k in range(num_devices):
        burst = waveform.modulate([scalars[k]], 0.01 / gains[k])
        medium.add(k, burst, start + waveform.payload_offset_samples)
    reception = waveform.demodulate(medium.capture(start, waveform.payload_samples), 0.01)
    error = abs(reception.sum_estimates[0] - math.fsum(scalars))
    assert error <= rounding_error_bound(scalars)


@settings(deadline=None)  # a busy machine is not a defect
@given(waveforms, st.floats(-1.0, 1.0), complex_gains)
def test_modulate_has_constant_envelope_and_is_odd(waveform, scalar, tx_gain):
    burst = waveform.modulate([scalar], complex(tx_gain))
    level = abs(scalar * tx_gain)
    np.testing.assert_allclose(np.abs(burst), level, rtol=1e-6, atol=1e-37)
    np.testing.assert_array_equal(waveform.modulate([-scalar], complex(tx_gain)), -burst)


@settings(deadline=None)  # a busy machine is not a defect
@given(st.integers(1, 300), st.integers(1, 1000))
@example(length=1, root=1)
@example(length=64, root=1)
@example(length=139, root=25)
def test_zadoff_chu_has_unit_amplitude_and_ideal_autocorrelation(length, root):
    assume(math.gcd(length, root) == 1)
    sequence = zadoff_chu(length, root)
    np.testing.assert_allclose(np.abs(sequence), 1.0, atol=4e-16)
    spectrum = np.fft.fft(sequence)
    np.testing.assert_allclose(np.abs(spectrum) ** 2, length, rtol=1e-9)


def test_negative_control_a_common_root_breaks_the_autocorrelation():
    # The same formula with gcd(root, length) = 3: what the refusal in zadoff_chu protects from.
    n = np.arange(12)
    sequence = np.exp(-1j * np.pi * 3 * n * n / 12)
    assert np.ptp(np.abs(np.fft.fft(sequence)) ** 2) > 1.0


def make_medium(num_devices, gains, noise_power=0.0, seed=0):
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=1e6,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
    )
    medium.set_gains(gains)
    return medium


def random_burst(rng, length):
    return (rng.standard_normal(length) + 1j * rng.standard_normal(length)).astype(np.complex64)


@settings(deadline=None)  # a busy machine is not a defect
@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 30), st.integers(0, 20))
def test_medium_is_linear_in_its_inputs(seed, num_devices, length, start):
    rng = np.random.default_rng(seed)
    gains = rng.standard_normal(num_devices) + 1j * rng.standard_normal(num_devices)
    bursts = [random_burst(rng, length) for _ in range(num_devices)]
    together = make_medium(num_devices, gains)
    alone = []
    for k, burst in enumerate(bursts):
        together.add(k, burst, start + k)
        single = make_medium(num_devices, gains)
        single.add(k, burst, start + k)
        alone.append(single.capture(0, 60).astype(np.complex128))
    scale = np.sum(np.abs(gains)) * max(np.abs(burst).max() for burst in bursts)
    np.testing.assert_allclose(together.capture(0, 60), sum(alone), atol=scale * 2**-22)
    doubled = make_medium(num_devices, 2 * gains)
    doubled.add(0, bursts[0], start)
    halved = make_medium(num_devices, gains)
    halved.add(0, 2 * bursts[0], start)
    np.testing.assert_array_equal(doubled.capture(0, 60), halved.capture(0, 60))


@settings(deadline=None)  # a busy machine is not a defect
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_medium_delay_is_shift(seed, length, start, delay):
    burst = random_burst(np.random.default_rng(seed), length)
    early, late = make_medium(1, [0.5j]), make_medium(1, [0.5j])
    early.add(0, burst, start)
    late.add(0, burst, start + delay)
    np.testing.assert_array_equal(early.capture(0, 100), late.capture(delay, 100), strict=True)
    np.testing.assert_array_equal(late.capture(0, 100)[delay:], early.capture(0, 100 - delay))


@settings(deadline=None)  # a busy machine is not a defect
@given(st.integers(0, 2**32), st.integers(1, 50))
def test_medium_without_transmitters_is_noise_only(seed, count):
    silent = make_medium(2, [1.0, 1.0], noise_power=0.3, seed=seed)
    other_gains = make_medium(2, [5.0, 1j], noise_power=0.3, seed=seed)
    far_away = make_medium(2, [1.0, 1.0], noise_power=0.3, seed=seed)
    far_away.add(0, np.ones(5, dtype=np.complex64), 10 + count)
    expected = silent.capture(10, count)
    np.testing.assert_array_equal(other_gains.capture(10, count), expected)
    np.testing.assert_array_equal(far_away.capture(10, count), expected)
    assert not make_medium(1, [1.0]).capture(0, count).any()


@settings(deadline=None)  # a busy machine is not a defect
@given(st.floats(1e-3, 1e3), st.floats(1.001, 10.0), st.floats(-math.pi, math.pi))
def test_no_sample_above_full_scale_is_transmitted(limit, excess, phase):
    medium = make_medium(1, [1.0])
    device = LoopbackTransceiver(medium, 0, max_amplitude=limit)
    turn = np.exp(1j * phase)
    with pytest.raises(RadioSaturationError, match="Nothing was transmitted"):
        device.transmit(np.array([0, limit * excess * turn], np.complex64), start_sample=0)
    assert not medium.capture(0, 2).any()
    device.transmit(np.array([limit * turn], dtype=np.complex64), start_sample=0)
    assert medium.capture(0, 1).any()


variances = st.floats(1e-12, 1e3)
probabilities = st.floats(1e-30, 0.999)


@settings(deadline=None)  # a busy machine is not a defect
@given(variances, variances, st.floats(1e-3, 10.0), probabilities, probabilities)
def test_amplitude_error_bound_is_monotone(v_1, v_2, min_gain, p_1, p_2):
    (v_low, v_high), (p_low, p_high) = sorted((v_1, v_2)), sorted((p_1, p_2))
    small = amplitude_error_bound(v_low, min_gain, p_high)
    assert small <= amplitude_error_bound(v_high, min_gain, p_high)
    assert small <= amplitude_error_bound(v_low, min_gain, p_low)
    assert small >= amplitude_error_bound(v_low, 2 * min_gain, p_high)


@settings(deadline=None)  # a busy machine is not a defect
@given(st.floats(1e-9, 1e3), st.integers(1, 10**6), probabilities, probabilities)
def test_noise_power_upper_bound_is_above_the_measurement_and_monotone(power, count, p_1, p_2):
    p_low, p_high = sorted((p_1, p_2))
    loose, tight = (noise_power_upper_bound(power, count, p) for p in (p_low, p_high))
    assert power <= tight <= loose
    assert noise_power_upper_bound(power, 2 * count, p_low) <= loose
