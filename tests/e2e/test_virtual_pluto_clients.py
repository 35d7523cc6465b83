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
    assert "ERROR" not in text
    assert text.count("channel-specific attributes found") == 14
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
