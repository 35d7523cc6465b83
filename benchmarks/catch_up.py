r"""What it costs a host to catch up: with 5,000 rounds from a broker's log, and with a bundle.

``steps``: the log of 5,000 rounds of the ``snips`` preset (eight directions) is read, checked,
taken and written into the host's own journal, by the product's own parts; beside it, by turns, a
replay of the same steps from memory with a numpy generator for each tensor and direction, which is
what defines their words. CPU time of the process, the link's thread included; all end with one
digest. ``fetch``: the log alone, by the clock. ``bundle``: a bundle of 300 MB; a process that
fetches it is killed (kill -9) at a third of its pieces, and another goes on in the same folder.

    python benchmarks/catch_up.py catch_up.jsonl --json catch_up.json    # two minutes, alone
    python benchmarks/catch_up.py quick.jsonl --quick                    # 50 rounds, 3 MB
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
from study import Study

from edge_runtime import lattice
from edge_runtime.agent import DeviceAgent
from edge_runtime.bundle import (
    BUNDLED_MODEL_FOLDER,
    WEIGHTS_FILE,
    file_digest,
    open_bundle,
    write_manifest,
)
from edge_runtime.control import bundle_store
from edge_runtime.control.bundle_store import fetch, publish
from edge_runtime.control.nats_link import NatsLink
from edge_runtime.control.step_log import StepLog, read_steps
from edge_runtime.forward import OnnxForward
from edge_runtime.joining.in_step import InStep
from edge_runtime.joining.journal import Journal
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol import direction
from edge_runtime.protocol.rounds import RoundResult
from edge_runtime.tasks import label_token_ids, load_tokenizer
from server.config.files import load_config
from server.hosts.broker import Broker
from server.run.environment import peak_rss_mb

RUN_ID = "catch-up"
TURNS = 5
ROUNDS, QUICK_ROUNDS = 5000, 50
WEIGHTS_BYTES, QUICK_WEIGHTS_BYTES = 300_000_000, 3_000_000
QUICK_PIECE_BYTES = 1 << 18
_FETCHER = [sys.executable, __file__, "--fetch"]


def steps_of(num_rounds: int) -> list[RoundResult]:
    """As those of a run are: large integers of either sign."""
    return [
        RoundResult(
            RUN_ID,
            index,
            direction.derive_direction_seed(0, index),
            tuple((-1) ** (index + q) * (q + 1) * 12345678 for q in range(8)),
        )
        for index in range(num_rounds)
    ]


def weights() -> ParameterStore:
    """A host's, before the first round."""
    trainable = load_config("snips").model.trainable
    return ParameterStore.from_bundle(open_bundle(BUNDLED_MODEL_FOLDER), trainable, 1)


def replayed(steps: list[RoundResult]) -> dict[str, Any]:
    """From memory, with a generator for each word."""
    store = weights()
    with patch.object(lattice, "rounding_word", direction.rounding_word):
        begun = time.process_time()
        store.replay(steps)
        store.settle()
        taken_s = time.process_time() - begun
    return {"cpu_s": taken_s, "digest": store.digest()}


def caught_up(link: NatsLink, folder: Path) -> dict[str, Any]:
    """From the log, as a host does that was away from the first round on."""
    bundle, store = open_bundle(BUNDLED_MODEL_FOLDER), weights()
    words = label_token_ids(bundle.manifest.task, load_tokenizer(bundle.tokenizer_path))
    agent = DeviceAgent(
        host="away",
        run_id=RUN_ID,
        devices=[],
        store=store,
        forward=OnnxForward(bundle, store, label_token_ids=words),
    )
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.closing(agent), contextlib.closing(Journal(folder / "j", RUN_ID)) as journal:
        begun, begun_s = time.process_time(), time.perf_counter()
        InStep(link, agent, journal).come_back()
        store.settle()
        taken_s, wall_s = time.process_time() - begun, time.perf_counter() - begun_s
        return {"cpu_s": taken_s, "wall_s": wall_s, "digest": store.digest()}


def fetched(link: NatsLink, steps: list[RoundResult]) -> dict[str, Any]:
    """The log alone."""
    begun_s = time.perf_counter()
    if list(read_steps(link, RUN_ID, 0, len(steps))) != steps:
        raise SystemExit("the log holds other steps")
    return {"wall_s": time.perf_counter() - begun_s}


def large_bundle(folder: Path, num_bytes: int) -> str:
    """A bundle whose weights are so large (and none); its digest."""
    shutil.copytree(BUNDLED_MODEL_FOLDER, folder)
    (folder / WEIGHTS_FILE).write_bytes(np.random.default_rng(0).bytes(num_bytes))
    manifest = open_bundle(BUNDLED_MODEL_FOLDER).manifest
    digests = {**manifest.digests, WEIGHTS_FILE: file_digest(folder / WEIGHTS_FILE)}
    write_manifest(folder, msgspec.structs.replace(manifest, digests=digests))
    return open_bundle(folder).digest


def be_a_fetcher(url: str, digest: str, folder: str, piece_bytes: str) -> None:
    """The other process."""
    bundle_store.PIECE_BYTES = int(piece_bytes)
    with contextlib.closing(NatsLink(url, "fetcher")) as link:
        fetch(link, digest, Path(folder), lambda line: print(line, flush=True))
    print(f"peak {peak_rss_mb():.0f}", flush=True)


def killed_at_a_third(num_bytes: int, piece_bytes: int) -> dict[str, Any]:
    """Seconds of what was killed, and of what went on; how many pieces each fetched."""
    bundle_store.PIECE_BYTES = piece_bytes
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        broker = opened.enter_context(Broker())
        link = opened.enter_context(contextlib.closing(NatsLink(broker.url, "server")))
        digest = large_bundle(folder / "bundle", num_bytes)
        begun_s = time.perf_counter()
        num_pieces = publish(link, open_bundle(folder / "bundle"))
        published_s = time.perf_counter() - begun_s
        row: dict[str, Any] = {"pieces": num_pieces, "published_s": published_s}
        for name, most in (("killed", num_pieces // 3), ("went on", num_pieces)):
            command = [*_FETCHER, broker.url, digest, str(folder / "got"), str(piece_bytes)]
            begun_s, number, peak_mb = time.perf_counter(), 0, 0.0
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    number += ", piece " in line
                    if line.startswith("peak"):
                        peak_mb = float(line.split()[1])
                    if name == "killed" and number == most:
                        process.kill()
                        break
            row[name] = {"pieces": number, "s": time.perf_counter() - begun_s, "peak_mb": peak_mb}
        if open_bundle(folder / "got").digest != digest:
            raise SystemExit("it is another bundle")
    return row


def main() -> None:
    if sys.argv[1:2] == ["--fetch"]:
        be_a_fetcher(*sys.argv[2:])
        return
    study = Study(__doc__, quick="few rounds, a small bundle, two turns")
    args = study.begin()
    num_rounds, turns = (QUICK_ROUNDS, 2) if args.quick else (ROUNDS, TURNS)
    steps = steps_of(num_rounds)
    kinds = ("replayed", "caught up", "fetched")
    wanted = [(turn, kind) for turn in range(turns) for kind in kinds]
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        broker = opened.enter_context(Broker())
        link = opened.enter_context(contextlib.closing(NatsLink(broker.url, "host")))
        StepLog(link, RUN_ID, lambda first: steps[first:])
        for turn, kind in study.missing(wanted, lambda row: (row["turn"], row["kind"])):
            if kind == "replayed":
                found = replayed(steps)
            elif kind == "caught up":
                found = caught_up(link, folder / "host")
            else:
                found = fetched(link, steps)
            study.add({"turn": turn, "kind": kind, **found}, f"{kind}: {found}")
    for turn, kind in study.missing([(0, "bundle")], lambda row: (row["turn"], row["kind"])):
        found = killed_at_a_third(
            QUICK_WEIGHTS_BYTES if args.quick else WEIGHTS_BYTES,
            QUICK_PIECE_BYTES if args.quick else bundle_store.PIECE_BYTES,
        )
        study.add({"turn": turn, "kind": kind, **found}, f"{kind}: {found}")
    rows = {kind: [r for r in study.rows if r["kind"] == kind] for kind in (*kinds, "bundle")}
    if len({row["digest"] for kind in kinds[:2] for row in rows[kind]}) != 1:
        raise SystemExit("the weights differ")
    cpu_s = {kind: min(row["cpu_s"] for row in rows[kind]) for kind in kinds[:2]}
    ratio = cpu_s["caught up"] / cpu_s["replayed"]
    fetched_s = max(row["wall_s"] for row in rows["fetched"])
    print(f"{num_rounds} rounds: {cpu_s['caught up']:.2f} s of CPU, {ratio:.2f} of a replay with a "
          f"generator each; fetching took at most {fetched_s:.2f} s")  # fmt: skip
    study.finish(
        rounds=num_rounds, best_cpu_s=cpu_s, ratio=ratio, fetched_s=fetched_s,
        bundle=rows["bundle"][0], rows=study.rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
