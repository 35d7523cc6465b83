"""The way out of a device: what reaches the air, where and how loud."""

import dataclasses

import numpy as np
import pytest

from edge_runtime.protocol.rounds import SoundingOrder, TransmitOrder
from edge_runtime.uplink import CoherentUplink, IdealUplink, ScalarBox
from radio.errors import RadioError, RadioSaturationError
from radio.software_air.loopback import LoopbackTransceiver
from radio.transceiver import Mode, Transceiver
from radio.waveforms.coherent import CoherentWaveform

WAVEFORM = CoherentWaveform(
    num_devices=3, pilot_symbols=16, payload_symbols=8, guard_symbols=2, noise_symbols=4
)


class RecordingTransceiver(Transceiver):
    """Keeps bursts. Does not model: anything."""

    def __init__(self):
        self.bursts = []

    @property
    def sample_rate_hz(self):
        return 1e6

    @property
    def max_amplitude(self):
        return 1.0

    @property
    def source(self):
        return "recording"

    @property
    def is_simulated(self):
        return True

    @property
    def modes(self):
        return frozenset({Mode.POSITIONED})

    def _transmit(self, burst, start_sample):
        self.bursts.append((burst.copy(), start_sample))

    def _receive(self, num_samples, start_sample, timeout_s):
        return np.zeros(num_samples, dtype=np.complex64)

    def _close(self):
        pass


@pytest.fixture
def radio():
    return RecordingTransceiver()


@pytest.fixture
def uplink(radio):
    return CoherentUplink(radio, WAVEFORM)


def test_a_scalar_goes_out_in_the_payload_slot_at_the_ordered_gain(uplink, radio, make_plan):
    order = TransmitOrder(1, 0.25, -0.5, 0.1)
    uplink.send_scalars([0.5 + 0.125j], order, make_plan(frame_start_sample=1000))
    ((burst, start_sample),) = radio.bursts
    assert start_sample == 1000 + WAVEFORM.payload_offset_samples
    assert np.array_equal(burst, WAVEFORM.modulate([0.5 + 0.125j], 0.25 - 0.5j))
    np.testing.assert_allclose(np.abs(burst), abs((0.5 + 0.125j) * (0.25 - 0.5j)), rtol=1e-6)


@pytest.mark.parametrize("device_index", range(3))
def test_a_pilot_goes_out_in_the_devices_own_slot(uplink, radio, device_index):
    uplink.send_pilot(device_index, SoundingOrder("r", 0, 0.75, 500))
    ((burst, start_sample),) = radio.bursts
    wanted, offset_samples = WAVEFORM.sounding_burst(device_index, 0.75)
    assert start_sample == 500 + offset_samples
    assert np.array_equal(burst, wanted)


def test_what_is_sent_is_what_is_heard(make_plan):
    from radio.software_air.medium import SoftwareMedium

    medium = SoftwareMedium(
        num_devices=3, sample_rate_hz=1e6, noise_power=1e-20, noise_rng=np.random.default_rng(1)
    )
    gains = np.array([0.5 + 0.5j, -0.8j, 1.2])
    medium.set_gains(gains)
    scalars, receive_scale = [0.5, -0.25, 0.125], 0.3
    for k, scalar in enumerate(scalars):
        uplink = CoherentUplink(LoopbackTransceiver(medium, k), WAVEFORM)
        gain = receive_scale / gains[k]
        uplink.send_scalars([scalar], TransmitOrder(k, gain.real, gain.imag, 0.0), make_plan())
    capture = medium.capture(0, WAVEFORM.payload_samples)
    heard = WAVEFORM.demodulate(capture, receive_scale)
    assert heard.sum_estimates[0] == pytest.approx(sum(scalars), abs=1e-5)


def test_a_scalar_too_loud_for_the_radio_is_refused_and_not_clipped(uplink, radio, make_plan):
    with pytest.raises(RadioSaturationError):
        uplink.send_scalars([3.0], TransmitOrder(0, 0.5, 0.0, 0.0), make_plan())
    assert radio.bursts == []


@pytest.mark.parametrize("scalar", [complex("nan"), complex("inf")])
def test_a_scalar_that_is_no_number_never_leaves(uplink, radio, make_plan, scalar):
    with pytest.raises(RadioError):
        uplink.send_scalars([scalar], TransmitOrder(0, 0.5, 0.0, 0.0), make_plan())
    assert radio.bursts == []


def test_a_closed_uplink_is_silent(uplink, radio, make_plan):
    uplink.close()
    uplink.close()
    with pytest.raises(RadioError):
        uplink.send_scalars([0.1], TransmitOrder(0, 0.5, 0.0, 0.0), make_plan())
    assert radio.bursts == []


def test_the_ideal_box_adds_exactly_in_any_order_and_forgets(make_plan):
    box = ScalarBox()
    uplink, order = IdealUplink(box), TransmitOrder(0, 1.0, 0.0, 0.0)
    uplink.send_pilot(0, SoundingOrder("r", 0, 1.0, 0))
    for scalar in (1e16, 1.0 + 5j, -1e16):
        uplink.send_scalars([scalar], order, make_plan())
    uplink.close()
    assert box.take_sums() == (1.0,)
    assert box.take_sums() == ()


def test_several_numbers_go_out_one_after_the_other_at_one_gain(radio, make_plan):
    waveform = dataclasses.replace(WAVEFORM, num_scalars=3)
    uplink = CoherentUplink(radio, waveform)
    scalars = [0.5 + 0.125j, -0.25, 0.0]
    order = TransmitOrder(1, 0.25, -0.5, 0.1)
    uplink.send_scalars(scalars, order, make_plan(num_directions=3))
    ((burst, _),) = radio.bursts
    alone = [WAVEFORM.modulate([scalar], order.tx_gain) for scalar in scalars]
    assert np.array_equal(burst, np.concatenate(alone))
    with pytest.raises(RadioError, match="got 2 scalars, wanted 3"):
        uplink.send_scalars(scalars[:2], order, make_plan(num_directions=2))
    assert len(radio.bursts) == 1


def test_the_ideal_box_adds_number_by_number():
    box = ScalarBox()
    for scalars in ((1e16, 1.0), (1.0, 2.0), (-1e16, 3.0)):
        box.put(scalars)
    assert box.take_sums() == (1.0, 6.0)
