"""The energy waveform: what an offset, a delay and a phase may not change, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.waveforms.energy import EnergyWaveform, Mapping

SHORT = EnergyWaveform(plateau_samples=1 << 13)
WIDE = EnergyWaveform(sample_rate_hz=5e6, plateau_samples=1 << 15, num_scalars=4)
BOTH = pytest.mark.parametrize("waveform", [SHORT, WIDE], ids=["one", "four"])
NUMBERS = {1: [-0.25], 4: [0.5, -0.25, 0.0, 0.125]}


def silence_of(waveform):
    return np.zeros((waveform.num_scalars, 2))


def power_of(waveform):
    return float(waveform.arrival_power(1.0))


def heard(waveform, numbers, rng, *, offsets_hz=None, gains=None):
    """A capture of the plateau of these devices, without noise."""
    positions = np.arange(waveform.plateau_samples)
    capture = np.zeros(waveform.plateau_samples, np.complex128)
    for k, own in enumerate(numbers):
        delay = int(rng.integers(waveform.plateau_samples))
        burst = np.roll(waveform.burst(own, 1.0, rng).samples, delay)
        offset = 0.0 if offsets_hz is None else offsets_hz[k] / waveform.sample_rate_hz
        gain = 1.0 if gains is None else gains[k]
        capture += gain * burst * np.exp(2j * math.pi * (offset * positions + rng.random()))
    return capture.astype(np.complex64)


@pytest.mark.parametrize("mapping", Mapping)
@BOTH
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_one_device_is_heard_exactly_but_for_the_window(waveform, mapping, scale):
    waveform = dataclasses.replace(waveform, mapping=mapping)
    flat = dataclasses.replace(waveform, taper=0.0)
    numbers = scale * np.array(NUMBERS[waveform.num_scalars])
    capture = heard(waveform, [numbers], np.random.default_rng(1))
    silence, power = silence_of(waveform), power_of(waveform)
    # Without a window the energy of whole periods is what was put in.
    exact = flat.estimate_sums(flat.energies(capture), silence, power, 1)
    np.testing.assert_allclose(exact, numbers, atol=1e-5)
    tapered = waveform.estimate_sums(waveform.energies(capture), silence, power, 1)
    limit = 6 * math.sqrt((waveform.window_constant - 1) / waveform.num_bins)
    assert np.abs(tapered - numbers).max() < limit


def test_zero_is_silence_in_the_signed_mapping():
    assert not SHORT.burst([0.0], 1.0, np.random.default_rng(0)).samples.any()


@BOTH
def test_a_delay_and_a_phase_change_nothing_but_rounding(waveform):
    flat = dataclasses.replace(waveform, taper=0.0)
    numbers = NUMBERS[waveform.num_scalars]
    burst = flat.burst(numbers, 1.0, np.random.default_rng(2)).samples
    reference = flat.energies(burst)
    for shift in (1, 777, 4096, 8191):
        moved = (np.roll(burst, shift) * np.exp(1j * shift)).astype(np.complex64)
        np.testing.assert_allclose(flat.energies(moved), reference, rtol=1e-5, atol=1e-8)


@BOTH
@pytest.mark.parametrize("offset_hz", [-22e3, -5e3, 100.0, 22e3])
def test_a_carrier_offset_within_the_guards_moves_no_energy_out_of_its_band(waveform, offset_hz):
    numbers = np.array(NUMBERS[waveform.num_scalars])
    for sign in (1.0, -1.0):
        still = heard(waveform, [sign * numbers], np.random.default_rng(4))
        moved = heard(waveform, [sign * numbers], np.random.default_rng(4), offsets_hz=[offset_hz])
        got, wanted = waveform.energies(moved), waveform.energies(still)
        assert np.abs(got - wanted).max() < 2e-3 * power_of(waveform)
    # Negative control: beyond the guards it does.
    beyond = 0.4 * waveform.bandwidth_hz
    far = heard(waveform, [numbers], np.random.default_rng(3), offsets_hz=[beyond])
    lost = np.abs(waveform.energies(far) - waveform.energies(still)).max()
    assert lost > 0.05 * power_of(waveform)


@BOTH
def test_leakage_of_the_carrier_is_not_heard(waveform):
    positions = np.arange(waveform.plateau_samples)
    for frequency_hz in (0.0, 20e3, -20e3):
        turns = frequency_hz / waveform.sample_rate_hz * positions
        tone = np.exp(2j * math.pi * turns).astype(np.complex64)
        assert waveform.energies(tone).max() < 1e-6


@BOTH
@pytest.mark.parametrize("image_db", [-43.0, -23.0])
def test_an_image_makes_a_number_smaller_and_touches_no_other(waveform, image_db):
    """A mixer out of balance: y = x + r conj(x), the spectrum and its mirror."""
    flat = dataclasses.replace(waveform, taper=0.0)
    numbers = np.array(NUMBERS[waveform.num_scalars])
    burst = flat.burst(numbers, 1.0, np.random.default_rng(6)).samples
    pilot = flat.pilot(1.0, np.random.default_rng(7))
    image = 10.0 ** (image_db / 20.0)
    heard_of_it = flat.energies((burst + image * np.conj(burst)).astype(np.complex64))
    sums = flat.estimate_sums(heard_of_it, silence_of(flat), power_of(flat), 1)
    np.testing.assert_allclose(sums, (1.0 - image**2) * numbers, atol=2e-5)
    # Pilots fill both sides: they arrive louder, and a little by how image and band interfere.
    louder = flat.energies((pilot + image * np.conj(pilot)).astype(np.complex64))
    sent = flat.energies(pilot)
    assert louder.sum() / sent.sum() == pytest.approx(1.0 + image**2, abs=0.1 * image)


def test_numbers_beyond_the_range_are_sent_as_its_ends():
    assert SHORT.powers([7.0]).tolist() == [[1.0, 0.0]]
    assert SHORT.powers([-1e9]).tolist() == [[0.0, 1.0]]
    assert WIDE.powers([-0.25, 3.0, 0.0, 0.5]).tolist() == [
        [0.0, 0.25], [1.0, 0.0], [0.0, 0.0], [0.5, 0.0],
    ]  # fmt: skip
    other = dataclasses.replace(WIDE, mapping=Mapping.SELF_NORMALISED)
    assert other.powers([7.0, 0.0, -0.25, 1.0]).tolist() == [
        [1.0, 0.0], [0.5, 0.5], [0.375, 0.625], [1.0, 0.0],
    ]  # fmt: skip


def test_bands_lie_side_by_side_mirrored_with_their_guards_and_a_hole():
    bins = WIDE.bands_in_bins(guarded=True)
    width, size = WIDE.num_guarded_bins, WIDE.plateau_samples
    taken = np.zeros(size, int)
    for first in bins.ravel().tolist():
        taken[first : first + width] += 1
    assert taken.max() == 1  # nothing twice
    positive = np.flatnonzero(taken[: size // 2])
    negative = size - np.flatnonzero(taken[size // 2 :]) - size // 2
    assert sorted(negative.tolist()) == positive.tolist()
    assert positive.min() * WIDE.bin_hz >= WIDE.first_band_hz - WIDE.max_offset_hz - WIDE.bin_hz
    assert positive.max() <= 0.9 * size / 2
    assert not taken[WIDE.empty_bins].any()
    low, high = WIDE.edges_hz(2)
    assert high - low == pytest.approx(WIDE.bandwidth_hz)
    assert round(low / WIDE.bin_hz) == WIDE.bands_in_bins()[2, 0]
    # Eight numbers at 20 MS/s: the widths of the frames that were studied.
    eight = EnergyWaveform(sample_rate_hz=20e6, plateau_samples=1 << 17, num_scalars=8)
    assert 7000 <= eight.num_bins <= 7100
    assert eight.plateau_s == pytest.approx(6.55e-3, rel=1e-3)


@BOTH
def test_no_burst_exceeds_full_scale_and_its_power_is_the_back_off(waveform):
    rng = np.random.default_rng(5)
    numbers = np.zeros(waveform.num_scalars)
    numbers[0] = 1.0
    for _ in range(20):
        burst, scale = waveform.burst(numbers, 1.0, rng)
        assert scale == 1.0
        assert np.max(np.abs(burst)) <= 1.0
        assert np.mean(np.abs(burst) ** 2) == pytest.approx(power_of(waveform), rel=1e-5)
    levels = np.tile([0.5, 1.0], (waveform.num_scalars, 1))
    half = waveform.burst(numbers, levels, rng).samples
    assert np.mean(np.abs(half) ** 2) == pytest.approx(0.25 * power_of(waveform), rel=1e-5)
    assert np.mean(np.abs(waveform.pilot(1.0, rng)) ** 2) == pytest.approx(10**-1.2, rel=1e-5)


def test_numbers_that_are_large_together_go_out_smaller_by_one_factor_that_is_told():
    numbers = np.array([1.0, -1.0, 0.5, 1.0])
    flat = dataclasses.replace(WIDE, taper=0.0)
    for amplitude in (1.0, 0.3):
        burst, scale = flat.burst(numbers, amplitude, np.random.default_rng(8))
        assert 0.3 < scale < 1.0
        assert np.max(np.abs(burst)) <= amplitude
        arrival = flat.arrival_power(amplitude)
        sums = flat.estimate_sums(flat.energies(burst), silence_of(flat), arrival, scale)
        np.testing.assert_allclose(sums, scale * numbers, atol=1e-5)


def test_votes_share_full_power_and_need_no_factor():
    votes = dataclasses.replace(WIDE, are_votes=True)
    burst, scale = votes.burst([1.0, -1.0, 1.0, 1.0], 1.0, np.random.default_rng(9))
    assert scale == 1.0
    assert np.mean(np.abs(burst) ** 2) == pytest.approx(10**-1.2, rel=1e-5)
    assert power_of(votes) == pytest.approx(10**-1.2 / 4)


def test_pilots_that_peak_above_full_scale_are_drawn_again_and_not_for_ever():
    with pytest.raises(RadioConfigurationError, match="none of 8 pilots stayed below"):
        dataclasses.replace(SHORT, backoff_db=3.0).pilot(1.0, np.random.default_rng(0))


@BOTH
def test_a_receiver_that_hears_nobody_says_so_where_it_must_divide(waveform):
    divides = dataclasses.replace(waveform, mapping=Mapping.SELF_NORMALISED)
    noise, power = np.full((waveform.num_scalars, 2), 1e-6), power_of(waveform)
    with pytest.raises(RadioConfigurationError, match="nobody was heard"):
        divides.estimate_sums(noise, noise, power, 3)
    assert not waveform.estimate_sums(noise, noise, power, 3).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plateau_samples": 512}, "plateau_samples"),
        ({"first_band_hz": 20e3}, "moved onto the carrier's leakage"),
        ({"max_offset_hz": 55e3, "num_scalars": 4}, "At that rate 3 fit; for 4 take 1.*e.06"),
        ({"num_scalars": 9}, "9 numbers need two bands each.* At that rate 8 fit; for 9 take"),
        ({"num_scalars": 0}, "num_scalars"),
        ({"num_scalars": 257}, "num_scalars"),
        ({"sample_rate_hz": 1.5e5}, "At that rate 0 fit"),
        ({"plateau_samples": 1024}, "leave 0 bins to a band|leave .* bins to a band"),
        ({"taper": 1.5}, "taper"),
        ({"used_share": 1.5}, "used_share"),
        ({"backoff_db": -1.0}, "backoff_db"),
    ],
)
def test_impossible_bands_are_refused(changes, message):
    few = {"num_scalars": 8} if "plateau_samples" in changes else {}
    with pytest.raises(RadioConfigurationError, match=message):
        dataclasses.replace(SHORT, **few, **changes)


def test_what_the_refusal_advises_is_taken():
    """As many numbers as it says, and at the rate that it names."""
    with pytest.raises(RadioConfigurationError) as refused:
        dataclasses.replace(SHORT, num_scalars=20)
    words = str(refused.value).split()
    fits = int(words[words.index("fit;") - 1])
    rate_hz = float(words[words.index("take") + 1].rstrip(","))
    dataclasses.replace(SHORT, num_scalars=fits)
    with pytest.raises(RadioConfigurationError):
        dataclasses.replace(SHORT, num_scalars=fits + 1)
    dataclasses.replace(SHORT, num_scalars=20, sample_rate_hz=rate_hz)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.burst([math.nan], 1.0, np.random.default_rng(0)), "wanted finite ones"),
        (lambda w: w.burst([1.0, 1.0], 1.0, np.random.default_rng(0)), r"wanted \(1,\)"),
        (lambda w: w.burst([1.0], 1.5, np.random.default_rng(0)), r"amplitude: got .*1\.5"),
        (lambda w: w.energies(np.zeros(100, np.complex64)), "one period"),
        (lambda w: w.energies(np.full(1 << 13, np.nan, np.complex64)), "capture: sample 0"),
        (lambda w: w.estimate_sums(np.ones((1, 2)), np.ones((1, 2)), 0.0, 1), "arrival_power"),
        (lambda w: w.estimate_sums(np.ones((1, 2)), np.ones((1, 2)), 1.0, 0), "weights: got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(RadioConfigurationError, match=message):
        call(SHORT)
