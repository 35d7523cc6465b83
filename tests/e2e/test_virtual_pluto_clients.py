"""Real, unmodified clients on virtual Plutos: libiio's own programs, its binding, pyadi-iio."""

import math
import re
import time
import warnings

import numpy as np
import pytest

RATE_HZ = 1_000_000
NUM_SAMPLES = 1 << 14


def test_iio_info_lists_everything_and_complains_of_nothing(start_virtual_plutos, run_iio_tool):
    uri = start_virtual_plutos(1).uris[0]
    done = run_iio_tool("iio_info", "-u", uri)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    for device in ("ad9361-phy", "cf-ad9361-dds-core-lpc (buffer capable)", "cf-ad9361-lpc"):
        assert device in text
    # What a Pluto cannot read either: see tests/golden/pluto_attributes.txt.
    refused = re.findall(r": (\w+) ERROR", text)
    assert sorted(refused) == [
        "dcxo_tune_coarse", "dcxo_tune_fine", "fastlock_recall", "fastlock_recall", "gaininfo_rx2",
        "multichip_sync", "samples_pps", "samples_pps",
    ]  # fmt: skip
    assert text.count("channel-specific attributes found") == 27
    assert "hw_model: Virtual PlutoSDR (software, no hardware)" in text


def test_iio_attr_reads_writes_and_is_refused(start_virtual_plutos, run_iio_tool):
    uri = start_virtual_plutos(1).uris[0]

    def attr(*words):
        return run_iio_tool("iio_attr", "-u", uri, *words)

    written = attr("-c", "-o", "ad9361-phy", "TX_LO", "frequency", "915000000")
    assert written.returncode == 0
    assert written.stderr == b""
    read = attr("-c", "-o", "ad9361-phy", "altvoltage1", "frequency")
    assert abs(int(re.findall(rb"[0-9]{6,}", read.stdout)[-1]) - 915_000_000) <= 3
    assert b"fdd" in attr("-d", "ad9361-phy", "ensm_mode").stdout
    assert attr("-D", "ad9361-phy", "loopback", "1").stderr == b""
    refused = attr("-c", "-o", "ad9361-phy", "TX_LO", "frequency", "100000000")
    assert b"Invalid argument" in refused.stdout + refused.stderr
    assert re.search(rb"virtual-[0-9a-f]{8}-0000", attr("-C", "hw_serial").stdout)


def test_iio_reg_reads_and_writes_registers(start_virtual_plutos, run_iio_tool):
    uri = start_virtual_plutos(1).uris[0]

    def reg(*words):
        done = run_iio_tool("iio_reg", "-u", uri, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert reg("ad9361-phy", "0x37") == [b"0xa"]  # its product number
    assert reg("ad9361-phy", "0x120") == [b"0x0"]
    reg("ad9361-phy", "0x120", "0x5")
    assert reg("ad9361-phy", "0x120") == [b"0x5"]
    assert reg("cf-ad9361-lpc", "0x80000088") == [b"0x0"]


@pytest.mark.parametrize(
    ("channels", "columns"), [(["voltage0"], [0]), (["voltage1"], [1]), ([], [0, 1])]
)
def test_iio_writedev_sends_one_channel_or_both(
    start_virtual_plutos, run_iio_tool, start_iio_tool, channels, columns
):
    """Numbers in digital loopback: what comes back is what was sent, by 12 of its 16 bits."""
    uri = start_virtual_plutos(1, "--clock", "stepped").uris[0]
    assert run_iio_tool("iio_attr", "-u", uri, "-D", "ad9361-phy", "loopback", "1").returncode == 0
    sent = np.zeros((1024, 2), dtype="<i2")
    sent[:, columns] = (64 * (np.arange(1024) - 512) + 1)[:, None]
    words = ["-u", uri, "-c", "-b", "1024", "cf-ad9361-dds-core-lpc", *channels]
    sending = start_iio_tool("iio_writedev", *words)
    sending.stdin.write(np.ascontiguousarray(sent[:, columns]).tobytes())
    sending.stdin.flush()
    heard = np.zeros((1, 2))
    while not heard.any():
        words = ["-u", uri, "-b", "2048", "-s", "2048", "cf-ad9361-lpc"]
        heard = np.frombuffer(run_iio_tool("iio_readdev", *words).stdout, "<i2").reshape(-1, 2)
    begin = int(np.flatnonzero((heard == sent[0] // 16).all(axis=1))[0])
    np.testing.assert_array_equal(heard[begin : begin + 1024], sent // 16)


def test_iio_readdev_gets_every_sample(start_virtual_plutos, run_iio_tool):
    uri = start_virtual_plutos(1, "--clock", "stepped").uris[0]
    done = run_iio_tool("iio_readdev", "-u", uri, "-b", "65536", "-s", "1000000", "cf-ad9361-lpc")
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout) == 4_000_000
    only_i = run_iio_tool(
        "iio_readdev", "-u", uri, "-b", "1024", "-s", "4096", "cf-ad9361-lpc", "voltage0"
    )
    assert len(only_i.stdout) == 2 * 4096


@pytest.fixture
def adi_module(iio_module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        import adi
    return adi


def open_pluto(adi_module, uri):
    pluto = adi_module.Pluto(uri)
    pluto.sample_rate = RATE_HZ
    pluto.rx_lo = pluto.tx_lo = 915_000_000
    pluto.gain_control_mode_chan0 = "manual"
    pluto.rx_hardwaregain_chan0 = 10
    pluto.tx_hardwaregain_chan0 = 0
    pluto.rx_buffer_size = NUM_SAMPLES
    pluto.tx_cyclic_buffer = True
    return pluto


def close_pluto(pluto):
    pluto.rx_destroy_buffer()
    pluto.tx_destroy_buffer()
    pluto.close()


def tone(cycles):
    phases = 2j * np.pi * cycles * np.arange(NUM_SAMPLES) / NUM_SAMPLES
    return (2**14 * np.exp(phases)).astype(np.complex64)


def level_db(samples, cycles):
    spectrum = np.fft.fft(samples / 2048) / len(samples)
    return 20 * math.log10(abs(spectrum[cycles]) + 1e-12)


@pytest.mark.parametrize("clock", ["wall", "stepped"])
def test_three_plutos_superimpose_with_the_gains_of_their_paths(
    clock, adi_module, start_virtual_plutos
):
    options = ["--clock", clock, "--path-loss-db", "20", "--path-spread-db", "3"]
    uris = start_virtual_plutos(3, *options, "--noise-dbfs=-200").uris
    radios = [open_pluto(adi_module, uri) for uri in uris]
    assert [radio.sample_rate for radio in radios] == [RATE_HZ] * 3
    receiver, near, far = radios
    # 2^14 is 6 dB below the converter's full scale; then path, and 10 dB of gain.
    wanted = {1000: -16.02, 1500: -19.02}
    near.tx(tone(1000))
    far.tx(tone(1500))
    receiver.rx_destroy_buffer()
    both = receiver.rx()
    for cycles, level in wanted.items():
        assert level_db(both, cycles) == pytest.approx(level, abs=0.1)
    far.tx_destroy_buffer()
    receiver.rx_destroy_buffer()
    alone = receiver.rx()
    assert level_db(alone, 1000) == pytest.approx(-16.02, abs=0.1)
    assert level_db(alone, 1500) < -90
    for radio in radios:
        close_pluto(radio)


def test_a_buffer_that_waited_is_old(adi_module, start_virtual_plutos):
    """As on hardware; the driver has to know (radio.pluto)."""
    uris = start_virtual_plutos(2, "--noise-dbfs=-200", "--path-loss-db", "20").uris
    receiver, sender = (open_pluto(adi_module, uri) for uri in uris)
    sender.tx(tone(1000))
    receiver.rx()
    time.sleep(0.2)  # the kernel's four blocks are full
    sender.tx_destroy_buffer()
    levels = [level_db(receiver.rx(), 1000) for _ in range(6)]
    assert levels[0] == pytest.approx(-16.02, abs=0.1)
    assert levels[-1] < -90
    num_old = sum(level > -20 for level in levels)
    assert 3 <= num_old <= 5
    for radio in (receiver, sender):
        close_pluto(radio)


def test_a_low_rate_a_refused_gain_and_a_tone_go_through_pyadi(adi_module, start_virtual_plutos):
    uris = start_virtual_plutos(2, "--noise-dbfs=-200", "--path-loss-db", "20").uris
    receiver, sender = (open_pluto(adi_module, uri) for uri in uris)
    for rate_hz in (521_000, 2_500_000, 1_000_000):
        receiver.sample_rate = rate_hz
        assert receiver.sample_rate == rate_hz
    for name, value in (("tx_hardwaregain_chan0", 1), ("rx_lo", 100_000_000)):
        with pytest.raises(OSError, match="Invalid argument"):
            setattr(sender, name, value)
    sender.dds_single_tone(100_000, 0.25)
    receiver.rx_destroy_buffer()
    position = round(100_000 * NUM_SAMPLES / RATE_HZ)
    heard = np.abs(np.fft.fft(receiver.rx() / 2048)) / NUM_SAMPLES
    assert abs(int(heard.argmax()) - position) <= 1
    sender.disable_dds()
    receiver.rx_destroy_buffer()
    assert not receiver.rx().any()
    assert 30 < receiver._get_iio_attr("temp0", "input", False) / 1000 < 60
    for radio in (receiver, sender):
        close_pluto(radio)


# What pyadi-iio's own tests ask of a Pluto with a cable from its transmitter to its receiver.


@pytest.fixture
def cabled(adi_module, start_virtual_plutos):
    uri = start_virtual_plutos(1, "--clock", "stepped", "--own-path-db", "30").uris[0]
    pluto = adi_module.Pluto(uri)
    yield pluto
    close_pluto(pluto)


def test_it_starts_as_a_pluto_does(cabled):
    assert cabled.sample_rate == 30_720_000
    assert cabled.rx_rf_bandwidth == cabled.tx_rf_bandwidth == 18_000_000
    assert cabled.gain_control_mode_chan0 == "slow_attack"
    assert cabled.tx_hardwaregain_chan0 == -10
    assert abs(cabled.rx_lo - 2_400_000_000) <= 8
    assert abs(cabled.tx_lo - 2_450_000_000) <= 8


@pytest.mark.parametrize(
    ("name", "low", "high", "step", "tolerance"),
    [
        ("tx_hardwaregain_chan0", -89.75, 0.0, 0.25, 0),
        ("rx_lo", 325_000_000, 3_800_000_000, 1, 8),
        ("tx_lo", 325_000_000, 3_800_000_000, 1, 8),
        ("sample_rate", 2_084_000, 61_440_000, 1, 4),
    ],
)
def test_what_is_set_is_read_back(cabled, name, low, high, step, tolerance):
    rng = np.random.default_rng(0)
    for _ in range(50):
        value = low + step * int(rng.integers(int((high - low) / step) + 1))
        setattr(cabled, name, value)
        assert abs(getattr(cabled, name) - value) <= tolerance


def test_it_hears_its_own_transmitter(cabled):
    """A cyclic buffer, then a tone of the synthesizer, over the cable and an automatic gain."""
    cabled.tx_lo = cabled.rx_lo = 1_000_000_000
    cabled.tx_hardwaregain_chan0 = -20
    cabled.sample_rate = 4_000_000
    cabled.rx_buffer_size = NUM_SAMPLES
    cabled.tx_cyclic_buffer = True

    def peak_hz():
        cabled.rx_destroy_buffer()
        cabled.rx()
        spectrum = np.abs(np.fft.fft(cabled.rx() / 2048)) / NUM_SAMPLES
        strongest = int(spectrum.argmax())
        assert 20 * math.log10(spectrum[strongest]) > -40.0
        rest = np.delete(spectrum, strongest)
        assert 20 * math.log10(spectrum[strongest] / rest.max()) > 40.0  # spurious-free
        return np.fft.fftfreq(NUM_SAMPLES, 1 / 4_000_000)[strongest]

    step_hz = 4_000_000 / NUM_SAMPLES
    cabled.tx(tone(1024))
    assert peak_hz() == pytest.approx(1024 * step_hz)
    with pytest.raises(Exception, match="TX buffer has been submitted"):
        cabled.tx(tone(1024))
    cabled.tx_destroy_buffer()
    cabled.tx(tone(2048))
    assert peak_hz() == pytest.approx(2048 * step_hz)
    cabled.tx_destroy_buffer()
    cabled.dds_single_tone(1_000_000, 1.0, 0)
    assert peak_hz() == pytest.approx(1_000_000, abs=2 * step_hz)


def test_a_receiver_without_its_oscillator_hears_itself_alone(cabled):
    cabled.tx_lo = cabled.rx_lo = 1_000_000_000
    cabled.gain_control_mode_chan0 = "manual"
    cabled.rx_hardwaregain_chan0 = 40
    cabled.tx_hardwaregain_chan0 = 0
    cabled.rx_buffer_size = NUM_SAMPLES
    cabled.tx_cyclic_buffer = True
    cabled.tx(tone(1024))
    levels = []
    for is_down in ("0", "1", "0"):
        cabled._ctrl.find_channel("altvoltage0", True).attrs["powerdown"].value = is_down
        cabled.rx_destroy_buffer()
        levels.append(level_db(cabled.rx(), 1024))
    assert levels[0] == pytest.approx(levels[2], abs=0.1)
    assert levels[0] > -10 > -80 > levels[1]


@pytest.mark.parametrize("value", [0, 1, 2])
def test_loopback_is_read_back(cabled, value):
    cabled.loopback = value
    assert cabled.loopback == value


def test_digital_loopback_gives_every_sample_back(cabled):
    """A ramp with the lowest bits of its 16 set: 12 bits come back, nothing is rounded up."""
    cabled.loopback = 1
    ramp = np.arange(2**11, dtype=np.int16) << 4
    sent = ramp + 1j * (-ramp - 1)
    cabled.tx_cyclic_buffer = True
    cabled.rx_buffer_size = 2 * len(sent)
    cabled.tx(sent)
    for _ in range(6):
        heard = cabled.rx()
    begin = int(np.flatnonzero(heard.real == 0)[0])
    period = heard[begin : begin + len(sent)]
    np.testing.assert_array_equal(period.real, np.arange(2**11))
    np.testing.assert_array_equal(period.imag, -np.arange(2**11) - 1)


def test_zeros_in_digital_loopback_are_zeros(cabled):
    cabled.loopback = 1
    cabled.tx_enabled_channels = None
    cabled.rx_buffer_size = 2**12
    cabled.tx()
    for _ in range(6):
        heard = cabled.rx()
    assert not heard.any()


def test_overflow_and_underflow_are_seen(adi_module, start_virtual_plutos):
    """On the clock of the wall: who reads or sends too late is told."""
    pluto = adi_module.Pluto(start_virtual_plutos(1).uris[0])
    pluto.sample_rate = 600_000
    for device, bit, late in (
        (pluto._rxadc, 4, pluto.rx),
        (pluto._txdac, 1, lambda: pluto.tx(np.zeros(NUM_SAMPLES, dtype=np.complex64))),
    ):
        pluto.rx_buffer_size = NUM_SAMPLES
        late()
        device.reg_write(0x80000088, device.reg_read(0x80000088))
        assert device.reg_read(0x80000088) & bit == 0
        time.sleep(0.5)  # more than the kernel's blocks hold
        for _ in range(2):
            late()
        assert device.reg_read(0x80000088) & bit
    close_pluto(pluto)


def test_a_synchronisation_of_chips_is_accepted(cabled):
    cabled._ctrl.attrs["multichip_sync"].value = "1"
    with pytest.raises(OSError, match="Permission denied"):
        _ = cabled._ctrl.attrs["multichip_sync"].value
