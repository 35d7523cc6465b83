"""How many of a run's secrets can be guessed from all that its server has seen?

Every example of a small training set is a canary, with a label drawn at random: a coin says
whether it takes part or is zeroed out (its place stays, as the promise has it). One whole run is
made, from the command's own classes, over the software air. The attacker is the server: it has the
seeds, every step and every mean it received, so it replays the weights, computes what each canary
would have said in each round, and scores it by the likelihood ratio of what was received. It calls
the highest scores in and the lowest out; how many are right is a lower bound on epsilon (Steinke,
Nasr and Jagielski 2023; `server.privacy.audit`), for all numbers of guesses together wrong once in
a thousand.

The last row has no noise and no promise: it shows that the attack sees what there is to see.
Resumes; a run and its replay take a few minutes::

    python benchmarks/one_run_audit.py one_run.jsonl
    python benchmarks/one_run_audit.py one_run.jsonl --show --json one_run_audit.json
    python benchmarks/one_run_audit.py quick.jsonl --quick
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from study import Study

from edge_runtime.agent import DeviceAgent
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.rounds import RoundPlan, RoundResult
from edge_runtime.spsa import clip_to_ball
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import Prompt, PromptSet
from radio.arrays import Float64Array
from server.config.files import load_config
from server.config.run_config import RunConfig
from server.privacy.audit import epsilon_from_guesses
from server.run.data import RunData, load_run_data
from server.run.experiment import Experiment
from server.store.records import RoundRow

EPSILONS = (1.0, 4.0, 16.0, None)
SEEDS = (0,)
RECORDS_PER_DEVICE, NUM_DEVICES = 100, 5
ALPHA = 1e-3
PARTS_GUESSED = (0.05, 0.1, 0.25, 0.5, 1.0)
ROWS = 50


class SomeZeroedOut:
    """A device's records, of which some keep their places and contribute nothing."""

    def __init__(self, prompts: PromptSet, takes_part: npt.NDArray[np.bool_]) -> None:
        self._prompts = prompts
        self._takes_part = takes_part

    def __len__(self) -> int:
        return len(self._prompts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompts, name)

    def chosen(self, indices: Iterable[int]) -> list[Prompt]:
        """Of those chosen, the ones that take part."""
        return self._prompts.chosen(int(i) for i in indices if self._takes_part[int(i)])


def write_canaries(path: Path, num: int, rng: np.random.Generator) -> None:
    """Training commands of the bundled task under labels drawn at random."""
    task, folder = load_task("snips")
    lines = (folder / task.train).read_text("utf-8").splitlines()
    chosen = rng.choice(len(lines), num, replace=False)
    texts = [lines[i].partition("\t")[2] for i in chosen]
    labels = rng.choice(task.labels, num)
    path.write_text("".join(f"{a}\t{b}\n" for a, b in zip(labels, texts, strict=True)), "utf-8")


def one_run(epsilon: float | None, seed: int, rounds: int, per_device: int) -> dict[str, Any]:
    """A run with canaries, attacked."""
    rng = np.random.default_rng([seed, 2305])
    with tempfile.TemporaryDirectory() as folder:
        write_canaries(Path(folder) / "canaries.tsv", NUM_DEVICES * per_device, rng)
        config = load_config(
            "snips",
            {
                "task.train": f"{folder}/canaries.tsv",
                **({"privacy.epsilon": epsilon} if epsilon else {"privacy.enabled": False}),
                "federation.num_devices": NUM_DEVICES,
                "optimizer.rounds": rounds,
                # Labels at random teach nothing; weights need not go far.
                "optimizer.learning_rate": 1e-3,
                "run.seed": seed,
                "run.evaluation_interval": rounds,
            },
        )
        data = load_run_data(config)
        takes_part = rng.random((NUM_DEVICES, per_device)) < 0.5
        with_some = dataclasses.replace(
            data,
            device_prompts=tuple(
                cast(PromptSet, SomeZeroedOut(prompts, there))
                for prompts, there in zip(data.device_prompts, takes_part, strict=True)
            ),
        )
        with patch("server.run.experiment.load_run_data", lambda _: with_some):
            run = Experiment.start(config, Path(folder) / "run")
        try:
            run.run()
            rows = run.store.rounds()
            results = list(run.store.results(run.loop.run_id))
            claimed = run.pricing.epsilon_spent()
        finally:
            run.close()
        scores = attack(config, data, rows, results)
    return {
        "epsilon": epsilon, "seed": seed, "rounds": rounds, "claimed": claimed,
        "canaries": takes_part.size, "guesses": guesses(scores.ravel(), takes_part.ravel()),
    }  # fmt: skip


def attack(
    config: RunConfig, data: RunData, rows: Sequence[RoundRow], results: Sequence[RoundResult]
) -> Float64Array:
    """The score of every canary [K, records]: a sum of log likelihood ratios."""
    weights = ParameterStore.from_bundle(data.bundle, config.model.trainable, 2)
    forward = OnnxForward(data.bundle, weights, label_token_ids=data.label_token_ids, num_workers=2)
    agent = DeviceAgent(
        host="attacker", run_id="", devices=[], store=weights, forward=forward, max_rows=ROWS
    )
    optimizer = config.optimizer
    scores = np.zeros((len(data.device_prompts), len(data.device_prompts[0])))
    everybody = [prompts.chosen(range(len(prompts))) for prompts in data.device_prompts]
    rate = min(1.0, optimizer.batch_size / scores.shape[1])
    try:
        for row, result in zip(rows, results, strict=True):
            plan = RoundPlan(
                run_id="",
                round_index=row.round_index,
                direction_seed=row.direction_seed,
                num_directions=optimizer.directions,
                difference=optimizer.difference,
                direction_generator=GENERATOR,
                perturbation_scale=2.0**optimizer.perturbation_scale_log2,
                clip=optimizer.clip,
                batch_size=optimizer.batch_size,
                access=config.access,
                vote=config.vote,
                frame_start_sample=0,
                orders=(),
            )
            said = [
                clip_to_ball(gradients, optimizer.clip) / optimizer.batch_size
                for gradients in agent.measure_gradients(plan, everybody)
            ]
            scores += _log_ratios(np.stack(said), row, rate)
            weights.apply_step(result)
    finally:
        agent.close()
    return scores


def _log_ratios(said: Float64Array, row: RoundRow, rate: float) -> Float64Array:
    """Of one round [K, records]: what each canary would have said, in what was received.

    The others' numbers are noise as well: half of them take part, and of those a share is drawn.
    """
    received = np.array(row.mean_estimates) * row.num_speakers
    everybody = said.reshape(-1, said.shape[-1])
    expected = 0.5 * rate * everybody.sum(axis=0)
    others = 0.5 * rate * np.square(everybody).sum(axis=0)
    noise = (row.artificial_noise_std**2 + row.receiver_noise_std**2) * row.num_speakers**2
    variances = others + noise
    residual = received - expected
    exponents = ((2.0 * residual - said) * said / (2.0 * variances)).sum(axis=-1)
    ratios: Float64Array = np.logaddexp(np.log1p(-rate), np.log(rate) + exponents)
    return ratios


def guesses(scores: Float64Array, takes_part: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """For each number of guesses, how many were right."""
    order = np.argsort(scores)
    found = []
    for part in PARTS_GUESSED:
        half = max(1, round(part * len(order) / 2))
        right = int(takes_part[order[-half:]].sum() + (~takes_part[order[:half]]).sum())
        found.append({"guesses": 2 * half, "right": right})
    return found


def proved(row: dict[str, Any], delta: float) -> float:
    """The lower bound on epsilon, whatever number of guesses gives the best one."""
    return max(
        epsilon_from_guesses(
            guess["right"], guess["guesses"], row["canaries"],
            delta=delta, alpha=ALPHA / len(PARTS_GUESSED),
        )
        for guess in row["guesses"]
    )  # fmt: skip


def main() -> None:
    study = Study(__doc__, quick="two short runs")
    args = study.begin()
    wanted = [(epsilon, seed) for seed in SEEDS for epsilon in EPSILONS]
    rounds, per_device = (450, RECORDS_PER_DEVICE)
    if args.quick:
        wanted, rounds, per_device = [(1.0, 0), (None, 0)], 30, 30
    for epsilon, seed in study.missing(wanted, lambda row: (row["epsilon"], row["seed"])):
        row = one_run(epsilon, seed, rounds, per_device)
        study.add(row, f"epsilon {epsilon}, seed {seed}")
    delta = load_config("snips", {}).privacy.delta
    print("claimed   proved   right guesses of how many")
    for row in study.rows:
        row["proved"] = proved(row, delta)
        claimed = "none" if row["claimed"] is None else f"{row['claimed']:.3f}"
        cells = ", ".join(f"{g['right']}/{g['guesses']}" for g in row["guesses"])
        print(f"{claimed:>7}{row['proved']:9.3f}   {cells}")
    study.finish(delta=delta, alpha=ALPHA, runs=study.rows)


if __name__ == "__main__":
    main()
