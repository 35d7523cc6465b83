"""Are the exported graphs the model, and does every weight still reach the output?

Two questions, asked of the graphs exactly as a device will run them (`edge_runtime.layer_graphs`):
layer by layer, with every weight bound once without a copy and then changed in place.

1. *Agreement.* On random batches of several shapes, with right padding, at the model's own weights
   and at two random ones, the losses (and label scores) equal torch's:
   abs(got - torch) <= TOLERANCE * max(1, abs(torch)), the maximum taken over the batch.
   The random weights are large enough to make attention sharp (see `_randomise`); with weights
   fresh from initialisation it is so even that exchanged heads would go unseen.
2. *Movement.* Every **use** of every weight is moved by itself, and the output must follow. A tied
   embedding has two uses: the rows of the batch's tokens are looked up, rows the batch does not
   hold are met by the head alone. Moving whole tensors would not do: constant folding can freeze
   the head while the lookup stays live, and the tensor as a whole would still move the output.

Exempt from movement: OPT's ``k_proj.bias``. It adds the same number q . b to every score of a
softmax row, where it cancels; no correct graph reacts to it, and a frozen one would do no harm.
(`server.export.interface.check_interfaces` sees that some node reads it.)

Not covered: prompts longer than the longest batch here, and so the later rows of the position
table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.protocol.errors import BundleError
from radio.arrays import Float32Array, Int64Array
from server.errors import ExportError
from server.export.dependencies import load
from server.export.families import Architecture
from server.export.interface import check_interfaces

logger = logging.getLogger(__name__)


TOLERANCE = 5e-5
"""Float32 sums in another order differ by some 5e-6 of the logits; ten times that is a fault."""

PAD_TOKEN_ID = 1
BATCH_SHAPES = ((1, 1), (2, 24), (4, 9))
"""(rows, tokens) of the agreement batches."""

PROBE_SHAPE = (2, 6)
"""The same for the movement probes: small, because there is a run for every tensor."""

RELATIVE_MOVE = 0.25
"""Weights move by this part of their tensor's root mean square, ..."""

SMALLEST_MOVE = 0.05
"""... and vectors by this much at least: biases start at zero."""


@dataclass(frozen=True, slots=True)
class CheckBatch:
    """Integer inputs of one check. ``lengths`` [batch] counts the tokens before the padding."""

    input_ids: Int64Array
    lengths: Int64Array
    answer_position: Int64Array
    target: Int64Array
    label_token_ids: Int64Array

    def feeds(self) -> dict[str, Int64Array]:
        """The graphs' integer inputs by name."""
        return {
            "input_ids": self.input_ids,
            "answer_position": self.answer_position,
            "target": self.target,
            "label_token_ids": self.label_token_ids,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the check saw.

    Attributes:
        max_relative_error: largest abs(got - torch) / max(1, abs(torch)), over all comparisons.
        num_uses_moved: uses of weights that were moved by themselves, the output following.
        exempt: tensors that no output can react to.
    """

    max_relative_error: float
    num_uses_moved: int
    exempt: tuple[str, ...]


Reference = Callable[[CheckBatch], dict[str, Float32Array]]


def torch_reference(
    model: Any, weights: dict[str, Float32Array]
) -> Callable[[CheckBatch], dict[str, Float32Array]]:
    """Torch's losses for the weights in the arrays ``weights``, now and after they change in place.

    The model's parameters become views of the arrays, so torch and onnxruntime see the same memory.
    """
    torch = load("torch")
    for name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(weights[name])

    def run(batch: CheckBatch) -> dict[str, Float32Array]:
        ids = torch.from_numpy(batch.input_ids)
        mask = (torch.arange(ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]).long()
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logits = logits.flatten(0, 1)[torch.from_numpy(batch.answer_position)]
            logits = logits[:, torch.from_numpy(batch.label_token_ids)]
            target = torch.from_numpy(batch.target)
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return {"loss": loss.numpy(), "scores": logits.numpy()}

    return run


class BoundGraphs:
    """Graphs in onnxruntime whose weights are the caller's arrays, bound once without a copy."""

    def __init__(
        self,
        graphs: Mapping[str, Any],
        architecture: Architecture,
        weights: dict[str, Float32Array],
        label_token_ids: Int64Array,
    ) -> None:
        layer_graphs = load("edge_runtime.layer_graphs")
        try:
            opened = layer_graphs.LayerGraphs(
                {name: graph.SerializeToString() for name, graph in graphs.items()},
                num_layers=architecture.num_hidden_layers,
                hidden_size=architecture.hidden_size,
                family=architecture.family,
                intra_op_threads=0,
            )
        except BundleError as error:
            raise ExportError(
                f"{error} Export with the other road (via='native' or via='optimum')."
            ) from error
        self._layers = opened.bind_whole(weights, label_token_ids)

    def run(self, batch: CheckBatch) -> dict[str, Float32Array]:
        """The outputs by name."""
        output = self._layers.run(batch)
        return {"loss": output.losses, "scores": output.scores}


def check_graphs(
    graphs: Mapping[str, Any],
    architecture: Architecture,
    weights: dict[str, Float32Array],
    reference: Reference,
    *,
    label_token_ids: Sequence[int],
    rng: np.random.Generator,
) -> CheckReport:
    """Check interface, agreement and movement of ``graphs`` (``onnx.ModelProto`` by file name).

    Args:
        graphs: the graphs under test.
        architecture: dimensions of the model they should be.
        weights: float32 arrays by torch's name. **Changed in place and left changed.**
        reference: losses of the true model on the current contents of ``weights``.
        label_token_ids: the task's label words.
        rng: draws batches and moves.

    Raises:
        ExportError: naming the batch, or the tensor and its use, that failed.
    """
    check_interfaces(graphs, architecture)
    labels = np.array(label_token_ids, np.int64)
    bound = BoundGraphs(graphs, architecture, weights, labels)
    batches = [draw_batch(shape, architecture, labels, rng) for shape in BATCH_SHAPES]
    probe = draw_batch(PROBE_SHAPE, architecture, labels, rng)

    worst = 0.0
    for batch in batches:
        worst = max(worst, compare(bound.run, reference, batch, "the model's own weights"))

    _randomise(weights, rng)
    before = bound.run(probe)
    num_moved, exempt = 0, []
    for name, use, rows in _uses(architecture, probe):
        if architecture.is_without_effect(name):
            exempt.append(name)
            continue
        kept = weights[name][rows].copy()
        _move(weights[name], rows, rng)
        after = bound.run(probe)
        if all(np.array_equal(before[key], after[key]) for key in before):
            raise ExportError(
                f"{name}, as {use}: moved, and no output followed. The exporter froze this use of "
                "the tensor, so training could not reach it. Export with via='native'."
            )
        weights[name][rows] = kept
        num_moved += 1
    for _ in range(2):
        for batch in batches:
            worst = max(worst, compare(bound.run, reference, batch, "all weights moved at once"))
        _randomise(weights, rng)
    report = CheckReport(worst, num_moved, tuple(exempt))
    logger.info(
        "self-check: %d uses moved, largest relative error %.1e",
        num_moved,
        report.max_relative_error,
    )
    return report


def draw_batch(
    shape: tuple[int, int],
    architecture: Architecture,
    labels: Int64Array,
    rng: np.random.Generator,
) -> CheckBatch:
    """Random tokens from half of the vocabulary without pad and labels, so both uses can be told.

    The first row is full, the others are right padded; every row is asked once, at its last token,
    and the first also half way.
    """
    num_rows, width = shape[0], min(shape[1], architecture.max_position_embeddings)
    reserved = [PAD_TOKEN_ID, *labels.tolist()]
    free = np.setdiff1d(np.arange(architecture.vocab_size), reserved)
    if len(free) < 2:
        raise ExportError(
            f"vocab_size: got {architecture.vocab_size}, of which {len(reserved)} are padding and "
            "labels, wanted at least two more tokens to check the graph with."
        )
    pool = rng.permutation(free)[: max(1, len(free) // 2)]
    input_ids = rng.choice(pool, size=(num_rows, width)).astype(np.int64)
    lengths = rng.integers((width + 1) // 2, width + 1, size=num_rows)
    lengths[0] = width
    input_ids[np.arange(width) >= lengths[:, None]] = PAD_TOKEN_ID
    last = np.arange(num_rows) * width + lengths - 1
    answer_position = np.append(last, width // 2).astype(np.int64)
    return CheckBatch(
        input_ids=input_ids,
        lengths=lengths.astype(np.int64),
        answer_position=answer_position,
        target=rng.integers(0, len(labels), size=len(answer_position)),
        label_token_ids=labels,
    )


def _uses(
    architecture: Architecture, probe: CheckBatch
) -> Iterator[tuple[str, str, slice | Int64Array]]:
    """(tensor, use, rows): every use of every weight and the rows that only this use reads."""
    is_token = np.arange(probe.input_ids.shape[1]) < probe.lengths[:, None]
    looked_up = np.unique(probe.input_ids[is_token])
    for name, shape in architecture.tensor_shapes().items():
        if name == architecture.token_table:
            yield name, "token lookup", looked_up
        elif name == architecture.position_table:
            first = architecture.first_position
            yield name, "positions", slice(first, first + probe.input_ids.shape[1])
        elif name != architecture.head_weight:
            yield name, "bias" if len(shape) == 1 else "product", slice(None)
        if name == architecture.head_weight:
            yield name, "language-model head", probe.label_token_ids


def _randomise(weights: dict[str, Float32Array], rng: np.random.Generator) -> None:
    """Move all weights at once, by independent Gaussian numbers.

    Matrices get a spread of at least 1 / sqrt(inputs), so that every product keeps the scale of
    its input, attention is sharp, and no tensor's share of the output is lost in rounding.
    """
    for array in weights.values():
        least = SMALLEST_MOVE if array.ndim == 1 else array.shape[-1] ** -0.5
        scale = np.float32(max(least, RELATIVE_MOVE * _root_mean_square(array)))
        np.add(array, scale * rng.standard_normal(array.shape, dtype=np.float32), out=array)


def _move(array: Float32Array, rows: slice | Int64Array, rng: np.random.Generator) -> None:
    """Add random signs times RELATIVE_MOVE of the root mean square to the rows.

    The signs are an outer product, which is quick for large matrices; a pattern that only varied
    along one axis would be invisible, because layer norm removes whatever is common to all units.
    """
    part = array[rows]
    signs = np.array([RELATIVE_MOVE * _root_mean_square(part)], dtype=np.float32)
    for length in part.shape:
        axis_signs = rng.choice(np.array([-1, 1], dtype=np.float32), size=length)
        signs = np.multiply.outer(signs, axis_signs)
    array[rows] = part + signs[0]


def _root_mean_square(array: Float32Array) -> float:
    return float(np.linalg.norm(array)) / math.sqrt(array.size)


def compare(
    run: Callable[[CheckBatch], dict[str, Float32Array]],
    reference: Reference,
    batch: CheckBatch,
    what: str,
) -> float:
    """Largest abs(got - torch) / max(1, abs(torch)) over all outputs; raises above TOLERANCE."""
    got, wanted = run(batch), reference(batch)
    scale = max(1.0, *(float(np.abs(value).max()) for value in wanted.values()))
    worst = 0.0
    for key, value in wanted.items():
        error = float(np.abs(got[key].astype(np.float64) - value).max()) / scale
        # Written so that a NaN fails too.
        if not error <= TOLERANCE:
            raise ExportError(
                f"{key} of a batch of {batch.input_ids.shape[0]} x {batch.input_ids.shape[1]} "
                f"tokens, with {what}: the graphs and torch differ by {error:.1e} of the largest "
                f"value, wanted at most {TOLERANCE:.0e}. A use of a weight is frozen, or they "
                "compute something else. Export with the other road (via='native' or "
                "via='optimum')."
            )
        worst = max(worst, error)
    return worst
