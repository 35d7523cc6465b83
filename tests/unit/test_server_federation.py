"""The split of the training data."""

import pytest

from server.config.files import load_config
from server.errors import ConfigurationError
from server.run.data import load_run_data
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


SPOKEN = [("GetWeather", "will it rain"), ("PlayMusic", "play a song"), ("RateBook", "two stars")]


def told(tmp_path, caplog, train, validation, **changes):
    """What is said of data, of which some are in both sets."""
    for name, examples in (("train", train), ("validation", validation)):
        lines = "".join(f"{label}\t{text}\n" for label, text in examples)
        (tmp_path / f"{name}.tsv").write_text(lines)
    settings = {
        "task.train": str(tmp_path / "train.tsv"),
        "task.validation": str(tmp_path / "validation.tsv"),
        "federation.num_devices": 1, "optimizer.batch_size": 1,
    }  # fmt: skip
    load_run_data(load_config("snips", {**settings, **changes}))
    return "\n".join(caplog.messages)


def test_data_that_cannot_tell_what_was_learnt_are_told(tmp_path, caplog):
    fresh = [("GetWeather", "is it cold"), ("PlayMusic", "some jazz"), ("RateBook", "five stars")]
    assert told(tmp_path, caplog, SPOKEN, fresh) == ""
    assert told(tmp_path, caplog, SPOKEN, [*fresh, *SPOKEN[:1]] * 3) == (
        "task.validation: 3 of its 12 texts are in task.train, too: accuracy on them tells what is "
        "remembered. Hold other examples back for it."
    )
    caplog.clear()
    assert "task.train: every example has the same label" in told(
        tmp_path, caplog, SPOKEN[:1] * 3, fresh
    )
    caplog.clear()
    assert "task.validation: every example has the same label" in told(
        tmp_path, caplog, SPOKEN, fresh[:1]
    )


def test_nothing_is_counted_in_private_records(tmp_path, caplog):
    private = {"privacy.noise_source": "system", "privacy.epsilon": 8.0}
    assert told(tmp_path, caplog, SPOKEN, SPOKEN, **private) == ""
    assert told(tmp_path, caplog, SPOKEN[:1] * 3, SPOKEN[:1], **private) == ""
