"""The exact lattice: why perturb, restore and update never lose a bit.

Every tensor has a power-of-two quantum q = 2^exponent. Its weights are multiples of q with
abs(w) < 2^24 q, so each of them, and each sum of two of them that stays in the range, is a float32
exactly. Additions then commute and undo each other: w + s - s == w, bit for bit, in any order and
on any machine.

The exponent follows the largest weight:

    exponent = ceil(log2 max(max abs(w), FLOOR)) + HEADROOM_BITS - 23

which leaves room for weights 2^(HEADROOM_BITS + 1) times as large as the largest at the start.
Rounding to the lattice once costs at most q/2, less than the half-precision spacing of the
published weights.

Matrices may be kept in 16 bits instead (`edge_runtime.stored_matrix`): whole numbers k of a coarser
quantum, abs(k) < 2^15, where 2^15 quanta are the first power of two above 1.5 times the largest
weight at the start, or 2. (Without that floor the preset `snips` left its range: within 450 rounds
its weights grow from 0.3 to 0.8.)
"""

from __future__ import annotations

import math

import numpy as np

from edge_runtime.kernel import rounding_word
from edge_runtime.protocol.errors import LatticeError
from edge_runtime.protocol.rounds import STEP_QUANTUM
from radio.arrays import Float32Array

_STEP_EXPONENT = round(math.log2(STEP_QUANTUM))

HEADROOM_BITS = 1
FLOOR = 1.0
"""Tensors that start smaller (biases at zero) get the quantum of weights this large, to grow."""

SIGNIFICAND_BITS = 24

INT16_BITS = 15
INT16_HEADROOM = 1.5
MAX_QUANTUM_EXPONENT = 24
"""The dither of a step has 64 random bits, and a quantum has 2^(exponent + 40) steps: beyond this
the rounding of a step would be biased. It is reached by weights of 2^46."""


def choose_quantum_exponent(max_abs: float) -> int:
    """Exponent of the quantum for a tensor whose largest weight is ``max_abs``.

    Raises:
        LatticeError: if ``max_abs`` is not a finite number >= 0, or beyond any model's weights.
    """
    if not math.isfinite(max_abs) or max_abs < 0:
        raise LatticeError(
            f"max_abs: got {max_abs}, wanted a finite number >= 0. "
            "The weights hold NaN or infinity: export the model again."
        )
    exponent = math.ceil(math.log2(max(max_abs, FLOOR))) + HEADROOM_BITS - (SIGNIFICAND_BITS - 1)
    if exponent > MAX_QUANTUM_EXPONENT:
        raise LatticeError(
            f"max_abs: got {max_abs:g}, wanted at most 2^46. No trained model has such weights: "
            "the file is damaged, or of another type than it says."
        )
    return exponent


def choose_int16_exponent(max_abs: float) -> int:
    """Exponent of the quantum for a matrix in 16 bits.

    Raises:
        LatticeError: as `choose_quantum_exponent`.
    """
    choose_quantum_exponent(max_abs)
    _, exponent = math.frexp(INT16_HEADROOM * max(max_abs, FLOOR))
    return exponent - INT16_BITS


def range_limit(quantum_exponent: int, bits: int = SIGNIFICAND_BITS) -> float:
    """Weights must stay strictly below this in absolute value: 2^bits q."""
    return math.ldexp(1.0, bits + quantum_exponent)


def round_to_lattice(weights: Float32Array, quantum_exponent: int) -> Float32Array:
    """The nearest multiples of q (ties to even), as float32. Error at most q/2.

    Scaling by a power of two is exact, and so is rint below 2^24. Adding 0.0 turns -0.0 into +0.0,
    the only zero that a sum of opposite moves gives back: without it, restore would flip its sign.
    """
    # A weight far beyond the range may overflow here; the caller's range check refuses infinity.
    with np.errstate(over="ignore"):
        scaled = np.rint(weights * np.float32(math.ldexp(1.0, -quantum_exponent)))
    scaled += np.float32(0.0)
    scaled *= np.float32(math.ldexp(1.0, quantum_exponent))
    return scaled


def rounded_step(direction_seed: int, index: int, step_integer: int, exponent: int) -> float:
    """How far a step moves tensor ``index`` of quantum 2^exponent; `ParameterStore.apply_step`."""
    shift = exponent - _STEP_EXPONENT
    dither = rounding_word(direction_seed, index) & ((1 << shift) - 1)
    return -math.ldexp((step_integer + dither) >> shift, exponent)


def is_multiple_of_quantum(value: float, quantum_exponent: int) -> bool:
    """Whether ``value`` is an integer multiple of 2^quantum_exponent."""
    return math.isfinite(value) and math.fmod(value, math.ldexp(1.0, quantum_exponent)) == 0.0
