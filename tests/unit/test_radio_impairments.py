"""Impairments: every one is measured in the samples, and switched off is switched off."""

import dataclasses
import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.software_air.impairments import IMPAIRMENTS, Crystals, Impairments, impairments_from_name
from radio.software_air.medium import SoftwareMedium

RATE_HZ = 1e6
SIZE = 1 << 14
IDEAL = Impairments()


def make_medium(impairments, num_devices=1, noise_power=0.0, seed=0):
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=RATE_HZ,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
        impairments=impairments,
    )
    medium.set_gains(np.ones(num_devices))
    return medium


def tone(bin_index, amplitude=0.5):
    samples = np.exp(2j * np.pi * bin_index * np.arange(SIZE) / SIZE)
    return (amplitude * samples).astype(np.complex64)


def lines(capture):
    """Amplitude at every bin."""
    return np.abs(np.fft.fft(capture.astype(np.complex128))) / capture.size


def heard(burst, **impairments):
    medium = make_medium(Impairments(**impairments))
    medium.add(0, burst, 0)
    return medium.capture(0, burst.size)


def db(amplitude):
    return 20 * math.log10(amplitude)


def test_nothing_switched_on_changes_no_bit():
    burst = tone(100)
    assert heard(burst).tobytes() == burst.tobytes()
    assert not IDEAL.tells_devices_apart


def test_both_mixers_put_an_image_on_the_other_side_of_the_carrier():
    spectrum = lines(heard(tone(300), iq_gain_db=1.0, iq_phase_deg=4.0))
    ratio = 10 ** (1.0 / 20) * np.exp(1j * math.radians(4.0))
    kept, image = abs(1 + ratio) / 2, abs(1 - ratio) / 2
    # Transmitter and receiver, each of them once: images of the first order add up in phase here.
    a, b = (1 + ratio) / 2, (1 - np.conj(ratio)) / 2
    assert spectrum[300] == pytest.approx(0.5 * abs(a * a + b * np.conj(b)), rel=1e-4)
    assert spectrum[-300] == pytest.approx(0.5 * abs(a * b + b * np.conj(a)), rel=1e-4)
    assert spectrum[-300] > 1.5 * 0.5 * image / kept
    assert lines(heard(tone(300), iq_gain_db=0.0))[-300] < 1e-6


def test_leakage_is_a_line_at_the_transmitters_carrier_that_silence_does_not_end():
    medium = make_medium(Impairments(leakage_db=-30.0), num_devices=2)
    medium.set_carrier_offsets_hz([RATE_HZ * 64 / SIZE, RATE_HZ * -32 / SIZE])
    medium.hold(0, tone(500))
    medium.fall_silent(0)
    spectrum = lines(medium.listen(SIZE))
    assert db(spectrum[64]) == pytest.approx(-30.0, abs=0.01)
    assert db(spectrum[-32]) == pytest.approx(-30.0, abs=0.01)
    medium.hold(1, tone(500))
    spectrum = lines(medium.listen(SIZE))
    assert db(spectrum[-32]) == pytest.approx(-30.0, abs=0.01)
    assert spectrum[500 - 32] == pytest.approx(0.5, rel=1e-4)
    # At positions too.
    medium.fall_silent(1)
    assert db(lines(medium.capture(0, SIZE))[64]) == pytest.approx(-30.0, abs=0.01)


def test_dc_offset_is_a_line_at_the_receivers_own_carrier():
    spectrum = lines(heard(tone(500), dc_offset_db=-40.0))
    assert db(spectrum[0]) == pytest.approx(-40.0, abs=0.01)


@pytest.mark.parametrize("saturation_db", [0.0, 6.0])
def test_the_amplifier_compresses_as_rapps_formula_says_and_makes_third_order_products(
    saturation_db,
):
    saturation = 10 ** (saturation_db / 20)
    for amplitude in (0.1, 0.7, 1.0):
        got = np.abs(heard(tone(10, amplitude), pa_saturation_db=saturation_db))
        wanted = amplitude / (1 + (amplitude / saturation) ** 4) ** 0.25
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    two = tone(300, 0.5) + tone(340, 0.5)
    spectrum = lines(heard(two, pa_saturation_db=saturation_db))
    assert spectrum[380] > 10 * spectrum[382]
    assert lines(heard(two))[380] < 1e-6


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_converters_have_that_many_levels_and_the_noise_of_their_steps(bits):
    rng = np.random.default_rng(bits)
    burst = (rng.uniform(-0.9, 0.9, SIZE) + 1j * rng.uniform(-0.9, 0.9, SIZE)).astype(np.complex64)
    burst /= np.float32(math.sqrt(2))
    for name, full_scale in (("dac", 1.0), ("adc", 2.0)):
        options = {"adc_full_scale_db": db(2.0)} if name == "adc" else {}
        capture = heard(burst, **{f"{name}_bits": bits}, **options)
        step = full_scale / 2 ** (bits - 1)
        parts = capture.view(np.float32)
        np.testing.assert_allclose(parts / step, np.round(parts / step), atol=1e-3)
        error = np.mean(np.abs(capture - burst) ** 2)
        assert error == pytest.approx(2 * step**2 / 12, rel=0.1)


def test_the_receivers_converter_clips_at_its_full_scale():
    medium = make_medium(Impairments(adc_bits=10, adc_full_scale_db=0.0), num_devices=3)
    for device in range(3):
        medium.add(device, tone(100 * (device + 1), 1.0), 0)
    parts = medium.capture(0, SIZE).view(np.float32)
    assert parts.max() == 1.0 - 2.0**-9
    assert parts.min() == -1.0
    assert np.mean(parts == parts.max()) > 0.1


@pytest.mark.parametrize("linewidth_hz", [10.0, 1000.0])
def test_an_oscillators_phase_wanders_as_its_linewidth_says(linewidth_hz):
    """Var(psi(n + m) - psi(n)) = 2 pi linewidth m / rate, from two oscillators."""
    increments = []
    for seed in range(20):
        medium = make_medium(Impairments(linewidth_hz=linewidth_hz), seed=seed)
        medium.hold(0, np.ones(4, dtype=np.complex64))
        phase = np.unwrap(np.angle(medium.listen(SIZE)))
        increments.append(np.diff(phase[::64]))
    variance = np.var(increments)
    assert variance == pytest.approx(2 * 2 * np.pi * linewidth_hz * 64 / RATE_HZ, rel=0.1)


def test_a_frame_comes_later_by_one_delay_and_every_frame_by_another():
    medium = make_medium(Impairments(timing_offset_s=1e-4), num_devices=2)
    burst = np.arange(1, 6).astype(np.complex64)
    delays = []
    for seed in range(40):
        medium.begin_round(np.random.default_rng(seed))
        medium.add(0, burst, 10)
        first, again = medium.capture(0, 200), medium.capture(0, 200)
        assert first.tobytes() == again.tobytes()
        delays.append(int(np.flatnonzero(first)[0]) - 10)
    assert min(delays) >= 0
    assert max(delays) <= 100
    assert len(set(delays)) > 20


def test_noise_is_as_strong_as_it_says_beside_everything_else():
    medium = make_medium(IMPAIRMENTS["pluto-stock"], noise_power=1e-2)
    capture = medium.listen(1 << 18)
    spectrum = lines(capture) ** 2
    assert np.sum(spectrum[1000:]) == pytest.approx(1e-2, rel=0.02)


def test_a_frame_with_every_impairment_can_be_heard_again():
    captures = []
    for _ in range(2):
        medium = make_medium(IMPAIRMENTS["worst"], num_devices=3, noise_power=1e-3)
        medium.set_carrier_offsets_hz([5e3, -9e3, 100.0])
        medium.begin_round(np.random.default_rng(4))
        for device in (2, 0):
            medium.hold(device, tone(50 * (device + 1), 0.3))
        captures.append([medium.listen(1000).tobytes() for _ in range(2)])
    assert captures[0] == captures[1]
    assert captures[0][0] != captures[0][1]


def crystals(impairments, num_devices=20, seed=0):
    return Crystals(impairments, 915e6, num_devices, np.random.default_rng(seed))


def test_carriers_lie_within_twice_the_crystals_error_and_share_the_receivers():
    impairments = Impairments(crystal_ppm=10.0)
    sets = [crystals(impairments, seed=seed).offsets_hz(0) for seed in range(50)]
    assert impairments.largest_offset_hz(915e6) == pytest.approx(18.3e3)
    assert max(np.max(np.abs(offsets)) for offsets in sets) <= 18.3e3
    assert max(np.ptp(offsets) for offsets in sets) <= 18.3e3  # between two devices likewise
    # The receiver's own error moves all of a set together.
    assert np.std([np.mean(offsets) for offsets in sets]) > 3e3
    assert not crystals(IDEAL).offsets_hz(7).any()


def test_carriers_drift_slowly_within_their_bound_and_are_a_function_of_the_round():
    impairments = Impairments(crystal_ppm=5.0, drift_ppm=1.0)
    still = crystals(dataclasses.replace(impairments, drift_ppm=0.0))
    moving, again = crystals(impairments), crystals(impairments)
    drift = np.array([moving.offsets_hz(t) for t in range(400)]) - still.offsets_hz(0)
    assert 900 < np.max(np.abs(drift)) <= 915.0
    assert np.max(np.abs(np.diff(drift, axis=0))) <= 2 * np.pi * 915 / 50
    np.testing.assert_array_equal(again.offsets_hz(300), moving.offsets_hz(300))
    assert impairments.largest_offset_hz(1e9) == pytest.approx(11e3)


def test_the_carrier_is_where_the_crystal_puts_it():
    offset_hz = float(crystals(Impairments(crystal_ppm=10.0), num_devices=1).offsets_hz(0)[0])
    medium = make_medium(IDEAL)
    medium.set_carrier_offsets_hz([offset_hz])
    medium.hold(0, np.ones(4, dtype=np.complex64))
    phase = np.unwrap(np.angle(medium.listen(SIZE)))
    assert (phase[-1] - phase[0]) / (2 * np.pi * (SIZE - 1)) * RATE_HZ == pytest.approx(offset_hz)


def test_path_gains_have_mean_power_one_and_the_log_distance_spread():
    gains = Impairments(distance_ratio=4.0, path_loss_exponent=3.0).path_gains(5)
    assert np.mean(gains**2) == pytest.approx(1.0)
    assert db(gains[0] / gains[-1]) == pytest.approx(10 * 3 * math.log10(4))
    # In a geometric row of distances each step costs as many dB.
    np.testing.assert_allclose(np.diff(np.log(gains)), np.log(gains[1] / gains[0]))
    assert Impairments().path_gains(4).tolist() == [1.0] * 4
    assert Impairments(distance_ratio=9.0).path_gains(1).tolist() == [1.0]


def test_what_a_receiver_could_tell_devices_apart_by():
    marks = {
        "crystal_ppm": 1.0, "drift_ppm": 0.1, "linewidth_hz": 1.0, "timing_offset_s": 1e-6,
        "dac_bits": 12, "pa_saturation_db": 6.0, "iq_gain_db": 0.1, "iq_phase_deg": -0.1,
        "leakage_db": -60.0,
    }  # fmt: skip
    for name, value in marks.items():
        assert Impairments(**{name: value}).tells_devices_apart, name
    # Gains, and what the receiver does to all alike, are no marks.
    unmarked = {
        "distance_ratio": 9.0, "path_loss_exponent": 4.0, "dc_offset_db": -20.0, "adc_bits": 8,
        "adc_full_scale_db": 3.0,
    }  # fmt: skip
    assert not Impairments(**unmarked).tells_devices_apart
    assert set(marks) | set(unmarked) == {f.name for f in dataclasses.fields(Impairments)}


def test_names_are_found_and_others_refused():
    assert impairments_from_name("ideal") == IDEAL
    assert set(IMPAIRMENTS) == {"ideal", "desk-cabled", "pluto-stock", "worst", "uncorrected"}
    with pytest.raises(RadioConfigurationError, match="got 'pluto', wanted one of"):
        impairments_from_name("pluto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crystal_ppm", -1.0),
        ("crystal_ppm", math.nan),
        ("drift_ppm", math.inf),
        ("linewidth_hz", -1.0),
        ("timing_offset_s", -1e-9),
        ("distance_ratio", 0.5),
        ("distance_ratio", math.inf),
        ("path_loss_exponent", 0.0),
        ("dac_bits", 1),
        ("adc_bits", 25),
        ("adc_bits", 8.5),
        ("pa_saturation_db", -21.0),
        ("pa_saturation_db", math.nan),
        ("iq_gain_db", 7.0),
        ("iq_phase_deg", 50.0),
        ("leakage_db", 1.0),
        ("dc_offset_db", math.nan),
        ("adc_full_scale_db", math.inf),
    ],
)
def test_impossible_impairments_are_refused(name, value):
    with pytest.raises(RadioConfigurationError, match=f"{name}: got"):
        Impairments(**{name: value})
