"""A virtual Pluto without its network: attributes as the kernel keeps them, buffers, the air."""

import errno
import math

import numpy as np
import pytest

from radio.errors import RadioConfigurationError
from radio.software_air.impairments import Impairments, impairments_from_name
from radio.virtual_pluto.air import Crystal, VirtualAir
from radio.virtual_pluto.attributes import IioError
from radio.virtual_pluto.clock import SteppedClock, WallClock
from radio.virtual_pluto.pluto import VirtualPluto
from radio.virtual_pluto.server import Bench
from radio.virtual_pluto.timeline import Timeline

RATE_HZ = 3_000_000
NUM_SAMPLES = 6000


def phy(pluto, channel, *, is_output):
    return pluto.phy.channel(channel, is_output=is_output).attributes


def make_plutos(**options):
    options = {"num_radios": 3, "noise_dbfs": -math.inf, "path_loss_db": 20.0, **options}
    plutos = Bench(is_stepped=True, **options).build()
    for pluto in plutos:
        phy(pluto, "voltage0", is_output=False)["sampling_frequency"].write(str(RATE_HZ))
        phy(pluto, "RX_LO", is_output=True)["frequency"].write("915000000")
        phy(pluto, "TX_LO", is_output=True)["frequency"].write("915000000")
        phy(pluto, "voltage0", is_output=True)["hardwaregain"].write("0")
        phy(pluto, "voltage0", is_output=False)["gain_control_mode"].write("manual")
        phy(pluto, "voltage0", is_output=False)["hardwaregain"].write("10")
    return plutos


def tone(cycles, amplitude=0.5):
    phases = 2j * np.pi * cycles * np.arange(NUM_SAMPLES) / NUM_SAMPLES
    return amplitude * np.exp(phases)


def as_bytes(samples):
    parts = np.rint(np.asarray(samples, dtype=np.complex128).view(np.float64) * 32768)
    return np.clip(parts, -32768, 32767).astype("<i2").tobytes()


def hold(pluto, samples):
    buffer = pluto.open_transmit(len(samples), is_cyclic=True)
    buffer.push(as_bytes(samples))


def capture(pluto, num_samples=NUM_SAMPLES):
    buffer = pluto.open_receive(num_samples)
    parts = np.concatenate(list(buffer.read_block()))
    buffer.close()
    return (parts[:, 0] + 1j * parts[:, 1]) / 2048


def level_db(capture_, cycles):
    spectrum = np.fft.fft(capture_) / len(capture_)
    return 20 * math.log10(abs(spectrum[cycles]) + 1e-12)


# Attributes


def test_values_are_read_back_as_the_hardware_rounds_them():
    pluto = make_plutos()[0]
    attenuator = phy(pluto, "voltage0", is_output=True)["hardwaregain"]
    attenuator.write("-10.3")
    assert attenuator.read() == "-10.250000 dB"
    frequency = phy(pluto, "TX_LO", is_output=True)["frequency"]
    off_hz = []
    for wanted_hz in range(868_000_000, 868_000_050):
        frequency.write(str(wanted_hz))
        off_hz.append(int(frequency.read()) - wanted_hz)
    assert max(map(abs, off_hz)) in (2, 3)  # half a step of 4.77 Hz
    gain = phy(pluto, "voltage0", is_output=False)["hardwaregain"]
    gain.write("33.4")
    assert gain.read() == "33.000000 dB"


@pytest.mark.parametrize(
    ("channel", "is_output", "name", "bad"),
    [
        ("voltage0", True, "hardwaregain", ["1", "-90", "nan", "", "loud"]),
        ("voltage0", False, "hardwaregain", ["72", "-4", "nan", ""]),
        ("voltage0", False, "gain_control_mode", ["automatic", ""]),
        ("RX_LO", True, "frequency", ["100000000", "3800000001", "inf"]),
        ("voltage0", True, "rf_bandwidth", ["0", "41000000"]),
        ("voltage0", False, "sampling_frequency", ["1000000", "61440001", "nan"]),
        ("RX_LO", True, "powerdown", ["2", "off"]),
    ],
)
def test_what_is_out_of_range_is_refused_and_changes_nothing(channel, is_output, name, bad):
    attribute = phy(make_plutos()[0], channel, is_output=is_output)[name]
    before = attribute.read()
    for text in bad:
        with pytest.raises(IioError) as refusal:
            attribute.write(text)
        assert refusal.value.code == errno.EINVAL
    assert attribute.read() == before


def test_what_cannot_be_written_says_so():
    pluto = make_plutos()[0]
    for attribute in (
        pluto.phy.attributes["tx_path_rates"],
        phy(pluto, "temp0", is_output=False)["input"],
    ):
        with pytest.raises(IioError) as refusal:
            attribute.write("1")
        assert refusal.value.code == errno.EACCES


def test_a_low_rate_needs_the_filter_first():
    pluto = make_plutos()[0]
    rate = phy(pluto, "voltage0", is_output=False)["sampling_frequency"]
    with pytest.raises(IioError):
        rate.write("1000000")
    taps = "\n".join(["RX 3 GAIN -6 DEC 4", "TX 3 GAIN 0 INT 4", *["1,1"] * 128])
    pluto.phy.attributes["filter_fir_config"].write(taps)
    assert pluto.phy.attributes["filter_fir_config"].read() == "FIR Rx: 128,4 Tx: 128,4"
    phy(pluto, "out", is_output=False)["voltage_filter_fir_en"].write("1")
    rate.write("1000000")
    assert rate.read() == "1000000"
    assert pluto.radio.rate_hz == 1e6
    with pytest.raises(IioError):
        rate.write("520000")
    with pytest.raises(IioError):
        pluto.phy.attributes["filter_fir_config"].write("1,1\n" * 17)


def test_a_gain_is_refused_while_it_sets_itself():
    pluto = make_plutos()[0]
    receiver = phy(pluto, "voltage0", is_output=False)
    receiver["gain_control_mode"].write("slow_attack")
    with pytest.raises(IioError) as refusal:
        receiver["hardwaregain"].write("20")
    assert refusal.value.code == errno.EOPNOTSUPP


def test_an_automatic_gain_hides_how_loud_a_signal_is():
    pluto, near, _ = make_plutos()
    receiver = phy(pluto, "voltage0", is_output=False)
    attenuator = phy(near, "voltage0", is_output=True)["hardwaregain"]
    hold(near, tone(700))
    levels = {}
    for mode in ("manual", "slow_attack"):
        receiver["gain_control_mode"].write(mode)
        for attenuation_db in (0, 10):
            attenuator.write(str(-attenuation_db))
            levels[mode, attenuation_db] = level_db(capture(pluto), 700)
    assert levels["manual", 0] - levels["manual", 10] == pytest.approx(10, abs=0.1)
    assert abs(levels["slow_attack", 0] - levels["slow_attack", 10]) <= 1.0
    # The gain that is read is the one that made the level: -26 dBFS at the antenna to -12.
    attenuator.write("0")
    capture(pluto)  # it needs a while to settle
    assert float(receiver["hardwaregain"].read().split()[0]) == pytest.approx(14, abs=1)


def test_temperature_rises_and_the_crystal_with_it():
    air = VirtualAir(SteppedClock(), noise_power=0.0, seed=0)
    crystal = Crystal(3.0, warming_ppm=1.0)
    pluto = VirtualPluto(air, air.add(crystal, Impairments(), 3e6), "x")
    temperature = phy(pluto, "temp0", is_output=False)["input"]
    assert temperature.read() == "36000"
    air.clock.wait_until(3600.0)
    assert 47000 < int(temperature.read()) <= 48000
    assert crystal.ratio(0.0) == pytest.approx(1 + 3e-6, abs=1e-12)
    assert crystal.ratio(3600.0) == pytest.approx(1 + 4e-6, abs=1e-8)


# The air


def test_levels_add_up_as_paths_attenuators_and_gains_say():
    pluto, near, far = make_plutos(path_spread_db=3.0)
    hold(near, tone(700))
    hold(far, tone(1100))
    phy(far, "voltage0", is_output=True)["hardwaregain"].write("-4.5")
    heard = capture(pluto)
    # -6 dBFS sent, -20 and -23 dB of path, +10 dB of gain, -4.5 of one attenuator.
    assert level_db(heard, 700) == pytest.approx(-16.02, abs=0.01)
    assert level_db(heard, 1100) == pytest.approx(-23.52, abs=0.02)
    # What is left is a twelve bit converter's rounding: 1/12 of a step in each part.
    rest = np.fft.fft(heard) / len(heard)
    rest[[700, 1100]] = 0
    power_db = 10 * math.log10(np.sum(np.abs(rest) ** 2))
    assert power_db == pytest.approx(10 * math.log10(2 / 12 / 2048**2), abs=2.0)


def test_a_carrier_is_off_by_both_crystals_until_they_are_corrected():
    plutos = make_plutos(impairments=Impairments(crystal_ppm=10.0), seed=3)
    ppm = [p.radio.crystal.error_ppm for p in plutos]
    assert max(map(abs, ppm)) <= 10
    hold(plutos[1], np.full(NUM_SAMPLES, 0.5 + 0j))
    bin_hz = RATE_HZ / NUM_SAMPLES

    def peak_hz():
        spectrum = np.abs(np.fft.fft(capture(plutos[0])))
        return np.fft.fftfreq(NUM_SAMPLES, 1 / RATE_HZ)[int(spectrum.argmax())]

    assert peak_hz() == pytest.approx((ppm[1] - ppm[0]) * 915, abs=bin_hz)
    for pluto, error in zip(plutos, ppm, strict=True):
        pluto.phy.attributes["xo_correction"].write(str(round(40e6 * (1 + 1e-6 * error))))
    assert abs(peak_hz()) <= bin_hz


def test_a_sampling_clock_is_off_as_the_carrier_is_until_it_is_corrected():
    """Two lines of a burst lie apart by what they should, times the clocks' ratio."""
    plutos = make_plutos()
    plutos[1].radio.crystal.error_ppm = 150.0
    hold(plutos[1], tone(0, 0.4) + tone(900, 0.4))

    def cycles_apart():
        beat = np.abs(capture(plutos[0])) ** 2 * np.exp(
            -2j * np.pi * 900 * np.arange(NUM_SAMPLES) / NUM_SAMPLES
        )
        halves = beat[: NUM_SAMPLES // 2].sum(), beat[NUM_SAMPLES // 2 :].sum()
        return 900 + np.angle(halves[1] / halves[0]) / np.pi

    assert cycles_apart() == pytest.approx(900 * (1 + 150e-6), abs=0.01)
    plutos[1].phy.attributes["xo_correction"].write(str(round(40e6 * (1 + 150e-6))))
    assert cycles_apart() == pytest.approx(900, abs=0.01)


def test_a_held_burst_comes_without_a_seam_over_blocks():
    plutos = make_plutos(impairments=Impairments(crystal_ppm=10.0))
    hold(plutos[1], tone(700))
    buffer = plutos[0].open_receive(NUM_SAMPLES)
    both = np.concatenate([*buffer.read_block(), *buffer.read_block()])
    samples = both[:, 0] + 1j * both[:, 1]
    turned = np.angle(samples[1:] / samples[:-1])
    seam = slice(NUM_SAMPLES - 5, NUM_SAMPLES + 5)
    assert np.abs(turned[seam] - np.median(turned)).max() < 0.02


def test_other_rates_and_distant_carriers_are_not_heard():
    pluto, near, far = make_plutos()
    hold(near, tone(700))
    phy(far, "voltage0", is_output=False)["sampling_frequency"].write("2500000")
    hold(far, tone(700))
    phy(near, "TX_LO", is_output=True)["frequency"].write("920000000")
    assert not capture(pluto).any()


def test_noise_is_as_loud_as_the_bench_says():
    pluto = make_plutos(noise_dbfs=-40.0)[0]
    power = np.mean(np.abs(capture(pluto, 100_000)) ** 2)
    assert 10 * math.log10(power) == pytest.approx(-30.0, abs=0.1)  # and 10 dB of gain


def test_the_mixer_leaks_until_the_oscillator_is_off():
    pluto, near = make_plutos(num_radios=2, impairments=Impairments(leakage_db=-30.0))
    assert near.radio.is_radiating()
    assert level_db(capture(pluto), 0) == pytest.approx(-40.0, abs=0.1)
    phy(near, "TX_LO", is_output=True)["powerdown"].write("1")
    assert not near.radio.is_radiating()
    assert not capture(pluto).any()


def test_tones_of_the_synthesizer_sound_where_no_samples_come():
    pluto, near, _ = make_plutos()
    for name, phase in (("TX1_I_F1", "0"), ("TX1_Q_F1", "270000")):
        channel = near.dac.channel(name, is_output=True).attributes
        channel["frequency"].write(str(RATE_HZ // 10))
        channel["phase"].write(phase)
        channel["scale"].write("0.25")
    one_sided = capture(pluto)
    assert level_db(one_sided, NUM_SAMPLES // 10) == pytest.approx(-22.04, abs=0.05)
    assert level_db(one_sided, -NUM_SAMPLES // 10) < -60
    hold(near, tone(700))
    assert level_db(capture(pluto), NUM_SAMPLES // 10) < -60
    near.end_bursts()
    assert level_db(capture(pluto), NUM_SAMPLES // 10) == pytest.approx(-22.04, abs=0.05)


def test_digital_loopback_hears_the_own_samples_alone():
    pluto, near, _ = make_plutos(noise_dbfs=-30.0)
    hold(near, tone(700))
    hold(pluto, tone(1100))
    pluto.phy.debug["loopback"].write("1")
    heard = capture(pluto)
    assert level_db(heard, 1100) == pytest.approx(-6.02, abs=0.01)
    assert level_db(heard, 700) < -60


def test_a_bench_that_cannot_be_is_refused():
    for options in (
        {"num_radios": 0},
        {"path_loss_db": -1.0},
        {"path_spread_db": math.nan},
        {"noise_dbfs": 1.0},
        {"noise_dbfs": math.nan},
    ):
        with pytest.raises(RadioConfigurationError, match="wanted"):
            Bench(**options)
    air = VirtualAir(SteppedClock(), noise_power=0.0, seed=0)
    radio = air.add(Crystal(), Impairments(), 3e6)
    with pytest.raises(RadioConfigurationError, match="path gain"):
        air.connect(radio, radio, complex(math.nan, 0))


def test_every_impairment_preset_makes_a_bench():
    for name in ("ideal", "desk-cabled", "pluto-stock", "worst"):
        plutos = make_plutos(impairments=impairments_from_name(name))
        hold(plutos[1], tone(700))
        assert capture(plutos[0]).any()


# Buffers and their traps


def test_the_first_blocks_are_old_and_then_there_is_a_gap():
    pluto, near, _ = make_plutos()
    pluto.set_kernel_buffers(pluto.adc, 2)
    buffer = pluto.open_receive(NUM_SAMPLES)  # 2 ms a block, from now on
    hold(near, tone(700))
    pluto.air.clock.wait_until(pluto.air.clock.now_s() + 1.0)
    near.end_bursts()
    pluto.adc.debug["direct_reg_access"].write("0x80000088")
    assert pluto.adc.debug["direct_reg_access"].read() == "0x0"
    for _ in range(2):  # old: the tone is long gone
        parts = np.concatenate(list(buffer.read_block()))
        assert np.abs(parts).max() > 100
    assert pluto.adc.debug["direct_reg_access"].read() == "0x4"
    assert not np.concatenate(list(buffer.read_block())).any()
    pluto.adc.debug["direct_reg_access"].write("0x80000088 0x4")
    assert pluto.adc.debug["direct_reg_access"].read() == "0x0"
    buffer.close()


def test_what_an_old_buffer_holds_is_the_setting_of_its_time():
    pluto, near, _ = make_plutos()
    hold(near, tone(700))
    buffer = pluto.open_receive(NUM_SAMPLES)
    pluto.air.clock.wait_until(pluto.air.clock.now_s() + 1.0)
    phy(near, "voltage0", is_output=True)["hardwaregain"].write("-20")
    phy(pluto, "voltage0", is_output=False)["hardwaregain"].write("30")
    parts = np.concatenate(list(buffer.read_block()))
    assert level_db((parts[:, 0] + 1j * parts[:, 1]) / 2048, 700) == pytest.approx(-16.02, abs=0.05)


def test_a_streamed_block_ends_and_the_next_follows_without_a_gap():
    pluto, near, _ = make_plutos()
    sending = near.open_transmit(NUM_SAMPLES, is_cyclic=False)
    receiving = pluto.open_receive(4 * NUM_SAMPLES)
    sending.push(as_bytes(tone(700)))
    sending.push(as_bytes(tone(700)))
    heard = np.concatenate(list(receiving.read_block()))
    loud = np.flatnonzero(np.abs(heard).sum(axis=1) > 50)
    assert len(loud) == pytest.approx(2 * NUM_SAMPLES, abs=30)
    assert np.diff(loud).max() <= 5
    near.dac.debug["direct_reg_access"].write("0x80000088")
    assert near.dac.debug["direct_reg_access"].read() == "0x0"
    sending.push(as_bytes(tone(700)))  # too late
    assert near.dac.debug["direct_reg_access"].read() == "0x1"


def test_a_full_queue_makes_the_sender_wait():
    near = make_plutos()[1]
    near.set_kernel_buffers(near.dac, 2)
    sending = near.open_transmit(NUM_SAMPLES, is_cyclic=False)
    begin_s = near.air.clock.now_s()
    for _ in range(10):
        sending.push(as_bytes(tone(1)))
    waited_s = near.air.clock.now_s() - begin_s
    assert waited_s == pytest.approx(8 * NUM_SAMPLES / RATE_HZ, rel=0.01)


def test_a_second_block_of_a_cyclic_buffer_is_refused():
    near = make_plutos()[1]
    sending = near.open_transmit(NUM_SAMPLES, is_cyclic=True)
    sending.push(as_bytes(tone(1)))
    with pytest.raises(IioError) as refusal:
        sending.push(as_bytes(tone(1)))
    assert refusal.value.code == errno.EBUSY


def test_a_buffer_beyond_the_memory_is_refused():
    pluto = make_plutos()[0]
    for count in (0, 1 << 28):
        for refused in (
            lambda n=count: pluto.open_receive(n),
            lambda n=count: pluto.open_transmit(n, is_cyclic=True),
        ):
            with pytest.raises(IioError) as refusal:
                refused()
            assert refusal.value.code == errno.ENOMEM
    for blocks in (0, 65):
        with pytest.raises(IioError):
            pluto.set_kernel_buffers(pluto.adc, blocks)
    with pytest.raises(IioError):
        pluto.set_kernel_buffers(pluto.phy, 4)


def test_the_past_is_forgotten_once_nobody_can_hear_it():
    pluto, near, _ = make_plutos()
    for _ in range(50):
        hold(near, tone(700))
        capture(pluto)
        phy(near, "voltage0", is_output=True)["hardwaregain"].write("-3")
    assert len(near.radio.bursts) <= 3
    assert len(near.radio.sending._states) <= 5


def test_a_client_that_opens_and_never_reads_costs_no_more_and_finds_its_old_blocks():
    pluto, near, _ = make_plutos()
    hold(near, tone(700))
    buffer = pluto.open_receive(NUM_SAMPLES)  # four blocks of 2 ms, nobody reads
    pluto.air.clock.wait_until(pluto.air.clock.now_s() + 0.1)
    for _ in range(50):
        hold(near, tone(1100))
        pluto.air.clock.wait_until(pluto.air.clock.now_s() + 0.1)
    assert len(near.radio.bursts) <= 3
    for _ in range(4):
        parts = np.concatenate(list(buffer.read_block()))
        assert level_db((parts[:, 0] + 1j * parts[:, 1]) / 2048, 700) > -17
    parts = np.concatenate(list(buffer.read_block()))
    assert level_db((parts[:, 0] + 1j * parts[:, 1]) / 2048, 1100) > -17


# Time


def test_a_timeline_tells_what_was_in_force():
    timeline = Timeline("a")
    timeline.change(1.0, "b")
    timeline.change(2.0, "c")
    timeline.change(2.0, "d")
    assert [timeline.at(t) for t in (-5.0, 0.99, 1.0, 1.5, 2.0, 9.0)] == list("aabbdd")
    assert list(timeline.between(0.5, 3.0)) == [(0.5, 1.0, "a"), (1.0, 2.0, "b"), (2.0, 3.0, "d")]
    assert list(timeline.between(3.0, 3.0)) == []
    timeline.forget_before(1.5)
    assert timeline.at(0.0) == "b"
    assert timeline.latest == "d"


def test_stepped_time_passes_when_somebody_waits_and_a_little_with_each_command():
    clock = SteppedClock(command_s=0.25)
    clock.wait_until(3.0)
    clock.wait_until(2.0)
    clock.spend_command()
    assert clock.now_s() == 3.25


def test_wall_time_is_slept_for():
    now, slept = [100.0], []

    def sleep(duration_s):
        slept.append(duration_s)
        now[0] += duration_s

    clock = WallClock(lambda: now[0], sleep)
    clock.wait_until(2.0)
    clock.wait_until(1.0)
    clock.spend_command()
    assert slept == [2.0]
    assert clock.now_s() == 2.0
