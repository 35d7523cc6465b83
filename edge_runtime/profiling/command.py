"""``pairzero-device profile``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import msgspec

from edge_runtime.bundle import FLOAT32, INT8, Bundle
from edge_runtime.profiling import memory, show
from edge_runtime.profiling.prediction import (
    Dimensions,
    Prediction,
    dimensions_named,
    dimensions_of,
    predict,
)
from edge_runtime.profiling.profile import (
    Profile,
    ProfileSettings,
    base_bytes,
    profile,
)
from edge_runtime.protocol.errors import ProfileError
from edge_runtime.protocol.rounds import MAX_DIRECTIONS, Difference
from edge_runtime.trainable import TRAINABLE_ALL

_MOST_ROUNDS = 100_000


def run(args: argparse.Namespace) -> int:
    """Profile, or predict; returns the exit code."""
    for file in (args.json, args.plot):
        if file is not None:
            _check_can_be_written(file)
    if args.dimensions is not None:
        model = dimensions_named(args.dimensions)
        _check_shape(model, args.batch, args.seq)
        entries = model.entries(args.store, args.trainable)
        moves = args.trainable or (None if args.store == INT8 else TRAINABLE_ALL)
        found = predict(
            model, entries, moves, batch=args.batch, seq=args.seq, base=base_bytes(args.threads)
        )
        _say(show.predicted(model, found, args.batch, args.seq))
        if args.json is not None:
            _write(
                args.json, msgspec.json.encode({"peak": found.peak, **dataclasses.asdict(found)})
            )
        return 0
    if args.store != FLOAT32:
        raise ProfileError("--store goes with --dimensions: a bundle says how it is stored.")
    settings = _settings(args)
    opened: list[tuple[Dimensions, Bundle]] = []

    def predicted(base: int) -> Prediction:
        ((model, bundle),) = opened
        return predict(
            model, bundle.manifest.tensors, settings.trainable,
            batch=args.batch, seq=args.seq, base=base,
        )  # fmt: skip

    def check(bundle: Bundle) -> None:
        model = dimensions_of(bundle.manifest.architecture, str(args.bundle))
        opened.append((model, bundle))
        _check_there_is_room(predicted(0).peak, force=args.force)

    def keep(found: Profile) -> None:
        if args.json is not None:
            _write(args.json, msgspec.json.encode(found))

    result = profile(settings, keep, check=check)
    _say(show.table(result))
    _say(show.predicted(opened[0][0], predicted(result.base_bytes), args.batch, args.seq))
    if args.plot is not None:
        _write(args.plot, show.picture(result).encode())
    return 0


def _settings(args: argparse.Namespace) -> ProfileSettings:
    for name, most in (("directions", MAX_DIRECTIONS), ("rounds", _MOST_ROUNDS)):
        if not 1 <= getattr(args, name) <= most:
            raise ProfileError(f"--{name}: got {getattr(args, name)}, wanted 1 to {most}.")
    return ProfileSettings(
        bundle=args.bundle,
        batch=args.batch,
        seq=args.seq,
        directions=args.directions,
        difference=Difference(args.difference),
        trainable=tuple(args.trainable or ["*"]),
        threads=args.threads,
        rounds=args.rounds,
    )


def _check_shape(model: Dimensions, batch: int, seq: int) -> None:
    if batch < 1:
        raise ProfileError(f"--batch: got {batch}, wanted 1 or more.")
    if not 1 <= seq <= model.max_position_embeddings:
        raise ProfileError(
            f"--seq: got {seq}, wanted 1 to {model.max_position_embeddings}, the model's positions."
        )


def _check_there_is_room(more: int, *, force: bool) -> None:
    available = memory.available_bytes()
    if more > available and not force:
        raise ProfileError(
            f"a step would take {more / 1e6:,.0f} MB more, and {available / 1e6:,.0f} MB are free. "
            "Ask for a smaller batch or shorter prompts, or see what becomes of it with --force: "
            "what --json names keeps the phases before the end."
        )


def _check_can_be_written(file: Path) -> None:
    """Found before the work is done; nothing is left there."""
    try:
        is_new = not file.exists()
        with file.open("ab"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        raise ProfileError(f"{file}: could not be written ({error.strerror}).") from error


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all, also where the program is killed for memory in the middle."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(file)
    except OSError as error:
        raise ProfileError(f"{file}: could not be written ({error.strerror}).") from error


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
