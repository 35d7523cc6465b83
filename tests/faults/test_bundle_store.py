"""A bundle from the broker: what arrives is the bundle that was asked for, or nothing is used."""

import contextlib
import hashlib
import shutil

import msgspec
import pytest

from edge_runtime.bundle import (
    BUNDLED_MODEL_FOLDER,
    MANIFEST_FILE,
    PAYLOAD_FILES,
    WEIGHTS_FILE,
    open_bundle,
    write_manifest,
)
from edge_runtime.control import bundle_store
from edge_runtime.control.bundle_store import BundleIndex, fetch, publish
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.protocol.errors import BundleError, LinkError
from server.config.files import load_config
from server.hosts.broker import Broker
from tests.support.federation import Federation
from tests.support.whole_runs import looked_at

NAMES = (MANIFEST_FILE, *PAYLOAD_FILES)


@pytest.fixture
def link(monkeypatch):
    """To a broker; pieces are small, so that a small bundle has many."""
    monkeypatch.setattr(bundle_store, "PIECE_BYTES", 1 << 18)
    monkeypatch.setattr(bundle_store, "_CHUNK_BYTES", 1 << 16)
    with Broker() as broker, contextlib.closing(NatsLink(broker.url, "test")) as link:
        yield link


@pytest.fixture(scope="module")
def bundle():
    return open_bundle(BUNDLED_MODEL_FOLDER)


def put(link, name, data):
    """In place of what stands under a name."""

    async def do(disk):
        bucket = await disk.object_store("pz_bundles")
        await bucket.put(name, data)

    link.on_disk(do, 30.0)


def pieces_fetched(said):
    return sum(", piece " in line for line in said)


def test_what_is_published_is_fetched_and_not_twice(link, bundle, tmp_path):
    num_pieces = publish(link, bundle)
    assert num_pieces > 10
    assert publish(link, bundle) == 0
    said = []
    got = fetch(link, bundle.digest, tmp_path / "got", said.append)
    assert got.digest == bundle.digest
    for name in NAMES:
        assert (tmp_path / "got" / name).read_bytes() == (bundle.folder / name).read_bytes()
    assert pieces_fetched(said) == num_pieces
    said.clear()
    fetch(link, bundle.digest, tmp_path / "got", said.append)
    assert pieces_fetched(said) == 0


def test_one_that_was_interrupted_goes_on_with_what_is_missing(link, bundle, tmp_path):
    num_pieces, said = publish(link, bundle), []

    def say(line):
        said.append(line)
        if pieces_fetched(said) == num_pieces // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(link, bundle.digest, tmp_path, say)
    with (tmp_path / MANIFEST_FILE).open("r+b") as file:
        file.write(b"damaged meanwhile")
    said.clear()
    assert fetch(link, bundle.digest, tmp_path, said.append).digest == bundle.digest
    assert pieces_fetched(said) == num_pieces - num_pieces // 3 + 1


def test_a_broker_without_it_says_so(link, bundle, tmp_path):
    with pytest.raises(LinkError, match="does not have the run's bundle"):
        fetch(link, bundle.digest, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def spoilt_index(**changes):
    def spoil(index):
        values = msgspec.to_builtins(index)
        for name, value in changes.items():
            values[name] = value(values[name])
        return msgspec.json.encode(values)

    return spoil


SOMETHING = hashlib.sha256(b"something").hexdigest()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda index: b"garbage", "index of bundle"),
        (lambda index: b"x" * (17 << 20), "too long"),
        (spoilt_index(sizes=lambda s: {**s, "../../evil": 1}), "not the files of a bundle"),
        (spoilt_index(sizes=lambda s: {**s, "../evil": 1},
                      pieces=lambda p: {**p, "../evil": [SOMETHING]}), "not the files of a bundle"),
        (spoilt_index(pieces=lambda p: {**p, WEIGHTS_FILE: p[WEIGHTS_FILE][1:]}), "not what"),
        (spoilt_index(pieces=lambda p: {**p, MANIFEST_FILE: ["../../x"]}), "not what pieces make"),
        (spoilt_index(sizes=lambda s: {**s, WEIGHTS_FILE: -1}), "not what pieces make"),
        (spoilt_index(sizes=lambda s: {**s, WEIGHTS_FILE: 10**18}), "not what pieces make"),
        (spoilt_index(pieces=lambda p: {**p, MANIFEST_FILE: [SOMETHING]}), "does not have"),
    ],
)  # fmt: skip
def test_an_index_that_lies_writes_nothing_elsewhere(link, bundle, tmp_path, spoil, words):
    publish(link, bundle)
    sizes = {name: (bundle.folder / name).stat().st_size for name in NAMES}
    pieces = {}
    for name in NAMES:
        data, step = (bundle.folder / name).read_bytes(), bundle_store.PIECE_BYTES
        cut = [data[i : i + step] for i in range(0, len(data), step)]
        pieces[name] = tuple(hashlib.sha256(piece).hexdigest() for piece in cut)
    put(link, f"index-{bundle.digest}", spoil(BundleIndex(sizes, pieces)))
    with pytest.raises((BundleError, LinkError), match=words):
        fetch(link, bundle.digest, tmp_path / "a" / "got")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= set(NAMES)


@pytest.mark.parametrize("other", [b"other bytes", b"x" * (1 << 19)])
def test_a_piece_that_is_another_is_refused(link, bundle, tmp_path, other):
    publish(link, bundle)
    put(link, hashlib.sha256((bundle.folder / MANIFEST_FILE).read_bytes()).hexdigest(), other)
    with pytest.raises(BundleError, match=r"was damaged on the broker|is too long"):
        fetch(link, bundle.digest, tmp_path)


def test_another_bundle_under_the_name_is_refused(link, bundle, tmp_path):
    publish(link, bundle)

    async def read(disk):
        bucket = await disk.object_store("pz_bundles")
        return (await bucket.get(f"index-{bundle.digest}")).data

    put(link, "index-" + "0" * 64, link.on_disk(read, 30.0))
    with pytest.raises(BundleError, match="the broker gave bundle"):
        fetch(link, "0" * 64, tmp_path)


def test_a_disk_that_is_too_small_is_told_what_is_needed(link, bundle, tmp_path, monkeypatch):
    publish(link, bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(BundleError, match=r"needs [\d,]+ bytes more, 1,000 are free"):
        fetch(link, bundle.digest, tmp_path)


def test_a_host_without_the_runs_bundle_gets_it_from_the_broker(tmp_path, bundle):
    other = tmp_path / "other"
    shutil.copytree(bundle.folder, other)
    write_manifest(other, msgspec.structs.replace(bundle.manifest, source_model="another"))
    config = load_config("snips", {
        "radio.backend": "ideal", "privacy.enabled": False, "federation.num_devices": 2,
        "optimizer.rounds": 2, "optimizer.batch_size": 4, "optimizer.directions": 2,
        "task.validation_examples": 20, "task.max_tokens": 24, "model.bundle": str(other),
    })  # fmt: skip
    with Broker() as broker:
        made = Federation(tmp_path / "run", config, broker.url)
        with contextlib.closing(made):
            made.come("b", 1, bundle=bundle.folder)
            with pytest.raises(LinkError, match="Leave --bundle out, and it is fetched"):
                with made.server():
                    pass
            made.come("a", 0)
            made.come("b", 1)
            with made.server() as (run, _):
                assert run.run()
            assert made.ended("a") and made.ended("b") and not made.errors
    assert [row.num_speakers for row in looked_at(made.run_folder).rows] == [2, 2]
    here = tmp_path / "run" / "state-a" / "bundles" / open_bundle(other).digest[:16]
    assert open_bundle(here).digest == open_bundle(other).digest
