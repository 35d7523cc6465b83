"""ParameterStore against the plain definition of a direction, and at the edges of its range."""

import math

import numpy as np
import pytest

from edge_runtime.bundle import TensorEntry
from edge_runtime.lattice import range_limit
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction, direction_seeds, rounding_word
from edge_runtime.protocol.errors import BundleError, LatticeError
from edge_runtime.protocol.rounds import STEP_QUANTUM, RoundResult
from edge_runtime.trainable import select_trainable

EXPONENT = -22
QUANTUM = 2.0**EXPONENT
SCALE = 2.0**-10
NAMES = (
    "decoder.embed_tokens.weight",
    "decoder.layers.0.fc1.weight",
    "decoder.layers.0.fc1.bias",
    "decoder.layers.0.self_attn_layer_norm.weight",
    "decoder.final_layer_norm.bias",
)


def make_store(*arrays, exponents=None, trainable="all", names=None, num_threads=1):
    exponents = exponents or [EXPONENT] * len(arrays)
    names = names or [f"tensor_{i}" for i in range(len(arrays))]
    entries = [
        TensorEntry(name, np.shape(array), "float32", exponent)
        for name, array, exponent in zip(names, arrays, exponents, strict=True)
    ]
    values = {n: np.asarray(a, dtype=np.float32) for n, a in zip(names, arrays, strict=True)}
    return ParameterStore.from_arrays(entries, values, trainable, num_threads)


def random_weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.0, 0.2, size=shape).astype(np.float32)


def snapshot(store):
    return {name: tensor.copy() for name, tensor in store.tensors.items()}


def assert_same_bits(one, other):
    for name, tensor in one.items():
        assert tensor.tobytes() == other[name].tobytes(), name


# One weight to more than three chunks of 64 Ki, next to every border of a word and of a chunk.
SIZES = [1, 7, 63, 64, 65, 127, 1000, 65535, 65536, 65537, 131072, 200_003]


@pytest.mark.parametrize("size", SIZES)
def test_a_move_is_the_plain_definition_whatever_the_size(size):
    store = make_store(random_weights(size), random_weights(3, seed=1))
    before = snapshot(store)
    store.add_direction(77, -3 * SCALE)
    for index, (name, tensor) in enumerate(store.tensors.items()):
        wanted = before[name] - np.float32(3 * SCALE) * direction(77, index, tensor.size)
        assert np.array_equal(tensor, wanted)


def test_signs_follow_the_flat_order_of_a_shaped_tensor():
    store = make_store(np.zeros((5, 7, 3)))
    store.add_direction(9, SCALE)
    wanted = SCALE * direction(9, 0, 105).reshape(5, 7, 3)
    assert np.array_equal(store.tensors["tensor_0"], wanted)


def test_an_empty_tensor_and_a_scalar_are_tensors_too():
    store = make_store(np.zeros((0, 4)), np.float32(0.5))
    store.add_direction(1, SCALE)
    assert store.tensors["tensor_0"].shape == (0, 4)
    assert store.tensors["tensor_1"].shape == ()
    assert store.tensors["tensor_1"] == 0.5 + SCALE * direction(1, 1, 1)[0]


def test_tensors_do_not_touch_and_start_on_cache_lines():
    store = make_store(*(random_weights(size) for size in (1, 17, 64, 5)))
    before = snapshot(store)
    addresses = [tensor.ctypes.data for tensor in store.tensors.values()]
    assert all(address % 64 == 0 for address in addresses)
    frozen = make_store(
        *before.values(), names=list(before), trainable=["tensor_0", "tensor_1", "tensor_3"]
    )
    frozen.add_direction(4, SCALE)
    assert_same_bits({"tensor_2": before["tensor_2"]}, frozen.tensors)


def test_views_show_the_live_weights():
    store = make_store(np.zeros(100))
    view = store.tensors["tensor_0"]
    store.add_direction(3, SCALE)
    assert np.array_equal(view, np.zeros(100))  # asked for, not yet made
    store.settle()
    assert np.array_equal(view, SCALE * direction(3, 0, 100))
    assert np.shares_memory(view, store.tensors["tensor_0"])


def test_weights_are_rounded_to_their_lattices_on_the_way_in():
    weights = random_weights(1000)
    store = make_store(weights, weights, exponents=[-22, -8])
    for name, exponent in (("tensor_0", -22), ("tensor_1", -8)):
        multiples = np.ldexp(store.tensors[name].astype(np.float64), -exponent)
        assert np.array_equal(multiples, np.rint(multiples))
        assert np.max(np.abs(store.tensors[name] - weights)) <= 2.0 ** (exponent - 1)


def test_counts_tell_trained_weights_from_all():
    store = make_store(
        *(np.zeros(n) for n in (10, 20, 3, 4, 5)), names=list(NAMES), trainable="norms_and_biases"
    )
    assert (store.num_parameters, store.num_trainable) == (42, 12)


# ---------------------------------------------------------------- which tensors are trained


def test_all_and_norms_and_biases():
    assert select_trainable(NAMES, "all") == (True,) * 5
    assert select_trainable(NAMES, "norms_and_biases") == (False, False, True, True, True)
    for word in ("all", "norms_and_biases"):  # as a host is told, in a list
        assert select_trainable(NAMES, (word,)) == select_trainable(NAMES, word)
    assert select_trainable(NAMES, None) == (False,) * 5


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ("*.fc1.*", (False, True, True, False, False)),
        (["*.fc1.weight", "*norm*"], (False, True, False, True, True)),
        (["decoder.embed_tokens.weight"], (True, False, False, False, False)),
    ],
)
def test_patterns_choose(patterns, wanted):
    assert select_trainable(NAMES, patterns) == wanted


@pytest.mark.parametrize("patterns", ["*.fc3.*", ["*.fc1.*", "typo"], "", [""], "All"])
def test_a_pattern_that_matches_nothing_is_refused_by_name(patterns):
    with pytest.raises(LatticeError, match=r"matches none of the 5 tensors.*embed_tokens"):
        select_trainable(NAMES, patterns)


def test_no_pattern_at_all_must_not_train_nothing():
    with pytest.raises(LatticeError, match="trainable"):
        select_trainable(NAMES, [])


def test_tensors_left_out_never_move():
    arrays = [random_weights(50, seed=i) for i in range(5)]
    store = make_store(*arrays, names=list(NAMES), trainable="norms_and_biases")
    before = snapshot(store)
    store.add_direction(5, SCALE)
    store.apply_step(RoundResult("r", 0, 5, (2**35,)))
    moved = [not np.array_equal(before[n], t) for n, t in store.tensors.items()]
    assert moved == [False, False, True, True, True]
    # The tensor's index counts all tensors, trained or not, so a choice never changes a sign.
    step = np.float32(SCALE - 2.0**-5) * direction(5, 2, 50)
    assert np.array_equal(store.tensors[NAMES[2]], before[NAMES[2]] + step)


# ---------------------------------------------------------------- scales and ranges


@pytest.mark.parametrize(
    "scale", [QUANTUM / 2, 0.1, SCALE + QUANTUM / 2, math.nan, math.inf, -math.inf, 2.0**1020]
)
def test_a_scale_off_the_lattice_is_refused_and_nothing_moves(scale):
    store = make_store(random_weights(100), random_weights(100))
    before = snapshot(store)
    with pytest.raises(LatticeError):
        store.add_direction(1, scale)
    assert_same_bits(before, store.tensors)


def test_the_coarsest_trained_tensor_sets_the_smallest_scale():
    arrays = (np.zeros(5), np.zeros(5))
    store = make_store(*arrays, exponents=[-22, -8])
    with pytest.raises(LatticeError, match=r"2\^-8 of tensor_1.*at least 2\^-8, or leave"):
        store.check_perturbation_scale(SCALE)
    store.check_perturbation_scale(2.0**-8)
    make_store(*arrays, exponents=[-22, -8], trainable="tensor_0").check_perturbation_scale(SCALE)


def test_the_range_guard_raises_before_any_tensor_is_touched():
    # The second tensor is at its edge; the first, which comes before it, must not have moved.
    limit = range_limit(EXPONENT)
    store = make_store(random_weights(100), np.full(10, limit - SCALE))
    before = snapshot(store)
    with pytest.raises(LatticeError, match=r"tensor_1: a weight of .* past the end .* lower the"):
        store.add_direction(1, SCALE)
    assert_same_bits(before, store.tensors)
    with pytest.raises(LatticeError, match="tensor_1"):
        store.apply_step(RoundResult("r", 0, 1, (2**39,)))
    assert_same_bits(before, store.tensors)
    store.add_direction(1, SCALE / 2)  # this much room there still is


def test_the_range_guard_looks_at_the_real_weights_before_it_refuses():
    # A thousand moves there and back add up in a bound, not in the weights.
    store = make_store(np.array([0.5, -0.5]))
    for _ in range(1000):
        store.add_direction(3, 0.25)
        store.add_direction(3, -0.25)
    assert store.tensors["tensor_0"].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("room", [1.001, 1.25, 1.5, 1.75, 1.999, 2.5])
def test_a_move_that_was_allowed_can_be_undone_close_to_the_edge(room):
    # Whatever the guard says to the first move, after it the way back must be open.
    limit = range_limit(EXPONENT)
    start = limit - math.floor(room * SCALE / QUANTUM) * QUANTUM
    store = make_store(np.full(64, start))
    before = snapshot(store)
    try:
        store.add_direction(1, SCALE)
    except LatticeError:
        pass
    else:
        store.add_direction(1, -SCALE)
    assert_same_bits(before, store.tensors)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 4.0, -5.0, 3e38])
def test_weights_beyond_their_lattice_do_not_load(bad):
    weights = random_weights(10)
    weights[3] = bad
    with pytest.raises(LatticeError, match=r"tensor_0: holds .* Export the model again"):
        make_store(weights)


def test_a_shape_that_is_not_the_manifests_does_not_load():
    entry = TensorEntry("w", (2, 3), "float32", EXPONENT)
    with pytest.raises(BundleError, match=r"w: shape \(3, 2\), the manifest says \(2, 3\)"):
        ParameterStore.from_arrays([entry], {"w": np.zeros((3, 2), dtype=np.float32)})


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("exponent", [-22, -10])
@pytest.mark.parametrize("step_integer", [1, -1, 12345, -(2**20) - 7, 2**38 + 3, -(2**39)])
def test_a_step_follows_its_formula(exponent, step_integer):
    sizes = (100, 65, 1)
    store = make_store(*(np.zeros(n) for n in sizes), exponents=[exponent] * 3)
    store.apply_step(RoundResult("r", 0, 31, (step_integer,)))
    units = 2 ** (exponent + 40)
    for index, tensor in enumerate(store.tensors.values()):
        quanta = math.floor((step_integer + rounding_word(31, index) % units) / units)
        assert abs(quanta * 2.0**exponent - step_integer * STEP_QUANTUM) < 2.0**exponent
        wanted = -quanta * 2.0**exponent * direction(31, index, tensor.size)
        assert np.array_equal(tensor, wanted)


def test_a_whole_number_of_quanta_is_not_rounded():
    store = make_store(np.zeros(50))
    store.apply_step(RoundResult("r", 0, 8, (5 * 2**18,)))
    assert np.array_equal(store.tensors["tensor_0"], -5 * QUANTUM * direction(8, 0, 50))


def test_a_skipped_round_moves_nothing():
    store = make_store(random_weights(100))
    before = store.digest()
    store.apply_step(RoundResult("r", 0, 8, (0,)))
    assert store.digest() == before


def test_a_step_of_many_directions_is_the_steps_of_each_in_any_order():
    together, apart = make_store(random_weights(300)), make_store(random_weights(300))
    steps = (2**36, 0, -(2**35) + 11, 7 * 2**33)
    together.apply_step(RoundResult("r", 0, 5, steps))
    seeds = direction_seeds(5, 4)
    for q in (3, 0, 2):
        apart.apply_step(RoundResult("r", 0, seeds[q], (steps[q],)))
    assert together.digest() == apart.digest()


def test_weights_that_were_moved_for_a_while_are_home_again_whatever_happened():
    store = make_store(random_weights(300))
    before = store.digest()
    with store.moved(3, SCALE):
        away = store.digest()
    assert away != before
    with pytest.raises(KeyError), store.moved(3, SCALE):
        assert store.digest() == away
        raise KeyError("forward pass failed")
    assert store.digest() == before


def test_a_step_whose_last_direction_leaves_the_range_moves_nothing():
    store = make_store(random_weights(300))
    before = store.digest()
    beyond = (2**30, -(2**31), 2**50)
    with pytest.raises(LatticeError, match="past the end of its exact range"):
        store.apply_step(RoundResult("r", 0, 5, beyond))
    assert store.digest() == before
    store.apply_step(RoundResult("r", 0, 5, beyond[:2]))  # the control
    assert store.digest() != before


def test_replaying_steps_gives_the_weights_of_a_host_that_looked_both_ways():
    # The one took part in every round, the other joins late and only takes the steps.
    weights = [random_weights(100), np.array([-0.0, -1e-9, 0.0, 1e-9]), np.full(3, -0.0)]
    present, late = make_store(*weights), make_store(*weights)
    steps = [(0,), (3 * 2**30,), (1, -(2**28), 0), (-7,)]
    results = [RoundResult("r", t, 100 + t, own) for t, own in enumerate(steps)]
    for result in results:
        present.add_direction(result.direction_seed, SCALE)
        present.add_direction(result.direction_seed, -2 * SCALE)
        present.add_direction(result.direction_seed, SCALE)
        present.apply_step(result)
        late.replay([result])
        assert late.digest() == present.digest(), f"after round {result.round_index}"


def test_the_digest_sees_one_bit_and_a_name():
    store, same = make_store(random_weights(100)), make_store(random_weights(100))
    assert store.digest() == same.digest()
    other = random_weights(100)
    other[50] += QUANTUM
    assert make_store(other).digest() != store.digest()
    assert make_store(random_weights(100), names=["other"]).digest() != store.digest()


# ---------------------------------------------------------------- from a bundle


def test_a_bundle_loads_every_tensor_it_names(tiny_bundle):
    from safetensors.numpy import load_file

    store = ParameterStore.from_bundle(tiny_bundle)
    stored = load_file(tiny_bundle.weights_path)
    assert list(store.tensors) == [entry.name for entry in tiny_bundle.manifest.tensors]
    assert store.num_parameters == sum(array.size for array in stored.values())
    assert store.digest() == ParameterStore.from_bundle(tiny_bundle).digest()
    for entry in tiny_bundle.manifest.tensors:
        error = np.abs(store.tensors[entry.name] - stored[entry.name].astype(np.float32))
        assert np.max(error) <= 2.0 ** (entry.quantum_exponent - 1)


def test_a_tensor_that_is_not_in_the_file_is_named(tiny_bundle):
    import msgspec

    entries = (*tiny_bundle.manifest.tensors, TensorEntry("ghost", (2,), "float32", EXPONENT))
    manifest = msgspec.structs.replace(tiny_bundle.manifest, tensors=entries)
    with pytest.raises(BundleError, match="'ghost' is missing"):
        ParameterStore.from_bundle(msgspec.structs.replace(tiny_bundle, manifest=manifest))


def test_a_round_costs_two_passes(monkeypatch):
    """Restore, step and the next perturbation are one trip to memory."""
    import edge_runtime.deferred_moves as module

    passes = []

    def counting(*arguments):
        passes.append(arguments[3])
        kernel(*arguments)

    kernel = module.add_moves
    monkeypatch.setattr(module, "add_moves", counting)
    store = make_store(random_weights(300))
    for seed in (1, 2, 3):
        store.add_direction(seed, SCALE)
        store.settle()
        store.add_direction(seed, -2 * SCALE)
        store.settle()
        store.add_direction(seed, SCALE)
        store.apply_step(RoundResult("r", seed, seed, (12345 << 20,)))
    assert passes == [(1,), (1,), (1, 2), (2,), (2, 3), (3,)]


def test_opposite_moves_that_nobody_saw_cost_nothing(monkeypatch):
    import edge_runtime.deferred_moves as module

    monkeypatch.setattr(module, "add_moves", None)
    store = make_store(random_weights(300))
    store.add_direction(1, SCALE)
    store.add_direction(1, -SCALE)
    store.settle()


def test_threads_change_no_bit():
    weights = random_weights((1 << 21) + 77)
    alone, together = (make_store(weights, num_threads=threads) for threads in (1, 3))
    for store in (alone, together):
        store.add_direction(9, SCALE)
        store.apply_step(RoundResult("r", 0, 9, (987654 << 18,)))
    assert alone.digest() == together.digest()
