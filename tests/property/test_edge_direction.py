"""A direction is a function of (seed, tensor, position), however it is cut."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.protocol.direction import (
    derive_direction_seed,
    direction,
    rounding_word,
    sign_bytes,
    sign_words,
)

seeds = st.integers(0, 2**64 - 1)
tensors = st.integers(0, 2**33)


@given(seeds, tensors, st.integers(0, 2**60), st.lists(st.integers(0, 40), min_size=1, max_size=8))
@example(2024, 0, 2**32 - 5, [0, 1, 2, 3, 4, 5])
@example(2024, 0, 2**34 - 5, [1, 1, 1, 1, 1, 1, 1])
def test_any_chunking_gives_the_same_direction(seed, tensor_index, first_word, lengths):
    whole = sign_words(seed, tensor_index, first_word, sum(lengths))
    pieces, position = [], first_word
    for length in lengths:
        pieces.append(sign_words(seed, tensor_index, position, length))
        assert len(pieces[-1]) == length
        position += length
    assert np.array_equal(np.concatenate(pieces), whole)


@given(seeds, tensors, st.integers(1, 300), st.integers(0, 300))
def test_a_smaller_tensor_has_the_beginning_of_a_larger_ones_signs(seed, tensor_index, few, more):
    short, long = (direction(seed, tensor_index, n) for n in (few, few + more))
    assert short.dtype == np.float32 and short.shape == (few,)
    assert set(np.unique(short)) <= {-1.0, 1.0}
    assert np.array_equal(long[:few], short)


@given(seeds, tensors, st.integers(0, 2**40), st.integers(1, 9))
def test_bytes_are_the_words_least_significant_first(seed, tensor_index, first_word, count):
    words = sign_words(seed, tensor_index, first_word, count)
    wanted = b"".join(int(word).to_bytes(8, "little") for word in words)
    assert sign_bytes(seed, tensor_index, first_word, count).tobytes() == wanted


@given(seeds, seeds, tensors, tensors)
def test_seeds_and_tensors_differ(seed, other_seed, tensor_index, other_tensor):
    # Two of 2^512 equal by chance would be news.
    one = sign_words(seed, tensor_index, 0, 8).tolist()
    if seed != other_seed:
        assert sign_words(other_seed, tensor_index, 0, 8).tolist() != one
        assert rounding_word(other_seed, tensor_index) != rounding_word(seed, tensor_index)
    if tensor_index != other_tensor:
        assert sign_words(seed, other_tensor, 0, 8).tolist() != one
        assert rounding_word(seed, other_tensor) != rounding_word(seed, tensor_index)


@given(seeds, tensors, st.integers(0, 2**50), st.integers(1, 2**50))
@example(1, 0, 0, 2**32)
@example(1, 0, 0, 2**34)
def test_positions_far_apart_differ(seed, tensor_index, first_word, distance):
    # Words that overlap by a shift are no repetition: only equal positions may hold equal words.
    near = sign_words(seed, tensor_index, first_word, 8)
    far = sign_words(seed, tensor_index, first_word + distance, 8)
    assert not np.any(near == far)


@given(seeds, tensors)
def test_an_empty_chunk_is_empty(seed, tensor_index):
    for first_word in range(4):
        assert sign_words(seed, tensor_index, first_word, 0).size == 0
    assert direction(seed, tensor_index, 0).shape == (0,)


@given(seeds, st.sets(st.integers(0, 2**40), min_size=2, max_size=20))
def test_rounds_of_a_run_have_different_seeds(master_seed, round_indices):
    derived = [derive_direction_seed(master_seed, index) for index in round_indices]
    assert len(set(derived)) == len(derived)
    assert all(0 <= seed < 2**64 for seed in derived)
    assert [derive_direction_seed(master_seed, index) for index in round_indices] == derived
