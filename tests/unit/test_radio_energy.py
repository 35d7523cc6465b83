"""The energy waveform: what an offset, a delay and a phase may not change, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.waveforms.energy import BandEnergies, EnergyWaveform, Mapping

SHORT = EnergyWaveform(plateau_samples=1 << 13)
FULL = (1.0, 1.0)
SILENCE = BandEnergies(0.0, 0.0)
POWER = SHORT.full_power_amplitude**2


def heard(waveform, scalars, rng, *, offsets_hz=None, gains=None):
    """A capture of the plateau of these devices, without noise."""
    positions = np.arange(waveform.plateau_samples)
    capture = np.zeros(waveform.plateau_samples, np.complex128)
    for k, scalar in enumerate(scalars):
        delay = int(rng.integers(waveform.plateau_samples))
        burst = np.roll(waveform.burst(scalar, FULL, rng), delay)
        offset = 0.0 if offsets_hz is None else offsets_hz[k] / waveform.sample_rate_hz
        gain = 1.0 if gains is None else gains[k]
        capture += gain * burst * np.exp(2j * math.pi * (offset * positions + rng.random()))
    return capture.astype(np.complex64)


@pytest.mark.parametrize("mapping", Mapping)
@pytest.mark.parametrize("scalar", [1.0, 0.5, 0.125, -0.25, -1.0])
def test_one_device_is_heard_exactly_but_for_the_window(mapping, scalar):
    waveform = dataclasses.replace(SHORT, mapping=mapping)
    flat = dataclasses.replace(waveform, taper=0.0)
    rng = np.random.default_rng(1)
    capture = heard(waveform, [scalar], rng)
    # Without a window the energy of whole periods is what was put in.
    assert flat.estimate_sum(flat.energies(capture), SILENCE, POWER, 1) == pytest.approx(
        scalar, abs=1e-5
    )
    tapered = waveform.estimate_sum(waveform.energies(capture), SILENCE, POWER, 1)
    assert abs(tapered - scalar) < 6 * math.sqrt((waveform.window_constant - 1) / 1000)


def test_zero_is_silence_in_the_signed_mapping():
    assert not SHORT.burst(0.0, FULL, np.random.default_rng(0)).any()


def test_a_delay_and_a_phase_change_nothing_but_rounding():
    rng = np.random.default_rng(2)
    flat = dataclasses.replace(SHORT, taper=0.0)
    burst = flat.burst(0.6, FULL, rng)
    reference = flat.energies(burst)
    for shift in (1, 777, 4096, 8191):
        moved = (np.roll(burst, shift) * np.exp(1j * shift)).astype(np.complex64)
        assert flat.energies(moved).a == pytest.approx(reference.a, rel=1e-5)
        assert flat.energies(moved).b == pytest.approx(reference.b, abs=1e-8)


@pytest.mark.parametrize("offset_hz", [-22e3, -5e3, 100.0, 22e3])
def test_a_carrier_offset_within_the_guards_moves_no_energy_out_of_the_band(offset_hz):
    rng = np.random.default_rng(3)
    for scalar in (1.0, -1.0):
        still = heard(SHORT, [scalar], np.random.default_rng(4))
        moved = heard(SHORT, [scalar], np.random.default_rng(4), offsets_hz=[offset_hz])
        for band in ("a", "b"):
            got, wanted = (getattr(SHORT.energies(c), band) for c in (moved, still))
            assert got == pytest.approx(wanted, abs=2e-3 * POWER)
    # Negative control: beyond the guards it does.
    far = heard(SHORT, [1.0], rng, offsets_hz=[150e3])
    assert SHORT.energies(far).a < 0.5 * POWER


def test_leakage_of_the_carrier_is_not_heard():
    positions = np.arange(SHORT.plateau_samples)
    for frequency_hz in (0.0, 20e3, -200e3):
        tone = np.exp(2j * math.pi * (frequency_hz / 1e6) * positions).astype(np.complex64)
        energies = SHORT.energies(tone)
        assert max(energies.a, energies.b) < 1e-6


def test_numbers_beyond_the_range_are_sent_as_its_ends():
    assert SHORT.powers(7.0) == (1.0, 0.0)
    assert SHORT.powers(-1e9) == (0.0, 1.0)
    assert SHORT.powers(-0.25) == (0.0, 0.25)
    other = dataclasses.replace(SHORT, mapping=Mapping.SELF_NORMALISED)
    assert other.powers(7.0) == (1.0, 0.0)
    assert other.powers(0.0) == (0.5, 0.5)
    assert other.powers(-0.25) == (0.375, 0.625)


def test_no_burst_exceeds_full_scale_and_its_power_is_the_back_off():
    rng = np.random.default_rng(5)
    close = dataclasses.replace(SHORT, backoff_db=9.5)
    for _ in range(40):
        burst = close.burst(1.0, FULL, rng)
        assert np.max(np.abs(burst)) <= 1.0
        assert np.mean(np.abs(burst) ** 2) == pytest.approx(10**-0.95, rel=1e-5)
    half = SHORT.burst(1.0, (0.5, 1.0), rng)
    assert np.mean(np.abs(half) ** 2) == pytest.approx(0.25 * POWER, rel=1e-5)


def test_phases_are_drawn_again_until_the_peak_fits_and_not_for_ever():
    with pytest.raises(RadioConfigurationError, match="none of 100 random buffers stayed below"):
        dataclasses.replace(SHORT, backoff_db=3.0).burst(1.0, FULL, np.random.default_rng(0))


def test_a_receiver_that_hears_nobody_says_so_where_it_must_divide():
    waveform = dataclasses.replace(SHORT, mapping=Mapping.SELF_NORMALISED)
    noise = BandEnergies(1e-6, 1e-6)
    with pytest.raises(RadioConfigurationError, match="nobody was heard"):
        waveform.estimate_sum(noise, noise, POWER, 3)
    assert SHORT.estimate_sum(noise, noise, POWER, 3) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plateau_samples": 512}, "plateau_samples"),
        ({"first_band_hz": 20e3}, "moved onto the carrier's leakage"),
        ({"bandwidth_hz": 200e3}, "wanted below half of"),
        ({"max_offset_hz": 55e3}, "wanted below half of"),
        ({"plateau_samples": 1024, "bandwidth_hz": 10e3}, "wanted at least 16"),
        ({"taper": 1.5}, "taper"),
        ({"backoff_db": -1.0}, "backoff_db"),
    ],
)
def test_impossible_bands_are_refused(changes, message):
    with pytest.raises(RadioConfigurationError, match=message):
        dataclasses.replace(SHORT, **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.burst(math.nan, FULL, np.random.default_rng(0)), "wanted a finite one"),
        (lambda w: w.burst(1.0, (1.0, 1.5), np.random.default_rng(0)), "amplitude: got 1.5"),
        (lambda w: w.energies(np.zeros(100, np.complex64)), "one period"),
        (lambda w: w.energies(np.full(1 << 13, np.nan, np.complex64)), "capture: sample 0"),
        (lambda w: w.estimate_sum(SILENCE, SILENCE, 0.0, 1), "arrival_power"),
        (lambda w: w.estimate_sum(SILENCE, SILENCE, 1.0, 0), "weight: got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(RadioConfigurationError, match=message):
        call(SHORT)
