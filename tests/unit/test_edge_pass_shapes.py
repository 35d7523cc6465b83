"""Nobody moves anybody else's loss: the sensitivity of a sum is that of one record only then."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import ForwardOutput, OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import MAX_ROWS, choose_max_rows, losses_follow_company, make_batch
from edge_runtime.private_random import PrivateRandom

MAX_TOKENS = 40


@pytest.fixture(scope="module")
def bundled():
    return open_bundle(BUNDLED_MODEL_FOLDER)


@pytest.fixture(scope="module")
def store(bundled):
    return ParameterStore.from_bundle(bundled)


@pytest.fixture(scope="module")
def forward(bundled, store):
    return OnnxForward(bundled, store)


@pytest.fixture(scope="module")
def vocab_size(bundled):
    return bundled.manifest.architecture["vocab_size"]


lengths = st.integers(1, MAX_TOKENS)


@given(
    length=lengths,
    others=st.lists(lengths, max_size=MAX_ROWS - 1),
    place=st.integers(0, MAX_ROWS),
    extra_width=st.integers(0, 8),
    seed=st.integers(0, 2**32),
)
def test_a_loss_is_the_same_bits_in_any_company(
    forward, vocab_size, length, others, place, extra_width, seed
):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(4, vocab_size, n) for n in (length, *others)]
    alone = forward.run(make_batch(rows[:1], length)).losses[0]
    example = rows.pop(0)
    place = min(place, len(rows))
    rows.insert(place, example)
    width = max(len(row) for row in rows) + extra_width
    assert forward.run(make_batch(rows, width)).losses[place] == alone


def test_negative_control_a_lone_row_without_its_copy_differs(forward, vocab_size):
    """What the copy is for: on this machine a pass of one row has other bits for some prompt."""
    rng = np.random.default_rng(0)
    batches = [make_batch([rng.integers(4, vocab_size, 17)], 17) for _ in range(40)]
    with_copy = [forward.run(batch).losses[0] for batch in batches]
    forward.runs_rows_alone = True
    try:
        without = [forward.run(batch).losses[0] for batch in batches]
    finally:
        forward.runs_rows_alone = False
    assert len(with_copy) == len(without)
    assert with_copy != without
    np.testing.assert_allclose(with_copy, without, rtol=1e-5)


def test_a_copy_shows_in_no_output(forward, vocab_size):
    output = forward.run(make_batch([np.arange(4, 12)], 8))
    assert output.losses.shape == (1,)
    assert output.scores.shape[0] == 1


class Meddling:
    """A session whose losses follow the pass they are in: by its rows, or by its width."""

    def __init__(self, real, what):
        self.real = real
        self.what = what
        self.runs_rows_alone = False

    def run(self, batch):
        output = self.real.run(batch)
        rows, width = batch.input_ids.shape
        meddle = {"nothing": False, "rows": rows == 7, "width": width == MAX_TOKENS and rows > 2}
        losses = np.nextafter(output.losses, np.float32(np.inf if meddle[self.what] else -np.inf))
        return ForwardOutput(losses, output.scores)


@pytest.mark.parametrize(("what", "max_rows"), [("nothing", MAX_ROWS), ("rows", 1), ("width", 1)])
def test_the_look_before_a_run_sees_company(forward, vocab_size, what, max_rows):
    session = Meddling(forward, what)
    follows = losses_follow_company(session, vocab_size=vocab_size, max_tokens=MAX_TOKENS)
    assert follows is (what != "nothing")
    assert choose_max_rows(session, vocab_size=vocab_size, max_tokens=MAX_TOKENS) == max_rows
    assert session.runs_rows_alone is (max_rows == 1)


@pytest.mark.parametrize("max_tokens", [1, 2, 64])
def test_every_prompt_length_can_be_looked_at(forward, vocab_size, max_tokens):
    assert not losses_follow_company(forward, vocab_size=vocab_size, max_tokens=max_tokens)


@pytest.mark.parametrize("max_rows", [MAX_ROWS, 1])
def test_a_record_moves_its_device_s_scalar_by_its_own_term_alone(
    make_host, make_plan, monkeypatch, max_rows
):
    """At mu = 2^-20 one bit in one loss would be 0.06 of clip/b, so nothing can hide."""
    scale, clip = 2.0**-20, 4.0
    scalars = {}
    host = make_host(1, keys=(bytes(32),))
    host.agent._max_rows = max_rows
    host.forward.runs_rows_alone = max_rows == 1
    everybody = np.arange(6)
    subsets = [everybody, *(np.delete(everybody, i) for i in range(6)), *([i] for i in range(6))]
    for number, chosen in enumerate(subsets):
        monkeypatch.setattr(PrivateRandom, "poisson_batch", lambda *_, chosen=chosen: chosen)
        host.agent._last_planned_round = host.agent._last_applied_round = -1
        host.agent.run_round(make_plan(perturbation_scale=scale, clip=clip, batch_size=6))
        scalars[number] = host.seen[-1][2].clipped_scalars[0]
    own = [scalars[7 + i] for i in range(6)]
    assert any(own)
    for i in range(6):
        assert abs(own[i]) <= clip / 6
        moved = scalars[0] - scalars[1 + i]
        assert math.isclose(moved, own[i], abs_tol=1e-12)
