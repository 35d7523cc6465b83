"""Forward passes on live weights: the same bits from every worker, and no weight out of reach."""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest

from edge_runtime import layer_graphs
from edge_runtime.bundle import GRAPH_FILES, TensorEntry
from edge_runtime.forward import OnnxForward
from edge_runtime.onnx_runtime import onnxruntime
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import make_batch
from edge_runtime.protocol.errors import BundleError
from edge_runtime.tasks import PromptSet


@pytest.fixture
def store(tiny_bundle):
    return ParameterStore.from_bundle(tiny_bundle)


@pytest.fixture
def prompts(toy_examples, toy_task, tiny_tokenizer):
    return PromptSet(toy_examples, toy_task, tiny_tokenizer, 32)


@pytest.fixture
def open_forward(tiny_bundle, store):
    opened = []

    def open_one(bundle=tiny_bundle, **options):
        opened.append(OnnxForward(bundle, store, **options))
        return opened[-1]

    yield open_one
    for forward in opened:
        forward.close()


def changed(bundle, **changes):
    return msgspec.structs.replace(
        bundle, manifest=msgspec.structs.replace(bundle.manifest, **changes)
    )


def test_losses_are_the_log_softmax_of_the_scores(open_forward, prompts):
    batch = prompts.batch(range(6))
    output = open_forward().run(batch)
    assert output.losses.shape == (6,) and output.losses.dtype == np.float32
    assert output.scores.shape == (6, 3) and output.scores.dtype == np.float32
    scores = output.scores.astype(np.float64)
    wanted = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), batch.target]
    np.testing.assert_allclose(output.losses, wanted, rtol=0, atol=1e-5)
    assert output.losses.std() > 1e-3


def test_padding_does_not_change_an_examples_loss(open_forward, prompts):
    forward = open_forward()
    together = forward.run(prompts.batch(range(6))).losses
    alone = np.concatenate([forward.run(prompts.batch([i])).losses for i in range(6)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_losses_are_the_same_bits_from_every_worker(open_forward, prompts):
    batches = [prompts.batch([i % 6, (i + 2) % 6][: 1 + i % 2]) for i in range(24)]
    alone = [open_forward().run(batch) for batch in batches[:2]]
    one = open_forward(num_workers=1).run_many(batches)
    workers = open_forward(num_workers=4)
    for _ in range(3):
        for got, wanted in zip(workers.run_many(batches), one, strict=True):
            assert got.losses.tobytes() == wanted.losses.tobytes()
            assert got.scores.tobytes() == wanted.scores.tobytes()
    for got, wanted in zip(alone, one, strict=False):
        assert got.losses.tobytes() == wanted.losses.tobytes()


def test_a_batch_that_fails_is_heard_of_and_the_workers_go_on_with_the_next_call(
    open_forward, prompts
):
    good = prompts.batch([0, 1])
    bad = dataclasses.replace(good, input_ids=np.full_like(good.input_ids, 10**6))
    forward = open_forward(num_workers=3)
    wanted = forward.run(good).losses.tobytes()
    for place in range(12):
        batches = [good] * 12
        batches[place] = bad
        with pytest.raises(Exception, match="indices element out of data bounds"):
            forward.run_many(batches)
    assert [out.losses.tobytes() for out in forward.run_many([good] * 5)] == [wanted] * 5


def test_weights_moved_in_place_are_seen_and_moved_back_are_forgotten(open_forward, store, prompts):
    forward, batch = open_forward(num_workers=2), prompts.batch(range(6))
    before = forward.run_many([batch] * 4)
    store.add_direction(3, 2.0**-5)
    moved = forward.run_many([batch] * 4)
    store.add_direction(3, -(2.0**-5))
    after = forward.run_many([batch] * 4)
    assert np.all(np.abs(moved[0].losses - before[0].losses) > 1e-6)
    assert len({output.losses.tobytes() for output in moved}) == 1
    assert {output.losses.tobytes() for output in after} == {before[0].losses.tobytes()}


def test_what_was_returned_is_the_callers_own(open_forward, prompts):
    forward = open_forward()
    first = forward.run(prompts.batch([0, 1]))
    kept = first.losses.copy()
    forward.run(prompts.batch([4, 5]))
    assert np.array_equal(first.losses, kept)


def test_no_batches_give_no_outputs(open_forward):
    assert open_forward().run_many([]) == []
    assert open_forward(num_workers=2).run_many([]) == []


def test_a_tensor_that_is_no_input_of_the_graph_is_refused(open_forward, tiny_bundle):
    ghost = TensorEntry("ghost.weight", (2,), "float32", -22)
    bundle = changed(tiny_bundle, tensors=(*tiny_bundle.manifest.tensors, ghost))
    with pytest.raises(BundleError, match=r"\['ghost\.weight'\] are not inputs of its graphs"):
        open_forward(bundle)


def test_an_input_of_the_graph_that_is_no_tensor_is_refused_when_it_is_opened(tiny_bundle):
    # Otherwise the first round would meet it, in the middle of a look.
    bundle = changed(tiny_bundle, tensors=tiny_bundle.manifest.tensors[1:])
    lacking = tiny_bundle.manifest.tensors[0].name
    with pytest.raises(BundleError, match=lacking):
        OnnxForward(bundle, ParameterStore.from_bundle(bundle)).close()


def test_a_graph_that_is_none_is_refused(tiny_bundle, store, tmp_path):
    shutil.copytree(tiny_bundle.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "layer.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"layer\.onnx: onnxruntime refuses it"):
        OnnxForward(msgspec.structs.replace(tiny_bundle, folder=tmp_path), store)


def test_closing_twice_is_once(open_forward):
    for workers in (1, 2):
        forward = open_forward(num_workers=workers)
        forward.close()
        forward.close()


def test_the_model_that_comes_along_runs(toy_task):
    # Whatever it is: digests and accuracy are its own affair.
    from tokenizers import Tokenizer

    from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
    from edge_runtime.task_spec import load_task
    from edge_runtime.tasks import Example, label_token_ids

    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    task, _ = load_task(bundle.manifest.task.name)
    assert msgspec.structs.replace(task, train="", validation="") == bundle.manifest.task
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    assert label_token_ids(task, tokenizer) == bundle.manifest.label_token_ids
    examples = [Example(0, "play some music"), Example(1, "will it rain in the afternoon ?")]
    store = ParameterStore.from_bundle(bundle)
    store.check_perturbation_scale(2.0**-10)
    forward = OnnxForward(bundle, store)
    output = forward.run(PromptSet(examples, task, tokenizer, 32).batch([0, 1]))
    assert np.all(np.isfinite(output.losses))
    assert output.scores.shape == (2, len(task.labels))


# ---------------------------------------------------------------- layer by layer


def merged(bundle):
    """One graph made of the bundle's graphs, as a whole-model export would be."""
    onnx = pytest.importorskip("onnx")
    compose, load = onnx.compose, onnx.load
    parts = []
    for stage in range(bundle.num_layers + 1):
        last = stage == bundle.num_layers
        file_name = "embedding.onnx" if stage == 0 else "last_layer.onnx" if last else "layer.onnx"
        part = compose.add_prefix(load(bundle.folder / file_name), f"{stage}/")
        # ... but what all stages read has one name.
        names = {f"{stage}/input_ids": "input_ids"}
        for item in part.graph.input:
            name = item.name.removeprefix(f"{stage}/")
            if "." in name and not name.startswith("model."):
                names[item.name] = f"model.decoder.layers.{stage - 1}.{name}"
            elif name != "hidden":
                names[item.name] = name
        names[f"{stage}/hidden"] = f"{stage - 1}/hidden_out"
        for node in part.graph.node:
            node.input[:] = [names.get(read, read) for read in node.input]
        for item in part.graph.input:
            item.name = names[item.name]
        parts.append(part.graph)
    inputs = {item.name: item for part in parts for item in part.input}
    graph = onnx.helper.make_graph(
        [node for part in parts for node in part.node],
        "whole",
        [item for name, item in inputs.items() if not name.endswith("/hidden_out")],
        parts[-1].output,
        initializer=[constant for part in parts for constant in part.initializer],
    )
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()


def test_layer_by_layer_gives_the_bits_of_one_graph(tiny_bundle, open_forward, store, prompts):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        merged(tiny_bundle), options, providers=["CPUExecutionProvider"]
    )
    batch = prompts.batch(range(6))
    loss, _ = session.run(
        None,
        {
            **store.tensors,
            "input_ids": batch.input_ids,
            "answer_position": batch.answer_position,
            "target": batch.target,
            "label_token_ids": np.array(tiny_bundle.manifest.label_token_ids),
        },
    )
    assert open_forward().run(batch).losses.tobytes() == loss.tobytes()


LAST_TWO = ["*.layers.[12].fc2.weight"]


@pytest.fixture(scope="module")
def bundled():
    from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle

    return open_bundle(BUNDLED_MODEL_FOLDER)


class CountingSession:
    """Counts the runs of a session."""

    def __init__(self, session):
        self.session, self.num_runs = session, 0

    def io_binding(self):
        return self.session.io_binding()

    def run_with_iobinding(self, binding):
        self.num_runs += 1
        self.session.run_with_iobinding(binding)

    def get_inputs(self):
        return self.session.get_inputs()


@pytest.fixture
def counted(monkeypatch):
    """file name -> its sessions, counted."""
    sessions = {}
    open_one = layer_graphs._open

    def open_counted(name, graph, options):
        sessions[name] = CountingSession(open_one(name, graph, options))
        return sessions[name]

    monkeypatch.setattr(layer_graphs, "_open", open_counted)
    return sessions


def made_up(vocab_size, *shapes):
    rng = np.random.default_rng(5)
    return [make_batch([rng.integers(4, vocab_size, s) for _ in range(b)], s) for b, s in shapes]


@pytest.mark.parametrize(
    ("trainable", "runs_to_begin", "runs_to_finish"),
    [
        ("all", (0, 0, 0), (1, 2, 1)),
        (["*.layers.[12].fc2.weight"], (1, 1, 0), (0, 1, 1)),
        (["*.layers.2.fc2.weight"], (1, 2, 0), (0, 0, 1)),
        (["*.layers.0.fc1.bias", "*.layers.2.fc2.weight"], (1, 0, 0), (0, 2, 1)),
        (["model.decoder.final_layer_norm.*"], (1, 2, 0), (0, 0, 1)),
        (["*.embed_positions.weight"], (0, 0, 0), (1, 2, 1)),
    ],
)
def test_layers_below_the_first_that_moves_run_once_and_the_bits_stay(
    bundled, counted, trainable, runs_to_begin, runs_to_finish
):
    store = ParameterStore.from_bundle(bundled, trainable)
    forward = OnnxForward(bundled, store)
    batches = made_up(400, (5, 11), (1, 7), (8, 20))

    def runs():
        return np.array([counted[name].num_runs for name in GRAPH_FILES])

    begun = forward.begin(batches)
    assert runs().tolist() == [3 * n for n in runs_to_begin]
    for seed in range(3):
        store.add_direction(seed, 2.0**-6)
        before = runs()
        finished = forward.finish(begun)
        assert (runs() - before).tolist() == [3 * n for n in runs_to_finish]
        for got, wanted in zip(finished, forward.run_many(batches), strict=True):
            assert got.losses.tobytes() == wanted.losses.tobytes()
            assert got.scores.tobytes() == wanted.scores.tobytes()


def test_moves_that_wait_are_not_hurried_by_a_beginning(bundled):
    # A pass over the weights for nothing: the frozen layers do not read them.
    store = ParameterStore.from_bundle(bundled, LAST_TWO)
    forward = OnnxForward(bundled, store)
    view = store.tensors["model.decoder.layers.2.fc2.weight"]
    before = view.copy()
    store.add_direction(1, 2.0**-6)
    begun = forward.begin(made_up(400, (2, 5)))
    assert np.array_equal(view, before)
    forward.finish(begun)
    assert not np.array_equal(view, before)


def test_what_is_kept_has_a_limit_and_beyond_it_is_computed_anew(bundled, counted):
    store = ParameterStore.from_bundle(bundled, LAST_TWO)
    batches = made_up(400, (2, 10), (1, 10), (4, 10), (2, 2))
    row_bytes = 4 * bundled.hidden_size
    # The second is alone and runs beside a copy: 20 rows each, and nothing more fits.
    forward = OnnxForward(bundled, store, max_kept_bytes=40 * row_bytes)
    begun = forward.begin(batches)
    kept = [None if b.hidden is None else b.hidden.shape for b in begun]
    assert kept == [(20, bundled.hidden_size), (20, bundled.hidden_size), None, None]
    assert counted["embedding.onnx"].num_runs == 2
    finished = forward.finish(begun)
    assert counted["embedding.onnx"].num_runs == 4
    for got, wanted in zip(finished, forward.run_many(batches), strict=True):
        assert got.losses.tobytes() == wanted.losses.tobytes()
    nothing = OnnxForward(bundled, store, max_kept_bytes=0)
    assert [b.hidden for b in nothing.begin(batches)] == [None] * 4


def test_begun_batches_are_finished_by_any_worker(bundled):
    store = ParameterStore.from_bundle(bundled, LAST_TWO)
    batches = made_up(400, *[(1 + i % 4, 3 + i) for i in range(20)])
    wanted = OnnxForward(bundled, store).run_many(batches)
    forward = OnnxForward(bundled, store, num_workers=3)
    begun = forward.begin(batches)
    for _ in range(3):
        for got, one in zip(forward.finish(begun), wanted, strict=True):
            assert got.losses.tobytes() == one.losses.tobytes()
    forward.close()
