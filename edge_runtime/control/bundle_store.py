"""A run's bundle on the broker's disk, for hosts that have it not: in pieces, named by SHA-256.

An index, named by the bundle's digest, says which pieces each of its files is made of. A host
trusts none of it: a piece is what its name says, or is fetched again; files have the names that
files of a bundle have, whatever the index calls them; and the whole has the digest that the run
was joined for, or it is not used. What has been fetched stays, so one that is interrupted goes on
with the pieces that are missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

# Whoever comes here has loaded the link before, which says what to install where they are missing.
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta, ObjectMetaOptions
from nats.js.errors import NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from edge_runtime.bundle import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    PAYLOAD_FILES,
    Bundle,
    open_bundle,
)
from edge_runtime.control.broker_disk import ASK_S, read_batches
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.protocol.errors import BundleError, LinkError

PIECE_BYTES = 32 << 20
"""Each costs some tenths of a second beside its bytes, and is lost where it is interrupted."""

_BUCKET = "pz_bundles"
_CHUNK_BYTES = 1 << 19
"""What travels at once: half of what a message may be."""

_CHUNKS_AT_ONCE = 8
_PIECE_S = 600.0
_MOST_PIECES = 1 << 16
_HEX = frozenset("0123456789abcdef")
_T = TypeVar("_T")


class BundleIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle is made of.

    Attributes:
        sizes: name of each file -> its bytes.
        pieces: name of each file -> SHA-256 of its pieces, in order; all but the last are whole.
    """

    sizes: dict[str, int]
    pieces: dict[str, tuple[str, ...]]


def publish(link: NatsLink, bundle: Bundle) -> int:
    """Put a bundle's pieces on the broker's disk, as far as they are not there.

    Returns:
        How many were put.

    Raises:
        LinkError: that failed.
    """
    sizes: dict[str, int] = {}
    pieces: dict[str, tuple[str, ...]] = {}
    num_put = 0
    for name in (MANIFEST_FILE, *PAYLOAD_FILES):
        path, own = bundle.folder / name, []
        for _, data in _pieces_of(path):
            own.append(hashlib.sha256(data).hexdigest())
            num_put += _put(link, own[-1], data)
        sizes[name], pieces[name] = path.stat().st_size, tuple(own)
    _put(link, _index_name(bundle.digest), msgspec.json.encode(BundleIndex(sizes, pieces)))
    return num_put


def fetch(
    link: NatsLink, digest: str, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Bundle:
    """The bundle of a digest, from the broker; pieces that are here already are not fetched.

    Args:
        link: to the broker.
        digest: of the bundle.
        folder: where it goes; it is made if it is not there.
        say: told how it goes, a line each.

    Raises:
        LinkError: the broker has it not, or does not give it.
        BundleError: what it gives is not the bundle, or the disk does not take it.
    """
    index = _index(link, digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, index)
        missing = list(_missing(folder, index))
        num_pieces = sum(len(own) for own in index.pieces.values())
        say(
            f"fetching the run's bundle {digest[:16]}: {sum(index.sizes.values()):,} bytes in "
            f"{num_pieces} pieces, {num_pieces - len(missing)} are here"
        )
        for name, number, sha256 in missing:
            _fetch_piece(link, folder / name, number * PIECE_BYTES, sha256)
            say(f"  {name}, piece {number + 1} of {len(index.pieces[name])}")
    except OSError as error:
        raise BundleError(
            f"{folder}: the bundle cannot be written ({error.strerror}). Free some disk space and "
            "join again; what has been fetched is kept."
        ) from error
    bundle = open_bundle(folder)
    if bundle.digest != digest:
        raise BundleError(
            f"{folder}: the broker gave bundle {bundle.digest[:16]}, wanted {digest[:16]}. Delete "
            "it, and copy the server's bundle here by other means: --bundle FOLDER."
        )
    return bundle


def _check_room(folder: Path, index: BundleIndex) -> None:
    taken = sum(
        path.stat().st_blocks * 512 for name in index.sizes if (path := folder / name).exists()
    )
    needed, free = sum(index.sizes.values()) - taken, shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            f"{folder}: the run's bundle needs {needed:,} bytes more, {free:,} are free. Make "
            "room, or name a folder on another disk with --state."
        )


def _index_name(digest: str) -> str:
    return f"index-{digest}"  # the digest alone is that of the manifest's piece


def _pieces_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of a file's pieces; an empty file has none."""
    with path.open("rb") as file:
        number = 0
        while data := file.read(PIECE_BYTES):
            yield number, data
            number += 1


def _missing(folder: Path, index: BundleIndex) -> Iterator[tuple[str, int, str]]:
    """File, number and SHA-256 of each piece that is not here; files have their size by then."""
    for name, own in index.pieces.items():
        path = folder / name
        path.touch()
        os.truncate(path, index.sizes[name])
        for number, data in _pieces_of(path):
            if hashlib.sha256(data).hexdigest() != own[number]:
                yield name, number, own[number]


def _index(link: NatsLink, digest: str) -> BundleIndex:
    written = bytearray()
    for data in _chunks(link, _index_name(digest)):
        written.extend(data)
        if len(written) > MAX_MANIFEST_BYTES:
            raise BundleError(f"index of bundle {digest[:16]}: too long.")
    try:
        index = msgspec.json.decode(bytes(written), type=BundleIndex)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"index of bundle {digest[:16]}: {error}.") from error
    if set(index.sizes) != set(index.pieces) or set(index.sizes) != {MANIFEST_FILE, *PAYLOAD_FILES}:
        raise BundleError(f"index of bundle {digest[:16]}: not the files of a bundle.")
    for name, own in index.pieces.items():
        wanted = -(-index.sizes[name] // PIECE_BYTES)
        are_digests = all(len(piece) == 64 and _HEX.issuperset(piece) for piece in own)
        if len(own) != wanted or len(own) > _MOST_PIECES or not are_digests:
            raise BundleError(f"index of bundle {digest[:16]}: {name} is not what pieces make.")
    return index


def _fetch_piece(link: NatsLink, path: Path, start: int, sha256: str) -> None:
    """Into its place in the file; whatever arrives, no byte goes beyond it."""
    found, end = hashlib.sha256(), min(path.stat().st_size, start + PIECE_BYTES)
    with path.open("r+b") as file:
        file.seek(start)
        for data in _chunks(link, sha256):
            if file.tell() + len(data) > end:
                raise BundleError(f"{path}: a piece of the broker's is too long.")
            found.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != sha256:
        raise BundleError(
            f"{path}: a piece has SHA-256 {found.hexdigest()[:16]}, wanted {sha256[:16]}. It was "
            "damaged on the broker; join again, and have the server publish it again."
        )


def _chunks(link: NatsLink, name: str) -> Iterator[bytes]:
    """An object, as it was put: the layout is NATS' own (ADR-20)."""
    info = _on_bucket(link, ASK_S, lambda bucket: bucket.get_info(name))
    for batch in read_batches(
        link,
        stream=f"OBJ_{_BUCKET}",
        subject=f"$O.{_BUCKET}.C.{info.nuid}",
        first=1,
        number=info.chunks or 0,
        batch=_CHUNKS_AT_ONCE,
    ):
        yield from batch


def _put(link: NatsLink, name: str, data: bytes) -> int:
    """1 if it was put, 0 if it is there."""

    async def put(bucket: ObjectStore) -> int:
        try:
            if (await bucket.get_info(name)).size == len(data):
                return 0
        except ObjectNotFoundError:
            pass
        options = ObjectMetaOptions(max_chunk_size=_CHUNK_BYTES)
        await bucket.put(name, data, ObjectMeta(name=name, options=options))
        return 1

    return _on_bucket(link, _PIECE_S, put)


def _on_bucket(
    link: NatsLink, timeout_s: float, doing: Callable[[ObjectStore], Coroutine[Any, Any, _T]]
) -> _T:
    """Something with the bucket, which is made if it is not there.

    Raises:
        LinkError: it failed, or what is asked for is not there.
    """

    async def do(disk: JetStreamContext) -> _T:
        try:
            bucket = await disk.object_store(_BUCKET)
        except NotFoundError:
            bucket = await disk.create_object_store(_BUCKET)
        return await doing(bucket)

    try:
        return link.on_disk(do, timeout_s)
    except LinkError as error:
        if isinstance(error.__cause__, NotFoundError):
            raise LinkError(
                "the broker does not have the run's bundle, or not all of it. Copy the server's "
                "bundle here, and name it with --bundle."
            ) from error
        raise
