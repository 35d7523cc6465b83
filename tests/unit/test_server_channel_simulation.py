"""Simulated draws depend on (seed, purpose, index) and on nothing that was drawn before."""

import numpy as np
import pytest

from edge_runtime.spsa import ScalarEstimate
from radio.software_air.channel_models import AwgnChannel, RayleighBlockFading
from radio.software_air.impairments import Crystals, Impairments
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from server.air.channel_simulation import (
    NoChannelSimulation,
    ScalarTruth,
    SoftwareChannelSimulation,
)
from server.seeds import simulation_rng

NUM_DEVICES = 3
IDEAL = Impairments()
COHERENCE_ROUNDS = 4


class RememberingMedium(SoftwareMedium):
    """Keeps the gains it was given."""

    gains_seen = None

    def set_gains(self, gains):
        self.gains_seen = np.array(gains)
        super().set_gains(gains)


def make_air(*, seed=5, noise_seed=None, channel=None, path_gains=None, impairments=IDEAL):
    medium = RememberingMedium(
        num_devices=NUM_DEVICES,
        sample_rate_hz=1e6,
        noise_power=0.5,
        noise_rng=simulation_rng(seed, "noise/start", 0),
    )
    air = SoftwareChannelSimulation(
        medium,
        channel or RayleighBlockFading(),
        path_gains=np.ones(NUM_DEVICES) if path_gains is None else path_gains,
        crystals=Crystals(impairments, 915e6, NUM_DEVICES, simulation_rng(seed, "crystals", 0)),
        seed=seed,
        noise_seed=seed if noise_seed is None else noise_seed,
        coherence_rounds=COHERENCE_ROUNDS,
    )
    return air, medium


def hear(medium):
    with LoopbackTransceiver(medium, None) as receiver:
        return receiver.receive(32, start_sample=0, timeout_s=1.0)


def observe(air, medium, frame, round_index):
    """(gains, noise) of a frame."""
    (air.begin_sounding if frame == "sounding" else air.begin_payload)(round_index)
    return medium.gains_seen, hear(medium)


def test_simulation_rng_repeats_itself_and_nothing_else():
    draws = {
        key: tuple(simulation_rng(*key).integers(2**63, size=4).tolist())
        for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (-1, "a", 0)]
    }
    assert len(set(draws.values())) == len(draws)
    for key, draw in draws.items():
        assert tuple(simulation_rng(*key).integers(2**63, size=4).tolist()) == draw


@pytest.mark.parametrize("frame", ["sounding", "payload"])
def test_a_frame_does_not_depend_on_the_frames_before_it(frame):
    fresh_gains, fresh_noise = observe(*make_air(), frame, 6)
    air, medium = make_air()
    for earlier in range(6):
        observe(air, medium, "sounding", earlier)
        hear(medium)  # a second capture of the same frame draws further noise
        observe(air, medium, "payload", earlier)
    gains, noise = observe(air, medium, frame, 6)
    np.testing.assert_array_equal(gains, fresh_gains)
    np.testing.assert_array_equal(noise, fresh_noise)


def test_gains_hold_for_a_block_and_change_with_it():
    air, medium = make_air()
    gains = [observe(air, medium, "payload", t)[0] for t in range(3 * COHERENCE_ROUNDS)]
    for t, own in enumerate(gains):
        np.testing.assert_array_equal(own, gains[t - t % COHERENCE_ROUNDS])
    assert len({own.tobytes() for own in gains}) == 3


def test_sounding_and_payload_of_a_round_share_gains_and_not_noise():
    air, medium = make_air()
    sounding_gains, sounding_noise = observe(air, medium, "sounding", 2)
    payload_gains, payload_noise = observe(air, medium, "payload", 2)
    np.testing.assert_array_equal(sounding_gains, payload_gains)
    assert (sounding_noise != payload_noise).any()


def test_noise_differs_between_rounds_and_seeds():
    air, medium = make_air()
    other_air, other_medium = make_air(seed=6)
    noises = [
        observe(air, medium, "payload", 0)[1],
        observe(air, medium, "payload", 1)[1],
        observe(other_air, other_medium, "payload", 0)[1],
    ]
    assert len({noise.tobytes() for noise in noises}) == 3


def test_beginning_a_frame_clears_the_air():
    air, medium = make_air(channel=AwgnChannel())
    air.begin_payload(0)
    silent = hear(medium)
    burst = np.full(32, 0.5, dtype=np.complex64)
    with LoopbackTransceiver(medium, 0) as device:
        device.transmit(burst, start_sample=0)
        air.begin_payload(0)
        np.testing.assert_array_equal(hear(medium), silent)
        device.transmit(burst, start_sample=0)
        air.begin_payload(0)
        device.transmit(burst, start_sample=0)
        assert (hear(medium) != silent).all()


def test_the_ideal_link_has_no_weather():
    air = NoChannelSimulation()
    air.begin_sounding(0)
    air.begin_payload(0)


def test_truth_is_the_mean_over_the_speakers_of_this_round():
    truth = ScalarTruth()
    assert truth.true_means(0) is None and truth.mean_noises(0) is None
    truth.observe(0, 2, ScalarEstimate((3.0, 0.5), 4, 1), (1 + 5j, 2 - 1j))
    truth.observe(0, 0, ScalarEstimate((-1.0, 0.0), 6, 4), (0j, -1j))
    assert truth.true_means(0) == (1.0, 0.25)
    assert truth.mean_noises(0) == (0.5, 1.0)
    assert truth.share_clipped(0) == 0.5
    # A round in which nobody spoke has no truth, least of all that of the round before.
    assert truth.true_means(1) is None and truth.mean_noises(1) is None
    assert truth.share_clipped(1) is None
    truth.observe(1, 1, ScalarEstimate((0.0,), 0, 0), (0j,))
    assert truth.true_means(1) == (0.0,)
    assert truth.share_clipped(1) is None
    assert truth.true_means(0) is None
