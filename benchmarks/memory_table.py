r"""One step in memory and time: forward only, zeroth order in each form of weights, first order.

Every cell is a fresh process that carries out some steps on random weights of OPT's dimensions and
says the largest resident memory it ever had (the kernel's VmHWM, loading included) and the median
seconds of a step. All take the same batch and the same loss, that of the label words at each
prompt's end, and all of a model's weights move, but in 8 bits: there the last two layers do, in 16
bits, and the others lie in a mapped file. First order is torch, eager, float32, with the hidden
states gathered at the answers before the head, which is the less of the two ways: its forward pass
alone, plain SGD, and AdamW. A cell whose weights, gradients and moments alone exceed --limit-gb is
not run and says so. Beside it stands what the paper's table II estimates for OPT-125M in 16 bits.

    python benchmarks/memory_table.py memory.jsonl --models DIR --json memory.json   # 30 minutes
    python benchmarks/memory_table.py quick.jsonl --quick                       # OPT-125M, 8x16

Needs the [export] extra. DIR (14 GB) keeps the models; a cell that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.profiling.prediction import KNOWN
from edge_runtime.tasks import Batch
from server.export.bundle_writer import BundleContents, write_bundle
from server.export.families.opt import OptArchitecture
from server.export.families.opt_graph import build_graphs
from server.export.random_models import DIMENSIONS
from server.run.environment import peak_rss_mb

SHAPES = {"125m": (16, 64), "350m": (16, 64), "1.3b": (4, 32)}
QUICK_SHAPES = {"125m": (8, 16)}
LAYERS = {"125m": 12, "350m": 24, "1.3b": 24}
LABELS = (5, 6, 7, 8, 9, 10, 11)
FORMS = {"float32": "float32", "int16": "int16", "int8 mapped": "int8"}
CELLS = (
    "inference", "zeroth order, float32", "zeroth order, int16", "zeroth order, int8 mapped",
    "torch, forward alone", "torch, SGD", "torch, AdamW",
)  # fmt: skip
QUICK_CELLS = (*CELLS[1:4], "torch, AdamW")
BYTES_A_WEIGHT = {"torch, forward alone": 4, "torch, SGD": 8, "torch, AdamW": 16}
PAPER_MB = {"zeroth order": 250.0, "SGD": 600.0, "Adam": 955.58}
"""pAirZero (arXiv 2604.12401), table II: OPT-125M in 16 bits, "estimated minimum"."""


def trainable_of(cell: str, size: str) -> list[str]:
    """What moves."""
    if not cell.endswith("int8 mapped"):
        return ["*"]
    return [f"*.layers.{LAYERS[size] - n}.*" for n in (2, 1)]


def make_bundle(cell: str, size: str, folder: Path) -> Path:
    """A bundle of random weights in the cell's form; the graphs are those of `pairzero export`."""
    form = FORMS.get(cell.removeprefix("zeroth order, "), "float32")
    out = folder / f"{size}-{form}"
    if out.is_dir():
        return out
    from transformers import OPTConfig

    architecture = OptArchitecture.from_config(OPTConfig(**DIMENSIONS[size]))
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in architecture.tensor_shapes().items():
        array = rng.standard_normal(shape, dtype=np.float32)
        array *= np.float32(0.02)
        array += np.float32("norm.weight" in name)
        weights[name] = array.astype(np.float16)
    bundled = open_bundle(BUNDLED_MODEL_FOLDER)
    contents = BundleContents(
        source_model=f"random OPT {size}",
        architecture=architecture,
        task=bundled.manifest.task,
        label_token_ids=LABELS,
        graphs={n: g.SerializeToString() for n, g in build_graphs(architecture).items()},
        weights=weights,
        tokenizer_json=bundled.tokenizer_path.read_text("utf-8"),
        store=form,
        trainable=trainable_of(cell, size) if form == "int8" else (),
    )
    return write_bundle(out, contents)


def made_up(size: str, batch: int, seq: int) -> Batch:
    """The same prompts for everybody."""
    ids = np.random.default_rng(0).integers(4, KNOWN[size].vocab_size, (batch, seq))
    ends = (np.arange(batch) + 1) * seq - 1
    return Batch(ids, ends.astype(np.int64), np.zeros(batch, dtype=np.int64))


def inference(bundle_folder: Path, batch: Batch, threads: int, steps: int) -> dict[str, float]:
    """Forward passes on weights that stay."""
    bundle = open_bundle(bundle_folder)
    store = ParameterStore.from_bundle(bundle, None, threads)
    forward = OnnxForward(bundle, store, intra_op_threads=threads)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        forward.run(batch)
        seconds.append(time.perf_counter() - started)
    return {"step_s": statistics.median(seconds[1:]), "peak_mb": peak_rss_mb()}


def first_order(cell: str, size: str, batch: Batch, threads: int, steps: int) -> dict[str, float]:
    """Steps of torch; of the forward pass alone where nothing is trained."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**DIMENSIONS[size], attn_implementation="eager"))
    is_trained = cell != "torch, forward alone"
    model.train(is_trained).requires_grad_(is_trained)
    optimizer: Any = None
    if cell == "torch, SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    elif is_trained:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids, answers = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.answer_position)
    words, target = torch.tensor(LABELS), torch.from_numpy(batch.target)

    def loss() -> Any:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        scores = hidden.flatten(0, 1)[answers] @ model.lm_head.weight[words].T
        return torch.nn.functional.cross_entropy(scores, target)

    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        if optimizer is None:
            with torch.inference_mode():
                loss()
        else:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return {"step_s": statistics.median(seconds[1:]), "peak_mb": peak_rss_mb()}


def zeroth_order(
    cell: str, size: str, bundle: Path, batch: int, seq: int, threads: int, steps: int
) -> dict[str, float]:
    """Two-sided steps of one direction, in a process of `zeroth_order_step.py`."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("zeroth_order_step.py")), str(bundle),
         "--batch", str(batch), "--seq", str(seq), "--threads", str(threads),
         "--steps", str(steps), "--no-bare", "--trainable", *trainable_of(cell, size)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"{cell}, {size}: {ran.stderr[-2000:]}")
    found = json.loads(ran.stdout)
    return {
        "step_s": found["step_s"],
        "peak_mb": found["peak_rss_mb"],
        "anonymous_mb": found["anonymous_mb"],
        "trainable": found["trainable"],
    }


def run_cell(name: str, size: str, args: argparse.Namespace, models: Path) -> dict[str, Any]:
    """One cell, in a process of its own."""
    batch, seq = (QUICK_SHAPES if args.quick else SHAPES)[size]
    row: dict[str, Any] = {"cell": name, "size": size, "batch": batch, "seq": seq}
    least_gb = BYTES_A_WEIGHT.get(name, 0) * KNOWN[size].num_weights / 1e9
    if least_gb > args.limit_gb:
        return row | {"does_not_fit": f"{least_gb:.1f} GB without activations"}
    steps = 2 if args.quick else args.steps
    if name.startswith("zeroth order"):
        bundle = make_bundle(name, size, models)
        return row | zeroth_order(name, size, bundle, batch, seq, args.threads, steps)
    if name == "inference":
        make_bundle(name, size, models)
    argument = json.dumps([name, size, batch, seq, args.threads, steps, str(models)])
    ran = subprocess.run(
        [sys.executable, __file__, "-", "--cell", argument],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"{name}, {size}: {ran.stderr[-2000:]}")
    return row | json.loads(ran.stdout.splitlines()[-1])


def carry_out(argument: str) -> None:
    """What a process of its own does."""
    name, size, batch, seq, threads, steps, models = json.loads(argument)
    prompts = made_up(size, batch, seq)
    if name == "inference":
        found = inference(make_bundle(name, size, Path(models)), prompts, threads, steps)
    else:
        found = first_order(name, size, prompts, threads, steps)
    print(json.dumps(found))


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with its part of AdamW's peak, or of what AdamW's would be at least."""
    shown = []
    for row in rows:
        adamw = next(r for r in rows if r["size"] == row["size"] and r["cell"] == "torch, AdamW")
        least_mb = 16e-6 * KNOWN[row["size"]].num_weights
        part = row.get("peak_mb", math.nan) / adamw.get("peak_mb", least_mb)
        is_bound = "peak_mb" not in adamw
        shown.append(row | {"part_of_adamw": part, "adamw_is_a_lower_bound": is_bound})
        figures = row.get("does_not_fit") or (
            f"{row['peak_mb']:8,.0f} MB  {row['step_s']:7.2f} s  {part:6.1%} of AdamW"
        )
        print(f"OPT-{row['size']:5s}{row['batch']:3d} x{row['seq']:3d}  {row['cell']:26s}{figures}")
    return shown


def main() -> None:
    study = Study(__doc__, quick="OPT-125M, small batches, two steps")
    study.parser.add_argument("--models", type=Path, help="where the models are kept")
    study.parser.add_argument("--threads", type=int, default=2)
    study.parser.add_argument("--steps", type=int, default=8)
    study.parser.add_argument("--limit-gb", type=float, default=20.0)
    study.parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = study.begin()
    if args.cell:
        carry_out(args.cell)
        return
    sizes, cells = (QUICK_SHAPES, QUICK_CELLS) if args.quick else (SHAPES, CELLS)
    wanted = [(name, size) for size in sizes for name in cells]
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or Path(folder)
        models.mkdir(parents=True, exist_ok=True)
        for name, size in study.missing(wanted, lambda row: (row["cell"], row["size"])):
            row = run_cell(name, size, args, models)
            study.add(row, f"{name}, {size}: {row.get('peak_mb', row.get('does_not_fit'))}")
    order = [(row["cell"], row["size"]) for row in study.rows]
    rows = [study.rows[order.index(cell)] for cell in wanted if cell in order]
    if not any(row["cell"] == "torch, AdamW" for row in rows):
        return
    study.finish(paper_mb=PAPER_MB, rows=table(rows))


if __name__ == "__main__":
    main()
