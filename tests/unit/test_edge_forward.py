"""Forward passes on live weights: the same bits from every worker, and no weight out of reach."""

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle import TensorEntry
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
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
    with pytest.raises(BundleError, match=r"\['ghost\.weight'\] are not inputs of the graph"):
        open_forward(bundle)


def test_an_input_of_the_graph_that_is_no_tensor_is_refused_when_it_is_opened(tiny_bundle):
    # Otherwise the first round would meet it, in the middle of a look.
    bundle = changed(tiny_bundle, tensors=tiny_bundle.manifest.tensors[1:])
    lacking = tiny_bundle.manifest.tensors[0].name
    with pytest.raises(BundleError, match=lacking):
        OnnxForward(bundle, ParameterStore.from_bundle(bundle)).close()


def test_a_graph_that_is_none_is_refused(tiny_bundle, store, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="onnxruntime refuses it"):
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
