"""Perturb, restore and step never lose a bit: guarantees of ParameterStore on generated weights."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.bundle import TensorEntry
from edge_runtime.lattice import choose_quantum_exponent, round_to_lattice
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction, direction_seeds
from edge_runtime.protocol.rounds import RoundResult

seeds = st.integers(0, 2**64 - 1)
scales = st.integers(-12, -4).map(lambda e: 2.0**e)
# Sizes that are no multiples of 64; every float32 that fits, with both zeros and subnormals.
tensors = st.lists(
    hnp.arrays(
        np.float32,
        st.one_of(
            hnp.array_shapes(min_dims=1, max_dims=1, min_side=0, max_side=300),
            hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
        ),
        elements=st.floats(-8.0, 8.0, width=32),
        fill=st.sampled_from([np.float32(x) for x in (0.25, -0.0, -1e-9, 1e-30)]),
    ),
    min_size=1,
    max_size=3,
)
results = st.builds(
    RoundResult, st.just("r"), st.just(0), seeds,
    st.lists(
        st.one_of(st.just(0), st.integers(-(2**20), 2**20), st.integers(-(2**36), 2**36)),
        min_size=1, max_size=3,
    ).map(tuple),
)  # fmt: skip


def make_store(arrays):
    entries = [
        TensorEntry(
            f"tensor_{i}", a.shape, "float32",
            choose_quantum_exponent(float(np.max(np.abs(a), initial=0.0))),
        )
        for i, a in enumerate(arrays)
    ]  # fmt: skip
    named = {entry.name: a for entry, a in zip(entries, arrays, strict=True)}
    return ParameterStore.from_arrays(entries, named)


NEGATIVE_ZERO = [np.array([-0.0], dtype=np.float32)]


@given(tensors, seeds, scales)
@example(NEGATIVE_ZERO, 1, 2.0**-10)
@example([np.array([-1e-9], dtype=np.float32)], 1, 2.0**-10)
def test_add_direction_and_back_restores_every_bit(arrays, seed, scale):
    store = make_store(arrays)
    before = store.digest()
    store.add_direction(seed, scale)
    store.add_direction(seed, -scale)
    assert store.digest() == before


@given(tensors, seeds, scales)
@example(NEGATIVE_ZERO, 1, 2.0**-10)
def test_looking_both_ways_leaves_no_trace(arrays, seed, scale):
    store = make_store(arrays)
    before = store.digest()
    for move in (scale, -2.0 * scale, scale):
        store.add_direction(seed, move)
    assert store.digest() == before


@given(tensors, seeds, scales)
def test_a_move_is_exact(arrays, seed, scale):
    # float64 carries every sum exactly, so any rounding of the float32 sum would show.
    store = make_store(arrays)
    before = [tensor.astype(np.float64) for tensor in store.tensors.values()]
    store.add_direction(seed, scale)
    for index, tensor in enumerate(store.tensors.values()):
        signs = direction(seed, index, tensor.size).reshape(tensor.shape)
        assert np.array_equal(tensor.astype(np.float64), before[index] + scale * signs)


@given(tensors, st.lists(st.tuples(seeds, scales), min_size=2, max_size=6), st.randoms())
def test_moves_commute(arrays, moves, random):
    one, other = make_store(arrays), make_store(arrays)
    shuffled = list(moves)
    random.shuffle(shuffled)
    for seed, scale in moves:
        one.add_direction(seed, scale)
    for seed, scale in shuffled:
        other.add_direction(seed, scale)
    assert one.digest() == other.digest()


@given(tensors, st.lists(results, min_size=1, max_size=6), st.randoms())
def test_steps_commute_and_are_the_same_on_every_replica(arrays, steps, random):
    one, other = make_store(arrays), make_store(arrays)
    one.replay(steps)
    shuffled = list(steps)
    random.shuffle(shuffled)
    other.replay(shuffled)
    assert one.digest() == other.digest()


@given(tensors, st.lists(results, min_size=1, max_size=5), scales)
@example(NEGATIVE_ZERO, [RoundResult("r", 0, 1, (0,))], 2.0**-10)
def test_a_late_joiner_that_replays_has_the_weights_of_one_that_looked(arrays, steps, scale):
    present, late = make_store(arrays), make_store(arrays)
    for result in steps:
        for move in (scale, -2.0 * scale, scale):
            present.add_direction(result.direction_seed, move)
        present.apply_step(result)
    late.replay(steps)
    assert late.digest() == present.digest()


@given(tensors, results)
def test_a_step_is_within_a_quantum_of_what_was_ordered(arrays, result):
    store = make_store(arrays)
    before = [tensor.astype(np.float64) for tensor in store.tensors.values()]
    store.apply_step(result)
    for index, (entry, tensor) in enumerate(
        zip(store.entries, store.tensors.values(), strict=True)
    ):
        seeds_of_round = direction_seeds(result.direction_seed, len(result.step_integers))
        wanted = sum(
            step * 2.0**-40 * direction(seed, index, tensor.size).reshape(tensor.shape)
            for seed, step in zip(seeds_of_round, result.step_integers, strict=True)
        )
        off = np.abs(before[index] - tensor - wanted)
        assert np.all(off < len(seeds_of_round) * 2.0**entry.quantum_exponent)


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(0, 3),
)
def test_rounding_to_the_lattice_is_idempotent_odd_and_near(weights, coarser):
    exponent = choose_quantum_exponent(float(np.max(np.abs(weights)))) + coarser
    rounded = round_to_lattice(weights, exponent)
    assert np.array_equal(round_to_lattice(rounded, exponent), rounded)
    assert np.array_equal(round_to_lattice(-weights, exponent), -rounded)
    distance = np.abs(rounded.astype(np.float64) - weights.astype(np.float64))
    assert np.all(distance <= 2.0 ** (exponent - 1))
