"""Matrices in 16 and 8 bits: what they lose, what a step does, and what a pass reads.

Independent: numpy on the whole numbers themselves, and a forward pass bound to whole float32
weights (`LayerGraphs.bind_whole`), bit for bit.
"""

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime import forward as forward_module
from edge_runtime.bundle import GRAPH_FILES, TensorEntry
from edge_runtime.forward import OnnxForward
from edge_runtime.kernel import rounding_word
from edge_runtime.lattice import choose_int16_exponent
from edge_runtime.layer_graphs import LayerGraphs
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import make_batch
from edge_runtime.protocol.direction import direction
from edge_runtime.protocol.errors import LatticeError
from edge_runtime.protocol.rounds import RoundResult
from edge_runtime.stored_matrix import to_int8, to_int16
from tests.support.stored_bundles import store_again

LAST = "*.layers.1.*"
FORMS = {"int16": (), "int8": (), "int8 and 16": (LAST,)}
SEED, SCALE = 77, 2.0**-5


@pytest.fixture(scope="session")
def stored(tiny_bundle, tmp_path_factory):
    """The tiny model in each form."""
    folder = tmp_path_factory.mktemp("stored")
    return {
        name: store_again(tiny_bundle, folder / name, name.split()[0], trainable)
        for name, trainable in FORMS.items()
    }


def trainable_of(form):
    return "all" if form == "int16" else ["*.bias", *FORMS[form]]


def made_up(*shapes, vocabulary=60):
    rng = np.random.default_rng(5)
    return [
        make_batch([rng.integers(4, vocabulary, width) for _ in range(rows)], width)
        for rows, width in shapes
    ]


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize(
    ("max_abs", "range_end"),
    [(0.0, 2.0), (0.1, 2.0), (1.0, 2.0), (1.33, 2.0), (1.34, 4.0), (2.6, 4.0), (2.7, 8.0),
     (100.0, 256.0)],
)  # fmt: skip
def test_a_16_bit_range_ends_at_the_first_power_of_two_above_one_and_a_half(max_abs, range_end):
    assert choose_int16_exponent(max_abs) == math.log2(range_end) - 15


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 2.0**47])
def test_weights_that_are_no_numbers_have_no_16_bits(bad):
    with pytest.raises(LatticeError):
        choose_int16_exponent(bad)


def test_16_bits_are_off_by_half_a_quantum_at_most():
    matrix = np.random.default_rng(1).normal(0, 0.3, (40, 50)).astype(np.float32)
    values, exponent = to_int16(matrix)
    assert values.dtype == np.int16 and np.abs(values.astype(int)).max() < 2**15 / 1.5
    assert np.abs(values * 2.0**exponent - matrix).max() <= 2.0 ** (exponent - 1)


def test_8_bits_are_off_by_half_a_rows_scale_at_most_and_zeros_stay():
    rng = np.random.default_rng(1)
    matrix = (rng.normal(0, 1, (60, 50)) * 10.0 ** rng.integers(-9, 3, (60, 1))).astype(np.float32)
    matrix[7] = 0.0
    matrix[8] = 1e-45  # its scale is no float32 number but zero
    values, row_scales = to_int8(matrix)
    assert values.dtype == np.int8 and row_scales.dtype == np.float32
    assert (np.abs(values[:7].astype(int)).max(axis=1) == 127).all()
    off = np.abs(values * row_scales[:, None].astype(np.float64) - matrix).max(axis=1)
    assert (off <= row_scales * 0.5 * (1 + 1e-5) + 2e-45).all()
    assert not values[7].any() and np.isfinite(row_scales).all()


# ---------------------------------------------------------------- steps


def matrix_store(values, exponent=-14, trainable="all"):
    entry = TensorEntry("w", values.shape, "int16", exponent)
    return ParameterStore.from_arrays([entry], {"w": values.astype(np.int16)}, trainable)


def test_a_step_moves_whole_numbers_by_its_formula():
    start = np.random.default_rng(2).integers(-1000, 1000, (30, 11))
    exponent, integers = -14, (3 << 26, -(7 << 25), 12345, 0)
    store = matrix_store(start, exponent)
    store.apply_step(RoundResult("run", 0, 99, integers))
    from edge_runtime.protocol.direction import direction_seeds

    wanted = start.astype(np.int64)
    for seed, k in zip(direction_seeds(99, 4), integers, strict=True):
        shift = exponent + 40
        quanta = (k + (rounding_word(seed, 0) & ((1 << shift) - 1))) >> shift if k else 0
        wanted = wanted - quanta * direction(seed, 0, start.size).reshape(start.shape)
    np.testing.assert_array_equal(store.as_kept()["w"], wanted)
    assert (wanted != start).any()


def test_a_direction_leaves_nothing_behind_and_a_pass_sees_it(stored):
    store = ParameterStore.from_bundle(stored["int16"])
    before = {name: array.copy() for name, array in store.as_kept().items()}
    name = "model.decoder.layers.0.fc1.weight"
    index = [entry.name for entry in store.entries].index(name)
    home = store.as_float32(name)
    out = np.empty_like(home)
    with pytest.raises(RuntimeError), store.moved(SEED, SCALE):
        store.expand(name, out)
        assert store.as_kept()[name].tobytes() == before[name].tobytes()
        raise RuntimeError("in the middle of a round")
    signs = direction(SEED, index, home.size).reshape(home.shape)
    assert out.tobytes() == (home + np.float32(SCALE) * signs).tobytes()
    store.expand(name, out)
    assert out.tobytes() == home.tobytes()
    for kept, array in store.as_kept().items():
        assert array.tobytes() == before[kept].tobytes()


def test_any_order_of_steps_gives_the_same_digest(stored):
    results = [RoundResult("run", n, n, ((n % 5 - 2) << 27, n << 25)) for n in range(12)]
    stores = [ParameterStore.from_bundle(stored["int16"]) for _ in range(2)]
    stores[0].replay(results)
    stores[1].replay(results[::-1])
    assert stores[0].digest() == stores[1].digest()
    assert stores[0].digest() != ParameterStore.from_bundle(stored["int16"]).digest()


def test_the_digest_is_of_the_whole_numbers_and_their_scales(stored):
    import hashlib

    bundle = stored["int8 and 16"]
    store = ParameterStore.from_bundle(bundle, trainable_of("int8 and 16"))
    from safetensors.numpy import load_file

    file = load_file(bundle.weights_path)
    sha = hashlib.sha256()
    for entry in bundle.manifest.tensors:
        sha.update(entry.name.encode() + file[entry.name].tobytes())
        if entry.stored_dtype == "int8":
            sha.update((entry.name + ".row_scales").encode())
            sha.update(file[entry.name + ".row_scales"].tobytes())
    assert store.digest() == sha.hexdigest()


def test_a_step_beyond_16_bits_is_refused_and_nothing_has_moved():
    store = matrix_store(np.full((3, 100), 32_000), exponent=-14)
    before = store.digest()
    small, large = 100 << 26, 800 << 26  # quanta of 2^-14 in steps of 2^-40
    with pytest.raises(LatticeError, match=r"w: a weight of 1.95\d* would move by 0.048\d*, past"):
        store.apply_step(RoundResult("run", 0, 5, (small, large)))
    assert store.digest() == before
    store.apply_step(RoundResult("run", 0, 5, (small,)))
    assert store.digest() != before


def test_moves_there_and_back_do_not_add_up_to_a_range_error():
    store = matrix_store(np.full((1, 64), 32_000), exponent=-14)
    for n in range(50):
        store.apply_step(RoundResult("run", n, 5, ((500 if n % 2 else -500) << 26,)))
    np.testing.assert_array_equal(store.as_kept()["w"], np.full((1, 64), 32_000))


@pytest.mark.parametrize("trainable", ["all", ["*.fc1.weight"], LAST])
def test_eight_bits_are_not_trained(stored, trainable):
    with pytest.raises(
        LatticeError, match=r"trainable: model\.decoder\.\S+ is stored in 8 bits.*--store int8 --tr"
    ):
        ParameterStore.from_bundle(stored["int8"], trainable)


def test_a_frozen_model_has_nothing_to_refuse(stored):
    for bundle in stored.values():
        store = ParameterStore.from_bundle(bundle, None)
        before = store.digest()
        store.apply_step(RoundResult("run", 0, 5, (1 << 39,)))
        store.add_direction(5, 0.3)
        assert store.digest() == before


def test_the_number_below_the_range_does_not_load():
    with pytest.raises(LatticeError, match="holds -2\\^15"):
        matrix_store(np.array([[-(2**15), 0]]))


# ---------------------------------------------------------------- passes


def whole_pass(bundle, store, batch, scale=0.0):
    """The outputs with every weight bound whole, moved by plain numpy."""
    graphs = LayerGraphs(
        {name: bundle.folder / name for name in GRAPH_FILES},
        num_layers=bundle.num_layers,
        hidden_size=bundle.hidden_size,
    )
    weights = {}
    for index, (entry, moves) in enumerate(zip(store.entries, store.trainable, strict=True)):
        array = store.as_float32(entry.name).copy()
        if moves and scale:
            array += np.float32(scale) * direction(SEED, index, array.size).reshape(array.shape)
        weights[entry.name] = array
    words = np.array(bundle.manifest.label_token_ids, np.int64)
    is_alone = batch.num_examples == 1
    output = graphs.bind_whole(weights, words).run(batch.doubled() if is_alone else batch)
    return output.losses[: batch.num_examples], output.scores[: batch.num_examples]


BATCHES = [(3, 9), (1, 4), (8, 17), (2, 39)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("waiting_bytes", [forward_module.MAX_WAITING_BYTES, 1])
def test_a_pass_through_scratch_is_a_pass_on_whole_weights(
    stored, monkeypatch, form, num_workers, waiting_bytes
):
    monkeypatch.setattr(forward_module, "MAX_WAITING_BYTES", waiting_bytes)
    bundle = stored[form]
    store = ParameterStore.from_bundle(bundle, trainable_of(form))
    forward = OnnxForward(bundle, store, num_workers=num_workers)
    batches = made_up(*BATCHES)
    try:
        wanted_home = [whole_pass(bundle, store, batch) for batch in batches]
        wanted_away = [whole_pass(bundle, store, batch, SCALE) for batch in batches]
        assert wanted_home[0][0].tobytes() != wanted_away[0][0].tobytes()
        for max_kept_bytes in (0, 4 * bundle.hidden_size * 30, 2**30):
            forward._max_kept_bytes = max_kept_bytes
            begun = forward.begin(batches)
            with store.moved(SEED, SCALE):
                away = forward.finish(begun)
            home = forward.finish(begun)
            for got, wanted in ((away, wanted_away), (home, wanted_home)):
                for output, (losses, scores) in zip(got, wanted, strict=True):
                    assert output.losses.tobytes() == losses.tobytes()
                    assert output.scores.tobytes() == scores.tobytes()
    finally:
        forward.close()


def test_layers_below_the_first_that_moves_are_expanded_once_a_round(stored, monkeypatch):
    bundle = stored["int8 and 16"]
    store = ParameterStore.from_bundle(bundle, [LAST])
    forward = OnnxForward(bundle, store)
    expanded = []
    real = ParameterStore.expand

    def expand(self, name, *arguments):
        expanded.append(name)
        return real(self, name, *arguments)

    monkeypatch.setattr(ParameterStore, "expand", expand)
    begun = forward.begin(made_up(*BATCHES))
    assert len([name for name in expanded if ".layers.0." in name]) == 6
    assert not any(".layers.1." in name for name in expanded)
    expanded.clear()
    for scale in (SCALE, -SCALE):
        with store.moved(SEED, scale):
            forward.finish(begun)
    assert len([name for name in expanded if ".layers.1." in name]) == 2 * 6
    assert not any(".layers.0." in name or "embed_positions" in name for name in expanded)


def test_scratch_holds_one_layer_and_the_rows_that_are_asked_for(stored):
    bundle = stored["int16"]
    store = ParameterStore.from_bundle(bundle)
    forward = OnnxForward(bundle, store)
    layer = sum(
        math.prod(e.shape) for e in store.entries if ".layers.0." in e.name and len(e.shape) == 2
    )
    copies = forward._scratch._copies
    assert sum(array.size for array in copies.values()) == layer
    seen = {}
    real = store.expand

    def expand(name, out, rows=None):
        seen.setdefault(name, []).append(None if rows is None else len(rows))
        real(name, out, rows)

    store.expand = expand
    batch = made_up((2, 9))[0]
    forward.run(batch)
    words = len(bundle.manifest.label_token_ids)
    tokens = "model.decoder.embed_tokens.weight"
    assert seen[tokens] == [len(np.unique(batch.input_ids)), words]
    assert seen["model.decoder.embed_positions.weight"] == [2 + 9]


def resident_bytes_of(path: Path) -> int:
    """What of a mapped file is in this process's memory."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.parametrize("form", ["int8", "int16"])
def test_pages_of_the_file_are_given_back(stored, form):
    bundle = stored[form]
    store = ParameterStore.from_bundle(bundle, ["*.bias"])
    assert resident_bytes_of(bundle.weights_path) == 0
    forward = OnnxForward(bundle, store)
    forward.run_many(made_up(*BATCHES))
    assert resident_bytes_of(bundle.weights_path) == 0
    store.digest()
    assert resident_bytes_of(bundle.weights_path) == 0
    assert int(store.as_kept()["model.decoder.layers.0.fc1.weight"][0, 0]) is not None
    assert resident_bytes_of(bundle.weights_path) > 0  # it is this mapping that is looked at


def test_graphs_of_an_older_export_are_given_whole_tables(stored, tmp_path, bundled_model):
    """Their vocabulary is no open size."""
    bundle = store_again(bundled_model, tmp_path / "again", "int16")
    store = ParameterStore.from_bundle(bundle)
    forward = OnnxForward(bundle, store)
    batch = made_up((4, 12), vocabulary=1000)[0]
    losses, scores = whole_pass(bundle, store, batch, SCALE)
    with store.moved(SEED, SCALE):
        output = forward.run(batch)
    assert output.losses.tobytes() == losses.tobytes()
    assert output.scores.tobytes() == scores.tobytes()


@pytest.fixture
def bundled_model():
    from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle

    return open_bundle(BUNDLED_MODEL_FOLDER)


def test_a_format_is_what_it_says(stored):
    assert {b.manifest.format_version for b in stored.values()} == {4}
    assert msgspec.json.encode(stored["int8"].manifest)  # numbers and names only


# ---------------------------------------------------------------- replicas


def differing(store, other):
    kept, others = store.as_kept(), other.as_kept()
    return [name for name in kept if kept[name].tobytes() != others[name].tobytes()]


@pytest.mark.parametrize("form", ["float32", "int16", "int8 and 16"])
def test_a_replica_shares_what_is_frozen_and_has_its_own_of_what_moves(tiny_bundle, stored, form):
    trainable = trainable_of(form) if form == "int8 and 16" else [LAST]
    store = ParameterStore.from_bundle(stored.get(form, tiny_bundle), trainable)
    store.apply_step(RoundResult("run", 0, 7, (3 << 28, -(5 << 27))))
    twin = store.replica()
    assert (twin.trainable, twin.digest()) == (store.trainable, store.digest())
    for entry, moves in zip(store.entries, store.trainable, strict=True):
        one, other = store.as_kept()[entry.name], twin.as_kept()[entry.name]
        assert np.shares_memory(one, other) == (not moves), entry.name
    moving = [e.name for e, moves in zip(store.entries, store.trainable, strict=True) if moves]
    step = RoundResult("run", 1, 8, (3 << 28, 1 << 28))
    twin.apply_step(step)
    assert differing(store, twin) == moving
    store.apply_step(step)
    assert store.digest() == twin.digest()
