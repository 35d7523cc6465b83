"""Prefixes that are kept for a run: the same bits, nothing computed twice, nothing left behind."""

import numpy as np
import pytest

from edge_runtime import pass_shapes
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.layer_graphs import BoundLayers
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import keep_prefixes, make_batch
from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.protocol.errors import EdgeError
from tests.support.stored_bundles import store_again

LAST = ["*.layers.2.*"]
MB = 10**6


@pytest.fixture(scope="module", params=["float32", "int8"])
def bundle(request, tmp_path_factory):
    bundled = open_bundle(BUNDLED_MODEL_FOLDER)
    if request.param == "float32":
        return bundled
    return store_again(bundled, tmp_path_factory.mktemp("b") / "b", "int8", LAST)


def prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 1000, rng.integers(1, 30)) for _ in range(count)]


def batches_of(rows):
    """In other company and padding than any pass that computes what is kept."""
    groups = [rows[:1], rows[1:4], rows[4:]]
    return [make_batch(group, 31 + i) for i, group in enumerate(groups) if group]


def outputs(forward, batches, store):
    begun = forward.begin(batches)
    found = []
    for scale in (2.0**-6, -(2.0**-6)):
        with store.moved(5, scale):
            found += forward.finish(begun)
    return [(output.losses.tobytes(), output.scores.tobytes()) for output in found]


def test_what_is_kept_gives_the_same_bits_and_is_computed_once(bundle, tmp_path, monkeypatch):
    store = ParameterStore.from_bundle(bundle, LAST)
    plain, keeping = OnnxForward(bundle, store), OnnxForward(bundle, store, num_workers=2)
    cache = keep_prefixes(keeping, tmp_path, 10 * MB, 40)
    assert len(cache) == 0
    frozen_tokens = []
    real = BoundLayers.hidden_after

    def hidden_after(self, batch, end, **more):
        frozen_tokens.append(batch.num_examples)
        return real(self, batch, end, **more)

    rows = prompts(12)
    wanted = [outputs(plain, batches_of(rows), store)]
    wanted.append(outputs(plain, batches_of(prompts(3, seed=1) + rows[5:]), store))
    monkeypatch.setattr(BoundLayers, "hidden_after", hidden_after)
    assert outputs(keeping, batches_of(rows), store) == wanted[0]
    assert len(cache) == 12 and sum(frozen_tokens) >= 12
    frozen_tokens.clear()
    assert outputs(keeping, batches_of(rows), store) == wanted[0]
    assert outputs(keeping, batches_of(rows[::-1]), store) != wanted[0]
    # Layers that are expanded one by one are passed through one by one, also those that move.
    if not store.expanded:
        assert frozen_tokens == []
    frozen_tokens.clear()
    assert outputs(keeping, batches_of(prompts(3, seed=1) + rows[5:]), store) == wanted[1]
    assert len(cache) == 15
    if not store.expanded:
        assert sum(frozen_tokens) == 3
    keeping.close()


def test_evaluations_are_kept_too_and_stay_the_same(bundle, tmp_path):
    store = ParameterStore.from_bundle(bundle, LAST)
    plain, keeping = OnnxForward(bundle, store), OnnxForward(bundle, store)
    cache = keep_prefixes(keeping, tmp_path, 10 * MB, 40)
    batches = [make_batch(prompts(5, seed=n), 30) for n in range(20)]
    wanted = [output.losses.tobytes() for output in plain.run_many(batches)]
    for _ in range(2):
        assert [output.losses.tobytes() for output in keeping.run_many(batches)] == wanted
    assert len(cache) == 100


def test_what_finds_no_room_is_computed_anew(bundle, tmp_path):
    store = ParameterStore.from_bundle(bundle, LAST)
    plain, keeping = OnnxForward(bundle, store), OnnxForward(bundle, store)
    rows = prompts(12)
    room = 4 * bundle.hidden_size * sum(map(len, sorted(rows, key=len)[:6]))
    cache = keep_prefixes(keeping, tmp_path, room, 40)
    for _ in range(2):
        assert outputs(keeping, batches_of(rows), store) == outputs(plain, batches_of(rows), store)
        assert 0 < len(cache) < 12


def test_the_file_has_no_name_and_its_pages_are_given_back(tmp_path):
    cache = PrefixCache(tmp_path / "new" / "folder", 40 * MB)
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    hidden = np.ones((1000, 1000), np.float32)
    cache.put(np.arange(3), hidden)
    out = np.zeros_like(hidden)
    assert cache.take(np.arange(3), out) and (out == 1.0).all()
    assert not cache.take(np.arange(4), out)

    def resident():
        total, is_ours = 0, False
        with open("/proc/self/smaps") as lines:
            for line in lines:
                if "-" in line.split(" ")[0]:
                    is_ours = str(tmp_path) in line and "(deleted)" in line
                elif is_ours and line.startswith("Rss:"):
                    total += int(line.split()[1])
        return total

    assert resident() > 3000
    cache.let_go()
    assert resident() == 0
    assert cache.take(np.arange(3), out) and (out == 1.0).all()


def test_a_folder_without_room_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="no room for 1 MB of kept prefixes"):
        PrefixCache(tmp_path / "file" / "below", MB)
    with pytest.raises(EdgeError, match="no room for"):
        PrefixCache(tmp_path, 2**62)


def test_where_losses_follow_company_nothing_is_kept(bundle, tmp_path, monkeypatch, caplog):
    store = ParameterStore.from_bundle(bundle, LAST)
    forward = OnnxForward(bundle, store)
    monkeypatch.setattr(pass_shapes, "losses_follow_company", lambda *_, **__: True)
    assert keep_prefixes(forward, tmp_path, MB, 40) is None
    assert "no prefixes are kept" in caplog.text
    assert keep_prefixes(forward, tmp_path, 0, 40) is None
    assert list(tmp_path.iterdir()) == []


def test_where_the_first_layer_moves_there_is_no_prefix(tmp_path):
    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    store = ParameterStore.from_bundle(bundle)
    forward = OnnxForward(bundle, store)
    cache = keep_prefixes(forward, tmp_path, MB, 40)
    wanted = OnnxForward(bundle, store).run_many(batches_of(prompts(6)))
    got = forward.run_many(batches_of(prompts(6)))
    assert [g.losses.tobytes() for g in got] == [w.losses.tobytes() for w in wanted]
    assert len(cache) == 0


def test_a_second_run_takes_over_what_is_of_the_same_layers(bundle, tmp_path):
    store = ParameterStore.from_bundle(bundle, LAST)
    first, second = OnnxForward(bundle, store), OnnxForward(bundle, store.replica())
    cache = keep_prefixes(first, tmp_path, MB, 40)
    wanted = [output.losses.tobytes() for output in first.run_many(batches_of(prompts(6)))]
    assert keep_prefixes(second, tmp_path, MB, 40, cache) is cache
    assert [o.losses.tobytes() for o in second.run_many(batches_of(prompts(6)))] == wanted
    assert len(cache) == 6
    other = OnnxForward(
        bundle, ParameterStore.from_bundle(bundle, ["*.layers.2.*.bias", "*.1.*.bias"])
    )
    assert keep_prefixes(other, tmp_path, MB, 40, cache) not in (cache, None)
    with pytest.raises(ValueError, match=r"kept prefixes: of \d stages of [0-9a-f]+, wanted of"):
        other.keep_prefixes(cache)
