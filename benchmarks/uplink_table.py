r"""What a run sends: bits, symbols and airtime, a round and until it has learnt, beside FedAvg.

The preset `snips` over each waveform, epsilon 1, privacy and radio as the preset has them for it:
after how many rounds the accuracy on the validation file, looked at every ten, first reaches each
level, and what one device has sent by then; a run ends when it has reached the last. Beside it
FedAvg with one local step a round, on the same devices, batches and tensors: torch's gradient of
all examples, the best of three rates, no privacy, and no error of a radio; each device sends its
gradient, 16 bits a weight, in packets as those of `slotted` have bits, one device after another.
An analogue waveform has symbols and no bits; a symbol is a complex sample at the sample rate.
Airtime is all devices' together.

    python benchmarks/uplink_table.py uplink.jsonl --json uplink.json     # 9 runs, 20 minutes
    python benchmarks/uplink_table.py quick.jsonl --quick                 # 2 runs of 20 rounds

FedAvg needs the [export] extra.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.parameters import ParameterStore
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import PromptSet, load_tokenizer, read_examples
from edge_runtime.trainable import select_trainable
from radio.waveforms.slotted import SlottedWaveform
from server.air.uplink_use import uplink_use
from server.config.files import load_config
from server.model.tuned import HUGGING_FACE_FOLDER, load_model, save_model
from server.run.experiment import Experiment, Progress

WAVEFORMS = ("coherent", "energy", "slotted", "vote", "coherent_vote")
LEVELS = (0.80, 0.85, 0.88)
RATES = (0.03, 0.1, 0.3)
EVERY, QUICK_ROUNDS, FEDAVG_ROUNDS = 10, 20, 200
BITS_A_WEIGHT = 16

Curve = list[tuple[int, float]]


class HasLearnt(Exception):  # noqa: N818
    """The last level is reached; what comes after it is not asked for."""


def over_the_air(waveform: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A run of the preset: its curve, and what a device sends in a round."""
    settings = {"radio.waveform": waveform, "run.evaluation_interval": EVERY, **changes}
    config = load_config("snips", settings)
    curve: Curve = []

    def note(progress: Progress) -> None:
        if (e := progress.evaluation) is not None:
            curve.append((e.num_rounds, round(e.accuracy, 4)))
            if e.accuracy >= LEVELS[-1]:
                raise HasLearnt

    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.start(config, Path(folder) / "run")
        try:
            with contextlib.suppress(HasLearnt):
                experiment.run(note)
        finally:
            experiment.close()
    num_devices, numbers = config.federation.num_devices, config.optimizer.directions
    rounds = config.optimizer.rounds
    use = uplink_use(config.radio, num_devices, numbers, rounds, 0.0)
    bits: int | None = None
    if waveform == "slotted":
        bits = SlottedWaveform(num_scalars=numbers).num_bits
    elif waveform.endswith("vote"):
        bits = numbers
    return {
        "cell": waveform,
        "curve": curve,
        "numbers": numbers,
        "bits": bits,
        "symbols": use.payload_symbols + use.pilot_symbols,
        "airtime_s": use.airtime_s,
        "rate_hz": config.radio.rate_hz,
    }


def fedavg(rate: float, rounds: int) -> dict[str, Any]:
    """One local step a round of the preset's devices: a step along the mean of their gradients."""
    import torch
    from transformers import OPTForCausalLM

    config = load_config("snips", {})
    task, where = load_task(config.task.name)
    bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    tokenizer = load_tokenizer(bundle.tokenizer_path)
    sets = [
        PromptSet(read_examples(where / name, task), task, tokenizer, config.task.max_tokens)
        for name in (task.train, task.validation)
    ]
    words = torch.tensor(bundle.manifest.label_token_ids)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_model(load_model(BUNDLED_MODEL_FOLDER), Path(folder) / "model")
        model = OPTForCausalLM.from_pretrained(saved / HUGGING_FACE_FOLDER).eval()
    names = [name for name, _ in model.named_parameters()]
    moves = dict(zip(names, select_trainable(names, config.model.trainable), strict=True))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(moves[name])
    trained = [p for p in model.parameters() if p.requires_grad]

    def scores(prompts: PromptSet, chosen: Any) -> tuple[Any, Any]:
        batch = prompts.batch(chosen)
        hidden = model.model(input_ids=torch.from_numpy(batch.input_ids)).last_hidden_state
        at_answers = hidden.flatten(0, 1)[torch.from_numpy(batch.answer_position)]
        return at_answers @ model.lm_head.weight[words].T, torch.from_numpy(batch.target)

    def accuracy() -> float:
        right = 0
        with torch.inference_mode():
            for start in range(0, len(sets[1]), 100):
                found, target = scores(sets[1], range(start, min(start + 100, len(sets[1]))))
                right += int((found.argmax(1) == target).sum())
        return right / len(sets[1])

    rng = np.random.default_rng(0)
    size = config.federation.num_devices * config.optimizer.batch_size
    curve: Curve = [(0, round(accuracy(), 4))]
    for number in range(1, rounds + 1):
        found, target = scores(sets[0], rng.choice(len(sets[0]), size, replace=False))
        loss = torch.nn.functional.cross_entropy(found, target)
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.data.sub_(rate * gradient)
        if number % EVERY == 0:
            curve.append((number, round(accuracy(), 4)))
            if curve[-1][1] >= LEVELS[-1]:
                break
    weights = ParameterStore.from_bundle(bundle, config.model.trainable).num_trainable
    packets = SlottedWaveform(num_scalars=config.optimizer.directions)
    bits = BITS_A_WEIGHT * weights
    samples = bits * packets.samples_per_symbol
    return {
        "cell": f"FedAvg, rate {rate}",
        "curve": curve,
        "numbers": weights,
        "bits": bits,
        "symbols": float(samples),
        "airtime_s": config.federation.num_devices * samples / packets.sample_rate_hz,
        "rate_hz": packets.sample_rate_hz,
    }


def rounds_to(curve: Curve, level: float) -> int | None:
    """The first evaluation that reaches it."""
    return next((rounds for rounds, accuracy in curve if accuracy >= level), None)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with what was sent until each level."""
    best = min(
        (row for row in rows if row["cell"].startswith("FedAvg")),
        key=lambda row: (rounds_to(row["curve"], LEVELS[-1]) or 10**9, -row["curve"][-1][1]),
        default=None,
    )
    shown = []
    for row in rows:
        if row["cell"].startswith("FedAvg") and row is not best:
            continue
        until = {}
        for level in LEVELS:
            if (rounds := rounds_to(row["curve"], level)) is not None:
                until[f"{level:.0%}"] = {
                    "rounds": rounds,
                    "bits": None if row["bits"] is None else rounds * row["bits"],
                    "symbols": rounds * row["symbols"],
                    "airtime_s": rounds * row["airtime_s"],
                }
        shown.append(row | {"until": until})
        bits = "analogue" if row["bits"] is None else f"{row['bits']:,} bits"
        reached = ", ".join(
            f"{level}: {u['rounds']} rounds, {u['airtime_s']:.3g} s" for level, u in until.items()
        )
        print(
            f"{row['cell']:18s}{bits:>16s}{row['symbols']:14,.0f} symbols"
            f"{1e3 * row['airtime_s']:12,.2f} ms a round; {reached}"
        )
    return shown


def main() -> None:
    study = Study(__doc__, quick="coherent and FedAvg, 20 rounds")
    args = study.begin()
    cells = [*WAVEFORMS, *(f"FedAvg, rate {rate}" for rate in RATES)]
    if args.quick:
        cells = ["coherent", "FedAvg, rate 0.1"]
    for cell in study.missing(cells, lambda row: row["cell"]):
        if cell.startswith("FedAvg"):
            rounds = QUICK_ROUNDS if args.quick else FEDAVG_ROUNDS
            row = fedavg(float(cell.rpartition(" ")[2]), rounds)
        else:
            row = over_the_air(cell, {"optimizer.rounds": QUICK_ROUNDS} if args.quick else {})
        study.add(row, f"{cell}: {row['curve'][-1][1]:.1%}")
    order = [row["cell"] for row in study.rows]
    rows = [study.rows[order.index(cell)] for cell in cells if cell in order]
    study.finish(levels=LEVELS, bits_a_weight=BITS_A_WEIGHT, rows=table(rows))


if __name__ == "__main__":
    main()
