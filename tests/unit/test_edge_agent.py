"""What a device does in a round: looks both ways, speaks one number, takes the common step."""

import math

import numpy as np
import pytest

from edge_runtime.forward import OnnxForward
from edge_runtime.guard.policy import Cover
from edge_runtime.number_grid import NumberGrid
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.direction import direction, direction_seeds
from edge_runtime.protocol.errors import PlanRefusedError
from edge_runtime.protocol.rounds import (
    Access,
    Difference,
    DigestReport,
    DigestRequest,
    Participation,
    RoundReport,
    RoundResult,
    SoundingOrder,
    TransmitOrder,
)

RUN_ID = "run-of-the-tests"
TRANSMITTED, TRUNCATED = Participation.TRANSMITTED, Participation.TRUNCATED


def result(round_index=0, step_integer=0, seed=2024):
    return RoundResult(RUN_ID, round_index, seed, (step_integer,))


def expected_gradients(bundle, host, plan, chosen):
    """[num_examples, Q] by the plain definition: weights moved by `direction`, one by one."""
    batches = host.devices[0].prompts.batches_by_length(chosen, MAX_ROWS)

    def losses(seed, distance):
        moved = {
            name: tensor
            + np.float32(distance) * direction(seed, index, tensor.size).reshape(tensor.shape)
            for index, (name, tensor) in enumerate(host.store.tensors.items())
        }
        store = ParameterStore.from_arrays(bundle.manifest.tensors, moved)
        forward = OnnxForward(bundle, store)
        return np.concatenate([forward.run(b).losses for b in batches]).astype(np.float64)

    mu = plan.perturbation_scale
    columns = []
    for seed in direction_seeds(plan.direction_seed, plan.num_directions):
        if plan.difference is Difference.ONE_SIDED:
            columns.append((losses(seed, mu) - losses(seed, 0.0)) / mu)
        else:
            columns.append((losses(seed, mu) - losses(seed, -mu)) / (2 * mu))
    return np.stack(columns, axis=1)


def expected_scalar(bundle, host, plan, chosen):
    """The scalar of a round of one, examples summed by hand."""
    gradients = expected_gradients(bundle, host, plan, chosen)[:, 0]
    total = math.fsum(max(-plan.clip, min(plan.clip, g)) for g in gradients)
    return max(-plan.clip, min(plan.clip, total / plan.batch_size))


# ---------------------------------------------------------------- one round


def test_the_scalar_is_the_formula_on_the_whole_data(tiny_bundle, make_host, make_plan):
    # The batch is as large as the data, so the Poisson choice takes everybody.
    host, plan = make_host(), make_plan(clip=0.5)
    before = host.store.digest()
    (report,) = host.agent.run_round(plan)
    assert report == RoundReport(RUN_ID, 0, 0, TRANSMITTED)
    wanted = expected_scalar(tiny_bundle, host, plan, range(6))
    assert wanted != 0.0
    assert host.uplinks[0].scalars == [wanted]
    assert host.uplinks[0].orders == [plan.orders[0]]
    assert host.store.digest() == before


def test_the_scalar_of_a_secret_batch_is_the_formula_on_it(tiny_bundle, make_host, make_plan):
    host, plan = make_host(3), make_plan(devices=(0, 1, 2), batch_size=2)
    host.agent.run_round(plan)
    sizes = []
    for device, uplink in zip(host.devices, host.uplinks, strict=True):
        chosen = device.private_random.poisson_batch(plan.release, 6, 2 / 6)
        sizes.append(len(chosen))
        wanted = 0.0
        if len(chosen):
            wanted = expected_scalar(tiny_bundle, host, plan, chosen)
        assert uplink.scalars == [wanted]
    assert [estimate.num_examples for _, _, estimate, _ in host.seen] == sizes
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("difference", Difference)
@pytest.mark.parametrize("num_directions", [1, 2, 5])
def test_several_numbers_are_the_formula_on_the_whole_data(
    tiny_bundle, make_host, make_plan, difference, num_directions
):
    host = make_host()
    plan = make_plan(num_directions=num_directions, difference=difference, clip=4.0)
    before = host.store.digest()
    host.agent.run_round(plan)
    (sent,) = host.uplinks[0].vectors
    gradients = expected_gradients(tiny_bundle, host, plan, range(6))
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    assert (norms > 4.0).any() and (norms < 4.0).any()
    wanted = np.sum(gradients * np.minimum(1.0, 4.0 / norms), axis=0) / plan.batch_size
    np.testing.assert_allclose(sent, wanted, rtol=1e-9, atol=1e-12)
    assert len(set(sent)) == num_directions
    assert host.store.digest() == before


@pytest.mark.parametrize(("difference", "sweeps"), [("two_sided", 8), ("one_sided", 5)])
def test_a_round_of_four_numbers_sweeps_its_batch_so_many_times(
    make_host, make_plan, difference, sweeps
):
    class CountingForward:
        def __init__(self, real):
            self.real, self.num_begun, self.num_sweeps = real, 0, 0

        def begin(self, batches):
            self.num_begun += 1
            return self.real.begin(batches)

        def finish(self, begun):
            self.num_sweeps += 1
            return self.real.finish(begun)

        def close(self):
            self.real.close()

    counting = []

    def wrap(real):
        counting.append(CountingForward(real))
        return counting[-1]

    host = make_host(2, wrap_forward=wrap)
    plan = make_plan(devices=(0, 1), num_directions=4, difference=Difference(difference))
    host.agent.run_round(plan)
    assert (counting[0].num_begun, counting[0].num_sweeps) == (1, sweeps)


def said_by(host, k, plan, numbers):
    """What device k must say of its numbers: both on the declared grid, added there."""
    grid = NumberGrid.of_numbers(plan.clip, plan.batch_size)
    std = plan.orders_by_device()[k].artificial_noise_std
    draws = host.devices[k].private_random.circular_draws(
        plan.release, grid.steps_above(std), len(numbers)
    )
    return tuple(
        complex(grid.number(grid.nearest(p.real) + n), grid.number(m))
        for p, (n, m) in zip(numbers, draws, strict=True)
    )


def test_every_number_of_a_round_has_a_noise_of_its_own(make_host, make_plan):
    quiet, noisy = make_host(), make_host(is_private=True)
    quiet.agent.run_round(make_plan(num_directions=3))
    plan = make_plan(num_directions=3, noise_std=0.75)
    noisy.agent.run_round(plan)
    (still,), (sent,) = quiet.uplinks[0].vectors, noisy.uplinks[0].vectors
    assert sent == said_by(noisy, 0, plan, still)
    assert len({s - p for s, p in zip(sent, still, strict=True)}) == 3


def test_under_a_promise_numbers_lie_on_the_declared_grid_also_without_noise(make_host, make_plan):
    # The weakest device may be dealt no noise of its own; then the others' covers it.
    plain, private = make_host(), make_host(cover=Cover.FEDERATION)
    orders = (TransmitOrder(0, 0.125, -0.0625, 0.0), TransmitOrder(1, 0.125, -0.0625, 1.0))
    plan = make_plan(num_directions=4, orders=orders)
    plain.agent.run_round(make_plan(num_directions=4))
    private.agent.run_round(plan)
    grid = NumberGrid.of_numbers(plan.clip, plan.batch_size)
    (exact,), (rounded,) = plain.uplinks[0].vectors, private.uplinks[0].vectors
    assert rounded == tuple(complex(grid.number(grid.nearest(p.real))) for p in exact)
    assert rounded != exact
    assert max(abs(r - p) for r, p in zip(rounded, exact, strict=True)) <= grid.number(1) / 2


def test_noise_is_the_devices_own_and_added_once(make_host, make_plan):
    quiet, noisy = make_host(2), make_host(2, is_private=True)
    quiet.agent.run_round(make_plan(devices=(0, 1)))
    plan = make_plan(devices=(0, 1), noise_std=0.75)
    noisy.agent.run_round(plan)
    for k in range(2):
        assert noisy.uplinks[k].vectors == [said_by(noisy, k, plan, quiet.uplinks[k].vectors[0])]
    noises = [
        n.scalars[0] - q.scalars[0] for n, q in zip(noisy.uplinks, quiet.uplinks, strict=True)
    ]
    assert noises[0] != noises[1]


def test_noise_for_a_device_that_was_told_of_no_promise_is_refused(make_host, make_plan):
    host = make_host()
    with pytest.raises(PlanRefusedError, match="told of no promise"):
        host.agent.run_round(make_plan(noise_std=0.5))
    assert not host.uplinks[0].vectors


def test_an_empty_batch_sends_zero_and_noise(make_host, make_plan):
    # A key whose first batch is empty, from the first thousand.
    keys = (PrivateRandom.simulated_key(seed, 0) for seed in range(1000))
    plan = make_plan(noise_std=0.5, batch_size=1)
    key = next(k for k in keys if not PrivateRandom(k).poisson_batch(plan.release, 6, 1 / 6).size)
    host = make_host(keys=(key,), is_private=True)
    before = host.store.digest()
    (report,) = host.agent.run_round(plan)
    assert report.participation is TRANSMITTED
    assert report.reason == ""
    assert host.uplinks[0].vectors == [said_by(host, 0, plan, (0j,))]
    assert host.uplinks[0].vectors[0] != (0j,)
    assert host.seen[0][2].num_examples == 0
    assert host.store.digest() == before


def test_empty_and_full_batches_of_one_host_are_not_mixed_up(make_host, make_plan):
    keys = [PrivateRandom.simulated_key(seed, 0) for seed in range(300)]
    plan = make_plan(devices=(0, 1, 2, 3), batch_size=1)
    sizes = [PrivateRandom(k).poisson_batch(plan.release, 6, 1 / 6).size for k in keys]
    empty = [k for k, size in zip(keys, sizes, strict=True) if not size][:2]
    full = [k for k, size in zip(keys, sizes, strict=True) if size][:2]
    mixed = make_host(4, keys=(empty[0], full[0], empty[1], full[1]))
    mixed.agent.run_round(plan)
    alone = [make_host(keys=(key,)) for key in full]
    for host in alone:
        host.agent.run_round(plan)
    wanted = [[0.0], alone[0].uplinks[0].scalars, [0.0], alone[1].uplinks[0].scalars]
    assert [uplink.scalars for uplink in mixed.uplinks] == wanted


def test_a_device_without_an_order_is_silent_and_truncated(make_host, make_plan):
    host = make_host(3)
    reports = host.agent.run_round(make_plan(devices=(1,)))
    assert [r.device_index for r in reports] == [0, 1, 2]
    assert [r.participation for r in reports] == [TRUNCATED, TRANSMITTED, TRUNCATED]
    assert [len(uplink.scalars) for uplink in host.uplinks] == [0, 1, 0]


def test_a_round_for_nobody_is_silent_and_leaves_no_trace(make_host, make_plan):
    host = make_host(2)
    before = host.store.digest()
    reports = host.agent.run_round(make_plan(devices=()))
    assert [r.participation for r in reports] == [TRUNCATED, TRUNCATED]
    assert host.store.digest() == before


def test_orders_for_other_hosts_are_not_answered(make_host, make_plan):
    host = make_host(1)
    reports = host.agent.run_round(make_plan(devices=(0, 5, 9)))
    assert [r.device_index for r in reports] == [0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_virtual_devices_share_one_copy_of_the_weights(make_host, make_plan, num_workers):
    host = make_host(4, num_workers=num_workers)
    before = {name: tensor.ctypes.data for name, tensor in host.store.tensors.items()}
    host.agent.run_round(make_plan(devices=(0, 1, 2, 3)))
    assert host.forward._store is host.agent._store is host.store
    assert {name: t.ctypes.data for name, t in host.store.tensors.items()} == before
    # With a batch of everything, equal data mean equal scalars: nobody met another's weights.
    assert len({uplink.scalars[0] for uplink in host.uplinks}) == 1


def test_workers_and_company_do_not_change_a_scalar(make_host, make_plan):
    alone, together = make_host(1), make_host(4, num_workers=3)
    plan = make_plan(devices=(0, 1, 2, 3), batch_size=3)
    alone.agent.run_round(plan)
    together.agent.run_round(plan)
    assert together.uplinks[0].scalars == alone.uplinks[0].scalars


def test_several_rounds_are_the_formula_on_the_moved_weights(tiny_bundle, make_host, make_plan):
    host = make_host()
    replica = ParameterStore.from_bundle(tiny_bundle)
    for t in range(3):
        plan = make_plan(round_index=t, direction_seed=100 + t)
        host.agent.run_round(plan)
        wanted = expected_scalar(tiny_bundle, host, plan, range(6))
        assert host.uplinks[0].scalars[t] == wanted
        step = result(t, (-1) ** t * 2**33, seed=100 + t)
        host.agent.apply_result(step)
        replica.apply_step(step)
        assert host.store.digest() == replica.digest()
    assert len(set(host.uplinks[0].scalars)) == 3


@pytest.mark.parametrize("max_rows", [2, 3, 4, 5])
def test_a_batch_cut_into_pieces_is_the_same_batch(make_host, make_plan, max_rows):
    whole, cut = make_host(2), make_host(2, num_workers=2)
    whole.agent.run_round(make_plan(devices=(0, 1)))
    cut.agent._max_rows = max_rows
    cut.agent.run_round(make_plan(devices=(0, 1)))
    # The same bits: a loss follows neither the padding nor the number of rows.
    assert cut.uplinks[0].scalars == whole.uplinks[0].scalars
    assert [estimate.num_examples for _, _, estimate, _ in cut.seen] == [6, 6]
    assert abs(whole.uplinks[0].scalars[0]) > 1e-2


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "limits", "words"),
    [
        ({"run_id": "another"}, {}, "run_id 'another': this device serves run"),
        ({"round_index": 1}, {}, "those after round -1; replay the missing results first"),
        ({"direction_generator": "xorshift/1"}, {}, "this device makes 'philox4x64-10/rademacher"),
        ({"clip": 4.5}, {}, r"device 0: policy max_clip: 4\.5 is asked for, at most 4 is"),
        ({"clip": math.inf}, {}, "policy max_clip: inf is asked for"),
        ({"batch_size": 3}, {"min_batch": 4}, "policy min_batch: a batch of 3 is asked for"),
        ({"access": Access.SLOTTED}, {}, 'policy access: "slotted" is asked for, agreed is "sup'),
    ],
)
def test_a_plan_that_a_device_must_not_carry_out_is_refused(
    make_host, make_plan, changes, limits, words
):
    host = make_host(2, is_private=True, **limits)
    before = host.store.digest()
    noise_std = changes.pop("noise_std", 1.0)
    with pytest.raises(PlanRefusedError, match=words):
        host.agent.run_round(make_plan(devices=(0, 1), noise_std=noise_std, **changes))
    assert [uplink.scalars for uplink in host.uplinks] == [[], []]
    assert host.store.digest() == before
    # Refusing is no answer: the round may still be ordered as it should be.
    assert len(host.agent.run_round(make_plan(devices=(0, 1), noise_std=1.0))) == 2


def test_limits_bind_only_those_who_are_to_speak(make_host, make_plan):
    host = make_host(1, max_clip=1.0)
    (report,) = host.agent.run_round(make_plan(devices=(), clip=4.0))
    assert report.participation is TRUNCATED


def test_limits_are_inclusive(make_host, make_plan):
    host = make_host(1, max_clip=4.0, min_batch=6, max_directions=1)
    (report,) = host.agent.run_round(make_plan(clip=4.0, batch_size=6, noise_std=0.5))
    assert report.participation is TRANSMITTED


def test_a_round_is_answered_once(make_host, make_plan):
    host = make_host()
    host.agent.run_round(make_plan())
    for seed in (2024, 1):
        with pytest.raises(PlanRefusedError, match="already carried out; a second answer"):
            host.agent.run_round(make_plan(direction_seed=seed))
    host.agent.apply_result(result())
    with pytest.raises(PlanRefusedError, match="already carried out"):
        host.agent.run_round(make_plan())
    assert len(host.uplinks[0].scalars) == 1


def test_a_round_whose_result_was_missed_is_a_gap(make_host, make_plan):
    host = make_host()
    host.agent.run_round(make_plan())
    with pytest.raises(PlanRefusedError, match="round_index 1: the weights here are those after"):
        host.agent.run_round(make_plan(round_index=1))
    host.agent.apply_result(result())
    host.agent.run_round(make_plan(round_index=1))


@pytest.mark.parametrize("wrong", [result(1), result(5)])
def test_a_result_out_of_turn_is_refused_and_moves_nothing(make_host, wrong):
    host = make_host()
    before = host.store.digest()
    with pytest.raises(PlanRefusedError, match=r"wanted round 0; replay the missing results"):
        host.agent.apply_result(wrong)
    with pytest.raises(PlanRefusedError, match="serves run"):
        host.agent.apply_result(RoundResult("another", 0, 0, (2**33,)))
    assert host.store.digest() == before


def test_a_result_is_applied_once(make_host):
    host = make_host()
    host.agent.apply_result(result(0, 2**33))
    once = host.store.digest()
    with pytest.raises(PlanRefusedError):
        host.agent.apply_result(result(0, 2**33))
    assert host.store.digest() == once


def test_a_late_joiner_catches_up_by_results_and_takes_part(make_host, make_plan):
    host = make_host()
    for t in range(3):
        host.agent.apply_result(result(t, 2**33, seed=t))
    with pytest.raises(PlanRefusedError):
        host.agent.run_round(make_plan(round_index=2))
    host.agent.run_round(make_plan(round_index=3))
    assert len(host.uplinks[0].scalars) == 1


# ---------------------------------------------------------------- messages


def test_every_message_is_acted_on_and_reported(tiny_bundle, make_host, make_plan):
    host = make_host(2)
    do = host.agent.carry_out
    assert do(SoundingOrder(RUN_ID, 0, 0.5, 64)) == []
    assert [u.pilots for u in host.uplinks] == [
        [(k, SoundingOrder(RUN_ID, 0, 0.5, 64))] for k in range(2)
    ]
    reports = do(make_plan(devices=(1,)))
    assert reports == [RoundReport(RUN_ID, 0, 0, TRUNCATED), RoundReport(RUN_ID, 0, 1, TRANSMITTED)]
    assert do(result(0, 2**33)) == []
    (report,) = do(DigestRequest(RUN_ID, 0))
    replica = ParameterStore.from_bundle(tiny_bundle)
    replica.apply_step(result(0, 2**33))
    assert report == DigestReport(RUN_ID, 0, "host-of-the-tests", replica.digest())


def test_messages_of_another_run_are_refused(make_host):
    host = make_host()
    for message in (SoundingOrder("another", 0, 0.5, 0), DigestRequest("another", 0)):
        with pytest.raises(PlanRefusedError, match="serves run"):
            host.agent.carry_out(message)
    assert host.uplinks[0].pilots == []


def test_closing_silences_every_uplink_and_can_be_repeated(make_host):
    host = make_host(3, num_workers=2)
    host.agent.close()
    host.agent.close()
    assert all(uplink.is_closed for uplink in host.uplinks)
