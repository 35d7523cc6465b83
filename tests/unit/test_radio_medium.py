import threading

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.software_air.channel_models import (
    CHANNEL_NAMES,
    AwgnChannel,
    MultipathBlockFading,
    RayleighBlockFading,
    RicianBlockFading,
    channel_from_name,
)
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium


def make_medium(num_devices=3, noise_power=0.0, seed=0, **options):
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=1e6,
        noise_power=noise_power,
        noise_rng=np.random.default_rng(seed),
        **options,
    )
    medium.set_gains(np.ones(num_devices))
    return medium


def ramp(length, scale=1.0):
    return (scale * (np.arange(length) + 1) * (1 + 0.5j) / length).astype(np.complex64)


def test_capture_is_gains_times_bursts_at_their_positions():
    medium = make_medium(2)
    medium.set_gains([2j, -0.5])
    medium.add(0, ramp(4), 1)
    medium.add(1, ramp(3), 3)
    expected = np.zeros(8, dtype=np.complex128)
    expected[1:5] += 2j * ramp(4).astype(np.complex128)
    expected[3:6] += -0.5 * ramp(3).astype(np.complex128)
    capture = medium.capture(0, 8)
    assert capture.dtype == np.complex64
    np.testing.assert_array_equal(capture, expected.astype(np.complex64))


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 20])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_capture_window_cuts_the_same_signal(start, length):
    medium = make_medium(1)
    medium.add(0, ramp(6), 4)
    whole = medium.capture(0, 60)
    np.testing.assert_array_equal(medium.capture(start, length), whole[start : start + length])


@pytest.mark.parametrize("is_held", [False, True])
def test_a_carrier_that_is_off_has_a_clock_that_is_off_by_the_same_factor(is_held):
    """A tone of 0.2 cycles a sample is heard 100 ppm lower; so is where a burst lies."""
    size, ppm = 1000, -100.0
    medium = make_medium(1, carrier_hz=1e9)
    medium.set_carrier_offsets_hz([1e3 * ppm])
    burst = np.exp(2j * np.pi * 0.2 * np.arange(size)).astype(np.complex64)
    if is_held:
        medium.hold(0, burst)
        heard = medium.listen(size)
    else:
        medium.add(0, burst, 5000)
        heard = medium.capture(5000, size)
    cycles = np.unwrap(np.angle(heard[50:-50])) / (2 * np.pi)
    slope = np.polyfit(np.arange(cycles.size), cycles, 1)[0]
    # The carrier turns by 1e3 * ppm / 1e6 a sample, the tone loses ppm of its 0.2.
    assert slope == pytest.approx(0.2 * (1 + 1e-6 * ppm) + 1e-3 * ppm, abs=2e-7)
    if not is_held:
        still = make_medium(1)
        still.add(0, burst, 5000)
        carrier = np.exp(2j * np.pi * 1e-3 * ppm * np.arange(5000, 5000 + size))
        inside = slice(100, 140)
        late = np.vdot(still.capture(5000, size)[inside], (heard / carrier)[inside])
        # 100 ppm of 5,120 samples are half a sample, a tenth of a cycle of the tone.
        assert np.angle(late) / (2 * np.pi) == pytest.approx(-0.2 * 0.512, abs=2e-3)


def test_bits_do_not_depend_on_the_order_or_thread_of_add():
    rng = np.random.default_rng(1)
    bursts = [
        (rng.standard_normal(200) + 1j * rng.standard_normal(200)).astype(np.complex64)
        for _ in range(8)
    ]
    gains = rng.standard_normal(8) + 1j * rng.standard_normal(8)
    # Two that cancel and swallow the others: in another order float64 gives another sum.
    bursts[1] = bursts[0]
    gains[:2] = 1e17, -1e17
    captures = []
    for order in (range(8), reversed(range(8))):
        medium = make_medium(8)
        medium.set_gains(gains)
        threads = [threading.Thread(target=medium.add, args=(k, bursts[k], 0)) for k in order]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        captures.append(medium.capture(0, 200).tobytes())
    assert captures[0] == captures[1]


def test_equal_generator_gives_equal_bits_and_captures_draw_anew():
    medium = make_medium(1, noise_power=0.1)
    medium.begin_round(np.random.default_rng(7))
    first, second = medium.capture(0, 50), medium.capture(0, 50)
    medium.begin_round(np.random.default_rng(7))
    assert medium.capture(0, 50).tobytes() == first.tobytes()
    assert first.tobytes() != second.tobytes()


def test_begin_round_and_clear_forget_bursts_and_keep_gains():
    medium = make_medium(1)
    medium.set_gains([3.0])
    medium.add(0, ramp(4), 0)
    medium.begin_round(np.random.default_rng(0))
    assert not medium.capture(0, 4).any()
    medium.add(0, ramp(4), 0)
    np.testing.assert_array_equal(medium.capture(0, 4), 3 * ramp(4))
    medium.clear()
    assert not medium.capture(0, 4).any()


def test_caller_may_change_the_burst_and_the_gains_afterwards():
    medium = make_medium(1)
    gains, burst = np.ones(1, dtype=np.complex128), ramp(4)
    medium.set_gains(gains)
    medium.add(0, burst, 0)
    gains[:] = 0
    burst[:] = 0
    np.testing.assert_array_equal(medium.capture(0, 4), ramp(4))


def test_one_converter_cannot_send_two_bursts_at_once():
    medium = make_medium(2)
    medium.add(0, ramp(10), 5)
    medium.add(0, ramp(5), 0)
    medium.add(0, ramp(5), 15)
    medium.add(1, ramp(10), 5)
    with pytest.raises(RadioConfigurationError, match=r"overlaps its own burst at \[5, 15\)"):
        medium.add(0, ramp(1), 14)


def test_bursts_without_gains_are_refused_and_noise_alone_is_fine():
    medium = SoftwareMedium(
        num_devices=1, sample_rate_hz=1.0, noise_power=1.0, noise_rng=np.random.default_rng(0)
    )
    assert medium.capture(0, 5).any()
    medium.add(0, ramp(2), 0)
    with pytest.raises(RadioConfigurationError, match="set_gains"):
        medium.capture(0, 5)


def test_a_carrier_of_its_own_turns_a_burst_wherever_it_is_heard():
    medium = make_medium(2)
    medium.set_gains([2j, 1.0])
    medium.set_carrier_offsets_hz([12.5e3, 0.0])
    medium.add(0, ramp(40), 30)
    medium.add(1, ramp(40), 30)
    positions = np.arange(30, 70)
    expected = (2j * np.exp(2j * np.pi * 12.5e3 / 1e6 * positions) + 1.0) * ramp(40)
    np.testing.assert_allclose(medium.capture(0, 100)[30:70], expected, atol=1e-6)
    np.testing.assert_allclose(medium.capture(50, 20), expected[20:], atol=1e-6)


def test_a_carrier_of_its_own_has_another_phase_in_every_frame():
    medium = make_medium(2)
    medium.set_carrier_offsets_hz([100.0, 0.0])
    heard = []
    for seed in (1, 2, 1):
        medium.begin_round(np.random.default_rng(seed))
        medium.add(0, ramp(4), 0)
        heard.append(medium.capture(0, 4))
    assert heard[0].tobytes() == heard[2].tobytes()
    turn = heard[1] / heard[0]
    np.testing.assert_allclose(turn, turn[0], rtol=1e-6)
    assert abs(turn[0] - 1) > 0.1
    # Who shares the receiver's carrier has the same phase always.
    for seed in (1, 2):
        medium.begin_round(np.random.default_rng(seed))
        medium.add(1, ramp(4), 0)
        np.testing.assert_array_equal(medium.capture(0, 4), ramp(4))


def test_held_bursts_come_from_moments_of_their_own_and_are_drawn_from_the_rounds_generator():
    medium = make_medium(2, noise_power=0.0)
    medium.set_gains([1.0, 3.0])
    medium.set_carrier_offsets_hz([0.0, 2e3])
    tone = np.ones(8, dtype=np.complex64)
    medium.hold(0, ramp(64))
    medium.begin_round(np.random.default_rng(3))
    alone = [medium.listen(64) for _ in range(20)]
    starts = [int(np.argmin(np.abs(capture))) for capture in alone]  # where the ramp begins
    phases = [np.angle(heard[start]) for heard, start in zip(alone, starts, strict=True)]
    assert len(set(starts)) > 10
    assert np.std(phases) > 1.0
    medium.begin_round(np.random.default_rng(3))
    assert medium.listen(64).tobytes() == alone[0].tobytes()
    # The second device's carrier turns by 2 pi 0.002 a sample.
    medium.fall_silent(0)
    medium.hold(1, tone)
    heard = medium.listen(200)
    np.testing.assert_allclose(np.abs(heard), 3.0, rtol=1e-6)
    np.testing.assert_allclose(heard[1:] / heard[:-1], np.exp(2j * np.pi * 2e-3), atol=1e-5)


def test_the_bits_of_held_bursts_do_not_depend_on_who_held_first():
    captures = []
    for order in ((0, 1, 2), (2, 0, 1)):
        medium = make_medium(3, noise_power=0.1)
        for device in order:
            medium.hold(device, ramp(16, 0.1 * (device + 1)))
        captures.append(medium.listen(100).tobytes())
    assert captures[0] == captures[1]


def test_positions_and_moments_do_not_mix():
    medium = make_medium(2)
    medium.hold(0, ramp(8))
    with pytest.raises(RadioConfigurationError, match=r"devices \[0\] hold bursts"):
        medium.capture(0, 10)
    medium.begin_round(np.random.default_rng(0))  # a held burst does not end by itself
    assert medium.listen(10).any()
    medium.fall_silent(0)
    medium.add(1, ramp(8), 0)
    with pytest.raises(RadioConfigurationError, match=r"devices \[1\] have sent bursts"):
        medium.listen(10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.set_gains([1.0]), "gains: got shape"),
        (lambda m: m.set_gains([1.0, np.nan, 1.0]), "gains: sample 1 is"),
        (lambda m: m.add(3, ramp(2), 0), r"device_index: got 3, wanted 0\.\.2"),
        (lambda m: m.add(-1, ramp(2), 0), "device_index: got -1"),
        (lambda m: m.add(0, ramp(2), -1), "start_sample: got -1"),
        (lambda m: m.add(0, ramp(2), 1.0), "start_sample: got 1.0, wanted an integer"),
        (
            lambda m: m.add(0, np.ones(2), 0),
            "got float64, wanted a complex64 or complex128 array",
        ),
        (lambda m: m.add(0, [1j], 0), "burst: got list"),
        (lambda m: m.capture(-1, 2), "start_sample: got -1"),
        (lambda m: m.capture(0, 0), "num_samples: got 0"),
        (lambda m: m.hold(3, ramp(2)), r"device_index: got 3, wanted 0\.\.2"),
        (lambda m: m.hold(0, [1j]), "burst: got list"),
        (lambda m: m.fall_silent(-1), "device_index: got -1"),
        (lambda m: m.listen(0), "num_samples: got 0"),
        (lambda m: m.set_carrier_offsets_hz([1.0]), "carrier offsets: got shape"),
        (lambda m: m.set_carrier_offsets_hz([0, 0, np.nan]), "wanted within half of the sample"),
        (lambda m: m.set_carrier_offsets_hz([0, 0, 6e5]), "wanted within half of the sample"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(call, message):
    with pytest.raises(RadioConfigurationError, match=message):
        call(make_medium())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_devices", 0),
        ("sample_rate_hz", 0.0),
        ("sample_rate_hz", np.inf),
        ("noise_power", -1.0),
        ("noise_power", np.nan),
    ],
)
def test_bad_medium_is_refused(name, value):
    options = {
        "num_devices": 1,
        "sample_rate_hz": 1e6,
        "noise_power": 0.0,
        "noise_rng": np.random.default_rng(0),
    }
    with pytest.raises(RadioConfigurationError, match=f"{name}: got"):
        SoftwareMedium(**{**options, name: value})


def test_loopback_reports_its_source_and_refuses_the_other_half():
    medium = make_medium(2, channel_name="awgn")
    with LoopbackTransceiver(medium, 1) as device, LoopbackTransceiver(medium, None) as receiver:
        assert device.source == receiver.source == "loopback+awgn"
        assert device.sample_rate_hz == 1e6
        with pytest.raises(RadioConfigurationError, match="device 1's end and cannot receive"):
            device.receive(4, start_sample=0, timeout_s=1.0)
        with pytest.raises(RadioConfigurationError, match="cannot transmit"):
            receiver.transmit(ramp(4, 0.5), start_sample=0)


@pytest.mark.parametrize("index", [2, -1, 0.5])
def test_loopback_of_no_such_device_is_refused(index):
    with pytest.raises(RadioConfigurationError, match="device_index: got"):
        LoopbackTransceiver(make_medium(2), index)


def test_awgn_gains_have_exact_magnitude_and_varied_phase():
    gains = AwgnChannel(path_gain=0.25).gains(np.random.default_rng(3), 1000)
    assert gains.dtype == np.complex128
    np.testing.assert_allclose(np.abs(gains), 0.25, rtol=1e-14)
    assert abs(gains.mean()) < 0.25 * 0.2


@pytest.mark.parametrize("name", CHANNEL_NAMES)
def test_a_devices_gain_does_not_depend_on_later_devices(name):
    channel = channel_from_name(name)
    assert channel.name == name
    few = channel.gains(np.random.default_rng(5), 3)
    many = channel.gains(np.random.default_rng(5), 10)
    np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize("k_factor_db", [-30.0, 3.0, 12.0, 60.0])
def test_rician_gains_have_the_moments_of_their_k_factor(k_factor_db):
    """E[abs^2] = p, E[abs^4] = p^2 (1 + (2 K + 1) / (K + 1)^2); 40,000 gains, five deviations."""
    channel = RicianBlockFading(k_factor_db, mean_power_gain=0.25)
    power = np.abs(channel.gains(np.random.default_rng(8), 40_000)) ** 2 / 0.25
    ratio = 10 ** (k_factor_db / 10)
    variance = (2 * ratio + 1) / (ratio + 1) ** 2
    assert abs(power.mean() - 1) < 5 * np.sqrt(variance / power.size)
    assert np.var(power) == pytest.approx(variance, rel=0.1)
    phases = np.angle(channel.gains(np.random.default_rng(9), 40_000))
    assert abs(np.exp(1j * phases).mean()) < 5 / np.sqrt(40_000)


def test_bad_channels_are_refused():
    with pytest.raises(RadioConfigurationError, match="wanted one of"):
        channel_from_name("rice")
    with pytest.raises(RadioConfigurationError, match="path_gain: got"):
        AwgnChannel(path_gain=-1.0)
    with pytest.raises(RadioConfigurationError, match="mean_power_gain: got"):
        RayleighBlockFading(mean_power_gain=np.inf)
    with pytest.raises(RadioConfigurationError, match="num_devices: got"):
        AwgnChannel().gains(np.random.default_rng(0), 0)


# Echoes


def echoing(num_devices=2, **changes):
    medium = SoftwareMedium(
        num_devices=num_devices, sample_rate_hz=1e6, noise_power=0.0,
        noise_rng=np.random.default_rng(0), **changes,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    taps = rng.standard_normal((num_devices, 10)).view(np.complex128)
    medium.set_gains(taps)
    return medium, taps, rng


def burst_of(rng, size):
    return rng.standard_normal(2 * size).astype(np.float32).view(np.complex64)


def test_a_burst_at_a_position_is_heard_with_its_echoes_behind_it():
    medium, taps, rng = echoing()
    bursts = [burst_of(rng, 40), burst_of(rng, 25)]
    for device, start in ((0, 100), (1, 110)):
        medium.add(device, bursts[device], start)
    wanted = np.zeros(200, complex)
    wanted[100:144] += np.convolve(bursts[0], taps[0])
    wanted[110:139] += np.convolve(bursts[1], taps[1])
    for first, last in ((0, 200), (102, 141), (143, 150), (138, 139)):
        heard = medium.capture(first, last - first)
        np.testing.assert_allclose(heard, wanted[first:last], atol=1e-5)


def test_a_burst_that_is_held_has_echoes_of_its_own_end():
    medium, taps, rng = echoing(num_devices=1)
    burst = burst_of(rng, 64)
    medium.hold(0, burst)
    spectrum = np.abs(np.fft.fft(medium.listen(64)))
    wanted = np.abs(np.fft.fft(burst) * np.fft.fft(taps[0], 64))
    np.testing.assert_allclose(spectrum, wanted, rtol=1e-4, atol=1e-3)


def test_one_echo_is_a_gain_bit_for_bit():
    heard = []
    for gains in ([0.5j, 2.0], [[0.5j], [2.0]]):
        medium, _, rng = echoing()
        medium.set_gains(gains)
        medium.hold(1, burst_of(rng, 100))
        heard.append(medium.listen(300).tobytes())
    assert heard[0] == heard[1]


@pytest.mark.parametrize("gains", [[1.0], [[1.0]], [[], []], np.ones((2, 2, 2)), [[1.0], [np.nan]]])
def test_gains_of_another_shape_are_refused(gains):
    medium, *_ = echoing()
    with pytest.raises(RadioConfigurationError, match="gains"):
        medium.set_gains(gains)


def test_echoes_have_an_exponential_profile_and_unit_power():
    channel = MultipathBlockFading(delay_spread_s=200e-9)
    taps = channel.taps(np.random.default_rng(2), 20_000, 20e6)
    powers = np.mean(np.abs(taps) ** 2, axis=0)
    assert len(powers) == 33
    assert powers.sum() == pytest.approx(1.0, rel=0.02)
    delays_s = np.arange(33) / 20e6
    mean_s = np.sum(powers * delays_s) / powers.sum()
    spread_s = np.sqrt(np.sum(powers * (delays_s - mean_s) ** 2) / powers.sum())
    assert spread_s == pytest.approx(200e-9, rel=0.05)
    # Far below the coherence bandwidth it is flat.
    narrow = MultipathBlockFading().taps(np.random.default_rng(3), 2000, 1e6)
    assert np.mean(np.abs(narrow[:, 1:]) ** 2) < 1e-4
    # A device's echoes do not depend on how many come after it, and flat models have one.
    first, more = (channel.taps(np.random.default_rng(4), count, 5e6) for count in (1, 3))
    np.testing.assert_array_equal(first[0], more[0])
    assert AwgnChannel().taps(np.random.default_rng(5), 3, 1e6).shape == (3, 1)
    with pytest.raises(RadioConfigurationError, match="wanted at most 1024"):
        MultipathBlockFading(1e-5).taps(np.random.default_rng(6), 1, 61e6)
