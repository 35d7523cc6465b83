"""What every `Transceiver` must do, over all that exist; and that the check itself can fail."""

import contextlib
import math

import numpy as np
import pytest

from radio.errors import (
    RadioConfigurationError,
    RadioSaturationError,
    RadioTimeoutError,
    RadioUnavailableError,
)
from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.transceiver import PlutoTransceiver
from radio.recordings.replay import RecordingTransceiver, ReplayTransceiver
from radio.recordings.sigmf import Recording
from radio.software_air.impairments import impairments_from_name
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.transceiver import Mode, Transceiver
from radio.virtual_pluto.server import Bench, VirtualPlutoServer

START = 40
LENGTH = 25
FRAME = 100


class Exact:
    """Judges captures of a path of unit gain without noise, up to a converter's rounding."""

    def __init__(self, tolerance=1e-5):
        self.tolerance = tolerance

    def assert_repeats(self, capture, burst):
        """The capture is the burst again and again, from any sample of it, turned by any phase."""
        assert capture.shape == (FRAME,)
        assert capture.dtype == np.complex64
        np.testing.assert_allclose(capture[LENGTH:], capture[:-LENGTH], atol=2 * self.tolerance)
        one = capture[:LENGTH].astype(np.complex128)
        correlation = np.fft.ifft(np.fft.fft(one) * np.fft.fft(burst).conj())
        best = int(np.argmax(np.abs(correlation)))
        turned = np.roll(burst, best) * np.exp(1j * np.angle(correlation[best]))
        np.testing.assert_allclose(one, turned, atol=self.tolerance)

    def assert_silent(self, capture, burst):
        """Nothing at all."""
        assert not capture.any()


class OverTheAir:
    """Judges captures of radios with carriers of their own, noise, and a path nobody knows.

    A burst repeats itself up to a turn of phase; two bursts are told apart by their spectra.
    """

    SILENT_DB = -10.0

    def __init__(self, loud):
        self.loud = loud

    def assert_repeats(self, capture, burst):
        """As loud as it was at first, and the same again after LENGTH samples."""
        assert capture.shape == (FRAME,)
        x = capture.astype(np.complex128)
        later, earlier = x[LENGTH:], x[:-LENGTH]
        likeness = abs(np.vdot(later, earlier)) / (np.linalg.norm(later) * np.linalg.norm(earlier))
        assert likeness > 0.9
        assert np.mean(np.abs(x) ** 2) > self.loud / 2

    def assert_silent(self, capture, burst):
        """Far below what the burst was."""
        assert np.mean(np.abs(capture) ** 2) < self.loud * 10 ** (self.SILENT_DB / 10)


EXACT = Exact()


def check_transceiver(make_pair, judge=EXACT):
    """``make_pair()`` opens a fresh (transmitter, receiver) over a path that ``judge`` knows."""
    positioned = (
        check_burst_arrives_at_its_position,
        check_double_precision_is_sent,
        check_delay_is_shift,
        check_full_scale_limit,
        check_bad_bursts_are_refused_whole,
        check_bad_requests_are_refused,
        check_caller_keeps_the_array,
        check_captures_are_owned_by_the_caller,
        check_close,
    )
    held = (
        check_a_held_burst_is_everywhere,
        check_a_hold_replaces_the_one_before,
        check_silence_ends_a_hold,
        check_bad_holds_are_refused_and_change_nothing,
        check_bad_captures_are_refused,
        check_caller_keeps_the_held_array,
        check_close_ends_a_hold,
    )
    transmitter, receiver = make_pair()
    with contextlib.closing(transmitter), contextlib.closing(receiver):
        modes = transmitter.modes
    checks = [check_properties]
    checks += positioned if Mode.POSITIONED in modes else [check_positions_are_refused]
    checks += held if Mode.HELD in modes else [check_holds_are_refused]
    for check in checks:
        transmitter, receiver = make_pair()
        with contextlib.closing(transmitter), contextlib.closing(receiver):
            check(transmitter, receiver, *([judge] if check in held else []))


def make_burst(limit):
    phase = 2j * np.pi * np.arange(LENGTH) ** 2 / LENGTH
    return (limit * np.linspace(0.2, 0.9, LENGTH) * np.exp(phase)).astype(np.complex64)


def hear(receiver, start=0):
    return receiver.receive(FRAME, start_sample=start, timeout_s=1.0)


def check_properties(transmitter, receiver):
    for end in (transmitter, receiver):
        assert np.isfinite(end.sample_rate_hz)
        assert end.sample_rate_hz > 0
        assert 0 < end.max_amplitude < np.inf
        assert end.source
        assert end.is_simulated is True  # also through the Pluto driver: no hardware is behind it
        assert end.repeats_bit_for_bit is (end.source.startswith("loopback+"))
    assert transmitter.sample_rate_hz == receiver.sample_rate_hz
    assert transmitter.modes == receiver.modes
    assert transmitter.modes <= set(Mode)
    assert transmitter.modes


def check_burst_arrives_at_its_position(transmitter, receiver):
    burst = make_burst(transmitter.max_amplitude)
    transmitter.transmit(burst, start_sample=START)
    expected = np.zeros(FRAME, dtype=np.complex64)
    expected[START : START + LENGTH] = burst
    capture = hear(receiver)
    assert capture.dtype == np.complex64
    np.testing.assert_allclose(capture, expected, atol=1e-6 * transmitter.max_amplitude)


def check_double_precision_is_sent(transmitter, receiver):
    """Sums over the air are exact to more than a complex64 sample holds."""
    burst = make_burst(transmitter.max_amplitude)
    transmitter.transmit(burst.astype(np.complex128), start_sample=START)
    heard = hear(receiver)[START : START + LENGTH]
    np.testing.assert_allclose(heard, burst, atol=1e-6 * transmitter.max_amplitude)


def check_delay_is_shift(transmitter, receiver):
    transmitter.transmit(make_burst(transmitter.max_amplitude), start_sample=START)
    np.testing.assert_allclose(hear(receiver, 7)[:-7], hear(receiver, 0)[7:], atol=1e-6)


def check_full_scale_limit(transmitter, receiver):
    limit = transmitter.max_amplitude
    # Rounding to complex64 must not turn full scale into too much.
    phases_rad = np.linspace(0, 2 * np.pi, LENGTH)
    burst = (limit * np.exp(1j * phases_rad)).astype(np.complex64)
    transmitter.transmit(burst, start_sample=START)
    too_much = burst * np.float32(1.001)
    with pytest.raises(RadioSaturationError, match="has amplitude"):
        transmitter.transmit(too_much, start_sample=0)
    assert np.abs(hear(receiver)[: START - 10]).max() < 1e-3 * limit


def check_bad_bursts_are_refused_whole(transmitter, receiver):
    good = make_burst(transmitter.max_amplitude)
    spoiled = good.copy()
    spoiled[3] = np.nan
    for bad in (
        good.astype(np.complex128).view(np.float64),
        good.real.copy(),
        list(good),
        good.reshape(5, 5),
        good[:0],
        spoiled,
    ):
        with pytest.raises(RadioConfigurationError, match="burst: "):
            transmitter.transmit(bad, start_sample=0)
    for start in (-1, 0.5, None):
        with pytest.raises(RadioConfigurationError, match="start_sample: got"):
            transmitter.transmit(good, start_sample=start)
    assert np.abs(hear(receiver)).max() < 1e-3 * transmitter.max_amplitude


def check_bad_requests_are_refused(transmitter, receiver):
    for options in (
        {"num_samples": 0, "start_sample": 0, "timeout_s": 1.0},
        {"num_samples": 2.0, "start_sample": 0, "timeout_s": 1.0},
        {"num_samples": 2, "start_sample": -1, "timeout_s": 1.0},
        {"num_samples": 2, "start_sample": 0, "timeout_s": 0.0},
        {"num_samples": 2, "start_sample": 0, "timeout_s": np.nan},
    ):
        with pytest.raises(RadioConfigurationError, match=": got"):
            receiver.receive(**options)


def check_caller_keeps_the_array(transmitter, receiver):
    burst = make_burst(transmitter.max_amplitude)
    original = burst.copy()
    transmitter.transmit(burst, start_sample=START)
    np.testing.assert_array_equal(burst, original)
    burst[:] = 0
    heard = hear(receiver)[START : START + LENGTH]
    np.testing.assert_allclose(heard, original, atol=1e-6)


def check_captures_are_owned_by_the_caller(transmitter, receiver):
    transmitter.transmit(make_burst(transmitter.max_amplitude), start_sample=START)
    first = hear(receiver)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_allclose(hear(receiver), kept, atol=1e-6)


def check_close(transmitter, receiver):
    with transmitter as entered:
        assert entered is transmitter
    transmitter.close()
    receiver.close()
    burst = make_burst(transmitter.max_amplitude)
    with pytest.raises(RadioUnavailableError, match=r"transmit after close\(\)"):
        transmitter.transmit(burst, start_sample=0)
    with pytest.raises(RadioUnavailableError, match=r"receive after close\(\)"):
        hear(receiver)
    with pytest.raises(RadioUnavailableError, match=r"with after close\(\)"), transmitter:
        pass
    assert transmitter.source
    assert transmitter.sample_rate_hz > 0


def listen(receiver):
    return receiver.capture(FRAME, timeout_s=1.0)


def check_a_held_burst_is_everywhere(transmitter, receiver, judge):
    burst = make_burst(transmitter.max_amplitude)
    transmitter.hold(burst)
    for _ in range(4):
        judge.assert_repeats(listen(receiver), burst)


def check_a_hold_replaces_the_one_before(transmitter, receiver, judge):
    burst = make_burst(transmitter.max_amplitude)
    transmitter.hold(burst[::-1].copy())
    transmitter.hold(burst)
    judge.assert_repeats(listen(receiver), burst)


def check_silence_ends_a_hold(transmitter, receiver, judge):
    transmitter.fall_silent()
    transmitter.hold(make_burst(transmitter.max_amplitude))
    transmitter.fall_silent()
    transmitter.fall_silent()
    burst = make_burst(transmitter.max_amplitude)
    judge.assert_silent(listen(receiver), burst)
    transmitter.hold(burst)
    judge.assert_repeats(listen(receiver), burst)


def check_bad_holds_are_refused_and_change_nothing(transmitter, receiver, judge):
    good = make_burst(transmitter.max_amplitude)
    transmitter.hold(good)
    spoiled = good.copy()
    spoiled[3] = np.nan
    for bad in (good.astype(np.complex128), good[:0], spoiled, None):
        with pytest.raises(RadioConfigurationError, match="burst: "):
            transmitter.hold(bad)
    loud = (1.001 * transmitter.max_amplitude * good / np.abs(good)).astype(np.complex64)
    with pytest.raises(RadioSaturationError, match="has amplitude"):
        transmitter.hold(loud)
    judge.assert_repeats(listen(receiver), good)


def check_bad_captures_are_refused(transmitter, receiver, judge):
    for options in (
        {"num_samples": 0, "timeout_s": 1.0},
        {"num_samples": 2.0, "timeout_s": 1.0},
        {"num_samples": 2, "timeout_s": 0.0},
        {"num_samples": 2, "timeout_s": np.nan},
    ):
        with pytest.raises(RadioConfigurationError, match=": got"):
            receiver.capture(**options)


def check_caller_keeps_the_held_array(transmitter, receiver, judge):
    burst = make_burst(transmitter.max_amplitude)
    original = burst.copy()
    transmitter.hold(burst)
    np.testing.assert_array_equal(burst, original)
    burst[:] = 0
    capture = listen(receiver)
    judge.assert_repeats(capture, original)
    capture[:] = 0
    judge.assert_repeats(listen(receiver), original)


def check_close_ends_a_hold(transmitter, receiver, judge):
    transmitter.hold(make_burst(transmitter.max_amplitude))
    transmitter.close()
    judge.assert_silent(listen(receiver), make_burst(transmitter.max_amplitude))
    receiver.close()
    with pytest.raises(RadioUnavailableError, match=r"capture after close\(\)"):
        listen(receiver)
    with pytest.raises(RadioUnavailableError, match=r"hold after close\(\)"):
        transmitter.hold(make_burst(transmitter.max_amplitude))
    with pytest.raises(RadioUnavailableError, match=r"fall_silent after close\(\)"):
        transmitter.fall_silent()


def check_positions_are_refused(transmitter, receiver):
    with pytest.raises(RadioConfigurationError, match="needs a radio with bursts positioned"):
        transmitter.transmit(make_burst(transmitter.max_amplitude), start_sample=0)
    with pytest.raises(RadioConfigurationError, match="needs a radio with bursts positioned"):
        hear(receiver)


def check_holds_are_refused(transmitter, receiver):
    with pytest.raises(RadioConfigurationError, match="needs a radio with bursts held"):
        transmitter.hold(make_burst(transmitter.max_amplitude))
    with pytest.raises(RadioConfigurationError, match="needs a radio with bursts held"):
        transmitter.fall_silent()
    with pytest.raises(RadioConfigurationError, match="needs a radio with bursts held"):
        listen(receiver)
    assert not hear(receiver).any()


def make_loopback_pair():
    medium = SoftwareMedium(
        num_devices=2,
        sample_rate_hz=1e6,
        noise_power=0.0,
        noise_rng=np.random.default_rng(0),
        channel_name="ideal",
    )
    medium.set_gains([0.0, 1.0])
    return LoopbackTransceiver(medium, 1), LoopbackTransceiver(medium, None)


class TapeTransceiver(Transceiver):
    """A second, independent backend: one tape that both ends share. Faults can be switched on."""

    def __init__(self, tape, *, fault=None):
        self.tape = tape
        self.fault = fault
        self.num_closed = 0

    @property
    def sample_rate_hz(self):
        return 2e6

    @property
    def max_amplitude(self):
        return 0.5

    @property
    def source(self):
        return "tape"

    @property
    def is_simulated(self):
        return True

    @property
    def modes(self):
        return frozenset({Mode.POSITIONED})

    def _transmit(self, burst, start_sample):
        if self.fault == "late":
            start_sample += 1
        if self.fault == "loud":
            burst = 2 * burst
        self.tape[start_sample : start_sample + burst.size] = burst
        if self.fault == "scribbles":
            burst[:] = 0

    def _receive(self, num_samples, start_sample, timeout_s):
        if isinstance(self.fault, Exception):
            raise self.fault
        heard = self.tape[start_sample : start_sample + num_samples]
        match self.fault:
            case "short":
                return heard[:-1].copy()
            case "wide":
                return heard.astype(np.complex128)
            case "nan":
                return heard * np.float32(np.nan)
            case "aliased":
                return heard
        return heard.copy()

    def _close(self):
        self.num_closed += 1


def make_tape_pair(fault=None):
    tape = np.zeros(1000, dtype=np.complex64)
    return TapeTransceiver(tape, fault=fault), TapeTransceiver(tape, fault=fault)


class WheelTransceiver(Transceiver):
    """A third backend, without a time axis: one wheel that both ends share. With faults too."""

    def __init__(self, wheel, *, fault=None):
        self.wheel = wheel
        self.fault = fault

    @property
    def sample_rate_hz(self):
        return 3e6

    @property
    def max_amplitude(self):
        return 0.25

    @property
    def source(self):
        return "wheel"

    @property
    def is_simulated(self):
        return True

    @property
    def modes(self):
        return frozenset({Mode.HELD})

    def _hold(self, burst):
        kept = burst if self.fault == "keeps" else burst.copy()
        if self.fault == "adds" and self.wheel["burst"] is not None:
            kept = kept + self.wheel["burst"]
        if self.fault == "once":
            kept = np.concatenate([burst, np.zeros_like(burst)])
        self.wheel["burst"] = kept

    def _fall_silent(self):
        if self.fault != "radiates":
            self.wheel["burst"] = None

    def _capture(self, num_samples, timeout_s):
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.wheel["burst"] is None:
            return np.zeros(num_samples, dtype=np.complex64)
        self.wheel["moment"] += 17
        heard = np.roll(self.wheel["burst"], self.wheel["moment"])
        if self.fault == "gap":
            heard = heard[:-1]
        return np.resize(heard, num_samples - (self.fault == "short"))

    def _close(self):
        if self.fault != "unplugged":
            self.wheel["burst"] = None


def make_wheel_pair(fault=None):
    wheel = {"burst": None, "moment": 0}
    return WheelTransceiver(wheel, fault=fault), WheelTransceiver(wheel, fault=fault)


@pytest.mark.parametrize("make_pair", [make_loopback_pair, make_tape_pair, make_wheel_pair])
def test_transceiver_conforms(make_pair):
    check_transceiver(make_pair)


def test_a_tape_conforms_and_so_does_its_replay(tmp_path):
    tapes = []

    def make_recorded_pair():
        transmitter, receiver = make_loopback_pair()
        tapes.append(RecordingTransceiver(receiver, carrier_hz=915e6))
        return RecordingTransceiver(transmitter, carrier_hz=915e6), tapes[-1]

    check_transceiver(make_recorded_pair)
    played = iter(tapes)

    def make_replayed_pair():
        tape, deaf = next(played), Recording((), (), 1e6, 915e6, "nothing")
        try:
            path = tape.save(tmp_path / f"tape-{len(list(tmp_path.iterdir()))}")
        except RadioConfigurationError:  # a check that hears nothing
            return ReplayTransceiver(deaf), ReplayTransceiver(deaf)
        return ReplayTransceiver(deaf), ReplayTransceiver(path)

    check_transceiver(make_replayed_pair)
    assert next(played, None) is None
    assert len(list(tmp_path.iterdir())) > 10  # two files for each check that listens


def open_pluto_pair(transmitter_uri, receiver_uri, *, attenuation_db, gain_db):
    return (
        PlutoTransceiver(
            PlutoSettings(
                transmitter_uri,
                Role.TRANSMITTER,
                tx_attenuation_db=attenuation_db,
                max_hold_s=600.0,  # a busy machine is no hung program
            )
        ),
        PlutoTransceiver(PlutoSettings(receiver_uri, Role.RECEIVER, rx_gain_db=gain_db)),
    )


@pytest.mark.parametrize("is_stepped", [True, False], ids=["stepped", "wall"])
def test_a_pluto_conforms_through_the_real_client_on_a_virtual_one(is_stepped):
    # 2^14 of 2^15 is -6.02 dB, 26 dB of gain less this path gives unit gain.
    bench = Bench(
        is_stepped=is_stepped, noise_dbfs=-math.inf, path_loss_db=26.0 - 20.0 * math.log10(2.0)
    )
    with VirtualPlutoServer(bench.build(), base_port=0) as server:
        receiver_uri, transmitter_uri = server.uris
        check_transceiver(
            lambda: open_pluto_pair(
                transmitter_uri, receiver_uri, attenuation_db=0.0, gain_db=26.0
            ),
            Exact(tolerance=2e-3),
        )


def judge_over_the_air(make_pair):
    """How loud a burst is on this path, for the checks to compare with."""
    transmitter, receiver = make_pair()
    with contextlib.closing(transmitter), contextlib.closing(receiver):
        transmitter.hold(make_burst(transmitter.max_amplitude))
        return OverTheAir(float(np.mean(np.abs(listen(receiver)) ** 2)))


def test_a_pluto_conforms_among_the_impairments_of_a_desk():
    bench = Bench(is_stepped=True, impairments=impairments_from_name("desk-cabled"))
    with VirtualPlutoServer(bench.build(), base_port=0) as server:
        receiver_uri, transmitter_uri = server.uris

        def make_pair():
            return open_pluto_pair(transmitter_uri, receiver_uri, attenuation_db=10.0, gain_db=50.0)

        check_transceiver(make_pair, judge_over_the_air(make_pair))


def test_real_plutos_conform(real_plutos):
    """Where --pluto-transmitter and --pluto-receiver name two, 40 to 50 dB apart; else absent."""

    def make_pair():
        return open_pluto_pair(*real_plutos, attenuation_db=10.0, gain_db=50.0)

    check_transceiver(make_pair, judge_over_the_air(make_pair))


@pytest.mark.parametrize(
    "fault", ["keeps", "adds", "once", "radiates", "gap", "short", "unplugged"]
)
def test_negative_control_the_check_finds_a_backend_that_holds_badly(fault):
    with pytest.raises((AssertionError, ValueError, RadioTimeoutError)):
        check_transceiver(lambda: make_wheel_pair(fault))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("short", RadioTimeoutError, r"got samples of shape \(99,\), wanted \(100,\)"),
        (TimeoutError("no data"), RadioTimeoutError, "did not arrive within 1.0 s: no data"),
        (OSError(19, "No such device"), RadioUnavailableError, "failed during capture"),
    ],
)
def test_faults_of_a_capture_become_typed_errors(fault, error, message):
    transmitter, receiver = make_wheel_pair(fault)
    transmitter.hold(make_burst(transmitter.max_amplitude))
    with pytest.raises(error, match=message):
        listen(receiver)


@pytest.mark.parametrize("fault", ["late", "loud", "scribbles", "short", "wide", "nan", "aliased"])
def test_negative_control_the_check_finds_a_faulty_backend(fault):
    with pytest.raises((AssertionError, RadioTimeoutError, RadioUnavailableError)):
        check_transceiver(lambda: make_tape_pair(fault))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("short", RadioTimeoutError, r"got samples of shape \(99,\), wanted \(100,\)"),
        ("nan", RadioUnavailableError, "capture: sample 0 is"),
        ("wide", RadioUnavailableError, "capture: got complex128"),
        (TimeoutError("no data"), RadioTimeoutError, "did not arrive within 1.0 s: no data"),
        (OSError(19, "No such device"), RadioUnavailableError, "failed during receive"),
    ],
)
def test_driver_faults_become_typed_errors(fault, error, message):
    _, receiver = make_tape_pair(fault)
    with pytest.raises(error, match=message):
        hear(receiver)


def test_transmit_faults_become_typed_errors(monkeypatch):
    transmitter, _ = make_tape_pair()
    for fault, error in (
        (TimeoutError("stuck"), RadioTimeoutError),
        (ConnectionResetError("gone"), RadioUnavailableError),
    ):

        def fail(burst, start_sample, fault=fault):
            raise fault

        monkeypatch.setattr(transmitter, "_transmit", fail)
        with pytest.raises(error, match="tape: ") as info:
            transmitter.transmit(make_burst(0.5), start_sample=0)
        assert info.value.__cause__ is fault


def test_backend_is_closed_once_even_after_an_error():
    transmitter, _ = make_tape_pair()
    with pytest.raises(RadioSaturationError), transmitter:
        transmitter.transmit(np.ones(2, dtype=np.complex64), start_sample=0)
    transmitter.close()
    assert transmitter.num_closed == 1
