"""OnnxForward: forward passes of a bundle on the weights of a ParameterStore.

A weight moved in place is what the next run sees. Several worker threads share the sessions and the
weights; each has its own bindings (`edge_runtime.layer_graphs`).

A round runs the same batches several times, on weights moved along a direction. What the stages
below the first trainable layer give is the same each time: `begin` computes it once, `finish` goes
on from there.

Where weights are kept in 16 or 8 bits, all batches go through a stage before the next one's are
expanded (`edge_runtime.scratch`); else each worker takes a batch through all stages.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from edge_runtime.bundle import GRAPH_FILES, Bundle
from edge_runtime.layer_graphs import BoundLayers, ForwardOutput, LayerGraphs
from edge_runtime.parameters import ParameterStore
from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.protocol.errors import BundleError
from edge_runtime.scratch import Scratch
from edge_runtime.tasks import Batch, Prompt, batches_by_length
from radio.arrays import Float32Array

__all__ = ["BegunBatch", "Float32Array", "ForwardOutput", "OnnxForward"]

MAX_KEPT_BYTES = 64 * 2**20
"""What `begin` keeps at most: 21 batches of 16 x 64 tokens of OPT-125M."""

MAX_WAITING_BYTES = 16 * 2**20
"""What lies between two stages at most, where all batches go through one before the next."""

_ROWS = 8
"""Rows of a pass that computes what shall be kept."""

_TOGETHER = 8
"""Batches of many that go through kept prefixes together: their hidden states are in memory."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class BegunBatch:
    """A batch and, where it was kept, what the stages that do not move gave for it."""

    batch: Batch
    hidden: Float32Array | None = None


class OnnxForward:
    """Runs batches; ``num_workers`` of them at a time, each on ``intra_op_threads`` threads.

    A lone row is run beside a copy of itself, because a pass of one row takes other kernels, whose
    last bits differ (`edge_runtime.pass_shapes`); ``runs_rows_alone`` turns that off.

    Guarantees: a batch's losses are the same bits whichever worker runs it, whatever runs beside
    it and whether it was begun before, as long as ``intra_op_threads`` and the onnxruntime version
    are the same.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: ParameterStore,
        *,
        label_token_ids: Sequence[int] | None = None,
        intra_op_threads: int = 1,
        num_workers: int = 1,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        """Open the sessions.

        Args:
            bundle: graphs and manifest.
            store: the weights to run on.
            label_token_ids: tokens of the task's words, in class order; the words of the bundle's
                own task if it is left out.
            intra_op_threads: threads within one pass.
            num_workers: passes at a time.
            max_kept_bytes: what `begin` may keep; what goes beyond is computed in every pass.

        Raises:
            BundleError: onnxruntime refuses a graph, or it does not fit the manifest.
        """
        graphs = LayerGraphs(
            {name: bundle.folder / name for name in GRAPH_FILES},
            num_layers=bundle.num_layers,
            hidden_size=bundle.hidden_size,
            family=bundle.family,
            intra_op_threads=intra_op_threads,
        )
        read = [set(stage.tensor_of_input.values()) for stage in graphs.stages]
        _check_tensors(bundle, set().union(*read))
        self._num_frozen, self._num_stages = _num_frozen(read, store), len(read)
        self._bundle = bundle
        self._max_kept_bytes = max_kept_bytes
        self._row_bytes = 4 * bundle.hidden_size
        self.vocab_size = int(bundle.manifest.architecture["vocab_size"])
        self.runs_rows_alone = False
        self._prefixes: PrefixCache | None = None
        self._store = store
        ids = bundle.manifest.label_token_ids if label_token_ids is None else label_token_ids
        self._scratch = Scratch(
            store,
            graphs.stages,
            np.array(ids, dtype=np.int64),
            int(bundle.manifest.architecture["max_position_embeddings"]),
        )
        self._streams = bool(store.expanded)
        self._workers: SimpleQueue[BoundLayers] = SimpleQueue()
        for _ in range(num_workers):
            self._workers.put(graphs.bind(self._scratch.bound))
        self._num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers - 1) if num_workers > 1 else None

    @property
    def frozen_name(self) -> str:
        """Which stages do not move, of which bundle: those with one name give the same bits."""
        return f"{self._num_frozen} stages of {self._bundle.digest}"

    def run(self, batch: Batch) -> ForwardOutput:
        """One forward pass over one batch."""
        return self.finish([BegunBatch(batch)])[0]

    def run_many(self, batches: Sequence[Batch]) -> list[ForwardOutput]:
        """Many batches, in order; spread over the workers."""
        if self._prefixes is None:
            return self.finish([BegunBatch(batch) for batch in batches])
        return [
            output
            for start in range(0, len(batches), _TOGETHER)
            for output in self.finish(self.begin(batches[start : start + _TOGETHER]))
        ]

    def keep_prefixes(self, prefixes: PrefixCache) -> None:
        """What `begin` gives for a prompt is kept from here on, for as many rounds as come.

        Args:
            prefixes: where; it may serve several forwards whose frozen stages are the same.

        Raises:
            ValueError: it is of other stages.
        """
        if prefixes.of != self.frozen_name:
            raise ValueError(f"kept prefixes: of {prefixes.of}, wanted of {self.frozen_name}.")
        self._prefixes = prefixes

    def begin(self, batches: Sequence[Batch]) -> list[BegunBatch]:
        """Run the stages that do not move, once for as many `finish` as come.

        Keeps ``max_kept_bytes`` at most, the first batches first, and nothing where the first stage
        moves already. Moves that were asked for go on waiting: none of them concerns these stages.
        """
        if self._num_frozen == 0:
            return [BegunBatch(batch) for batch in batches]
        is_kept = np.cumsum([self._hidden_bytes(b) for b in batches]) <= self._max_kept_bytes
        num_kept = int(np.count_nonzero(is_kept))
        rest = [BegunBatch(batch) for batch in batches[num_kept:]]
        if self._prefixes is not None and not self.runs_rows_alone:
            return self._from_prefixes(batches[:num_kept], self._prefixes) + rest
        return self._run_frozen(batches[:num_kept]) + rest

    def _run_frozen(self, batches: Sequence[Batch]) -> list[BegunBatch]:
        return [
            begun
            for group in self._groups([BegunBatch(batch) for batch in batches])
            for begun in self._pass_on(group, self._scratch.ranges(0, self._num_frozen))
        ]

    def _from_prefixes(self, batches: Sequence[Batch], prefixes: PrefixCache) -> list[BegunBatch]:
        """What is kept of the prompts, and what had to be computed, put together to batches."""
        wanted = {p.tobytes(): p for batch in batches for p in batch.prompts()}
        missing = [Prompt(p, 0) for p in wanted.values() if not prefixes.has(p)]
        fresh: dict[bytes, Float32Array] = {}
        for begun in self._run_frozen(batches_by_length(missing, _ROWS)[0]):
            assert begun.hidden is not None
            width = begun.batch.input_ids.shape[1]
            for row, prompt in enumerate(begun.batch.prompts()):
                hidden = begun.hidden[row * width : row * width + len(prompt)]
                prefixes.put(prompt, hidden)
                fresh[prompt.tobytes()] = hidden
        composed = []
        for batch in batches:
            as_run = self._as_run(batch)
            # Nothing that is answered lies to the right of a prompt, so zeros will do there.
            hidden = np.zeros((as_run.input_ids.size, self._row_bytes // 4), np.float32)
            width = as_run.input_ids.shape[1]
            for row, prompt in enumerate(as_run.prompts()):
                out = hidden[row * width : row * width + len(prompt)]
                if not prefixes.take(prompt, out):
                    out[...] = fresh[prompt.tobytes()]
            composed.append(BegunBatch(batch, hidden))
        prefixes.let_go()
        return composed

    def finish(self, begun: Sequence[BegunBatch]) -> list[ForwardOutput]:
        """The rest of the passes, on the weights as they are now; in order."""
        self._store.settle()  # before the workers start: nothing may move under them
        return [output for group in self._groups(begun) for output in self._outputs(group)]

    def _groups(self, begun: Sequence[BegunBatch]) -> Iterator[list[BegunBatch]]:
        """Those that go on from the same stage together, and no more of them than may wait."""
        for _, alike in itertools.groupby(begun, key=lambda one: one.hidden is None):
            group: list[BegunBatch] = []
            num_bytes = 0
            for one in alike:
                num_bytes += self._hidden_bytes(one.batch)
                if group and self._streams and num_bytes > MAX_WAITING_BYTES:
                    yield group
                    group, num_bytes = [], self._hidden_bytes(one.batch)
                group.append(one)
            yield group

    def _outputs(self, group: Sequence[BegunBatch]) -> list[ForwardOutput]:
        """Those of batches that go on from the same stage."""
        first = 0 if group[0].hidden is None else self._num_frozen
        *before, (last, _) = self._scratch.ranges(first, self._num_stages)
        group = self._pass_on(group, before)
        self._scratch.prepare(last, [self._as_run(one.batch) for one in group])

        def run(layers: BoundLayers, one: BegunBatch) -> ForwardOutput:
            batch, num_examples = self._as_run(one.batch), one.batch.num_examples
            asked = self._scratch.asked(last, batch)
            output = layers.run(batch, first_stage=last, hidden=one.hidden, asked=asked)
            return ForwardOutput(output.losses[:num_examples], output.scores[:num_examples])

        return self._map(run, group)

    def _pass_on(
        self, group: Sequence[BegunBatch], ranges: Sequence[tuple[int, int]]
    ) -> Sequence[BegunBatch]:
        """The batches behind these stages."""
        for first, end in ranges:
            self._scratch.prepare(first, [self._as_run(one.batch) for one in group])
            group = self._map(functools.partial(self._run_range, first, end), group)
        return group

    def _run_range(self, first: int, end: int, layers: BoundLayers, one: BegunBatch) -> BegunBatch:
        batch = self._as_run(one.batch)
        asked = self._scratch.asked(first, batch)
        hidden = layers.hidden_after(batch, end, first_stage=first, hidden=one.hidden, asked=asked)
        return BegunBatch(one.batch, hidden)

    def _hidden_bytes(self, batch: Batch) -> int:
        return self._as_run(batch).input_ids.size * self._row_bytes

    def _as_run(self, batch: Batch) -> Batch:
        is_alone = batch.num_examples == 1 and not self.runs_rows_alone
        return batch.doubled() if is_alone else batch

    def _map(
        self, do: Callable[[BoundLayers, _Item], _Result], items: Sequence[_Item]
    ) -> list[_Result]:
        """``do`` with every item, in order; each worker, this thread first, takes the next.

        One task for a worker, not one for an item: a pass of a small model takes little longer than
        handing it to another thread.
        """
        waiting = deque(enumerate(items))
        results: dict[int, _Result] = {}

        def work() -> None:
            layers = self._workers.get()
            try:
                while waiting:
                    try:
                        index, item = waiting.popleft()
                    except IndexError:  # another worker was faster
                        return
                    results[index] = do(layers, item)
            except BaseException:
                waiting.clear()  # whoever asked will not get the rest either
                raise
            finally:
                self._workers.put(layers)

        num_helpers = min(self._num_workers, len(items)) - 1
        helpers = [self._pool.submit(work) for _ in range(num_helpers)] if self._pool else []
        try:
            work()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return [results[index] for index in range(len(items))]

    def close(self) -> None:
        """Stop the worker threads, and let what was kept go."""
        self._prefixes = None
        if self._pool is not None:
            self._pool.shutdown()


def _num_frozen(read: Sequence[set[str]], store: ParameterStore) -> int:
    """Stages before the first that reads a tensor that moves. Never the last: it has the losses."""
    moved = {e.name for e, moves in zip(store.entries, store.trainable, strict=True) if moves}
    return next((i for i, own in enumerate(read[:-1]) if own & moved), len(read) - 1)


def _check_tensors(bundle: Bundle, read: set[str]) -> None:
    """The graphs read exactly the tensors of the manifest."""
    wanted = {entry.name for entry in bundle.manifest.tensors}
    if missing := wanted - read:
        raise BundleError(
            f"{bundle.folder}: {sorted(missing)[:3]} are not inputs of its graphs; moving those "
            "weights would change nothing. Export the model again."
        )
    if unknown := read - wanted:
        raise BundleError(
            f"{bundle.folder}: its graphs ask for {sorted(unknown)[:3]}, which are not in the "
            "manifest; nothing could be fed to them. Export the model again."
        )
