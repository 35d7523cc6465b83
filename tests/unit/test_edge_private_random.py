"""Private randomness: a function of the key, the purpose and the round, and of nothing public."""

import inspect
import math

import numpy as np
import pytest

from edge_runtime.private_random import KEY_BYTES, PrivateRandom, noise_stream
from edge_runtime.protocol.direction import derive_direction_seed

KEY = bytes(range(32))
SIGMA = 2**34


def test_the_same_key_draws_the_same_again():
    one, other = PrivateRandom(KEY), PrivateRandom(KEY)
    for round_index in (0, 1, 10**6):
        drawn = one.circular_draws(round_index, 2500, 3)
        assert drawn == other.circular_draws(round_index, 2500, 3)
        # Fewer numbers of one release are the first of more, and no two are alike.
        assert drawn[:1] == one.circular_draws(round_index, 2500, 1)
        assert len(set(drawn)) == 3
        batches = [p.poisson_batch(round_index, 500, 0.1) for p in (one, other)]
        assert np.array_equal(*batches)


def test_draws_do_not_depend_on_what_was_drawn_before():
    fresh, used = PrivateRandom(KEY), PrivateRandom(KEY)
    for round_index in range(50):
        used.circular_draws(round_index, SIGMA, 1)
        used.poisson_batch(round_index, 10, 0.5)
    assert used.circular_draws(7, SIGMA, 1)[0] == fresh.circular_draws(7, SIGMA, 1)[0]


def test_rounds_and_keys_differ():
    keys = [KEY, bytes(32), PrivateRandom.simulated_key(1, 0), PrivateRandom.simulated_key(1, 1),
            PrivateRandom.simulated_key(2, 0)]  # fmt: skip
    draws = {PrivateRandom(k).circular_draws(t, SIGMA, 1)[0] for k in keys for t in range(20)}
    assert len(draws) == 100
    batches = {PrivateRandom(k).poisson_batch(0, 400, 0.5).tobytes() for k in keys}
    assert len(batches) == 5


def test_no_public_seed_enters():
    for method in (PrivateRandom.circular_draws, PrivateRandom.poisson_batch):
        assert not [name for name in inspect.signature(method).parameters if "seed" in name]
    # The simulated key comes from the run's seed another way than the public directions do.
    seed = derive_direction_seed(1, 0).to_bytes(8, "little")
    assert seed not in PrivateRandom.simulated_key(1, 0)


def test_a_real_key_is_new_each_time_and_of_full_size():
    keys = {PrivateRandom.generate_key() for _ in range(10)}
    assert len(keys) == 10
    assert all(len(key) == KEY_BYTES for key in keys)


@pytest.mark.parametrize("key", [b"", b"short", bytes(31), bytes(33)])
def test_a_key_of_another_size_is_refused(key):
    with pytest.raises(ValueError, match=f"got {len(key)} bytes, wanted 32"):
        PrivateRandom(key)


def test_the_commitment_tells_keys_apart_and_holds_none():
    one, other = PrivateRandom(KEY), PrivateRandom(bytes(32))
    assert one.commitment == PrivateRandom(KEY).commitment != other.commitment
    assert KEY.hex() not in one.commitment
    assert len(bytes.fromhex(one.commitment)) == 32
    assert KEY.hex() not in repr(one) and repr(KEY) not in repr(one)


def test_a_noise_stream_names_key_and_release_as_the_noise_does():
    keys = [KEY, bytes(32)]
    releases = ["0/aa", "0/ab", "1/aa"]
    pairs = [(PrivateRandom(key), release) for key in keys for release in releases]
    names = [noise_stream(private.commitment, release) for private, release in pairs]
    noises = [private.circular_draws(release, SIGMA, 1)[0] for private, release in pairs]
    assert len(set(names)) == len(set(noises)) == len(pairs)
    assert noise_stream(PrivateRandom(KEY).commitment, "0/aa") == names[0]
    assert all(len(bytes.fromhex(name)) == 32 for name in names)


def test_data_are_named_under_the_key_alone():
    one, other = PrivateRandom(KEY), PrivateRandom(bytes(32))
    assert one.commit_to_data("00ff") == PrivateRandom(KEY).commit_to_data("00ff")
    assert len({one.commit_to_data("00ff"), one.commit_to_data("00fe"), "00ff",
                other.commit_to_data("00ff")}) == 4  # fmt: skip


def test_no_noise_is_none_and_a_reader_splits_a_stream_anywhere():
    private = PrivateRandom(KEY)
    assert private.circular_draws(3, 0, 2) == ((0, 0), (0, 0))
    # Over a thousand pairs take many blocks; the law of the stream does not show where they end.
    many = private.circular_draws(3, SIGMA, 1000)
    assert len(set(many)) == 1000
    assert many[:10] == private.circular_draws(3, SIGMA, 10)


def test_a_batch_is_a_strictly_ascending_choice_of_records():
    private = PrivateRandom(KEY)
    for round_index in range(50):
        batch = private.poisson_batch(round_index, 30, 0.3)
        assert batch.dtype == np.int64
        assert np.all(np.diff(batch) > 0)
        assert np.all((batch >= 0) & (batch < 30))


def test_probability_one_takes_everybody_and_no_records_give_an_empty_batch():
    private = PrivateRandom(KEY)
    assert private.poisson_batch(0, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert private.poisson_batch(0, 0, 0.5).size == 0
    assert private.poisson_batch(0, 1000, 5e-324).size == 0


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_a_probability_that_is_none_is_refused(probability):
    with pytest.raises(ValueError, match=r"wanted in \(0, 1\]"):
        PrivateRandom(KEY).poisson_batch(0, 10, probability)


@pytest.mark.parametrize("probability", [0.1, 1 / 3, 2.0**-60, 1 - 2.0**-53, 0.5, 16 / 2757])
def test_the_realised_probability_is_never_above_the_charged_one(monkeypatch, probability):
    # A record joins if its 64-bit draw is below floor(q 2^64): at that draw, it must stay out.
    numerator, denominator = probability.as_integer_ratio()
    threshold = numerator * 2**64 // denominator
    draws = b"".join(d.to_bytes(8, "little") for d in (threshold - 1, threshold, 2**64 - 1))
    monkeypatch.setattr(PrivateRandom, "_stream", lambda *_: draws)
    assert PrivateRandom(KEY).poisson_batch(0, 3, probability).tolist() == [0]
    assert threshold * denominator <= numerator * 2**64
