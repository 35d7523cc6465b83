"""A device in trouble: weights stay what they were, the antenna stays silent, nothing leaks.

Invariants: weights equal everywhere, or an error; silence on any doubt; what a device says about a
round does not depend on its data.
"""

import dataclasses

import numpy as np
import pytest

from edge_runtime.agent import DeviceAgent
from edge_runtime.bundle import TensorEntry
from edge_runtime.forward import ForwardOutput
from edge_runtime.guard.guard import Guard
from edge_runtime.lattice import range_limit
from edge_runtime.number_grid import SHIFT_GROWTH
from edge_runtime.parameters import ParameterStore
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.errors import LatticeError, PlanRefusedError
from edge_runtime.protocol.rounds import Participation, RoundResult
from radio.errors import RadioSaturationError, RadioUnavailableError

RUN_ID = "run-of-the-tests"
DROPPED, TRANSMITTED = Participation.DROPPED, Participation.TRANSMITTED


class FaultyForward:
    """A real forward that fails, or spoils losses, at the chosen look (0 = plus, 1 = minus)."""

    def __init__(self, real, *, error=None, look=0, spoil=None):
        self.real, self.error, self.look, self.spoil = real, error, look, spoil
        self.num_looks = 0

    def begin(self, batches):
        return self.real.begin(batches)

    def finish(self, begun):
        outputs = self.real.finish(begun)
        look, self.num_looks = self.num_looks, self.num_looks + 1
        if self.error is not None and look == self.look:
            raise self.error
        if self.spoil is not None and look == self.look:
            index, value = self.spoil
            losses = outputs[index].losses.copy()
            losses[0] = value
            outputs[index] = ForwardOutput(losses=losses, scores=outputs[index].scores)
        return outputs

    def close(self):
        self.real.close()


def faulty(**what):
    return lambda real: FaultyForward(real, **what)


@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_device_that_fails_between_its_looks_has_its_weights_back(
    make_host, make_plan, look, error
):
    host = make_host(2, wrap_forward=faulty(error=error, look=look), is_private=True)
    before = host.store.digest()
    with pytest.raises(type(error)):
        host.agent.run_round(make_plan(devices=(0, 1), noise_std=1.0))
    assert host.store.digest() == before
    assert [uplink.scalars for uplink in host.uplinks] == [[], []]
    # The round may have been answered for all this host knows; it goes on from its result.
    with pytest.raises(PlanRefusedError):
        host.agent.run_round(make_plan(devices=(0, 1), noise_std=1.0))
    host.agent.apply_result(RoundResult(RUN_ID, 0, 2024, (0,)))
    assert len(host.agent.run_round(make_plan(devices=(0, 1), round_index=1, noise_std=1.0))) == 2


@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_silences_its_device_alone(make_host, make_plan, look, value):
    host = make_host(3, wrap_forward=faulty(look=look, spoil=(1, value)))
    healthy = make_host(3)
    plan = make_plan(devices=(0, 1, 2))
    before = host.store.digest()
    reports = host.agent.run_round(plan)
    healthy.agent.run_round(plan)
    assert [r.participation for r in reports] == [TRANSMITTED, DROPPED, TRANSMITTED]
    assert reports[1].reason != "" and reports[0].reason == ""
    assert host.uplinks[1].scalars == []
    for k in (0, 2):
        assert host.uplinks[k].scalars == healthy.uplinks[k].scalars
    assert host.store.digest() == before
    assert [device for _, device, *_ in host.seen] == [0, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_under_privacy_an_odd_record_does_not_silence_its_device(make_host, make_plan, value):
    # Silence is heard by everybody, and one record could set it off.
    host = make_host(3, wrap_forward=faulty(spoil=(1, value)), is_private=True)
    healthy = make_host(3, is_private=True)
    plan = make_plan(devices=(0, 1, 2), noise_std=0.5)
    reports = host.agent.run_round(plan)
    healthy.agent.run_round(plan)
    assert [r.participation for r in reports] == [TRANSMITTED] * 3
    assert {r.reason for r in reports} == {""}
    (odd,) = host.uplinks[1].scalars
    (sound,) = healthy.uplinks[1].scalars
    # One record of the nominal batch counts 0 instead of at most the clip.
    assert 0.0 < abs(odd - sound) <= plan.clip / plan.batch_size * SHIFT_GROWTH
    assert [estimate.num_clipped > 0 for _, k, estimate, _ in host.seen if k == 1] == [True]


def test_losses_infinite_both_ways_are_no_estimate_either(make_host, make_plan):
    class Diverged(FaultyForward):
        def finish(self, begun):
            outputs = self.real.finish(begun)
            return [ForwardOutput(np.full_like(o.losses, np.inf), o.scores) for o in outputs]

    host = make_host(wrap_forward=Diverged)
    (report,) = host.agent.run_round(make_plan())
    assert report.participation is DROPPED
    assert host.uplinks[0].scalars == []


@pytest.mark.parametrize("error", [RadioSaturationError("too loud"), RadioUnavailableError("gone")])
def test_a_radio_that_refuses_silences_its_device_alone(make_host, make_plan, error):
    host = make_host(3)
    host.uplinks[0].error = error
    before = host.store.digest()
    reports = host.agent.run_round(make_plan(devices=(0, 1, 2)))
    assert [r.participation for r in reports] == [DROPPED, TRANSMITTED, TRANSMITTED]
    assert [len(uplink.scalars) for uplink in host.uplinks] == [0, 1, 1]
    assert host.store.digest() == before
    assert [device for _, device, *_ in host.seen] == [1, 2]


def test_a_dropped_device_does_not_say_how_large_its_secret_batch_was(make_host, make_plan):
    # The size of a Poisson batch is part of the secret that amplification rests on.
    reasons = set()
    for seed in range(6):
        key = PrivateRandom.simulated_key(seed, 0)
        plan = make_plan(batch_size=3)
        if PrivateRandom(key).poisson_batch(plan.release, 6, 0.5).size:
            host = make_host(keys=(key,), wrap_forward=faulty(spoil=(0, np.nan)))
            (report,) = host.agent.run_round(plan)
            assert report.participation is DROPPED
            reasons.add(report.reason)
    assert len(reasons) == 1


def test_a_dropped_device_does_not_say_the_scalar_that_its_radio_refused(
    make_host, make_plan, tmp_path
):
    # With superposed access the server may only ever meet the sum, so not even a noisy scalar.
    from edge_runtime.uplink import CoherentUplink
    from radio.software_air.loopback import LoopbackTransceiver
    from radio.software_air.medium import SoftwareMedium
    from radio.waveforms.coherent import CoherentWaveform

    reasons = set()
    for seed in (1, 2):
        medium = SoftwareMedium(
            num_devices=1, sample_rate_hz=1e6, noise_power=1e-9, noise_rng=np.random.default_rng(1)
        )
        host = make_host(keys=(PrivateRandom.simulated_key(seed, 0),), is_private=True)
        (device,) = host.devices
        radio = LoopbackTransceiver(medium, 0, max_amplitude=1e-3)
        agent = DeviceAgent(
            host="h", run_id=RUN_ID, store=host.store, forward=host.forward,
            devices=[
                dataclasses.replace(
                    device, uplink=CoherentUplink(radio, CoherentWaveform(num_devices=1))
                )
            ],
        )  # fmt: skip
        agent.guard_with(Guard(tmp_path / str(seed), agent.policies))
        (report,) = agent.run_round(make_plan(noise_std=100.0))
        assert report.participation is DROPPED
        reasons.add(report.reason)
    assert len(reasons) == 1


def test_pilots_that_one_radio_refuses_do_not_silence_the_others(make_host):
    # A pilot carries no data; a channel that was not sounded is estimated as weak, and truncated.
    from edge_runtime.protocol.rounds import SoundingOrder

    host = make_host(3)

    def refuse(device_index, order):
        raise RadioUnavailableError("unplugged")

    host.uplinks[0].send_pilot = refuse
    host.agent.send_pilots(SoundingOrder(RUN_ID, 0, 0.5, 0))
    assert [len(uplink.pilots) for uplink in host.uplinks] == [0, 1, 1]


# ---------------------------------------------------------------- the edge of the lattice

EXPONENT, SCALE = -22, 2.0**-10


class ConstantForward:
    def begin(self, batches):
        return batches

    def finish(self, begun):
        return [ForwardOutput(np.zeros(b.num_examples, np.float32), np.empty(0)) for b in begun]

    def close(self):
        pass


@pytest.mark.parametrize("room", [0.5, 1.001, 1.5, 2.0, 2.5, 2.999, 3.5, 4.5])
def test_a_round_at_the_edge_of_the_lattice_leaves_the_weights_as_they_were(
    make_host, make_plan, room
):
    # Wherever the guard strikes, before the first look or after it: never weights at w + mu z.
    edge = range_limit(EXPONENT) - np.floor(room * SCALE * 2.0**-EXPONENT) * 2.0**EXPONENT
    entries = [TensorEntry(name, (200,), "float32", EXPONENT) for name in ("calm", "edge")]
    weights = {"calm": np.zeros(200), "edge": np.full(200, edge)}
    store = ParameterStore.from_arrays(
        entries, {name: w.astype(np.float32) for name, w in weights.items()}
    )
    before = store.digest()
    (device,) = make_host().devices
    agent = DeviceAgent(
        host="h", run_id=RUN_ID, devices=[device], store=store, forward=ConstantForward()
    )
    try:
        agent.run_round(make_plan(perturbation_scale=SCALE))
    except LatticeError:
        assert device.uplink.scalars == []
    assert store.digest() == before


def test_a_perturbation_off_the_lattice_is_an_error_before_anything_moves(make_host, make_plan):
    host = make_host()
    before = host.store.digest()
    for exponent in (-40, 500):
        fresh = make_host()
        with pytest.raises(LatticeError):
            fresh.agent.run_round(make_plan(perturbation_scale=2.0**exponent))
        assert fresh.store.digest() == before
        assert fresh.uplinks[0].scalars == []


def test_a_step_off_the_range_is_not_taken_at_all(make_host):
    host = make_host()
    before = host.store.digest()
    with pytest.raises(LatticeError, match="Training diverges"):
        host.agent.apply_result(RoundResult(RUN_ID, 0, 1, (2**50,)))
    assert host.store.digest() == before
    host.agent.apply_result(RoundResult(RUN_ID, 0, 1, (2**30,)))  # the round is still to be applied


# ---------------------------------------------------------------- death and return


def test_a_device_that_died_after_speaking_says_the_same_again(make_host, make_plan):
    # The same release, not a second one: the server may ask again for what it did not hear.
    plan = make_plan(devices=(0, 1), noise_std=0.5, batch_size=3)
    first, returned = make_host(2, is_private=True), make_host(2, is_private=True)
    first.agent.run_round(plan)
    returned.agent.run_round(plan)
    for one, other in zip(first.uplinks, returned.uplinks, strict=True):
        assert one.scalars == other.scalars
