"""Tasks, data files and prompts: what is read, and what is refused by name and line."""

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers

from edge_runtime.protocol.errors import TaskError
from edge_runtime.task_spec import TaskSpec, available_tasks, load_task
from edge_runtime.tasks import (
    PAD_TOKEN_ID,
    Example,
    PromptSet,
    label_token_ids,
    read_examples,
    warn_if_merged,
)


def write(tmp_path, content, name="data.tsv"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------- data files


def test_lines_become_examples_in_order(tmp_path, toy_task):
    path = write(tmp_path, "GetWeather\twill it rain ?\nPlayMusic\t play  a song \n\n")
    wanted = [Example(1, "will it rain ?"), Example(0, "play  a song")]
    assert read_examples(path, toy_task) == wanted


def test_a_text_may_hold_a_tab_and_lines_may_end_as_on_windows(tmp_path, toy_task):
    path = write(tmp_path, "PlayMusic\tone\ttwo\r\nRateBook\tthree\r\n")
    assert read_examples(path, toy_task) == [Example(0, "one\ttwo"), Example(2, "three")]


def test_a_byte_order_mark_is_skipped(tmp_path, toy_task):
    path = write(tmp_path, b"\xef\xbb\xbfPlayMusic\tone\nRateBook\tthree\n")
    assert read_examples(path, toy_task) == [Example(0, "one"), Example(2, "three")]
    task = write(tmp_path, b"\xef\xbb\xbf" + TASK_FILE.strip().encode(), "mine.toml")
    assert load_task(str(task))[0].name == "mine"


def test_swapped_columns_are_seen(tmp_path, toy_task):
    path = write(tmp_path, "play a song\tPlayMusic\n")
    with pytest.raises(TaskError, match=r"line 1: .*columns are swapped"):
        read_examples(path, toy_task)


@pytest.mark.parametrize(
    "character", ["\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"]
)
def test_only_a_line_feed_ends_a_line(tmp_path, toy_task, character):
    path = write(tmp_path, f"PlayMusic\tone{character}two\nRateBook\tthree\n")
    assert read_examples(path, toy_task) == [Example(0, f"one{character}two"), Example(2, "three")]


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\n"])
def test_an_empty_file_is_refused(tmp_path, toy_task, content):
    with pytest.raises(TaskError, match=r"data\.tsv: no examples in it"):
        read_examples(write(tmp_path, content), toy_task)


@pytest.mark.parametrize("line", ["PlayMusic play a song", "PlayMusic\t", "PlayMusic\t   ", "play"])
def test_a_line_without_label_tab_text_is_named(tmp_path, toy_task, line):
    path = write(tmp_path, f"RateBook\tfine\n\n{line}\n")
    with pytest.raises(TaskError, match=r"data\.tsv, line 3: got .*wanted label<TAB>text"):
        read_examples(path, toy_task)


@pytest.mark.parametrize(
    "label", ["BookFlight", "playmusic", " PlayMusic", "\ufeffPlayMusic", "1", ""]
)
def test_a_label_without_a_word_is_named(tmp_path, toy_task, label):
    path = write(tmp_path, f"RateBook\tfine\n{label}\ttext\n")
    with pytest.raises(TaskError, match=r"line 2: label .*Add it under \[label_words\].*PlayMusic"):
        read_examples(path, toy_task)


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path, toy_task):
    path = write(tmp_path, b"PlayMusic\tcaf\xe9\n")
    with pytest.raises(TaskError, match=r"data\.tsv: not UTF-8 text .*at byte 13"):
        read_examples(path, toy_task)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, toy_task):
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(TaskError, match="cannot be read"):
            read_examples(path, toy_task)


# ---------------------------------------------------------------- task files


def test_every_task_that_comes_along_loads_with_its_data():
    assert available_tasks()
    for name in available_tasks():
        task, folder = load_task(name)
        assert task.name == name
        for data in (task.train, task.validation):
            labels = {example.label_index for example in read_examples(folder / data, task)}
            assert labels == set(range(len(task.labels)))


TASK_FILE = """
name = "mine"
template = "{text} It was"
[label_words]
good = "great"
bad = "terrible"
"""


def test_a_task_file_of_ones_own_loads_by_path(tmp_path):
    path = write(tmp_path, TASK_FILE, "mine.toml")
    task, folder = load_task(str(path))
    assert (task.name, task.labels, folder) == ("mine", ("good", "bad"), tmp_path)


@pytest.mark.parametrize("name", ["nosuch", "nosuch.toml", "", "../tasks", "."])
def test_an_unknown_task_is_refused_and_the_known_are_listed(name):
    with pytest.raises(TaskError, match=r"no task .*Known: .*snips"):
        load_task(name)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("{text} It", "It", "wanted exactly one {text}"),
        ("{text} It", "{text} {text} It", "wanted exactly one {text}"),
        ('bad = "terrible"', "", "1 label words, wanted at least two"),
        ("terrible", "great", "two labels share a word"),
        ("great", "", "no word|empty"),
        ("[label_words]", "more = 1\n[label_words]", "not a task file.*more"),
        ('"great"', "3", "not a task file.*Expected `str`"),
        ('name = "mine"', "", "not a task file.*name"),
        ('name = "mine"', "name = mine", "not a task file"),
        ('name = "mine"', b'name = "\xff"', "not a task file"),
    ],
)
def test_a_task_file_that_cannot_be_meant_is_refused(tmp_path, before, after, words):
    after = after if isinstance(after, bytes) else after.encode()
    path = write(tmp_path, TASK_FILE.encode().replace(before.encode(), after), "mine.toml")
    with pytest.raises(TaskError, match=words):
        load_task(str(path))


# ---------------------------------------------------------------- label words


def with_words(task, **words):
    return msgspec.structs.replace(task, label_words=words)


def test_each_word_is_the_token_it_has_after_a_space(toy_task, tiny_tokenizer, tiny_bundle):
    ids = label_token_ids(toy_task, tiny_tokenizer)
    words = [f" {word}" for word in toy_task.label_words.values()]
    assert [tiny_tokenizer.decode([i]) for i in ids] == words
    assert ids == tiny_bundle.manifest.label_token_ids


def test_a_word_of_two_tokens_is_named_with_its_tokens(toy_task, tiny_tokenizer):
    task = with_words(toy_task, A="music", B="xylophone")
    with pytest.raises(TaskError, match=r"label 'B': the word 'xylophone' is \d+ tokens \[.*one"):
        label_token_ids(task, tiny_tokenizer)


def test_two_words_that_are_one_token_are_refused(toy_task, tiny_tokenizer):
    # No two texts become one token of this tokenizer, so one that lower-cases stands in.
    lower = Tokenizer.from_str(tiny_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    task = with_words(toy_task, A="music", B="MUSIC")
    with pytest.raises(TaskError, match="two label words are the same token"):
        label_token_ids(task, lower)


def test_white_space_around_a_word_belongs_to_the_separator():
    with pytest.raises(TaskError, match=r"words \[' music'\] have white space .*separator"):
        TaskSpec(name="x", template="{text}", label_words={"A": " music", "B": "book"})


@pytest.mark.parametrize("end", [" ", "\n", "\t"])
def test_white_space_on_both_sides_of_the_join_is_refused(end):
    words = {"A": "music", "B": "book"}
    with pytest.raises(TaskError, match=r"ends in white space and the separator ' '"):
        TaskSpec(name="x", template="{text} Intent:" + end, label_words=words)
    TaskSpec(name="x", template="{text} Intent:" + end, label_words=words, separator="")


JOINS = {
    "a space": ("{text} Intent:", " ", " Intent: "),
    "a line feed in the template": ("{text}\nIntent:\n", "", "\nIntent:\n"),
    "a line feed between": ("{text}\nIntent:", "\n", "\nIntent:\n"),
    "nothing": ("{text} Intent:", "", " Intent:"),
    "a space that the template ends in": ("{text} Intent: ", "", " Intent: "),
}


@pytest.mark.parametrize("name", JOINS)
def test_prompt_and_word_are_tokenised_as_the_one_text_they_are(toy_task, tiny_tokenizer, name):
    """What is fed, followed by the token that is scored, is what the tokenizer makes of it all."""
    template, separator, between = JOINS[name]
    task = msgspec.structs.replace(
        toy_task, template=template, separator=separator, label_words={"A": "m", "B": "b"}
    )
    if name == "nothing":
        assert tiny_tokenizer.encode("Intent:m").tokens[-2:] == [":", "m"]
    try:
        ids = label_token_ids(task, tiny_tokenizer)
    except TaskError:
        pytest.fail(f"{name}: a task of one-letter words must be expressible")
    batch = make_prompts(["play it"], task, tiny_tokenizer).batch([0])
    fed = batch.input_ids[0].tolist()
    for word, token in zip(task.label_words.values(), ids, strict=True):
        assert [*fed, token] == tiny_tokenizer.encode(f"play it{between}{word}").ids


@pytest.mark.parametrize(
    ("template", "separator", "merges"),
    [
        ("{text} Intent:", " ", False),
        ("{text}\nIntent:\n", "", False),
        ("{text} Intent: ", "", True),  # the space becomes part of the word's token
    ],
)
def test_a_template_whose_end_merges_with_the_word_is_warned_of(
    toy_task, tiny_tokenizer, caplog, template, separator, merges
):
    task = msgspec.structs.replace(
        toy_task, template=template, separator=separator, label_words={"A": "m", "B": "b"}
    )
    if separator == " " or merges:
        task = msgspec.structs.replace(task, label_words=toy_task.label_words)
    warn_if_merged(task, tiny_tokenizer)
    assert ("tokenised together" in caplog.text) is merges


def test_a_text_that_changes_the_word_s_token_is_named(toy_task, tiny_tokenizer):
    """A template that ends in the text itself lets some texts swallow the word."""
    words = {"A": "a", "B": "o"}
    task = msgspec.structs.replace(toy_task, template="{text}", separator="", label_words=words)
    make_prompts(["it:", "is!"], task, tiny_tokenizer)
    with pytest.raises(TaskError, match="behind example 2 the word 'a' becomes another token"):
        make_prompts(["it:", "it: "], task, tiny_tokenizer)


def test_shortened_prompts_are_counted(toy_task, tiny_tokenizer):
    assert make_prompts(TEXTS, toy_task, tiny_tokenizer).num_shortened == 0
    lengths = sorted(len(tiny_tokenizer.encode(f"{text} Intent:").ids) for text in TEXTS)
    assert lengths[1] < lengths[2]
    assert make_prompts(TEXTS, toy_task, tiny_tokenizer, lengths[1]).num_shortened == 2


# ---------------------------------------------------------------- prompts


def make_prompts(texts, task, tokenizer, max_tokens=64):
    examples = [Example(i % len(task.labels), text) for i, text in enumerate(texts)]
    return PromptSet(examples, task, tokenizer, max_tokens)


TEXTS = ["play", "what is the weather like today ?", "rate this book", "find {text}"]


def test_prompts_are_padded_on_the_right_and_asked_at_their_last_token(toy_task, tiny_tokenizer):
    prompts = make_prompts(TEXTS, toy_task, tiny_tokenizer)
    assert len(prompts) == 4
    batch = prompts.batch([1, 0, 3])
    assert batch.num_examples == 3
    assert batch.target.tolist() == [1, 0, 0]
    width = batch.input_ids.shape[1]
    for row, index in enumerate([1, 0, 3]):
        ids = tiny_tokenizer.encode(f"{TEXTS[index]} Intent:").ids
        assert batch.input_ids[row, : len(ids)].tolist() == ids
        assert np.all(batch.input_ids[row, len(ids) :] == PAD_TOKEN_ID)
        assert batch.answer_position[row] == row * width + len(ids) - 1
    asked = batch.input_ids.ravel()[batch.answer_position]
    assert set(asked.tolist()) == {tiny_tokenizer.encode(" Intent:").ids[-1]}


def test_a_batch_is_as_wide_as_its_longest_prompt_and_ready_for_the_graph(toy_task, tiny_tokenizer):
    prompts = make_prompts(TEXTS, toy_task, tiny_tokenizer)
    batch = prompts.batch(np.array([0]))
    assert batch.input_ids.shape[1] < prompts.batch([0, 1]).input_ids.shape[1]
    for array in (batch.input_ids, batch.answer_position, batch.target):
        assert array.dtype == np.int64
        assert array.flags.c_contiguous


def test_a_long_prompt_keeps_its_first_token_and_its_end(toy_task, tiny_tokenizer):
    text = " ".join(f"word{i}" for i in range(50))
    ids = tiny_tokenizer.encode(f"{text} Intent:").ids
    for max_tokens in (2, 5, 16, len(ids) - 1):
        batch = make_prompts([text], toy_task, tiny_tokenizer, max_tokens).batch([0])
        assert batch.input_ids[0].tolist() == [ids[0], *ids[-(max_tokens - 1) :]]
    for max_tokens in (len(ids), len(ids) + 1):
        batch = make_prompts([text], toy_task, tiny_tokenizer, max_tokens).batch([0])
        assert batch.input_ids[0].tolist() == ids


@pytest.mark.parametrize("chosen", [range(10), [7], [9, 1, 4, 0, 3, 8], []])
def test_every_chosen_example_comes_once_and_similar_lengths_together(
    toy_task, tiny_tokenizer, chosen
):
    texts = ["play " * (1 + 7 * i % 10) for i in range(10)]
    prompts = make_prompts(texts, toy_task, tiny_tokenizer)
    batches = prompts.batches_by_length(np.array(chosen, dtype=np.int64), 4)
    sizes = [batch.num_examples for batch in batches]
    assert sizes == [4] * (len(chosen) // 4) + [len(chosen) % 4] * (len(chosen) % 4 > 0)
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths)
    rows = [
        (tuple(r[r != PAD_TOKEN_ID]), t)
        for b in batches
        for r, t in zip(b.input_ids, b.target, strict=True)
    ]
    alone = [prompts.batch([i]) for i in chosen]
    assert sorted(rows) == sorted((tuple(b.input_ids[0]), b.target[0]) for b in alone)


def test_padding_and_truncation_stored_in_a_tokenizer_file_do_not_count(toy_task, tiny_tokenizer):
    # Files saved after a training run often carry both; the answer would be asked at a pad.
    from tokenizers import Tokenizer

    marked = Tokenizer.from_str(tiny_tokenizer.to_str())
    marked.enable_padding(length=40, pad_id=PAD_TOKEN_ID, pad_token="<pad>")
    marked.enable_truncation(4)
    wanted = make_prompts(TEXTS, toy_task, tiny_tokenizer).batch(range(4))
    got = make_prompts(TEXTS, toy_task, marked).batch(range(4))
    assert np.array_equal(got.input_ids, wanted.input_ids)
    assert np.array_equal(got.answer_position, wanted.answer_position)


def test_a_task_is_told_by_its_fields():
    with pytest.raises(TaskError, match="wanted at least two"):
        TaskSpec(name="x", template="{text}", label_words={})
