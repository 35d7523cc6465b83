"""Stochastic rounding of the step is unbiased.

H0: a tensor of quantum q takes floor(x) or floor(x) + 1 quanta, x = step / q, the upper one with
probability x - floor(x), independently over seeds and tensors. Statistic: the number of upper ones
among n, exactly Binomial(n, x - floor(x)). False-alarm probability ALPHA, two-sided, shared out
among the cases. Smallest defect: a probability wrong by 0.05, missed with probability at most
ALPHA (computed). Negative controls: a dither that is half as wide, and none (plain rounding down).
"""

import numpy as np
import pytest
from scipy import stats

import edge_runtime.lattice
from edge_runtime.bundle import TensorEntry
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import rounding_word
from edge_runtime.protocol.rounds import RoundResult

ALPHA = 1e-6
DEFECT = 0.05
NUM_TENSORS = 64
NUM_SEEDS = 200
EXPONENT = -22
UNITS = 2 ** (EXPONENT + 40)
CASES = [3 * UNITS // 10, UNITS // 2, 41 * UNITS + 7 * UNITS // 10, -(3 * UNITS) // 10]


def count_upper(step_integer):
    """How often the upper neighbour is taken, over tensors of one weight and many seeds."""
    entries = [TensorEntry(f"w{i}", (1,), "float32", EXPONENT) for i in range(NUM_TENSORS)]
    store = ParameterStore.from_arrays(
        entries, {entry.name: np.zeros(1, dtype=np.float32) for entry in entries}
    )
    lower, num_upper = step_integer // UNITS, 0
    for seed in range(NUM_SEEDS):
        before = [float(w[0]) for w in store.tensors.values()]
        store.apply_step(RoundResult("r", 0, seed, (step_integer,)))
        for start, weight in zip(before, store.tensors.values(), strict=True):
            quanta = abs(float(weight[0]) - start) * 2.0**-EXPONENT
            assert quanta in (abs(lower), abs(lower + 1))
            num_upper += quanta == abs(lower + 1)
    return num_upper


def is_unbiased(num_upper, step_integer):
    n, probability = NUM_TENSORS * NUM_SEEDS, step_integer % UNITS / UNITS
    tail = ALPHA / len(CASES) / 2
    low, high = stats.binom.ppf(tail, n, probability), stats.binom.isf(tail, n, probability)
    assert stats.binom.cdf(high, n, probability + DEFECT) <= ALPHA, "n is too small for the defect"
    assert stats.binom.sf(low - 1, n, probability - DEFECT) <= ALPHA, "n is too small"
    return low <= num_upper <= high


@pytest.mark.parametrize("step_integer", CASES)
def test_the_rounded_step_is_unbiased(step_integer):
    assert is_unbiased(count_upper(step_integer), step_integer)


@pytest.mark.parametrize("defect", ["half as wide", "none"])
def test_negative_control_a_wrong_dither_is_seen(monkeypatch, defect):
    def spoiled(seed, tensor_index):
        return (rounding_word(seed, tensor_index) % UNITS) // 2 if defect == "half as wide" else 0

    monkeypatch.setattr(edge_runtime.lattice, "rounding_word", spoiled)
    step_integer = CASES[0]
    assert not is_unbiased(count_upper(step_integer), step_integer)
