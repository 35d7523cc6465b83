"""What whole runs have in common."""

import hashlib

import pytest


@pytest.fixture(scope="module")
def one_torch_thread():
    """Tiny tensors gain nothing from threads, and lose much where cores are shared."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KNOWN = {}
"""What was found, by everything that it was found from."""


def known(*key, find):
    """Found once, and what is wrong with it said anew every time."""
    if key not in KNOWN:
        KNOWN[key] = find()
    return KNOWN[key]


@pytest.fixture(scope="module", autouse=True)
def looked_at_once():
    """Hundreds of runs read the same few files on one machine, and find the same every time.

    Examples, tokenizers, what these make of those, and whether a loss follows its company; a run in
    a process of its own does all of it. Around a module: tests of the parts are not touched.
    """
    from edge_runtime import pass_shapes
    from edge_runtime.joining import host, preparation
    from edge_runtime.tasks import PromptSet, load_tokenizer, read_examples
    from server.run import data

    tokenise, follows = PromptSet.__init__, pass_shapes.losses_follow_company

    def content_of(path):
        try:
            return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
        except OSError:
            return None

    def read_once(path, task):
        content = content_of(path)
        if content is None:
            return read_examples(path, task)
        key = ("examples", content, repr(task))
        return list(known(*key, find=lambda: tuple(read_examples(path, task))))

    def load_once(path):
        content = content_of(path)
        if content is None:
            return load_tokenizer(path)
        tokenizer = known("tokenizer", content, find=lambda: load_tokenizer(path))
        KNOWN["content", id(tokenizer)] = content
        return tokenizer

    def tokenise_once(self, examples, task, tokenizer, max_tokens):
        name = KNOWN.get(("content", id(tokenizer))) or tokenizer.to_str()

        def find():
            tokenise(self, examples, task, tokenizer, max_tokens)
            self.digest()
            return dict(vars(self))

        key = ("prompts", name, repr(task), tuple(examples), max_tokens)
        vars(self).update(known(*key, find=find))

    def look_once(forward, **of):
        key = ("company", forward.frozen_name, *of.values())
        return known(*key, find=lambda: follows(forward, **of))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptSet, "__init__", tokenise_once)
        patch.setattr(pass_shapes, "losses_follow_company", look_once)
        patch.setattr(data, "read_examples", read_once)
        for module in (data, host, preparation):
            patch.setattr(module, "load_tokenizer", load_once)
        yield
