"""Can anybody tell from the receiver's sums whether one record took part, better than epsilon says?

Every release goes the whole way: a device agent draws its batch, clips, rounds and adds discrete
noise; the coherent waveform and the software air carry two devices' samples; the receiver
demodulates the sum. Scripted are the losses alone: those of the canary, device 0's first record,
differ as much as floats do, all others not at all, so that the canary moves its device's number by
the whole clip. With and without it 100,000 releases each; the likelihood ratio is compared with
nine thresholds that were fixed beforehand, and what the counts prove is a lower bound on epsilon
(`server.privacy.audit`, all thresholds together wrong once in a million). Sound cells must stay
below the claim, and four defects must be caught: noise halved, clip doubled, a sampling rate that
is not the declared one, noise keys used twice. Resumes; 20 minutes::

    python benchmarks/privacy_audit.py audit.jsonl
    python benchmarks/privacy_audit.py audit.jsonl --show --json privacy_audit.json
    python benchmarks/privacy_audit.py quick.jsonl --quick
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from edge_runtime.agent import DeviceAgent, DeviceLimits, VirtualDevice
from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.control.inprocess import InProcessChannel
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.direction import GENERATOR, derive_direction_seed
from edge_runtime.protocol.rounds import RoundPlan, RoundResult
from edge_runtime.tasks import Batch, PromptSet
from server.config import RunConfig, load_config
from server.environment import environment
from server.planning import plan_round
from server.privacy.audit import epsilon_from_rates
from server.privacy_terms import PrivacyTerms, plan_privacy_terms
from server.radio_link import build_radio_link

EPSILON, DELTA, ALPHA = 2.0, 1e-5, 1e-6
NUM_RELEASES, CHUNK = 100_000, 10_000
THRESHOLDS = tuple(part * EPSILON for part in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0))
"""Of the log likelihood ratio, under what is claimed."""

CANARY = 1
"""Target of its row; every other row has 0."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A setting, and what is wrong with it.

    Attributes:
        rounds: of a run, all with the canary in reach.
        declared: records that each device says it has; one of them is drawn on average.
        held: records that it has.
        noise: part of the charged noise that is added.
        clip: times the declared one.
        reuses_noise: every round has the noise of the first.
    """

    rounds: int = 1
    declared: int = 1
    held: int = 1
    noise: float = 1.0
    clip: float = 1.0
    reuses_noise: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether it is as it says."""
        return self == Cell(self.rounds, self.declared, self.declared)


CELLS = {
    "one round": Cell(),
    "two rounds": Cell(rounds=2),
    "one in ten is drawn": Cell(declared=10, held=10),
    "noise halved": Cell(noise=0.5),
    "clip doubled": Cell(clip=2.0),
    "rate misdeclared": Cell(declared=10, held=1),
    "noise key reused": Cell(rounds=2, reuses_noise=True),
}


class Rows:
    """A device's records: so many, the canary first, or its empty place."""

    def __init__(self, num_records: int, *, has_canary: bool) -> None:
        self._targets = np.zeros(num_records, dtype=np.int64)
        self._targets[0] = CANARY if has_canary else 0

    def __len__(self) -> int:
        return len(self._targets)

    def batches_by_length(self, indices: Sequence[int], max_rows: int) -> list[Batch]:
        """The chosen ones, in one batch."""
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size == 0:
            return []
        rows = np.ones((chosen.size, 1), dtype=np.int64)
        return [Batch(rows, rows, self._targets[chosen])]


class Losses:
    """Scripted: the canary's is 1e6 on one side and -1e6 on the other, everybody else's is 0."""

    sign = 1.0
    """Of the canary's projected gradient; the attacker chooses it."""

    def __init__(self) -> None:
        self._side = 1.0

    def begin(self, batches: Sequence[Batch]) -> list[Batch]:
        """Nothing to compute."""
        return list(batches)

    def finish(self, begun: Sequence[Batch]) -> list[SimpleNamespace]:
        """On one side of the weights, and at the next call on the other."""
        height, self._side = self._side * self.sign * 1e6, -self._side
        return [
            SimpleNamespace(losses=np.where(batch.target == CANARY, height, 0.0).astype("f4"))
            for batch in begun
        ]

    def close(self) -> None:
        """Nothing to let go of."""


class SameNoiseEveryRound(PrivateRandom):
    """The defect: the name of the release does not reach the stream."""

    run = 0

    def circular_draws(self, release: str, sigma: int, num: int) -> tuple[tuple[int, int], ...]:
        """The run's, whatever the round."""
        return super().circular_draws(f"run {self.run}", sigma, num)


class Pipeline:
    """Two devices, the air and a receiver, for one cell."""

    def __init__(self, cell: Cell, *, has_canary: bool, seed: int) -> None:
        self.cell = cell
        self.config = load_config(
            "snips",
            {
                "privacy.epsilon": EPSILON,
                "privacy.delta": DELTA,
                "federation.num_devices": 2,
                "optimizer.rounds": cell.rounds,
                "optimizer.directions": 1,
                "optimizer.difference": "two_sided",
                "optimizer.batch_size": 1,
                "radio.snr_db": 40.0,
                "radio.channel": "awgn",
                "radio.coherence_rounds": 1_000_000,
                "run.seed": seed,
            },
        )
        make = SameNoiseEveryRound if cell.reuses_noise else PrivateRandom
        self.keys = [
            make(seed.to_bytes(16, "little") + bytes([k, has_canary] + [0] * 14)) for k in (0, 1)
        ]
        commitments = [key.commitment for key in self.keys]
        self.terms = plan_privacy_terms(self.config, [cell.declared] * 2, commitments)
        self.link = build_radio_link(self.config)
        bundle = open_bundle(BUNDLED_MODEL_FOLDER)
        store = ParameterStore.from_bundle(bundle, ["*final_layer_norm.bias"], 1)
        self.losses = Losses()
        agent = DeviceAgent(
            host="audit",
            run_id="audit",
            devices=[
                VirtualDevice(
                    k,
                    cast(PromptSet, Rows(cell.held, has_canary=has_canary and k == 0)),
                    self.keys[k],
                    self.link.uplinks[k],
                    # The defects are beyond what an honest device allows itself.
                    DeviceLimits(
                        max_clip=cell.clip * self.config.optimizer.clip,
                        min_batch_size=1,
                        is_private=True,
                    ),
                )
                for k in (0, 1)
            ],
            store=store,
            forward=cast(OnnxForward, self.losses),
        )
        self.control = InProcessChannel([agent])

    def close(self) -> None:
        """Silence and end everything."""
        self.control.close()
        self.link.close()

    def transcripts(self, num: int) -> Iterator[tuple[list[float], list[float]]]:
        """Of so many runs: each round's sum, and the canary's place in it under the claim."""
        air, clip = self.link.air, self.config.optimizer.clip
        channel = air.learn_channel(self.control, "audit", 0)
        planned = [
            plan_round(self.config, self.terms, t, channel, self.link.noise_symbols).power
            for t in range(self.cell.rounds)
        ]
        for run in range(num):
            for key in self.keys:
                if isinstance(key, SameNoiseEveryRound):
                    key.run = run
            sums, shifts = [], []
            for t, power in enumerate(planned):
                self.losses.sign = -1.0 if t % 2 else 1.0
                shifts.append(self.losses.sign * clip)
                orders = [
                    msgspec.structs.replace(
                        order, artificial_noise_std=self.cell.noise * order.artificial_noise_std
                    )
                    for order in power.orders()
                ]
                index = run * self.cell.rounds + t
                plan = _plan(self.config, index, orders, self.cell.clip * clip)
                heard = air.carry(self.control, plan, power, lambda speakers: None, lambda: None)
                sums.append(heard.sums[0])
                self.control.broadcast(RoundResult("audit", index, plan.direction_seed, (0,)))
            yield sums, shifts


def _plan(config: RunConfig, index: int, orders: Sequence[Any], clip: float) -> RoundPlan:
    return RoundPlan(
        run_id="audit",
        round_index=index,
        direction_seed=derive_direction_seed(config.run.seed, index),
        num_directions=1,
        difference=config.optimizer.difference,
        direction_generator=GENERATOR,
        perturbation_scale=2.0**config.optimizer.perturbation_scale_log2,
        clip=clip,
        batch_size=1,
        access=config.access,
        vote=config.vote,
        frame_start_sample=0,
        orders=tuple(orders),
    )


def log_likelihood_ratio(
    sums: Sequence[float], shifts: Sequence[float], terms: PrivacyTerms, rate: float
) -> float:
    """Canary or not, under the claimed noise and rate."""
    total = 0.0
    for t, (received, shift) in enumerate(zip(sums, shifts, strict=True)):
        std = terms.noise_multiplier(t) * terms.sensitivity
        exponent = (2.0 * received * shift - shift * shift) / (2.0 * std * std)
        # log(1 - q + q e^x), without overflow.
        total += float(np.logaddexp(np.log(rate) + exponent, np.log1p(-rate) if rate < 1 else -700))
    return total


def count(cell: Cell, *, has_canary: bool, num: int, seed: int) -> list[int]:
    """Of so many releases, those whose ratio is above each threshold."""
    pipeline = Pipeline(cell, has_canary=has_canary, seed=seed)
    try:
        rate = pipeline.terms.sampling_probabilities[0]
        ratios = [
            log_likelihood_ratio(sums, shifts, pipeline.terms, rate)
            for sums, shifts in pipeline.transcripts(num)
        ]
    finally:
        pipeline.close()
    return [int(np.count_nonzero(np.array(ratios) > threshold)) for threshold in THRESHOLDS]


def proved(rows: list[dict[str, Any]], name: str) -> tuple[int, float]:
    """Releases of each kind, and the lower bound on epsilon."""
    above = {}
    for has_canary in (True, False):
        of_it = [r for r in rows if r["cell"] == name and r["has_canary"] is has_canary]
        num = sum(row["releases"] for row in of_it)
        above[has_canary] = num, np.sum([row["above"] for row in of_it], axis=0)
    num = above[True][0]
    assert num == above[False][0]
    bounds = [
        epsilon_from_rates(int(hits), int(alarms), num, delta=DELTA, alpha=ALPHA / len(THRESHOLDS))
        for hits, alarms in zip(above[True][1], above[False][1], strict=True)
    ]
    return num, max(bounds)


def conclusions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a cell."""
    found = []
    for name, cell in CELLS.items():
        if not any(row["cell"] == name for row in rows):
            continue
        num, bound = proved(rows, name)
        found.append(
            {
                "cell": name, "is_sound": cell.is_sound, "releases": 2 * num,
                "claimed": EPSILON, "proved": bound,
                "as_it_should_be": (bound <= EPSILON) is cell.is_sound,
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true", help="few releases")
    parser.add_argument("--show", action="store_true", help="run nothing more")
    parser.add_argument("--json", type=Path, help="write everything there, with provenance")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.results.exists():
        rows = [json.loads(line) for line in args.results.read_text("utf-8").splitlines()]
    done = {(row["cell"], row["has_canary"], row["chunk"]) for row in rows}
    chunk_size, num_chunks = (500, 1) if args.quick else (CHUNK, NUM_RELEASES // CHUNK)
    wanted = [
        (name, has_canary, chunk)
        for chunk in range(num_chunks)
        for name in CELLS
        for has_canary in (True, False)
    ]
    for name, has_canary, chunk in [] if args.show else wanted:
        if (name, has_canary, chunk) in done:
            continue
        above = count(CELLS[name], has_canary=has_canary, num=chunk_size, seed=1 + chunk)
        row = {
            "cell": name, "has_canary": has_canary, "chunk": chunk,
            "releases": chunk_size, "above": above,
        }  # fmt: skip
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(f"{name}, canary {has_canary}, chunk {chunk}", file=sys.stderr)
    found = conclusions(rows)
    print(f"{'cell':22}{'releases':>10}{'claimed':>9}{'proved':>9}")
    for line in found:
        kind = "sound" if line["is_sound"] else "defect"
        verdict = "as it should be" if line["as_it_should_be"] else "NOT as it should be"
        print(
            f"{line['cell']:22}{line['releases']:>10,}{line['claimed']:>9.3f}{line['proved']:>9.3f}"
            f"  {kind}, {verdict}"
        )
    if args.json:
        document = {
            "environment": environment(), "delta": DELTA, "alpha": ALPHA,
            "thresholds": THRESHOLDS, "cells": found, "chunks": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
