"""Packets side by side: each at its place, whatever its neighbours do, or reported as erased."""

import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.software_air.impairments import IMPAIRMENTS
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.energy_bands import USED_SHARE
from radio.waveforms.side_by_side import (
    MAX_DEVICES,
    PacketsSideBySide,
    Slots,
    packets_of,
)
from radio.waveforms.slotted import SlottedWaveform

Q = 4
FIVE = PacketsSideBySide(5, Q)


def numbers_of(waveform, seed=0):
    shape = (waveform.num_devices, waveform.num_scalars)
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def over_the_air(
    waveform, *, gains=1.0, offsets_hz=0.0, noise_power=0.0, seed=0, impairments="ideal", silent=()
):
    """A capture while everybody but the silent holds, in round 7."""
    count = waveform.num_devices
    medium = SoftwareMedium(
        num_devices=count,
        sample_rate_hz=waveform.sample_rate_hz,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
        impairments=IMPAIRMENTS[impairments],
        carrier_hz=915e6,
    )
    medium.set_gains(np.broadcast_to(np.asarray(gains, dtype=complex), count))
    medium.set_carrier_offsets_hz(np.broadcast_to(np.asarray(offsets_hz, dtype=float), count))
    for k, own in enumerate(numbers_of(waveform)):
        if k not in silent:
            medium.hold(k, waveform.modulate(own.tolist(), 1.0, sender=k, round_index=7))
    return medium.listen(waveform.capture_samples)


def lost(waveform, capture, round_index=7):
    """Who was not read; what was read is checked."""
    everybody = range(waveform.num_devices)
    packets = waveform.demodulate(capture, everybody, round_index=round_index)
    for own, packet in zip(numbers_of(waveform), packets, strict=True):
        if packet is not None:
            np.testing.assert_allclose(packet, own, atol=0.51 / waveform.largest_integer)
    return [k for k, packet in enumerate(packets) if packet is None]


@pytest.mark.parametrize("num_devices", [1, 2, 5, 20, 58])
def test_everybody_is_read_over_carriers_as_far_off_as_they_may_be(num_devices):
    waveform = PacketsSideBySide(num_devices, Q)
    rng = np.random.default_rng(num_devices)
    for seed in range(3):
        ends_hz = rng.choice([-46e3, 46e3, 0.0, 31e3], num_devices)
        gains = np.exp(2j * np.pi * rng.uniform(size=num_devices))
        capture = over_the_air(waveform, offsets_hz=ends_hz, gains=gains, seed=seed)
        assert lost(waveform, capture) == []


def test_a_device_is_read_beside_neighbours_10000_times_as_strong():
    """Ideal radios; carriers of neighbours turned towards it as far as they may be."""
    gains = np.where(np.arange(5) == 2, 1e-2, 1.0)  # device 2 stands outside of 0, beside 4
    towards = [46e3, 0.0, 0.0, 0.0, -46e3]
    capture = over_the_air(FIVE, gains=gains, offsets_hz=towards)
    assert lost(FIVE, capture) == []
    # Rectangles, as they are sent one after another, would spill over it.
    plain = sum(
        gains[k]
        * np.resize(
            np.repeat(
                FIVE.packet.modulate(own.tolist(), 1.0, sender=k, round_index=7)
                * np.exp(-2j * np.pi * 0.25 * np.arange(FIVE.packet.packet_samples)),
                FIVE.decimation,
            ),
            FIVE.capture_samples,
        )
        * np.exp(2j * np.pi * FIVE.place_hz(k) / 20e6 * np.arange(FIVE.capture_samples))
        for k, own in enumerate(numbers_of(FIVE))
    )
    assert 2 in lost(FIVE, plain.astype(np.complex64))


def test_an_image_of_a_loud_device_is_what_the_formula_leaves_out():
    """Device 3 stands where the image of device 2 falls, 43 dB below it."""
    mirrored = FIVE.place_hz(2), FIVE.place_hz(3)
    assert mirrored[0] == -mirrored[1]
    for ratio_db, is_lost in ((25.0, []), (50.0, [3])):
        gains = np.where(np.arange(5) == 3, 10 ** (-ratio_db / 20), 1.0)
        capture = over_the_air(FIVE, gains=gains, impairments="pluto-stock")
        assert lost(FIVE, capture) == is_lost


def test_no_power_leaves_a_place_and_no_sample_the_scale():
    rng = np.random.default_rng(3)
    half_hz = FIVE.packet.sample_rate_hz / 8
    for device in range(5):
        for _ in range(20):
            shares = rng.choice([-1.0, 1.0, rng.uniform(-1, 1)], Q).tolist()
            packet = FIVE.modulate(shares, 1.0, sender=device, round_index=1)
            assert packet.shape == (FIVE.packet_samples,)
            assert np.abs(packet).max() <= 1.0 + 1e-6
            assert np.mean(np.square(np.abs(packet))) == pytest.approx(FIVE.mean_power, rel=0.04)
        power = np.square(np.abs(np.fft.fft(packet)))
        away_hz = np.abs(np.fft.fftfreq(packet.size, 1 / 20e6) - FIVE.place_hz(device))
        assert power[away_hz > half_hz].sum() < 1e-10 * power.sum()
    half = FIVE.modulate(shares, 0.5, sender=4, round_index=1)
    np.testing.assert_allclose(half, 0.5 * packet, atol=1e-6)


def test_the_worst_packet_reaches_full_scale():
    """The bound is no looser than it has to be: alternating symbols that agree at one place."""
    assert FIVE.peak_factor == pytest.approx(1.36, abs=0.01)
    rng = np.random.default_rng(0)
    largest = max(
        np.abs(FIVE.modulate(rng.uniform(-1, 1, Q).tolist(), 1.0, sender=0, round_index=i)).max()
        for i in range(50)
    )
    assert largest > 0.97


@pytest.mark.parametrize("snr_db", [-1.0, 0.0, 1.5])
def test_erasures_are_as_often_as_the_formula_says(snr_db):
    noise_power, trials = 10 ** (-snr_db / 10), 60
    erased = sum(
        len(lost(FIVE, over_the_air(FIVE, noise_power=noise_power, seed=seed, offsets_hz=9e3)))
        for seed in range(trials)
    )
    # Place and turn are taken for known, and neighbours leave a little of one another: 1 dB.
    low, high = (
        5 * trials * FIVE.erased_share(10 ** ((snr_db - worse_db) / 10)) for worse_db in (0.0, 1.0)
    )
    assert low - 4 * math.sqrt(low) <= erased <= high + 4 * math.sqrt(high)


def test_who_is_silent_another_round_and_another_sender_are_erasures():
    capture = over_the_air(FIVE, noise_power=0.1, silent=(1, 4))
    assert lost(FIVE, capture) == [1, 4]
    assert lost(FIVE, capture, round_index=8) == [0, 1, 2, 3, 4]
    assert FIVE.demodulate(capture, [2], round_index=7) != [None]
    assert FIVE.demodulate(capture, [], round_index=7) == []


@pytest.mark.parametrize(("num_devices", "decimation"), [(1, 1), (2, 1), (3, 2), (6, 2), (50, 22)])
def test_packets_are_as_fast_as_their_places_are_wide(num_devices, decimation):
    waveform = PacketsSideBySide(num_devices, 8)
    assert waveform.decimation == decimation
    places = [waveform.place_hz(k) for k in range(num_devices)]
    outermost = max(map(abs, places)) + waveform.packet.sample_rate_hz / 8 + 46e3
    assert outermost <= USED_SHARE * waveform.sample_rate_hz / 2 == 9e6
    assert waveform.airtime_of_round_s(num_devices) == waveform.airtime_s < 5e-3


def test_in_as_much_spectrum_it_takes_as_long_as_packets_in_time():
    """Within what offsets' guards, slopes and the ends of captures cost: a factor of four."""
    for num_devices in (2, 5, 20):
        in_time = packets_of(Slots.TIME, num_devices=num_devices, num_scalars=8, sample_rate_hz=2e7)
        assert isinstance(in_time, SlottedWaveform)
        at_once = packets_of(
            Slots.FREQUENCY, num_devices=num_devices, num_scalars=8, sample_rate_hz=2e7
        )
        ratio = at_once.airtime_s / in_time.airtime_of_round_s(num_devices)
        assert 0.2 < ratio < 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PacketsSideBySide(59, Q), "got 59 devices, and 58 find a place"),
        (lambda: PacketsSideBySide(2, Q, sample_rate_hz=5e5), "0 find a place"),
        (lambda: PacketsSideBySide(0, Q), "num_devices"),
        (lambda: PacketsSideBySide(MAX_DEVICES + 1, Q, max_offset_hz=0.0), "num_devices"),
        (lambda: PacketsSideBySide(5, 300), "at most 256"),
        (lambda: PacketsSideBySide(5, Q, sample_rate_hz=math.inf), "sample_rate_hz"),
        (lambda: FIVE.modulate([0.0] * Q, 1.0, sender=5, round_index=0), "got device 5"),
        (lambda: FIVE.modulate([0.0] * Q, 1.1, sender=0, round_index=0), "amplitude"),
        (lambda: FIVE.modulate([math.nan] * Q, 1.0, sender=0, round_index=0), "finite"),
        (lambda: FIVE.demodulate(np.zeros(9, np.complex64), [0], round_index=0), "shape"),
        (
            lambda: FIVE.separated(np.full(FIVE.capture_samples, np.nan, np.complex64), [0]),
            "finite",
        ),
        (lambda: FIVE.check_offset(50e3), "46000 Hz"),
        (lambda: FIVE.check_clock(70.0), "60 ppm"),
        (lambda: FIVE.check_can_be_read(0.01), "would be erased"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(RadioConfigurationError, match=message):
        wrong()


def test_without_guards_there_is_room_for_all():
    """Whatever the number of devices, if their carriers agree."""
    assert PacketsSideBySide(MAX_DEVICES, 1, max_offset_hz=0.0).decimation < MAX_DEVICES
