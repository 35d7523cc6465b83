"""What every waveform must do, from the numbers of the devices to the sums of the receiver.

The signal layer is the real one, both ends of it over the software air; only what a device computes
and the messages' way are left out.
"""

import dataclasses

import numpy as np
import pytest

from edge_runtime.control.channel import Answers
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.orders import Answer
from edge_runtime.protocol.rounds import (
    NumbersHold,
    PacketHold,
    Participation,
    PilotHold,
    RoundPlan,
    RoundReport,
    SilenceOrder,
    SoundingOrder,
)
from edge_runtime.vote import said_plainly
from radio.errors import RadioCalibrationError, RadioError
from radio.software_air.medium import SoftwareMedium
from radio.waveforms import WaveformName
from server.air.link import build_radio_link
from server.config.files import parse_config
from server.planning.round_plan import plan_round

Q = 2
CLIP = 4.0
CASES = {
    "coherent": {"waveform": "coherent"},
    "energy": {"waveform": "energy"},
    "energy, self-normalised": {"waveform": "energy", "energy_mapping": "self_normalised"},
    "vote": {"waveform": "vote"},
    "coherent_vote": {"waveform": "coherent_vote"},
    "slotted": {"waveform": "slotted"},
    "side by side": {"waveform": "slotted", "slots": "frequency", "sample_rate_hz": 30e6},
}


def make_config(name, num_devices, **radio):
    return parse_config(
        {
            "federation": {"num_devices": num_devices},
            "optimizer": {"directions": Q, "clip": CLIP},
            "radio": {
                "channel": "awgn", "snr_db": 30.0, "plateau_samples": 1 << 14,
                "payload_symbols": 512, **CASES[name], **radio,
            },
            "privacy": {"enabled": False},
        },
        source="test",
    )  # fmt: skip


class DirectControl:
    """Orders go straight to the uplinks, which have their numbers already."""

    def __init__(self, uplinks, vectors, vote, unheard=()):
        self.uplinks = uplinks
        self.unheard = unheard
        self.vectors = vectors
        self.vote = vote
        self.ready = []
        self.reports = []
        self.ended = ()
        self.goes = ()
        self.go_away = frozenset()
        self.lets_go, self.away_devices = True, frozenset()

    def hosts_of(self, devices):
        return ("test",)

    def ask(self, message, hosts=None, deadline_s=None):
        self.reports = []
        match message:
            case SoundingOrder():
                for k, uplink in enumerate(self.uplinks):
                    uplink.send_pilot(k, message)
            case PilotHold():
                for k, uplink in enumerate(self.uplinks):
                    if k == message.device_index:
                        uplink.hold_pilot(k, message)
                    else:
                        uplink.fall_silent()
            case RoundPlan():
                for order in message.orders:
                    k = order.device_index
                    said = said_plainly(self.vectors[k], self.vote)
                    self.report(k, self.uplinks[k].send_scalars(said, order, message))
                self.ready = [r.device_index for r in self.reports]
            case NumbersHold():
                for k in self.ready:
                    scale = self.uplinks[k].hold_numbers()
                    self.report(k, Participation.TRANSMITTED, scale)
            case PacketHold():
                for k in self.ready:
                    if k == message.device_index:
                        self.uplinks[k].hold_numbers()
                        self.report(k, Participation.TRANSMITTED)
                    else:
                        self.uplinks[k].fall_silent()
            case SilenceOrder():
                for uplink in self.uplinks:
                    uplink.fall_silent()
                for k in self.ended:
                    self.report(k, Participation.ENDED_EARLY)
                self.ended = ()
        said = [r for r in self.reports if not self.is_lost(message, r.device_index)]
        lost = tuple(k for k in self.unheard if self.is_lost(message, k))
        missing = tuple(f"host of {k}" for k in lost)
        if isinstance(message, PilotHold) and message.device_index in self.goes:
            self.goes = tuple(k for k in self.goes if k != message.device_index)
            missing = ("a host",)
            self.away_devices |= self.go_away
        return Answers({"test": Answer("test", 0, 0, "test", tuple(said))}, missing, lost)

    def is_lost(self, message, device_index):
        """Of the order that puts the device's numbers on the air, the answer."""
        if device_index not in self.unheard:
            return False
        return isinstance(message, NumbersHold) or (
            device_index == getattr(message, "device_index", None)
            if isinstance(message, PacketHold)
            else isinstance(message, RoundPlan) and self.sends_at_once
        )

    @property
    def sends_at_once(self):
        return any(r.participation is Participation.TRANSMITTED for r in self.reports)

    def report(self, device_index, did, scale=1.0):
        self.reports.append(RoundReport("test", 0, device_index, did, scale=scale))


def carry(config, vectors, unheard=(), on_spoken=lambda *_: None, ended=(), waited=None):
    """What is heard of a round, and its plan."""
    link = build_radio_link(config)
    if waited is not None:
        air = dataclasses.replace(link.air, wait_until_silent=lambda: waited.append("waited"))
        link = dataclasses.replace(link, air=air)
    control = DirectControl(link.uplinks, vectors, config.vote, unheard)
    channel = link.air.learn_channel(control, "test", 0)
    link.air.check_channel(0, channel)
    power = plan_round(config, None, 0, channel, link.noise_symbols).power
    control.ended = ended
    plan = RoundPlan(
        run_id="test", round_index=0, direction_seed=5, direction_generator=GENERATOR,
        perturbation_scale=2.0**-10, clip=CLIP, batch_size=1, access=config.access,
        frame_start_sample=0, orders=power.orders(), num_directions=Q, vote=config.vote,
    )  # fmt: skip
    try:
        return link.air.carry(control, plan, power, on_spoken, lambda: None), power
    finally:
        for uplink in link.uplinks:
            uplink.close()
        link.air.close()


def tolerance(heard, numbers):
    """Six deviations of what the receiver measured, and gains that are known to a few percent."""
    return 6 * heard.sum_noise_std + 0.15 * np.sqrt(np.sum(np.square(numbers), axis=0)) + 1e-9


def random_numbers(num_devices, seed=3):
    return np.random.default_rng(seed).uniform(-CLIP, CLIP, (num_devices, Q))


@pytest.mark.parametrize("num_devices", [1, 64])
@pytest.mark.parametrize("name", CASES)
def test_zero_stays_zero(name, num_devices):
    zeros = np.zeros((num_devices, Q))
    heard, _ = carry(make_config(name, num_devices), zeros)
    assert heard.speakers == tuple(range(num_devices))
    assert np.all(np.abs(heard.sums) <= 6 * heard.sum_noise_std + 1e-9)


@pytest.mark.parametrize("num_devices", [1, 64])
@pytest.mark.parametrize("name", CASES)
def test_a_sum_is_the_sum_of_what_was_said(name, num_devices):
    numbers = random_numbers(num_devices)
    config = make_config(name, num_devices)
    said = np.sign(numbers) if config.radio.waveform.carries_signs else numbers
    heard, _ = carry(config, numbers)
    assert heard.num_speakers == (num_devices,) * Q
    assert heard.num_erased == 0
    assert np.all(np.abs(np.array(heard.sums) - said.sum(axis=0)) <= tolerance(heard, said))
    # Negative control: a device less, and the tolerance notices.
    if num_devices == 1:
        assert np.all(np.abs(heard.sums) > tolerance(heard, said))


@pytest.mark.parametrize("name", ["coherent", "energy", "energy, self-normalised", "slotted"])
def test_sums_are_linear_where_numbers_are_said(name):
    """Twice the numbers, twice the sum; their negatives, its negative."""
    numbers = random_numbers(5) / 4
    config = make_config(name, 5)
    once, _ = carry(config, numbers)
    for factor in (2.0, -1.0):
        heard, _ = carry(config, factor * numbers)
        error = np.array(heard.sums) - factor * np.array(once.sums)
        assert np.all(np.abs(error) <= tolerance(heard, 2 * numbers) + 12 * once.sum_noise_std)


@pytest.mark.parametrize("num_devices", [1, 64])
@pytest.mark.parametrize("name", CASES)
def test_full_scale_is_never_exceeded(name, num_devices, monkeypatch):
    peaks = []
    for method in ("add", "hold"):
        original = getattr(SoftwareMedium, method)

        def note(medium, device_index, burst, *rest, original=original):
            peaks.append(float(np.abs(burst).max()))
            return original(medium, device_index, burst, *rest)

        monkeypatch.setattr(SoftwareMedium, method, note)
    extremes = np.where(random_numbers(num_devices) > 0, CLIP, -CLIP)
    carry(make_config(name, num_devices, max_amplitude=0.5), extremes)
    assert len(peaks) >= num_devices
    assert max(peaks) <= 0.5 * (1 + 2**-20)


@pytest.mark.parametrize("name", ["energy", "energy, self-normalised", "slotted"])
def test_a_number_beyond_the_range_is_sent_as_its_end(name):
    heard, power = carry(make_config(name, 1), [[1e6, -1e6]])
    assert power.full_range == CLIP
    assert np.allclose(heard.sums, [CLIP, -CLIP], rtol=0.15)


@pytest.mark.parametrize("name", ["coherent", "energy"])
def test_a_number_that_is_none_is_never_sent(name):
    with pytest.raises(RadioError, match=r"wanted (a )?finite"):
        carry(make_config(name, 1), [[np.nan, 0.0]])


@pytest.mark.parametrize("name", CASES)
def test_what_is_known_of_other_devices_or_too_old_is_refused(name):
    link, other = (build_radio_link(make_config(name, count)) for count in (3, 2))
    channels = [
        side.air.learn_channel(
            DirectControl(side.uplinks, np.zeros((len(side.uplinks), Q)), None), "test", 0
        )
        for side in (link, other)
    ]
    link.air.check_channel(0, channels[0])
    with pytest.raises(RadioCalibrationError, match="known for 2 devices, 3 take part"):
        link.air.check_channel(0, channels[1])
    with pytest.raises(RadioCalibrationError):
        link.air.check_channel(0, None)
    if make_config(name, 3).radio.waveform.adds_powers:
        with pytest.raises(RadioCalibrationError, match="10 rounds old"):
            link.air.check_channel(10, channels[0])
        old = dataclasses.replace(channels[0].made, clock_s=channels[0].made.clock_s - 601.0)
        with pytest.raises(RadioCalibrationError, match="s old, wanted at most 600"):
            link.air.check_channel(0, dataclasses.replace(channels[0], made=old))


def test_every_waveform_is_held_to_this():
    assert {case["waveform"] for case in CASES.values()} == {name.value for name in WaveformName}


@pytest.mark.parametrize("name", CASES)
def test_a_sum_that_may_hold_the_numbers_of_one_who_does_not_answer_is_none(name):
    """It spoke, for all that is known. Of packets its own alone is lost."""
    numbers, told = random_numbers(3), []
    config = make_config(name, 3)
    heard, _ = carry(config, numbers, (1,), lambda *known: told.append(tuple(map(tuple, known))))
    assert told == [((0, 2), (1,))]
    assert (heard.speakers, heard.unknown) == ((0, 2), (1,))
    if config.radio.waveform.superposes:
        assert (heard.sums, heard.num_speakers) == ((), ())
    else:
        np.testing.assert_allclose(heard.sums, numbers[0] + numbers[2], atol=1e-3)
        assert heard.num_speakers == (2, 2)


HELD = [name for name in CASES if not name.startswith("coherent")]


@pytest.mark.parametrize("name", HELD)
def test_a_sum_that_a_burst_may_be_missing_from_is_none(name):
    """It ended by a limit of its own. A packet says by itself whether it is whole."""
    numbers = random_numbers(3)
    config = make_config(name, 3)
    heard, _ = carry(config, numbers, ended=(1,))
    assert heard.speakers == (0, 1, 2)
    if config.radio.waveform.superposes:
        assert (heard.sums, heard.num_speakers) == ((), ())
    else:
        np.testing.assert_allclose(heard.sums, numbers.sum(axis=0), atol=1e-3)


@pytest.mark.parametrize("name", HELD)
def test_whoever_may_be_on_the_air_from_before_is_waited_for(name):
    waited, gone = [], []
    carry(make_config(name, 3), random_numbers(3), waited=waited)
    carry(make_config(name, 3), random_numbers(3), (1,), waited=gone)
    adds_powers, is_in_turn = make_config(name, 3).radio.waveform.adds_powers, name == "slotted"
    # Before pilots, and before a round; and where one packet follows another, when somebody goes.
    assert len(waited) == 1 + adds_powers
    assert len(gone) == len(waited) + is_in_turn


def test_a_pilot_that_ended_by_itself_or_that_somebody_went_beside_is_not_used():
    config = make_config("energy", 3)
    link, waited = build_radio_link(config), []
    air = dataclasses.replace(link.air, wait_until_silent=lambda: waited.append("waited"))
    control = DirectControl(link.uplinks, np.zeros((3, Q)), None)
    learnt = air.learn_channel(control, "test", 0)
    assert [learnt.is_heard(k) for k in range(3)] == [True] * 3
    ask = control.ask

    def first_silence_then_an_end(message, *rest, **more):
        if isinstance(message, PilotHold):
            control.ended = (1,)
        return ask(message, *rest, **more)

    control.ask = first_silence_then_an_end
    learnt = air.learn_channel(control, "test", 0)
    assert [learnt.is_heard(k) for k in range(3)] == [True, False, True]
    assert len(waited) == 2
    control.goes = (2,)
    air.learn_channel(control, "test", 0)
    assert len(waited) == 4  # once more for the pilot that it may be heard beside
    control.ask = ask
    control.goes, control.go_away = (1,), frozenset({1})
    learnt = air.learn_channel(control, "test", 0)
    assert [learnt.is_heard(k) for k in range(3)] == [True, False, True]
    assert len(waited) == 6
    # Who is away is not asked for a pilot.
    asked = []
    control.ask = lambda message, *rest, **more: (asked.append(message), ask(message))[1]
    air.learn_channel(control, "test", 0)
    assert [m.device_index for m in asked if isinstance(m, PilotHold)] == [0, 2]
    link.close()
