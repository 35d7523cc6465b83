"""Packets: read from anywhere, over any carrier they promise, or reported as erased."""

import dataclasses
import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.software_air.impairments import IMPAIRMENTS
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.slotted import SlottedWaveform

WAVEFORM = SlottedWaveform(num_scalars=8)
SHARES = (0.5, -0.25, 1.0, -1.0, 0.0, 3e-5, -0.7071, 0.123456)
STEP = 1 / WAVEFORM.largest_integer


def over_the_air(
    waveform,
    shares,
    *,
    offset_hz=0.0,
    clock_ppm=0.0,
    noise_power=0.0,
    gain=1.0,
    seed=0,
    impairments="ideal",
):
    medium = SoftwareMedium(
        num_devices=1,
        sample_rate_hz=waveform.sample_rate_hz,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
        impairments=IMPAIRMENTS[impairments],
        # One crystal makes both.
        carrier_hz=1e6 * offset_hz / clock_ppm if clock_ppm else math.inf,
    )
    medium.set_gains([gain])
    medium.set_carrier_offsets_hz([offset_hz])
    medium.hold(0, waveform.modulate(shares, 1.0, sender=3, round_index=7))
    return medium.listen(waveform.capture_samples)


def read(waveform, capture, sender=3, round_index=7):
    return waveform.demodulate(capture, sender=sender, round_index=round_index)


@pytest.mark.parametrize("offset_hz", [0.0, 100.0, -20e3, 46e3, -46e3])
@pytest.mark.parametrize("seed", range(5))
def test_a_packet_is_read_from_anywhere_over_any_carrier(offset_hz, seed):
    capture = over_the_air(WAVEFORM, SHARES, offset_hz=offset_hz, seed=seed)
    assert read(WAVEFORM, capture) == pytest.approx(SHARES, abs=0.5 * STEP)


@pytest.mark.parametrize("clock_ppm", [-48.0, -24.0, 24.0, 60.0])
@pytest.mark.parametrize("num_scalars", [1, 64, 256])
def test_long_packets_of_another_clock_are_read(num_scalars, clock_ppm):
    """40 of 40; without following the clock 15 of those of 256 numbers are lost at 48 ppm."""
    waveform = SlottedWaveform(num_scalars=num_scalars)
    shares = np.random.default_rng(1).uniform(-1, 1, num_scalars)
    for seed in range(40):
        capture = over_the_air(
            waveform, shares, offset_hz=915 * clock_ppm / 3, clock_ppm=clock_ppm, seed=seed,
            noise_power=0.5,
        )  # fmt: skip
        np.testing.assert_allclose(read(waveform, capture), shares, atol=0.51 * STEP)


def test_following_a_clock_costs_no_packets():
    """As often erased as the formula says, with and without a clock to follow."""
    waveform = SlottedWaveform(num_scalars=64)
    shares = np.random.default_rng(1).uniform(-1, 1, 64)
    ratio = 10.0
    noise_power = waveform.samples_per_symbol / ratio
    for clock_ppm in (0.0, 48.0):
        erased = sum(
            read(
                waveform,
                over_the_air(
                    waveform, shares, noise_power=noise_power, seed=seed, offset_hz=9e3,
                    clock_ppm=clock_ppm,
                ),
            )
            is None
            for seed in range(400)
        )  # fmt: skip
        low, high = (
            400 * waveform.erasure_probability(ratio * 10 ** (shift / 10)) for shift in (0.0, -1.0)
        )
        assert low - 5 * np.sqrt(low) - 1 <= erased <= high + 5 * np.sqrt(high) + 1


@pytest.mark.parametrize("name", ["desk-cabled", "pluto-stock", "uncorrected"])
def test_a_packet_is_read_through_what_radios_do_to_it(name):
    capture = over_the_air(
        WAVEFORM, SHARES, offset_hz=-18e3, noise_power=0.05, gain=0.9j, impairments=name
    )
    assert read(WAVEFORM, capture) == pytest.approx(SHARES, abs=0.5 * STEP)


@pytest.mark.parametrize("num_scalars", [1, 3, 256])
@pytest.mark.parametrize("bits", [2, 12, 32])
def test_numbers_come_back_as_the_nearest_step(num_scalars, bits):
    waveform = SlottedWaveform(num_scalars=num_scalars, bits=bits)
    shares = np.random.default_rng(bits).uniform(-1, 1, num_scalars)
    got = read(waveform, over_the_air(waveform, shares))
    np.testing.assert_allclose(got, shares, atol=0.5000001 / waveform.largest_integer)


def test_beyond_the_range_is_its_end_and_zero_is_zero():
    waveform = SlottedWaveform(num_scalars=3)
    assert read(waveform, over_the_air(waveform, (7.0, -1e9, 0.0))) == (1.0, -1.0, 0.0)


def test_every_sample_has_the_ordered_amplitude():
    packet = WAVEFORM.modulate(SHARES, 0.25, sender=0, round_index=0)
    np.testing.assert_allclose(np.abs(packet), 0.25, rtol=1e-6)
    assert packet.size == WAVEFORM.packet_samples == (64 + 8 * 16 + 32) * 8
    assert WAVEFORM.max_slip_samples == 1
    assert WAVEFORM.airtime_s == pytest.approx((2 * packet.size + 2) / 1e6)


def test_a_packet_of_another_sender_or_round_is_an_erasure():
    capture = over_the_air(WAVEFORM, SHARES)
    assert read(WAVEFORM, capture) is not None
    assert read(WAVEFORM, capture, sender=2) is None
    assert read(WAVEFORM, capture, round_index=6) is None


def test_noise_and_silence_are_erasures_and_nothing_is_ever_misread():
    rng = np.random.default_rng(5)
    silence = np.zeros(WAVEFORM.capture_samples, dtype=np.complex64)
    assert read(WAVEFORM, silence) is None
    wrong = 0
    for seed in range(300):
        capture = over_the_air(WAVEFORM, SHARES, noise_power=4.0, seed=seed)
        got = read(WAVEFORM, capture)
        wrong += got is not None and got != pytest.approx(SHARES, abs=0.5 * STEP)
        noise = rng.standard_normal((2, silence.size)).astype(np.float32)
        wrong += read(WAVEFORM, (noise[0] + 1j * noise[1]).astype(np.complex64)) is not None
    assert wrong == 0


@pytest.mark.parametrize("symbol_to_noise_db", [6.0, 7.0, 8.0])
def test_packets_are_erased_as_often_as_the_formula_says(symbol_to_noise_db):
    """400 packets; the count is binomial, five deviations and a few tenths of a dB of place."""
    ratio = 10 ** (symbol_to_noise_db / 10)
    noise_power = WAVEFORM.samples_per_symbol / ratio
    erased = sum(
        read(WAVEFORM, over_the_air(WAVEFORM, SHARES, noise_power=noise_power, seed=seed)) is None
        for seed in range(400)
    )
    low, high = (
        400 * WAVEFORM.erasure_probability(ratio * 10 ** (shift / 10)) for shift in (0.0, -0.7)
    )
    assert low - 5 * np.sqrt(low) - 1 <= erased <= high + 5 * np.sqrt(high) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_scalars": 0}, "num_scalars: got 0"),
        ({"num_scalars": 257}, "wanted at most 256"),
        ({"bits": 1}, "bits: got 1"),
        ({"bits": 33}, "wanted at most 256 of 32"),
        ({"samples_per_symbol": 3}, "samples_per_symbol: got 3"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz: got 0.0"),
        ({"max_offset_hz": 70e3}, "wanted below half of the symbol rate"),
        ({"centre_hz": 100e3}, "centre_hz: got 100000"),
        ({"centre_hz": 400e3}, "centre_hz: got 400000"),
    ],
)
def test_impossible_packets_are_refused(changes, message):
    with pytest.raises(RadioConfigurationError, match=message):
        dataclasses.replace(WAVEFORM, **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.modulate(SHARES[:3], 1.0, sender=0, round_index=0), "got 3 numbers, wanted 8"),
        (lambda w: w.modulate(SHARES, 1.1, sender=0, round_index=0), "amplitude: got 1.1"),
        (
            lambda w: w.modulate((np.nan,) * 8, 1.0, sender=0, round_index=0),
            "wanted a finite one",
        ),
        (lambda w: read(w, np.zeros(10, np.complex64)), "two periods of a packet"),
        (lambda w: read(w, np.full(w.capture_samples, np.nan, np.complex64)), "sample 0 is"),
        (lambda w: w.check_offset(50e3), "packets are read within 46000 Hz"),
        (lambda w: w.check_clock(-61.0), "up to -61 ppm, packets are read within 60 ppm"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(RadioConfigurationError, match=message):
        call(WAVEFORM)
