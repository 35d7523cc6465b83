"""The split of the training data."""

import pytest

from server.errors import ConfigurationError
from server.run.federation import split_iid


@pytest.mark.parametrize(("num_examples", "num_devices"), [(10, 1), (10, 3), (10, 10), (101, 7)])
def test_every_example_goes_to_exactly_one_device(num_examples, num_devices):
    parts = split_iid(range(num_examples), num_devices, seed=3)
    assert len(parts) == num_devices
    assert sorted(x for part in parts for x in part) == list(range(num_examples))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_split_is_a_function_of_the_seed():
    assert split_iid(range(50), 4, seed=1) == split_iid(range(50), 4, seed=1)
    assert split_iid(range(50), 4, seed=1) != split_iid(range(50), 4, seed=2)


def test_split_shuffles():
    (part,) = split_iid(range(200), 1, seed=0)
    assert part != list(range(200))


def test_a_device_without_an_example_is_refused():
    with pytest.raises(ConfigurationError, match=r"num_devices: 5 devices for 4 training examples"):
        split_iid(range(4), 5, seed=0)
