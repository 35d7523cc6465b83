"""Numbers that are held on the air side by side: who is ready, who holds, who is silent."""

import numpy as np
import pytest

from edge_runtime.protocol.errors import PlanRefusedError
from edge_runtime.protocol.rounds import (
    Access,
    BandLevels,
    NumbersHold,
    PacketHold,
    PacketLevels,
    Participation,
    PilotHold,
    RoundResult,
    SilenceOrder,
    SoundingOrder,
    TransmitOrder,
)
from edge_runtime.uplink import CoherentUplink, EnergyUplink, IdealUplink, ScalarBox, SlottedUplink
from radio.errors import RadioError, RadioNotSilentError, RadioTimeoutError
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import PacketsSideBySide
from radio.waveforms.slotted import SlottedWaveform

WAVEFORM = EnergyWaveform(plateau_samples=1 << 13, num_scalars=3)
SILENCE = np.zeros((3, 2))
FULL_RANGE = 8.0
RUN = "run-of-the-tests"


@pytest.fixture
def medium():
    medium = SoftwareMedium(
        num_devices=3, sample_rate_hz=1e6, noise_power=0.0, noise_rng=np.random.default_rng(0)
    )
    medium.set_gains([1.0, 0.5, 0.8j])
    return medium


@pytest.fixture
def uplinks(medium):
    return [EnergyUplink(LoopbackTransceiver(medium, k), WAVEFORM) for k in range(3)]


def order(device_index, noise_std=0.0, amplitudes=(0.4, 0.4)):
    levels = BandLevels(amplitudes * 3, FULL_RANGE)
    return TransmitOrder(device_index, 0.0, 0.0, noise_std, levels)


def heard(medium, arrival_amplitude, num_speakers=1):
    """The sums on the air, in units of the scalar."""
    energies = WAVEFORM.energies(medium.listen(WAVEFORM.plateau_samples))
    power = WAVEFORM.arrival_power(arrival_amplitude)
    return FULL_RANGE * WAVEFORM.estimate_sums(energies, SILENCE, power, num_speakers)


def ready(uplink, make_plan, scalars, levels=None, **changes):
    plan = make_plan(num_directions=3, **changes)
    assert uplink.send_scalars(scalars, levels or order(0), plan) is Participation.READY


def test_numbers_wait_until_they_are_held_all_of_them(medium, uplinks, make_plan):
    uplink, scalars = uplinks[0], [2.0 + 5j, -3.0, 0.0]
    ready(uplink, make_plan, scalars)
    assert not medium.listen(100).any()
    for _ in range(2):  # who is asked again holds the same again
        assert uplink.hold_numbers() == 1.0
        np.testing.assert_allclose(heard(medium, 0.4), np.real(scalars), atol=0.1)
    uplink.fall_silent()
    assert not medium.listen(100).any()


def test_each_band_has_an_amplitude_of_its_own(medium, uplinks, make_plan):
    levels = TransmitOrder(0, 0.0, 0.0, 0.0, BandLevels((0.4, 0.2, 0.4, 0.2, 0.0, 0.0), FULL_RANGE))
    ready(uplinks[0], make_plan, [2.0, -2.0, 4.0], levels)
    uplinks[0].hold_numbers()
    np.testing.assert_allclose(heard(medium, 0.4), [2.0, -0.5, 0.0], atol=0.1)


def test_numbers_that_peak_together_go_out_smaller_and_it_is_told(medium, uplinks, make_plan):
    ready(uplinks[0], make_plan, [7.0, -7.0, 7.0])
    scale = uplinks[0].hold_numbers()
    assert 0.3 < scale < 1.0
    np.testing.assert_allclose(heard(medium, 0.4), scale * np.array([7.0, -7.0, 7.0]), atol=0.1)


def test_the_phases_differ_between_devices_and_rounds_and_nothing_else(medium, uplinks, make_plan):
    def burst(device, seed):
        ready(uplinks[device], make_plan, [2.0, 2.0, 2.0], order(device), direction_seed=seed)
        uplinks[device].hold_numbers()
        return medium._held[device].tobytes()

    cases = [(0, 7), (1, 7), (0, 8)]
    assert len({burst(*case) for case in cases}) == len(cases)
    assert burst(0, 7) == burst(0, 7)


@pytest.mark.parametrize("scalar", [complex("nan"), complex("inf")])
def test_what_is_no_number_is_never_ready(medium, uplinks, make_plan, scalar):
    ready(uplinks[0], make_plan, [1.0, 1.0, 1.0])
    with pytest.raises(RadioError, match="wanted finite ones"):
        uplinks[0].send_scalars([1.0, scalar, 1.0], order(0), make_plan(num_directions=3))
    with pytest.raises(RadioError, match="no numbers are ready"):  # nor is what was ready before
        uplinks[0].hold_numbers()
    assert not medium.listen(100).any()


def test_orders_of_another_waveform_are_refused(medium, uplinks, make_plan):
    coherent = CoherentUplink(LoopbackTransceiver(medium, 1), CoherentWaveform(num_devices=3))
    with pytest.raises(RadioError, match="must have the same"):
        uplinks[0].send_scalars([1.0], TransmitOrder(0, 1.0, 0.0, 0.0), make_plan())
    with pytest.raises(RadioError, match=r"levels of 6 bands: .* must have the same"):
        uplinks[0].send_scalars([1.0], order(0), make_plan())
    with pytest.raises(RadioError, match="must have the same"):
        uplinks[0].send_pilot(0, SoundingOrder(RUN, 0, 1.0, 0))
    with pytest.raises(RadioError, match="must have the same"):
        coherent.send_scalars([1.0], order(0), make_plan())
    with pytest.raises(RadioError, match="must have the same"):
        coherent.hold_numbers()
    with pytest.raises(RadioError, match="must have the same"):
        coherent.hold_pilot(1, PilotHold(RUN, 0, 1, 1.0))
    coherent.fall_silent()
    IdealUplink(ScalarBox()).fall_silent()
    assert not medium.listen(100).any()


@pytest.fixture
def host(make_host, uplinks):
    """Three devices of one host on energy uplinks."""
    host = make_host(3, access=Access.SLOTTED, is_private=True)
    for device, uplink in zip(host.devices, uplinks, strict=True):
        object.__setattr__(device, "uplink", uplink)
    return host


def slotted(make_plan, orders, **changes):
    return make_plan(orders=orders, access=Access.SLOTTED, **changes)


def sent(host):
    """The scalars of the round as they were observed."""
    return {index: np.array(e.clipped_scalars) + np.real(n) for _, index, e, n in host.seen}


def test_a_round_is_ready_then_held_then_silent(host, medium, make_plan):
    # Gains 1, 0.5 and 0.8: all arrive at 0.4.
    amplitudes = {0: (0.4, 0.4), 1: (0.8, 0.8), 2: (0.5, 0.5)}
    orders = tuple(order(k, 0.25, amplitudes[k]) for k in (0, 2))
    plan = slotted(make_plan, orders, num_directions=3)
    reports = host.agent.run_round(plan)
    assert [r.participation for r in reports] == ["ready", "truncated", "ready"]
    assert not medium.listen(100).any()
    reports = host.agent.hold_numbers(NumbersHold(plan.run_id, 0))
    assert [(r.device_index, r.participation) for r in reports] == [
        (0, "transmitted"), (2, "transmitted"),
    ]  # fmt: skip
    scales = {r.device_index: r.scale for r in reports}
    wanted = sum(scales[index] * numbers for index, numbers in sent(host).items())
    np.testing.assert_allclose(heard(medium, 0.4, 2), wanted, atol=0.6)
    host.agent.fall_silent(SilenceOrder(plan.run_id, 0))
    assert not medium.listen(100).any()


def test_a_device_that_cannot_hold_is_out_of_the_round_and_silent(
    host, medium, uplinks, make_plan, monkeypatch
):
    plan = slotted(make_plan, (order(0, 0.1), order(1, 0.1)), num_directions=3)
    host.agent.run_round(plan)
    hold, fails = EnergyUplink.hold_numbers, [True]

    def fail(uplink):
        if uplink is uplinks[1] and fails:
            raise RadioTimeoutError("lost 7 buffers of a signal as loud as 0.3")
        return hold(uplink)

    monkeypatch.setattr(EnergyUplink, "hold_numbers", fail)
    reports = host.agent.hold_numbers(NumbersHold(plan.run_id, 0))
    assert [r.participation for r in reports] == ["transmitted", "dropped"]
    assert reports[1].reason == "RadioTimeoutError"  # and nothing about the signal
    assert reports[1].scale == 1.0
    fails.clear()  # it said nothing, and says nothing later either
    assert [r.device_index for r in host.agent.hold_numbers(NumbersHold(plan.run_id, 0))] == [0]
    assert set(medium._held) == {0}


def test_numbers_of_another_round_are_never_held(host, medium, make_plan):
    with pytest.raises(PlanRefusedError, match="are of round -1"):
        host.agent.hold_numbers(NumbersHold("run-of-the-tests", 0))
    plan = slotted(make_plan, (order(0, 0.1),), num_directions=3)
    host.agent.run_round(plan)
    with pytest.raises(PlanRefusedError, match="numbers of round 1"):
        host.agent.hold_numbers(NumbersHold(plan.run_id, 1))
    with pytest.raises(PlanRefusedError, match="this device serves run"):
        host.agent.hold_numbers(NumbersHold("another", 0))
    host.agent.apply_result(RoundResult(plan.run_id, 0, plan.direction_seed, (0,)))
    with pytest.raises(PlanRefusedError, match="round 0 is over"):
        host.agent.hold_numbers(NumbersHold(plan.run_id, 0))
    assert not medium.listen(100).any()


def test_one_pilot_at_a_time(host, medium, make_plan):
    run_id = make_plan().run_id
    silent, do = SilenceOrder(run_id, 0), host.agent.carry_out
    powers = []
    for device in range(3):
        assert do(PilotHold(run_id, 0, device, 1.0)) == []
        assert set(medium._held) == {device}
        energies = WAVEFORM.energies(medium.listen(WAVEFORM.plateau_samples))
        powers.append(energies.sum() / WAVEFORM.full_power_amplitude**2)
    assert powers == [pytest.approx(g**2, rel=0.05) for g in (1.0, 0.5, 0.8)]
    assert do(silent) == []
    assert not medium.listen(100).any()
    do(slotted(make_plan, (order(1, 0.1),), num_directions=3))
    (report,) = do(NumbersHold(run_id, 0))
    assert report.participation is Participation.TRANSMITTED
    do(silent)
    with pytest.raises(PlanRefusedError, match="this device serves run"):
        do(SilenceOrder("another", 0))


def test_a_radio_that_is_not_known_to_be_silent_ends_everything_and_the_others_are_silenced(
    host, make_plan, monkeypatch
):
    asked = []

    def fail(uplink):
        asked.append(uplink)
        if uplink is not host.devices[1].uplink:
            raise RadioNotSilentError("uri: not known to be silent")

    monkeypatch.setattr(EnergyUplink, "fall_silent", fail)
    with pytest.raises(RadioNotSilentError, match=r"device 0: uri.*device 2: uri"):
        host.agent.fall_silent(SilenceOrder(make_plan().run_id, 0))
    assert asked == [device.uplink for device in host.devices]
    with pytest.raises(RadioNotSilentError, match=r"device 0: uri"):
        host.agent.hold_pilot(PilotHold(make_plan().run_id, 0, 1, 0.5))


def test_packets_are_held_by_one_device_at_a_time_and_only_by_those_that_are_ready(
    make_host, medium, make_plan
):
    waveform = SlottedWaveform(num_scalars=2)
    host = make_host(3, access=Access.SLOTTED, is_private=True)
    for k, device in enumerate(host.devices):
        uplink = SlottedUplink(LoopbackTransceiver(medium, k), waveform)
        object.__setattr__(device, "uplink", uplink)
    orders = tuple(
        TransmitOrder(k, 0.0, 0.0, 0.25, packet=PacketLevels(0.9, FULL_RANGE)) for k in (0, 2)
    )
    plan = slotted(make_plan, orders, num_directions=2)
    reports = host.agent.run_round(plan)
    assert [r.participation for r in reports] == ["ready", "truncated", "ready"]
    assert not medium.listen(100).any()
    numbers = sent(host)
    for device in (2, 0):
        (report,) = host.agent.hold_packet(PacketHold(plan.run_id, 0, device))
        assert (report.device_index, report.participation) == (device, "transmitted")
        assert set(medium._held) == {device}
        shares = waveform.demodulate(
            medium.listen(waveform.capture_samples), sender=device, round_index=0
        )
        np.testing.assert_allclose(
            FULL_RANGE * np.array(shares), numbers[device], atol=FULL_RANGE / 32767
        )
    assert host.agent.hold_packet(PacketHold(plan.run_id, 0, 1)) == []  # had no order
    assert not medium.listen(100).any()
    with pytest.raises(PlanRefusedError, match="numbers of round 1"):
        host.agent.hold_packet(PacketHold(plan.run_id, 1, 0))


def test_packets_with_places_are_held_all_at_once(make_host, medium, make_plan):
    # Carriers that agree need no guards, and three places fit.
    waveform = PacketsSideBySide(3, 2, sample_rate_hz=medium.sample_rate_hz, max_offset_hz=0.0)
    host = make_host(3, access=Access.SLOTTED, is_private=True)
    for k, device in enumerate(host.devices):
        uplink = SlottedUplink(LoopbackTransceiver(medium, k), waveform)
        object.__setattr__(device, "uplink", uplink)
    orders = tuple(
        TransmitOrder(k, 0.0, 0.0, 0.25, packet=PacketLevels(0.9, FULL_RANGE)) for k in (0, 2)
    )
    plan = slotted(make_plan, orders, num_directions=2)
    host.agent.run_round(plan)
    assert not medium.listen(100).any()
    reports = host.agent.hold_numbers(NumbersHold(plan.run_id, 0))
    assert [(r.device_index, r.participation) for r in reports] == [
        (0, "transmitted"), (2, "transmitted"),
    ]  # fmt: skip
    assert set(medium._held) == {0, 2}
    capture = medium.listen(waveform.capture_samples)
    first, nobody, last = waveform.demodulate(capture, range(3), round_index=0)
    assert nobody is None
    for device, shares in ((0, first), (2, last)):
        np.testing.assert_allclose(
            FULL_RANGE * np.array(shares), sent(host)[device], atol=FULL_RANGE / 32767
        )
