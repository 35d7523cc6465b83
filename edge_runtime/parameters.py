"""ParameterStore: the one copy of the weights, on an exact lattice, moved along public directions.

A round moves the weights along each of its directions and leaves no trace but its steps:

    w + mu z_1  ->  w - mu z_1  ->  w  ->  w + mu z_2  ->  ...  ->  w  ->  w - sum_q step_q z_q

Moves are carried out when somebody reads the weights and not before (`deferred_moves`), so the way
home and the way out along the next direction are one pass over the weights, and so are restore,
steps and the next round's first move.

Because every addition is exact (`edge_runtime.lattice`), w is w again bit for bit, and replaying
the steps in any order on any machine gives the same weights.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle, TensorEntry
from edge_runtime.deferred_moves import DeferredMoves
from edge_runtime.kernel import max_abs, numpy_twin, rounding_word
from edge_runtime.lattice import is_multiple_of_quantum, range_limit, round_to_lattice
from edge_runtime.protocol.direction import (
    WEIGHTS_PER_WORD,
    direction_seeds,
    sign_bytes,
)
from edge_runtime.protocol.errors import LatticeError
from edge_runtime.protocol.rounds import STEP_QUANTUM, RoundResult
from edge_runtime.weights_file import check_shape, read_weights
from radio.arrays import Float32Array

TRAINABLE_ALL = "all"
TRAINABLE_NORMS_AND_BIASES = "norms_and_biases"

_ALIGNMENT_BYTES = 64
_STEP_EXPONENT = round(math.log2(STEP_QUANTUM))
_CHUNK_WEIGHTS = 1 << 18  # 1 MiB: what a range check holds beside the weights
_MIN_THREADED_WEIGHTS = 1 << 20  # below, waking a thread costs more than it saves


def select_trainable(names: Sequence[str], trainable: str | Sequence[str]) -> tuple[bool, ...]:
    """Which tensors a round moves.

    Args:
        names: tensor names, torch's.
        trainable: "all", "norms_and_biases" (every layer norm and every bias), or shell-style
            patterns such as ``["*.fc2.*", "model.decoder.final_layer_norm.*"]``.

    Raises:
        LatticeError: if a pattern matches no tensor; a typing mistake must not train nothing.
    """
    if trainable == TRAINABLE_ALL:
        return tuple(True for _ in names)
    if trainable == TRAINABLE_NORMS_AND_BIASES:
        return tuple("layer_norm" in name or name.endswith(".bias") for name in names)
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    if not patterns:
        raise LatticeError(
            "trainable: no pattern given, nothing would be trained. Use 'all', 'norms_and_biases' "
            "or patterns."
        )
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise LatticeError(
                f"trainable: the pattern {pattern!r} matches none of the {len(names)} tensors. "
                f"Names look like {names[0]!r}; or use 'all' or 'norms_and_biases'."
            )
    return tuple(any(fnmatch.fnmatchcase(name, p) for p in patterns) for name in names)


class ParameterStore:
    """Float32 weights in one flat buffer, every tensor on its own power-of-two lattice.

    Guarantees:
        ``add_direction(s, a)`` then ``add_direction(s, -a)`` restores every bit.
        Moves commute: any order gives the same digest.
        A move that would leave a tensor's range raises when it is asked for, and is forgotten.

    Readers call `settle` first; `tensors`, `digest` and OnnxForward do.
    """

    def __init__(
        self,
        entries: Sequence[TensorEntry],
        trainable: str | Sequence[str] = TRAINABLE_ALL,
        num_threads: int = 1,
    ) -> None:
        self.entries = tuple(entries)
        self.trainable = select_trainable([entry.name for entry in entries], trainable)
        sizes = [math.prod(entry.shape) for entry in entries]
        per_line = _ALIGNMENT_BYTES // 4
        starts = np.cumsum([0] + [-(-size // per_line) * per_line for size in sizes])
        raw = np.zeros(int(starts[-1]) + per_line, dtype=np.float32)
        offset = (-raw.ctypes.data % _ALIGNMENT_BYTES) // 4
        self._flats = [
            raw[offset + start : offset + start + size]
            for start, size in zip(starts[:-1].tolist(), sizes, strict=True)
        ]
        self._max_abs = [0.0] * len(sizes)
        is_large = self.num_trainable >= _MIN_THREADED_WEIGHTS
        self._moves = DeferredMoves(self._flats, num_threads if is_large else 1)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        trainable: str | Sequence[str] = TRAINABLE_ALL,
        num_threads: int = 1,
    ) -> ParameterStore:
        """Load a bundle's weights, a piece at a time, and round them to their lattices."""
        store = cls(bundle.manifest.tensors, trainable, num_threads)
        for index, pieces in read_weights(bundle.weights_path, store.entries):
            store._set(index, pieces)
        return store

    @classmethod
    def from_arrays(
        cls,
        entries: Sequence[TensorEntry],
        arrays: dict[str, Float32Array],
        trainable: str | Sequence[str] = TRAINABLE_ALL,
        num_threads: int = 1,
    ) -> ParameterStore:
        """Build from arrays in memory, rounded to their lattices."""
        store = cls(entries, trainable, num_threads)
        for index, entry in enumerate(store.entries):
            array = np.asarray(arrays[entry.name])
            check_shape(entry, array.shape)
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

    @property
    def num_parameters(self) -> int:
        """All weights, trained or not."""
        return sum(flat.size for flat in self._flats)

    @property
    def num_trainable(self) -> int:
        """The weights that a direction moves."""
        return sum(f.size for f, moved in zip(self._flats, self.trainable, strict=True) if moved)

    @property
    def tensors(self) -> dict[str, Float32Array]:
        """Name -> view of the live weights, in the manifest's order. Do not write to them.

        A view held across a move follows it only after `settle`.
        """
        self.settle()
        return {
            entry.name: flat.reshape(entry.shape)
            for entry, flat in zip(self.entries, self._flats, strict=True)
        }

    def check_perturbation_scale(self, perturbation_scale: float) -> None:
        """Raise LatticeError unless every trained tensor's quantum divides the scale."""
        for entry, moved in zip(self.entries, self.trainable, strict=True):
            if moved and not is_multiple_of_quantum(perturbation_scale, entry.quantum_exponent):
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
        self._add(direction_seed, [scale if moved else 0.0 for moved in self.trainable])

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
                self._rounded_step(seed, index, step_integer) if moved else 0.0
                for index, moved in enumerate(self.trainable)
            ]
            try:
                self._add(seed, scales)
            except LatticeError:
                for seed_taken, scales_taken in taken:
                    self._add(seed_taken, [-scale for scale in scales_taken])
                raise
            taken.append((seed, scales))

    def _rounded_step(self, direction_seed: int, index: int, step_integer: int) -> float:
        exponent = self.entries[index].quantum_exponent
        shift = exponent - _STEP_EXPONENT
        dither = rounding_word(direction_seed, index) & ((1 << shift) - 1)
        return -math.ldexp((step_integer + dither) >> shift, exponent)

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
        self._moves.add(direction_seed, scales)

    def _check_range(self, index: int, direction_seed: int, scale: float) -> None:
        """The bound on abs(w) only grows; when it meets the limit, look at the real weights.

        And then at the real move: the way back from a move that was allowed is always open.
        """
        entry, move = self.entries[index], abs(scale)
        limit = range_limit(entry.quantum_exponent)
        if self._max_abs[index] + move < limit:
            return
        self.settle()
        self._max_abs[index] = max_abs(self._flats[index])
        if self._max_abs[index] + move < limit:
            return
        # abs(scale) < limit makes the float32 move exact, and float64 holds every sum.
        if not (
            move < limit
            and _max_abs_after(self._flats[index], direction_seed, index, scale) < limit
        ):
            raise LatticeError(
                f"{entry.name}: a weight of {self._max_abs[index]:.6g} would move by {move:.6g}, "
                f"past the end of its exact range {limit:g}. Training diverges: lower the learning "
                "rate or the clip."
            )

    def close(self) -> None:
        """Let the worker threads go; later moves are made by the caller's own. Idempotent."""
        self._moves.close()

    def digest(self) -> str:
        """sha256 over every tensor's name and little-endian bytes, in order. Equal bits, or not."""
        self.settle()
        sha = hashlib.sha256()
        for entry, flat in zip(self.entries, self._flats, strict=True):
            sha.update(entry.name.encode())
            sha.update(flat.astype("<f4", copy=False).data)
        return sha.hexdigest()


def _max_abs_after(
    flat: Float32Array, direction_seed: int, tensor_index: int, scale: float
) -> float:
    """max abs(flat + scale z) in float64, chunk by chunk; nothing is moved."""
    largest = 0.0
    for start in range(0, flat.size, _CHUNK_WEIGHTS):
        piece = flat[start : start + _CHUNK_WEIGHTS].astype(np.float64)
        words = -(-piece.size // WEIGHTS_PER_WORD)
        signs = sign_bytes(direction_seed, tensor_index, start // WEIGHTS_PER_WORD, words)
        piece += scale * numpy_twin.SIGNS_OF_BYTE[signs].reshape(-1)[: piece.size]
        largest = max(largest, float(np.max(np.abs(piece))))
    return largest
