"""ParameterStore: the one copy of the weights, on an exact lattice, moved along public directions.

A round moves the weights along each of its directions and leaves no trace but its steps:

    w + mu z_1  ->  w - mu z_1  ->  w  ->  w + mu z_2  ->  ...  ->  w  ->  w - sum_q step_q z_q

Moves are carried out when somebody reads the weights and not before (`deferred_moves`), so the way
home and the way out along the next direction are one pass over the weights, and so are restore,
steps and the next round's first move.

Because every addition is exact (`edge_runtime.lattice`), w is w again bit for bit, and replaying
the steps in any order on any machine gives the same weights.

Matrices that are kept in 16 or 8 bits take steps only; a direction is added to the float32 copy
that a pass reads (`edge_runtime.stored_matrix`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import FLOAT32, INT8, INT16, Bundle, TensorEntry
from edge_runtime.deferred_moves import DeferredMoves, float32_flats
from edge_runtime.kernel.numpy_twin import StoredArray
from edge_runtime.largest_weight import max_abs, max_abs_after
from edge_runtime.lattice import (
    INT16_BITS,
    SIGNIFICAND_BITS,
    is_multiple_of_quantum,
    range_limit,
    round_to_lattice,
    rounded_step,
)
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.protocol.errors import LatticeError
from edge_runtime.protocol.rounds import RoundResult
from edge_runtime.shared_work import SharedWork
from edge_runtime.stored_matrix import ROW_SCALES_SUFFIX, StoredMatrix, int16_scales
from edge_runtime.trainable import TRAINABLE_ALL, select_trainable
from edge_runtime.weights_file import WeightsFile, check_shape
from radio.arrays import Float32Array, Int64Array

_MIN_THREADED_WEIGHTS = 1 << 20  # below, waking a thread costs more than it saves


class ParameterStore:
    """A model's weights, every tensor that moves on its own power-of-two lattice.

    What is kept as float32 lies in one flat buffer and is moved in place. Matrices of whole numbers
    are mapped from the bundle's file, and copied into memory if they move.

    Guarantees:
        ``add_direction(s, a)`` then ``add_direction(s, -a)`` restores every bit.
        Steps commute: any order gives the same digest.
        A move that would leave a tensor's range raises when it is asked for, and is forgotten.
        What does not move is never written to, so that copies can share it (`replica`).

    Readers call `settle` first; `tensors`, `expand`, `digest` and OnnxForward do.
    """

    def __init__(
        self,
        entries: Sequence[TensorEntry],
        trainable: str | Sequence[str] | None = TRAINABLE_ALL,
        num_threads: int = 1,
        *,
        allocates_frozen: bool = True,
    ) -> None:
        self.entries = tuple(entries)
        self.trainable = select_trainable([entry.name for entry in entries], trainable)
        for entry, moved in zip(self.entries, self.trainable, strict=True):
            if moved and entry.kept_as == INT8:
                raise LatticeError(
                    f"trainable: {entry.name} is stored in 8 bits, which are too few to take "
                    "steps. Leave it out of `trainable`, or export the model with "
                    f"--store int8 --trainable {entry.name} (then it gets 16)."
                )
        self._sizes = [math.prod(entry.shape) for entry in entries]
        is_float32 = [entry.kept_as == FLOAT32 for entry in entries]
        is_here = [
            is_own and (moved or allocates_frozen)
            for is_own, moved in zip(is_float32, self.trainable, strict=True)
        ]
        self._flats = float32_flats(
            [n if is_own else 0 for n, is_own in zip(self._sizes, is_here, strict=True)]
        )
        # What one number of a tensor is worth: those in 16 bits count quanta.
        self._units = [
            math.ldexp(1.0, entry.quantum_exponent) if entry.kept_as == INT16 else 1.0
            for entry in entries
        ]
        self._matrices: dict[str, StoredMatrix] = {}
        # Directions along which matrices are away from home: seed -> scale.
        self._away: dict[int, float] = {}
        self._max_abs = [0.0] * len(self._sizes)
        is_worked_on = [
            not is_own or m for is_own, m in zip(is_float32, self.trainable, strict=True)
        ]
        num_worked_on = sum(itertools.compress(self._sizes, is_worked_on))
        self._work = SharedWork(num_threads if num_worked_on >= _MIN_THREADED_WEIGHTS else 1)
        self._moves = DeferredMoves(self._flats, self._work)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        trainable: str | Sequence[str] | None = TRAINABLE_ALL,
        num_threads: int = 1,
    ) -> ParameterStore:
        """Load a bundle's weights, a piece at a time, and round them to their lattices.

        Raises:
            LatticeError: see `select_trainable`; a tensor that 8 bits hold is to be trained; or a
                weight lies beyond its lattice.
            BundleError: the file is damaged, or not what the manifest says.
        """
        store = cls(bundle.manifest.tensors, trainable, num_threads)
        file = WeightsFile(bundle.weights_path)
        try:
            for index, entry in enumerate(store.entries):
                if entry.kept_as == FLOAT32:
                    store._set(index, file.floats(entry.name, entry.shape))
                    continue
                values, give_back = file.mapped(entry)
                if entry.kept_as == INT8:
                    name, shape = entry.name + ROW_SCALES_SUFFIX, entry.shape[:1]
                    scales = np.concatenate(list(file.floats(name, shape))).astype(np.float32)
                    store._keep(index, values, scales, give_back)
                else:
                    store._keep_int16(index, values, give_back)
        finally:
            file.close()
        return store

    @classmethod
    def from_arrays(
        cls,
        entries: Sequence[TensorEntry],
        arrays: Mapping[str, npt.NDArray[Any]],
        trainable: str | Sequence[str] | None = TRAINABLE_ALL,
        num_threads: int = 1,
    ) -> ParameterStore:
        """Build from arrays in memory, rounded to their lattices; int16 ones as they are."""
        store = cls(entries, trainable, num_threads)
        for index, entry in enumerate(store.entries):
            array = np.asarray(arrays[entry.name])
            check_shape(entry.name, array.shape, entry.shape)
            if entry.kept_as == INT16:
                store._keep_int16(index, array, lambda: None)
            else:
                store._set(index, [array.reshape(-1)])
        return store

    def _set(self, index: int, pieces: Iterable[npt.NDArray[np.floating]]) -> None:
        """Fill a tensor from flat pieces in order: no second copy of it is ever held."""
        entry, flat = self.entries[index], self._flats[index]
        start = 0
        for piece in pieces:
            rounded = round_to_lattice(piece.astype(np.float32), entry.quantum_exponent)
            flat[start : start + piece.size] = rounded
            start += piece.size
        largest = max_abs(flat)
        if not largest < range_limit(entry.quantum_exponent):
            raise LatticeError(
                f"{entry.name}: holds {largest}, its lattice ends at "
                f"{range_limit(entry.quantum_exponent)}. Export the model again."
            )
        self._max_abs[index] = largest

    def _keep_int16(
        self, index: int, values: npt.NDArray[np.int16], give_back: Callable[[], None]
    ) -> None:
        """Where it lies if it is frozen, in memory if it moves."""
        entry = self.entries[index]
        largest = max_abs(values)
        if not largest < 2**INT16_BITS:
            raise LatticeError(
                f"{entry.name}: holds -2^15, beyond its lattice. Export the model again."
            )
        scales = int16_scales(entry.shape[0], entry.quantum_exponent)
        if not self.trainable[index]:
            self._keep(index, values, scales, give_back)
            return
        in_memory = np.array(values, order="C")
        give_back()
        self._flats[index] = in_memory.reshape(-1)
        self._max_abs[index] = largest * self._units[index]
        self._keep(index, in_memory, scales, None)

    def _keep(
        self,
        index: int,
        values: StoredArray,
        row_scales: Float32Array,
        give_back: Callable[[], None] | None,
    ) -> None:
        matrix = StoredMatrix(values, row_scales, index, give_back)
        self._matrices[self.entries[index].name] = matrix
        matrix.let_go()

    def replica(self, num_threads: int = 1) -> ParameterStore:
        """Another copy of the weights, which are at home: its own where they move, else shared.

        Args:
            num_threads: of the other copy.
        """
        self.settle()
        moving = [e.name for e, moved in zip(self.entries, self.trainable, strict=True) if moved]
        twin = ParameterStore(self.entries, moving or None, num_threads, allocates_frozen=False)
        twin._matrices.update(self._matrices)
        twin._max_abs[:] = self._max_abs
        for index, (entry, moved) in enumerate(zip(self.entries, self.trainable, strict=True)):
            if not moved:
                twin._flats[index] = self._flats[index]
            elif entry.kept_as == FLOAT32:
                twin._flats[index][...] = self._flats[index]
            else:
                numbers = cast("npt.NDArray[np.int16]", self._flats[index])
                twin._keep_int16(index, numbers.reshape(entry.shape), lambda: None)
        return twin

    @property
    def num_parameters(self) -> int:
        """All weights, trained or not."""
        return sum(self._sizes)

    @property
    def num_trainable(self) -> int:
        """The weights that a direction moves."""
        return sum(itertools.compress(self._sizes, self.trainable))

    @property
    def bytes_in_memory(self) -> int:
        """What the weights take here; matrices that are mapped take what their scales do."""
        scales = sum(matrix.row_scales.nbytes for matrix in self._matrices.values())
        return sum(flat.nbytes for flat in self._flats) + scales

    def num_bytes(self, *, trained: bool = False, kept_as: str | None = None) -> int:
        """Bytes of the weights as they are kept, wherever that is.

        Args:
            trained: of those alone that move.
            kept_as: of those alone that are kept so.
        """
        sizes = {FLOAT32: 4, INT16: 2, INT8: 1}
        return sum(
            number * sizes[entry.kept_as]
            for entry, number, moved in zip(self.entries, self._sizes, self.trainable, strict=True)
            if (moved or not trained) and kept_as in (None, entry.kept_as)
        )

    @property
    def tensors(self) -> dict[str, Float32Array]:
        """Name -> view of the live weights that are kept as float32, in the manifest's order.

        Do not write to them. A view held across a move follows it only after `settle`.
        """
        self.settle()
        return {
            entry.name: cast(Float32Array, flat.reshape(entry.shape))
            for entry, flat in zip(self.entries, self._flats, strict=True)
            if entry.name not in self._matrices
        }

    @property
    def expanded(self) -> frozenset[str]:
        """Names of the matrices that are kept in 16 or 8 bits, and so are read with `expand`."""
        return frozenset(self._matrices)

    def expand(self, name: str, out: Float32Array, rows: Int64Array | None = None) -> None:
        """Write a matrix as a pass reads it: float32, and where its directions have taken it.

        Args:
            name: one of `expanded`.
            out: [num_rows, width], C-contiguous; overwritten.
            rows: which, in any order; None for all in theirs.
        """
        self.settle()
        matrix = self._matrices[name]
        away = self._away if self.trainable[matrix.tensor_index] else {}
        matrix.expand(out, rows, away, self._work)

    def as_float32(self, name: str) -> Float32Array:
        """A tensor at home, whichever way it is kept; a view, or a copy."""
        if name not in self._matrices:
            return self.tensors[name]
        matrix = self._matrices[name]
        out = np.empty(matrix.values.shape, dtype=np.float32)
        self.settle()
        matrix.expand(out, None, {}, self._work)
        return out

    def as_kept(self) -> dict[str, npt.NDArray[np.generic]]:
        """Name -> array, as a bundle's file holds them: whole numbers, and the scales of rows."""
        self.settle()
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for entry, flat in zip(self.entries, self._flats, strict=True):
            if entry.name not in self._matrices:
                arrays[entry.name] = flat.reshape(entry.shape)
                continue
            matrix = self._matrices[entry.name]
            arrays[entry.name] = matrix.values
            if entry.kept_as == INT8:
                arrays[entry.name + ROW_SCALES_SUFFIX] = matrix.row_scales
        return arrays

    def check_perturbation_scale(self, perturbation_scale: float) -> None:
        """Raise LatticeError unless the quantum of every tensor moved in place divides the scale.

        Others are moved on their way to a pass, where any scale will do.
        """
        for entry, moved in zip(self.entries, self.trainable, strict=True):
            if not moved or entry.kept_as != FLOAT32:
                continue
            if not is_multiple_of_quantum(perturbation_scale, entry.quantum_exponent):
                raise LatticeError(
                    f"perturbation_scale {perturbation_scale} is not a multiple of the quantum "
                    f"2^{entry.quantum_exponent} of {entry.name}. Use a power of two of at least "
                    f"2^{entry.quantum_exponent}, or leave that tensor out of `trainable`."
                )

    def add_direction(self, direction_seed: int, scale: float) -> None:
        """w <- w + scale * z(direction_seed) for every trained tensor, exactly.

        Raises:
            LatticeError: the scale is off a tensor's lattice, or a weight would leave its range.
                Nothing has been moved then.
        """
        self.check_perturbation_scale(scale)
        self._add(
            direction_seed,
            [
                scale if moved and entry.kept_as == FLOAT32 else 0.0
                for entry, moved in zip(self.entries, self.trainable, strict=True)
            ],
        )
        away = self._away.pop(direction_seed, 0.0) + scale
        if away:
            self._away[direction_seed] = away

    def apply_step(self, result: RoundResult) -> None:
        """w <- w - sum_q step_q z_q, each step rounded stochastically to each tensor's lattice.

        With k = result.step_integers[q] in units of 2^-40, a tensor of quantum 2^e takes
        floor((k + u) / 2^(e+40)) quanta, u uniform on 0 .. 2^(e+40) - 1 from direction q's own
        public seed: unbiased, E = k 2^-40 / quantum, and integers only, so every replica gets the
        same number.

        Raises:
            LatticeError: a weight would leave its range. Nothing has been moved then.
        """
        seeds = direction_seeds(result.direction_seed, len(result.step_integers))
        taken: list[tuple[int, list[float]]] = []
        for seed, step_integer in zip(seeds, result.step_integers, strict=True):
            if step_integer == 0:
                continue
            scales = [
                rounded_step(seed, i, step_integer, entry.quantum_exponent) if moved else 0.0
                for i, (entry, moved) in enumerate(zip(self.entries, self.trainable, strict=True))
            ]
            try:
                self._add(seed, scales)
            except LatticeError:
                for seed_taken, scales_taken in taken:
                    self._add(seed_taken, [-scale for scale in scales_taken])
                raise
            taken.append((seed, scales))

    @contextmanager
    def moved(self, direction_seed: int, scale: float) -> Iterator[None]:
        """The weights at w + scale * z for a while, and at w again afterwards, whatever happens.

        Raises:
            LatticeError: as `add_direction`; the weights are at w then.
        """
        self.add_direction(direction_seed, scale)
        try:
            yield
        finally:
            self.add_direction(direction_seed, -scale)

    def replay(self, results: Iterable[RoundResult]) -> None:
        """Take many steps: how a late joiner or a resumed run catches up. No forward pass."""
        for result in results:
            self.apply_step(result)

    def settle(self) -> None:
        """Carry out the moves that were asked for. Not to be called while a forward pass runs."""
        self._moves.carry_out()

    def _add(self, direction_seed: int, scales: Sequence[float]) -> None:
        """Ask for a move; the scales of tensors that are not trained are 0."""
        for index, scale in enumerate(scales):
            if scale:
                self._check_range(index, direction_seed, scale)
        for index, scale in enumerate(scales):
            self._max_abs[index] += abs(scale)
        in_units = [scale / unit for scale, unit in zip(scales, self._units, strict=True)]
        self._moves.add(direction_seed, in_units)

    def _check_range(self, index: int, direction_seed: int, scale: float) -> None:
        """The bound on abs(w) only grows; when it meets the limit, look at the real weights.

        And then at the real move: the way back from a move that was allowed is always open.
        """
        entry, move = self.entries[index], abs(scale)
        bits = SIGNIFICAND_BITS if entry.kept_as == FLOAT32 else INT16_BITS
        limit = range_limit(entry.quantum_exponent, bits)
        if self._max_abs[index] + move < limit:
            return
        self.settle()
        flat, unit = self._flats[index], self._units[index]
        self._max_abs[index] = unit * max_abs(flat)
        if self._max_abs[index] + move < limit:
            return
        # abs(scale) < limit makes the move exact, and float64 holds every sum.
        if not (
            move < limit and unit * max_abs_after(flat, direction_seed, index, scale / unit) < limit
        ):
            raise LatticeError(
                f"{entry.name}: a weight of {self._max_abs[index]:.6g} would move by {move:.6g}, "
                f"past the end of its exact range {limit:g}. Training diverges: lower the learning "
                "rate or the clip."
            )

    def close(self) -> None:
        """Let the worker threads go; later moves are made by the caller's own. Idempotent."""
        self._work.close()

    def digest(self) -> str:
        """sha256 over every tensor's name and little-endian bytes, in order. Equal bits, or not.

        Of a matrix that is kept as whole numbers, these and the scales of its rows.
        """
        sha = hashlib.sha256()
        for name, array in self.as_kept().items():
            sha.update(name.encode())
            sha.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
            if name in self._matrices:
                self._matrices[name].let_go()
        return sha.hexdigest()
