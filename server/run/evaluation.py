"""How good is the model now: loss and accuracy on examples that no device trains on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.protocol.errors import NonFiniteScalarError
from edge_runtime.tasks import Batch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss, and the share of examples whose likeliest label word is the right one.

    Attributes:
        loss: in nats.
        accuracy: over all examples.
        class_examples: how many examples each class has, in class order.
        class_correct: how many of them were right.
    """

    loss: float
    accuracy: float
    class_examples: tuple[int, ...]
    class_correct: tuple[int, ...]


def evaluate(forward: OnnxForward, batches: Sequence[Batch]) -> Evaluation | None:
    """Run the batches through the current weights; None if there are none.

    Raises:
        NonFiniteScalarError: the mean loss is NaN or infinite.
    """
    if not batches:
        return None
    losses, correct, targets = [], [], []
    for batch, output in zip(batches, forward.run_many(batches), strict=True):
        losses.append(output.losses)
        correct.append(np.argmax(output.scores, axis=1) == batch.target)
        targets.append(batch.target)
        num_classes = output.scores.shape[1]
    loss = float(np.mean(np.concatenate(losses), dtype=np.float64))
    if not math.isfinite(loss):
        raise NonFiniteScalarError(
            "the validation loss is NaN or infinite: the model has diverged, or its weights were "
            "damaged from the start. Lower optimizer.learning_rate, or export the bundle again."
        )
    right, classes = np.concatenate(correct), np.concatenate(targets)
    return Evaluation(
        loss=loss,
        accuracy=float(np.mean(right)),
        class_examples=tuple(np.bincount(classes, minlength=num_classes).tolist()),
        class_correct=tuple(np.bincount(classes[right], minlength=num_classes).tolist()),
    )
