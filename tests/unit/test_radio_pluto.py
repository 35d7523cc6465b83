"""The Pluto driver on virtual radios: what it checks, reads back and counts, and how it fails."""

import contextlib
import errno
import importlib.metadata
import math
import os
import re
import socket
import sys
import threading

import numpy as np
import pytest
from tcp_proxy import TcpProxy

from radio.errors import (
    RadioConfigurationError,
    RadioNotSilentError,
    RadioSaturationError,
    RadioUnavailableError,
)
from radio.pluto import context, driver, libiio, safe_stop
from radio.pluto.addresses import check_uri, hint
from radio.pluto.context import found_uris
from radio.pluto.guardian import Guardian
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.silence import MAX_ATTENUATION_DB, silence
from radio.pluto.transceiver import PlutoTransceiver
from radio.transceiver import Mode
from radio.virtual_pluto import chip
from radio.virtual_pluto.attributes import Attribute
from radio.virtual_pluto.buffers import ReceiveBuffer
from radio.virtual_pluto.converters import OVERFLOW
from radio.virtual_pluto.server import Bench, VirtualPlutoServer
from radio.waveforms.energy_bands import USED_SHARE

# A busy machine is no hung program: its guardian waits long.
PATIENT = {"max_hold_s": 600.0}


class VirtualBench:
    """Two radios and their server in this process, so that a test can reach into them."""

    def __init__(self):
        bench = Bench(is_stepped=True, noise_dbfs=-math.inf, path_loss_db=20.0)
        self.plutos = bench.build()
        self.server = VirtualPlutoServer(self.plutos, base_port=0)
        self.receiver_uri, self.transmitter_uri = self.server.uris

    def transmitter(self, **settings):
        settings = {"tx_attenuation_db": 0.0, **PATIENT, **settings}
        return PlutoTransceiver(PlutoSettings(self.transmitter_uri, Role.TRANSMITTER, **settings))

    def receiver(self, **settings):
        settings = {"rx_gain_db": 26.0, **settings}
        return PlutoTransceiver(PlutoSettings(self.receiver_uri, Role.RECEIVER, **settings))

    def tx(self, name, channel="voltage0"):
        return self.plutos[1].phy.channel(channel, is_output=True).attributes[name]


@pytest.fixture
def bench():
    running = VirtualBench()
    yield running
    running.server.close()


def tone(num_samples=256, amplitude=0.5):
    phases = 2j * np.pi * np.arange(num_samples) / 8
    return (amplitude * np.exp(phases)).astype(np.complex64)


# Requests


@pytest.mark.parametrize(
    "uri",
    ["ip:192.168.2.1", "ip:pluto.local", "ip:127.0.0.1:30432", "ip:[fe80::1]", "usb:1.2.3",
     "usb:3.11", "serial:1044734c96050013f7ff"],
)  # fmt: skip
def test_a_uri_names_one_radio(uri):
    assert check_uri(uri) == uri


@pytest.mark.parametrize(
    "uri", ["", "ip:", "usb:", "192.168.2.1", "ip:a b", "ip:x:0", "ip:x:65536", "local:", "ip:x\n"]
)
def test_what_names_none_is_refused(uri):
    with pytest.raises(RadioConfigurationError, match="pairzero-radio doctor"):
        check_uri(uri)


@pytest.mark.parametrize(
    "setting",
    [
        {"sample_rate_hz": 520e3},
        {"sample_rate_hz": math.nan},
        {"carrier_hz": 100e6},
        {"carrier_hz": 4e9},
        {"rf_bandwidth_hz": 0.0},
        {"tx_attenuation_db": -1.0},
        {"tx_attenuation_db": 90.0},
        {"rx_gain_db": 72.0},
        {"xo_correction": 40_008_001},
        {"xo_correction": 4.0e7},
    ],
)
def test_a_setting_that_no_pluto_has_is_refused_before_any_is_opened(setting):
    with pytest.raises(RadioConfigurationError, match="wanted"):
        PlutoSettings("ip:192.0.2.1", Role.RECEIVER, **setting)
    with pytest.raises(ValueError, match="is not a valid Role"):
        PlutoSettings("ip:192.0.2.1", "both")


def test_an_amplitude_beyond_full_scale_is_refused():
    with pytest.raises(RadioConfigurationError, match=r"max_amplitude: got 1\.5, wanted at most 1"):
        PlutoTransceiver(PlutoSettings("ip:192.0.2.1", Role.RECEIVER), max_amplitude=1.5)


# Opening


def test_a_radio_that_is_not_there_is_told_with_its_cause():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(RadioUnavailableError, match=r"errno 111.*nothing listens there") as info:
        silence(f"ip:127.0.0.1:{port}")
    assert isinstance(info.value.__cause__, ConnectionRefusedError)
    with pytest.raises(RadioUnavailableError, match="no such USB device"):
        silence("usb:250.250.250")
    with pytest.raises(RadioUnavailableError, match="no such host"):
        silence("ip:no-such-host.invalid")


def test_what_is_no_radio_is_told_apart():
    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(RadioUnavailableError, match="cannot be opened"):
            silence(f"ip:127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_another_device_of_the_same_maker_is_no_pluto(bench):
    bench.plutos[1].devices.pop("iio:device3")
    with pytest.raises(RadioUnavailableError, match=r"this is no Pluto: it has \['ad9361-phy'"):
        bench.transmitter()


def test_a_serial_number_finds_its_radio(bench, monkeypatch):
    there = {bench.transmitter_uri: "PlutoSDR, serial=abc-1", "usb:1.2.5": "PlutoSDR, serial=abc-2"}
    monkeypatch.setattr(context, "found_uris", lambda: there)
    with PlutoTransceiver(PlutoSettings("serial:abc-1", Role.TRANSMITTER)) as radio:
        assert radio.modes == {Mode.HELD}
    with pytest.raises(RadioUnavailableError, match=r"serial:abc-3: no such radio.*Found: .*abc-2"):
        silence("serial:abc-3")


def test_a_serial_number_is_compared_as_a_whole_and_has_to_be_of_one_radio(bench, monkeypatch):
    there = {
        "usb:1.2.5": "PlutoSDR, serial=abc-10",
        "usb:1.3.5": "PlutoSDR, serial=abc-1-2",
        bench.transmitter_uri: "(PlutoSDR), serial=ABC-1",
    }
    monkeypatch.setattr(context, "found_uris", lambda: there)
    assert silence("serial:abc-1").uri == "serial:abc-1"
    with pytest.raises(RadioUnavailableError, match="no such radio; a serial number is compared"):
        silence("serial:abc")
    there["ip:192.168.2.1"] = "PlutoSDR, serial=abc-1"
    with pytest.raises(RadioUnavailableError, match=r"found at ip:127.*, ip:192.*, wanted"):
        silence("serial:abc-1")


@pytest.mark.parametrize("role", Role)
def test_a_radio_has_one_task_whatever_its_address_is_called(bench, role):
    port = bench.transmitter_uri.rpartition(":")[2]
    with bench.transmitter() as transmitter:
        transmitter.hold(tone())
        with pytest.raises(RadioConfigurationError, match=r"this is the radio of serial number"):
            PlutoTransceiver(PlutoSettings(f"ip:localhost:{port}", role))
        assert bench.plutos[1].radio.is_radiating()  # and nobody touched it
    with PlutoTransceiver(PlutoSettings(f"ip:localhost:{port}", role)):
        pass


def test_a_search_that_fails_says_what_it_needs():
    try:
        assert isinstance(found_uris(), dict)
    except RadioUnavailableError as error:
        assert "avahi-daemon" in str(error)


def test_missing_libraries_are_told_with_the_command(monkeypatch):
    monkeypatch.setattr(context, "_loaded", None)
    monkeypatch.setitem(sys.modules, "iio", None)
    with pytest.raises(RadioUnavailableError, match=r"cannot be loaded.*pip install 'pairzero"):
        silence("ip:192.0.2.1")


@pytest.mark.parametrize(("version", "works"), [((0, 23), False), ((0, 26), True), ((1, 0), False)])
def test_a_libiio_that_does_not_work_is_refused(iio_module, monkeypatch, version, works):
    monkeypatch.setattr(context, "_loaded", None)
    monkeypatch.setattr(iio_module, "version", (*version, "v"))
    if works:
        assert f"libiio 0.{version[1]}" in driver.describe_libraries()
    else:
        with pytest.raises(RadioUnavailableError, match=r"wanted 0\.24 or later and below 1"):
            driver.describe_libraries()


def test_the_binding_that_sends_a_quarter_is_refused(monkeypatch):
    monkeypatch.setattr(context, "_loaded", None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(RadioUnavailableError, match=r"got pylibiio 1.0.*pip install 'pylibiio<1'"):
        driver.describe_libraries()


def test_the_source_names_the_stack_and_that_it_is_virtual(bench):
    with bench.transmitter() as radio:
        assert re.fullmatch(r"virtual-pluto\+pyadi-iio 0\.0\.21\+libiio 0\.2\d", radio.source)
        assert radio.is_simulated
        assert not radio.repeats_bit_for_bit
    bench.plutos[1].context_attributes["hw_model"] = "Analog Devices PlutoSDR Rev.C"
    with bench.transmitter() as radio:
        assert radio.source.startswith("pluto+")
        assert not radio.is_simulated


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "udev"), (errno.EIO, "USB power"), (errno.EBUSY, "another program"),
     (errno.E2BIG, "firmware_notes")],
)  # fmt: skip
def test_hints_say_what_to_do(code, words):
    assert words in hint(OSError(code, os.strerror(code)))


def test_an_interrupt_while_a_radio_is_set_up_leaves_it_silent(bench, monkeypatch):
    def interrupt(self):
        self._pluto.tx_oscillator["powerdown"].value = "0"
        self._attenuate(0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlutoTransceiver, "_set_up", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.transmitter()
    assert not bench.plutos[1].radio.is_radiating()


def test_a_firmware_without_status_bits_is_used_without_them(bench):
    for pluto_ in bench.plutos:
        for device in (pluto_.dac, pluto_.adc):
            del device.debug["direct_reg_access"]
    with bench.transmitter() as transmitter, bench.receiver() as receiver:
        transmitter.hold(tone())
        receiver.capture(4000, timeout_s=5.0)
        assert receiver.take_health().num_overflows == 0


def test_a_binding_of_the_distribution_has_no_version_of_its_own(monkeypatch, iio_module):
    monkeypatch.setattr(context, "_loaded", None)
    known = importlib.metadata.version

    def version(name):
        if name == "pylibiio":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "libiio 0.2" in driver.describe_libraries()


# Settings that are read back


def test_everything_is_set_and_read_back(bench):
    with bench.transmitter(
        sample_rate_hz=2.5e6, carrier_hz=868e6, rf_bandwidth_hz=3e6, xo_correction=40_000_100
    ) as radio:
        assert radio.sample_rate_hz == 2.5e6
        assert bench.plutos[1].radio.rate_hz == 2.5e6
        assert abs(int(bench.tx("frequency", "TX_LO").read()) - 868e6) <= 3
        assert bench.tx("rf_bandwidth").read() == "3000000"
        assert bench.plutos[1].phy.attributes["xo_correction"].read() == "40000100"
    with bench.receiver(rx_gain_db=33.0):
        receiver = bench.plutos[0].phy.channel("voltage0", is_output=False).attributes
        assert receiver["gain_control_mode"].read() == "manual"
        assert receiver["hardwaregain"].read() == "33.000000 dB"


def stubborn(text):
    """Takes what is written and stays what it is."""
    return Attribute(text, lambda _: text)


@pytest.mark.parametrize(
    ("channel", "is_output", "name", "attribute", "message"),
    [
        ("RX_LO", True, "frequency", stubborn("2400000000"), "carrier_hz: asked 9.15e"),
        ("voltage0", False, "hardwaregain", stubborn("71.0 dB"), r"asked 26.*reports 71.*manual"),
        ("voltage0", False, "gain_control_mode", stubborn("slow_attack"), r"is 'slow_attack'"),
        ("voltage0", False, "sampling_frequency", stubborn("3000000"), "sample_rate_hz: asked 1e"),
    ],
)
def test_a_radio_that_does_not_do_as_it_is_told_is_refused(
    bench, channel, is_output, name, attribute, message
):
    attributes = bench.plutos[0].phy.channel(channel, is_output=is_output).attributes
    attributes[name] = attribute
    with pytest.raises(RadioConfigurationError, match=message):
        bench.receiver()
    # It was left as silent as it could be.
    assert (
        bench.plutos[0].phy.channel("TX_LO", is_output=True).attributes["powerdown"].read() == "1"
    )


def test_a_transmitter_that_cannot_be_silenced_is_not_used(bench):
    bench.plutos[1].phy.channel("TX_LO", is_output=True).attributes["powerdown"] = stubborn("0")
    with pytest.raises(RadioNotSilentError, match=r"not known to be silent.*the local oscillator"):
        bench.transmitter()


# On the air


def test_a_transmitter_is_loud_only_while_it_holds(bench):
    with bench.transmitter(tx_attenuation_db=7.25) as radio:
        assert bench.tx("hardwaregain").read() == "-89.750000 dB"
        assert bench.tx("powerdown", "TX_LO").read() == "0"
        radio.hold(tone())
        assert bench.tx("hardwaregain").read() == "-7.250000 dB"
        radio.fall_silent()
        assert bench.tx("hardwaregain").read() == "-89.750000 dB"
    assert bench.tx("powerdown", "TX_LO").read() == "1"


def test_amplitudes_come_out_as_the_scales_say(bench):
    with bench.transmitter() as transmitter, bench.receiver() as receiver:
        transmitter.hold(tone(amplitude=0.5))
        burst = bench.plutos[1].radio.bursts[-1]
        assert np.abs(burst.samples).max() == pytest.approx(0.25, abs=1e-4)  # of 2^15
        capture = receiver.capture(5000, timeout_s=5.0)
        # 0.25 of full scale, 20 dB of path, 26 dB of gain.
        assert np.abs(capture).mean() == pytest.approx(0.25 * 10 ** (6 / 20), rel=2e-3)


def test_a_capture_holds_nothing_from_before(bench):
    with bench.transmitter() as transmitter, bench.receiver() as receiver:
        for _ in range(3):
            transmitter.hold(tone())
            assert np.abs(receiver.capture(5000, timeout_s=5.0)).min() > 0.1
            transmitter.fall_silent()
            assert not receiver.capture(5000, timeout_s=5.0).any()


def test_a_wrong_end_says_which_it_is(bench):
    with bench.transmitter() as transmitter, bench.receiver() as receiver:
        with pytest.raises(RadioConfigurationError, match="capture at a transmitter"):
            transmitter.capture(10, timeout_s=1.0)
        with pytest.raises(RadioConfigurationError, match=f"{receiver.uri}: hold at a receiver"):
            receiver.hold(tone())
        with pytest.raises(RadioConfigurationError, match="has to fit one buffer"):
            receiver.capture((1 << 22) - 1023, timeout_s=1.0)


def test_a_capture_waits_for_who_is_about_to_send_and_takes_no_more_samples_for_it(bench):
    waited = []
    settings = PlutoSettings(bench.server.uris[0], Role.RECEIVER, settling_s=0.25)
    with PlutoTransceiver(settings, wait=waited.append) as receiver:
        receiver.capture(4096, timeout_s=5.0)
        assert waited == [0.25]
        assert receiver._pluto.radio.rx_buffer_size == 4096 + 1024


def test_codes_are_checked_before_they_wrap(bench, monkeypatch):
    with bench.transmitter() as transmitter:
        monkeypatch.setattr(transmitter, "_check_amplitude", lambda burst: None)
        with pytest.raises(RadioSaturationError, match="beyond 16384"):
            transmitter.hold(tone(amplitude=2.1))
        assert not bench.plutos[1].radio.bursts


def test_health_counts_overloads_and_starts_again(bench):
    with bench.transmitter() as transmitter, bench.receiver(rx_gain_db=45.0) as receiver:
        transmitter.hold(tone(amplitude=0.9))
        receiver.capture(4000, timeout_s=5.0)
        health = receiver.take_health()
        assert (health.num_captures, health.num_samples) == (1, 4000)
        assert health.overloaded_share > 0.3
        assert 30 < health.temperature_c < 60
        assert receiver.take_health().num_captures == 0
        transmitter.fall_silent()
        receiver.capture(4000, timeout_s=5.0)
        assert receiver.take_health().overloaded_share == 0.0


def test_temperature_is_the_chips(bench):
    with bench.receiver() as receiver:
        assert 35.9 < receiver.temperature_c < 37
        bench.plutos[0].air.clock.wait_until(3600.0)
        assert receiver.temperature_c > 47
    assert receiver.temperature_c is None


def test_nothing_is_held_that_the_guardian_does_not_know_of(bench, monkeypatch):
    def gone(self, uri, max_hold_s):
        raise RadioUnavailableError("the guardian of the radios is gone")

    with bench.transmitter() as transmitter:
        monkeypatch.setattr(Guardian, "arm", gone)
        with pytest.raises(RadioUnavailableError, match="guardian"):
            transmitter.hold(tone())
        assert not bench.plutos[1].radio.bursts
        assert bench.tx("hardwaregain").read() == "-89.750000 dB"


# Silence


def test_close_leaves_nothing_on_the_air_and_reads_it_back(bench):
    transmitter = bench.transmitter()
    transmitter.hold(tone())
    assert bench.plutos[1].radio.is_radiating()
    transmitter.close()
    now_s = bench.plutos[1].air.clock.now_s()
    assert all(burst.end_s <= now_s for burst in bench.plutos[1].radio.bursts)
    assert not bench.plutos[1].radio.is_radiating()
    assert bench.tx("hardwaregain").read() == f"{-MAX_ATTENUATION_DB:.6f} dB"


def test_the_safe_stop_comes_after_any_exception(bench):
    with pytest.raises(ZeroDivisionError), bench.transmitter() as transmitter:
        transmitter.hold(tone())
        raise ZeroDivisionError
    assert not bench.plutos[1].radio.is_radiating()


def test_what_was_left_on_the_air_is_found_and_silenced(bench, caplog):
    silence(bench.transmitter_uri)
    bench.tx("powerdown", "TX_LO").write("0")
    bench.tx("hardwaregain").write("-20")
    bench.plutos[1].dac.channel("TX1_I_F1", is_output=True).attributes["scale"].write("0.5")
    report = silence(bench.transmitter_uri)
    assert report.was_radiating
    assert "attenuation 20 dB" in report.found[0]
    assert "scales [0.5" in report.found[1]
    assert not silence(bench.transmitter_uri).was_radiating
    bench.tx("powerdown", "TX_LO").write("0")
    bench.tx("hardwaregain").write("-20")
    with bench.transmitter() as transmitter:
        assert "attenuation 20 dB" in transmitter.found_radiating[0]
    assert "was on the air and is silent now" in caplog.text


def test_a_burst_of_a_lost_client_is_ended(bench):
    transmitter = bench.transmitter()
    transmitter.hold(tone())
    burst = bench.plutos[1].radio.bursts[-1]
    # Its connections break, nothing is closed.
    bench.server._servers[1].close_connections()
    assert burst.end_s == math.inf
    report = silence(bench.transmitter_uri)
    assert report.was_radiating
    assert burst.end_s < math.inf
    transmitter.close()  # over a new connection: it is asked again, and not loud any more
    assert not bench.plutos[1].radio.is_radiating()


def test_a_radio_that_is_pulled_out_is_an_error_with_its_cause(bench):
    transmitter, receiver = bench.transmitter(), bench.receiver()
    transmitter.hold(tone())
    bench.server.unplug(1)
    with pytest.raises(RadioUnavailableError, match="the radio failed during hold") as info:
        transmitter.hold(tone())
    assert isinstance(info.value.__cause__, OSError)
    with pytest.raises(RadioNotSilentError, match=r"Unplug it, or run: pairzero-radio silence"):
        transmitter.fall_silent()
    with pytest.raises(RadioNotSilentError, match=r"Unplug it, or run: pairzero-radio silence"):
        transmitter.close()
    bench.server.unplug(0)
    with pytest.raises(RadioUnavailableError):
        receiver.capture(100, timeout_s=1.0)
    receiver.close()  # its transmitter was silenced when it was opened


# A connection that is lost, a radio that answers nonsense


@pytest.mark.parametrize("way", ["cut", "reset", "freeze"])
def test_a_lost_connection_is_replaced_and_the_radio_is_silent(bench, proxied, caplog, way):
    with proxied() as (proxy, transmitter):
        transmitter.hold(tone())
        getattr(proxy, way)()
        transmitter.fall_silent()
        assert not bench.plutos[1].radio.is_radiating()
        assert "silent, as read back over a new one" in caplog.text
        if way == "freeze":  # the radio takes the old connection for alive, until it learns
            with pytest.raises(RadioUnavailableError, match="busy"):
                transmitter.hold(tone())
            assert bench.tx("hardwaregain").read() == "-89.750000 dB"
            proxy.cut()
        # And it takes part again, set up as it was.
        transmitter.hold(tone())
        assert bench.tx("hardwaregain").read() == "0.000000 dB"
        assert bench.tx("powerdown", "TX_LO").read() == "0"
        assert "open again, and set up as before" in caplog.text
    assert not bench.plutos[1].radio.is_radiating()


@pytest.mark.parametrize("way", ["cut", "reset", "freeze"])
def test_close_needs_no_more_than_a_new_connection(bench, proxied, way):
    with proxied() as (proxy, transmitter):
        transmitter.hold(tone())
        getattr(proxy, way)()
    assert not bench.plutos[1].radio.is_radiating()


def test_a_radio_that_cannot_be_reached_anew_is_told_with_the_command(bench, proxied):
    with pytest.raises(RadioNotSilentError) as info, proxied() as (proxy, transmitter):
        transmitter.hold(tone())
        proxy.is_dead_for_new = True
        proxy.freeze()
        with pytest.raises(RadioNotSilentError, match="pairzero-radio silence"):
            transmitter.fall_silent()
    assert f"pairzero-radio silence {transmitter.uri}" in str(info.value)
    assert bench.plutos[1].radio.is_radiating()  # that is what was said
    silence(bench.transmitter_uri)


def test_another_radio_at_the_address_of_one_that_was_lost_is_not_used(bench, proxied):
    with proxied() as (proxy, transmitter):
        transmitter.hold(tone())
        proxy.cut()
        transmitter.fall_silent()
        bench.plutos[1].context_attributes["hw_serial"] = "another"
        with pytest.raises(RadioUnavailableError, match="radio another is there now, wanted"):
            transmitter.hold(tone())
        assert not bench.plutos[1].radio.is_radiating()


@pytest.fixture
def proxied(bench):
    """A transmitter behind a network that can fail."""

    @contextlib.contextmanager
    def make():
        proxy = TcpProxy(bench.transmitter_uri)
        settings = PlutoSettings(proxy.uri, Role.TRANSMITTER, tx_attenuation_db=0.0, **PATIENT)
        try:
            with PlutoTransceiver(settings) as transmitter:
                yield proxy, transmitter
        finally:
            proxy.close()

    return make


class Mumbling(Attribute):
    """Does as it is told, and tells clients nonsense."""

    def __init__(self, honest, says):
        super().__init__()
        self.honest = honest
        self.says = says

    def read(self):
        return self.says

    def write(self, text):
        self.honest.write(text)

    def number(self):
        return self.honest.number()


@pytest.mark.parametrize("says", ["none", "", "1 2 3", "-89.75 dB or so", "nan"])
@pytest.mark.parametrize(
    ("channel", "name"), [("voltage0", "hardwaregain"), ("TX_LO", "powerdown")]
)
def test_nonsense_in_place_of_an_answer_keeps_no_step_and_no_other_radio_from_silence(
    bench, channel, name, says
):
    """pyadi-iio hands over a list where a reply is no number."""
    receiver, transmitter = bench.receiver(), bench.transmitter()
    transmitter.hold(tone())
    attributes = bench.plutos[1].phy.channel(channel, is_output=True).attributes
    honest = attributes[name]
    attributes[name] = Mumbling(honest, says)
    if (name, says) == ("hardwaregain", "-89.75 dB or so"):
        assert safe_stop.silence_all([transmitter, receiver]) == []
    else:
        assert safe_stop.silence_all([transmitter, receiver]) == [transmitter.uri]
        with pytest.raises(RadioNotSilentError, match="not known to be silent"):
            silence(transmitter.uri)
    attributes[name] = honest
    # It was told, whatever it said, and so was everybody else.
    assert bench.tx("hardwaregain").read() == "-89.750000 dB"
    assert bench.tx("powerdown", "TX_LO").read() == "1"
    assert not bench.plutos[1].radio.is_radiating()
    with pytest.raises(RadioUnavailableError, match="after close"):
        receiver.capture(1, timeout_s=1.0)
    # Whoever opens it next has it silenced, and is not told that it is open.
    with bench.transmitter():
        pass


def test_a_receiver_that_somebody_else_switched_on_is_not_taken_for_silent(bench):
    receiver = bench.receiver()
    oscillator = bench.plutos[0].phy.channel("TX_LO", is_output=True).attributes
    honest, oscillator["powerdown"] = oscillator["powerdown"], stubborn("0")
    with pytest.raises(RadioNotSilentError, match="the local oscillator is on"):
        receiver.close()
    oscillator["powerdown"] = honest


def test_what_a_library_raises_in_its_confusion_is_an_error_of_the_radio(bench):
    attributes = bench.plutos[1].phy.channel("voltage0", is_output=True).attributes
    honest = attributes["hardwaregain"]
    with bench.transmitter() as transmitter:
        transmitter.hold(tone())
        attributes["hardwaregain"] = Mumbling(honest, "none")
        with pytest.raises(RadioUnavailableError, match=r"failed during hold.*it answers nonsense"):
            transmitter.hold(tone())
        with pytest.raises(RadioNotSilentError, match="reading back: could not convert"):
            transmitter.fall_silent()
        assert honest.read() == "-89.750000 dB"
        attributes["hardwaregain"] = honest
    attributes = bench.plutos[0].phy.channel("voltage0", is_output=False).attributes
    attributes["hardwaregain"] = Mumbling(attributes["hardwaregain"], "1 or 2")
    with pytest.raises(RadioUnavailableError, match="it answers nonsense"):
        bench.receiver()


def test_one_radio_that_does_not_answer_delays_no_other(bench, proxied):
    receiver = bench.receiver()
    with proxied() as (proxy, transmitter):
        transmitter.hold(tone())
        proxy.is_dead_for_new = True
        proxy.freeze()
        order = []
        close = receiver.close_for
        receiver.close_for = lambda thread: (close(thread), order.append("receiver"))
        loud = safe_stop.silence_all([transmitter, receiver])
        order.append("all")
        assert loud == [transmitter.uri]
        assert order == ["receiver", "all"]
    silence(bench.transmitter_uri)


# What other programs leave


@pytest.mark.parametrize(
    ("where", "name", "left", "wanted"),
    [
        (lambda phy: phy.debug, "loopback", "1", "0"),
        (lambda phy: phy.attributes, "ensm_mode", "alert", "fdd"),
        (lambda phy: phy.channel("RX_LO", is_output=True).attributes, "powerdown", "1", "0"),
        (lambda phy: phy.channel("RX_LO", is_output=True).attributes, "external", "1", "0"),
    ],
)
def test_what_a_receiver_relies_on_is_put_in_order_and_told(
    bench, caplog, where, name, left, wanted
):
    with bench.transmitter() as transmitter:
        where(bench.plutos[0].phy)[name].write(left)
        with bench.receiver() as receiver:
            assert where(bench.plutos[0].phy)[name].read() == wanted
            told = [record.message for record in caplog.records if name in record.message]
            assert len(told) == 1
            assert f"was {left!r} and is {wanted!r} now" in told[0]
            transmitter.hold(tone())
            assert np.abs(receiver.capture(5000, timeout_s=5.0)).min() > 0.1


def test_what_cannot_be_put_in_order_is_refused(bench):
    bench.plutos[0].phy.attributes["ensm_mode"] = stubborn("sleep")
    with pytest.raises(RadioConfigurationError, match=r"ensm_mode was 'sleep', was set to 'fdd'"):
        bench.receiver()


def test_only_samples_that_were_lost_are_counted(bench, monkeypatch):
    """The bit is set as well when all blocks behind the one that was read are full."""
    with bench.transmitter() as transmitter, bench.receiver() as receiver:
        transmitter.hold(tone())
        for _ in range(9):
            receiver.capture(4000, timeout_s=5.0)
            bench.plutos[0]._adc.status.note(OVERFLOW)  # between captures nobody fetches anything
        assert receiver.take_health().num_overflows == 0
        read_block = ReceiveBuffer.read_block

        def lose(self):
            self._on_overflow()
            yield from read_block(self)

        monkeypatch.setattr(ReceiveBuffer, "read_block", lose)
        receiver.capture(4000, timeout_s=5.0)
        assert receiver.take_health().num_overflows == 1


# Where libiio is


def test_an_unpacked_libiio_is_found_only_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv(libiio.FOLDER_VARIABLE, str(tmp_path))
    assert libiio.unpacked_folder() is None
    (tmp_path / "libiio.so.0").write_bytes(b"no library")
    assert libiio.unpacked_folder() == tmp_path
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(OSError, match=r"libiio\.so\.0"), libiio.findable_libiio():
        pass
    monkeypatch.delenv(libiio.FOLDER_VARIABLE)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "none"))
    assert libiio.unpacked_folder() is None


def test_the_systems_libiio_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv(libiio.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "libiio.so.0").write_bytes(b"no library")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"the system's {name}")
    with libiio.findable_libiio():
        import ctypes.util

        assert ctypes.util.find_library("iio") == "the system's iio"


@pytest.mark.parametrize("rate_hz", [1e6, 5e6, 10e6, 20e6])
def test_the_filter_that_is_loaded_passes_what_the_bands_use_and_lets_nothing_fold_back(
    rate_hz, monkeypatch
):
    loaded = []
    accept = chip._accept_fir
    monkeypatch.setattr(chip, "_accept_fir", lambda text: loaded.append(text) or accept(text))
    bench = VirtualBench()
    try:
        bench.receiver(sample_rate_hz=rate_hz, rf_bandwidth_hz=rate_hz).close()
    finally:
        bench.server.close()
    lines = loaded[-1].splitlines()
    decimation = int(lines[0].split()[-1])
    taps = np.array([float(line.split(",")[0]) for line in lines if re.match(r"-?\d", line)])

    def passed_db(share):
        """Of the power at a share of the sample rate beside the carrier."""
        turns = np.exp(-2j * np.pi * share / decimation * np.arange(taps.size))
        return 20 * np.log10(abs(taps @ turns) / abs(taps.sum()))

    edge = USED_SHARE / 2
    assert max(abs(passed_db(share)) for share in np.linspace(0.0, edge, 91)) < 0.1
    # From there on it would lie on what is used.
    assert max(passed_db(share) for share in np.linspace(1 - edge, 1.0, 91)) < -50
