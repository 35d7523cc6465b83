"""How many examples may share a forward pass, so that no record moves another record's loss.

A device's scalar is a sum over the records of its batch, and one record moves it by at most clip/b
only if the other losses are the very same bits with that record and without it. A matrix product
need not oblige: with another number of rows a library may choose another kernel, which adds in
another order, and a difference in the last bit of a loss, divided by 2 mu, is no longer small.

Seen with onnxruntime 1.32 on x86-64: a pass of one row differs from all others (a matrix times a
vector has a kernel of its own), and several threads may cut the work by its size. Apart from these,
a loss was the same bits whatever the number of rows, its place among them, the others' contents and
the padding. So a lone row is run twice (`OnnxForward`), and the rest is looked at, on the machine
and with the very session that will be used, before a private run begins. Where company shows, each
example gets a pass of its own, whose shape depends on nothing but the example.

Guaranteed by measurement and not by proof: `losses_follow_company` looks at made-up prompts of
three lengths in every number of rows. `benchmarks/pass_shapes.py` looks at many more.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.tasks import Batch, pad_rows
from radio.arrays import Int64Array

_logger = logging.getLogger(__name__)

MAX_ROWS = 8
"""Rows of one forward pass: smaller passes pad less and spread better over the workers."""

_FIRST_WORD = 4  # the tokens below it are special in OPT's vocabulary


def choose_max_rows(forward: OnnxForward, *, vocab_size: int, max_tokens: int) -> int:
    """MAX_ROWS if examples may share a pass of ``forward``; else 1, and it is told to run them so.

    Args:
        forward: the session that the batches will be run by.
        vocab_size: tokens of the model.
        max_tokens: tokens of the longest prompt.
    """
    forward.runs_rows_alone = False
    if not losses_follow_company(forward, vocab_size=vocab_size, max_tokens=max_tokens):
        return MAX_ROWS
    forward.runs_rows_alone = True
    return 1


def losses_follow_company(forward: OnnxForward, *, vocab_size: int, max_tokens: int) -> bool:
    """Whether some example's loss was seen to depend on the pass that it shares."""
    rng = np.random.default_rng(0)

    def prompt(length: int) -> Int64Array:
        return rng.integers(min(_FIRST_WORD, vocab_size - 1), vocab_size, length, dtype=np.int64)

    for length in sorted({min(5, max_tokens), (max_tokens + 1) // 2, max_tokens}):
        example = prompt(length)
        alone = forward.run(make_batch([example], length)).losses[0]
        for num_rows in range(2, MAX_ROWS + 1):
            place = 0 if num_rows % 2 else num_rows - 1
            width = max_tokens if num_rows % 3 else length
            rows = [prompt(int(rng.integers(1, width + 1))) for _ in range(num_rows)]
            rows[place] = example
            if forward.run(make_batch(rows, width)).losses[place] != alone:
                return True
    return False


def keep_prefixes(
    forward: OnnxForward,
    folder: Path,
    max_bytes: int,
    max_tokens: int,
    known: PrefixCache | None = None,
) -> PrefixCache | None:
    """Let ``forward`` keep what its frozen layers give for each prompt, where that is allowed.

    Args:
        forward: the session.
        folder: of the device's, for a file without a name.
        max_bytes: of that file; 0 keeps nothing.
        max_tokens: of the longest prompt.
        known: what an earlier run kept, taken over if it is of the same layers.

    Returns:
        Where they are kept; None where nothing is: not asked for, or losses follow company.

    Raises:
        EdgeError: there is no room.
    """
    if max_bytes == 0:
        return None
    forward.runs_rows_alone = False
    if losses_follow_company(forward, vocab_size=forward.vocab_size, max_tokens=max_tokens):
        _logger.warning(
            "no prefixes are kept: on this machine what a prompt gives depends on what it shares a "
            "pass with"
        )
        return None
    if known is None or known.of != forward.frozen_name:
        known = PrefixCache(folder, max_bytes, forward.frozen_name)
    forward.keep_prefixes(known)
    return known


def make_batch(rows: list[Int64Array], width: int) -> Batch:
    """Made-up prompts as one batch, padded to ``width``; the first class is the right one."""
    return pad_rows(rows, np.zeros(len(rows), dtype=np.int64), width=width)
