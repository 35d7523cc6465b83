"""OnnxForward: forward passes of the bundle's graph on weights that live elsewhere.

The graph has no weights inside. Each one is an input, bound once, without a copy, to the buffer of
the ParameterStore; a weight moved in place is what the next run sees. One session serves several
worker threads: each has its own binding, all share the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle
from edge_runtime.onnx_runtime import onnxruntime
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.errors import BundleError
from edge_runtime.tasks import Batch

Float32Array = npt.NDArray[np.float32]

_DATA_INPUTS = {"input_ids", "answer_position", "target", "label_token_ids"}


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """What one forward pass gives.

    Attributes:
        losses: loss of each example [batch].
        scores: logit of each label's word [batch, num_classes].
    """

    losses: Float32Array
    scores: Float32Array


class OnnxForward:
    """Runs batches; ``num_workers`` of them at a time, each on ``intra_op_threads`` threads.

    A lone row is run beside a copy of itself, because a pass of one row takes other kernels, whose
    last bits differ (`edge_runtime.pass_shapes`); ``runs_rows_alone`` turns that off.

    Guarantees: a batch's losses are the same bits whichever worker runs it and whatever runs
    beside it, as long as ``intra_op_threads`` and the onnxruntime version are the same.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: ParameterStore,
        *,
        label_token_ids: Sequence[int] | None = None,
        intra_op_threads: int = 1,
        num_workers: int = 1,
    ) -> None:
        """Open a session.

        Args:
            bundle: graph and manifest.
            store: the weights to run on.
            label_token_ids: tokens of the task's words, in class order; the words of the bundle's
                own task if it is left out.
            intra_op_threads: threads within one pass.
            num_workers: passes at a time.

        Raises:
            BundleError: onnxruntime refuses the graph, or it does not fit the manifest.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.graph_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises many types for one cause: a bad graph
            raise BundleError(f"{bundle.graph_path}: onnxruntime refuses it: {error}") from error
        wanted = {entry.name for entry in bundle.manifest.tensors}
        inputs = {item.name for item in self._session.get_inputs()}
        if missing := wanted - inputs:
            raise BundleError(
                f"{bundle.graph_path}: {sorted(missing)[:3]} are not inputs of the graph; moving "
                "those weights would change nothing. Export the model again."
            )
        if unknown := inputs - wanted - _DATA_INPUTS:
            raise BundleError(
                f"{bundle.graph_path}: its inputs {sorted(unknown)[:3]} are not in the manifest; "
                "nothing could be fed to them. Export the model again."
            )
        self.runs_rows_alone = False
        self._store = store
        ids = bundle.manifest.label_token_ids if label_token_ids is None else label_token_ids
        self._label_token_ids = np.array(ids, dtype=np.int64)
        self._bindings: SimpleQueue[onnxruntime.IOBinding] = SimpleQueue()
        for _ in range(num_workers):
            self._bindings.put(self._bind_weights())
        self._pool = ThreadPoolExecutor(num_workers) if num_workers > 1 else None

    def _bind_weights(self) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, view in self._store.tensors.items():
            binding.bind_input(name, "cpu", 0, np.float32, view.shape, view.ctypes.data)
        ids = self._label_token_ids
        binding.bind_input("label_token_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        return binding

    def run(self, batch: Batch) -> ForwardOutput:
        """One forward pass over one batch."""
        self._store.settle()
        return self._run(batch)

    def _run(self, batch: Batch) -> ForwardOutput:
        num_examples = batch.num_examples
        if num_examples == 1 and not self.runs_rows_alone:
            batch = batch.doubled()
        binding = self._bindings.get()
        try:
            for name, array in (
                ("input_ids", batch.input_ids),
                ("answer_position", batch.answer_position),
                ("target", batch.target),
            ):
                binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
            binding.bind_output("loss", "cpu")
            binding.bind_output("scores", "cpu")
            self._session.run_with_iobinding(binding)
            losses, scores = binding.copy_outputs_to_cpu()
        finally:
            self._bindings.put(binding)
        return ForwardOutput(losses=losses[:num_examples], scores=scores[:num_examples])

    def run_many(self, batches: Sequence[Batch]) -> list[ForwardOutput]:
        """Many batches, in order; spread over the workers."""
        self._store.settle()  # before the workers start: nothing may move under them
        if self._pool is None:
            return [self._run(batch) for batch in batches]
        return list(self._pool.map(self._run, batches))

    def close(self) -> None:
        """Stop the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()
