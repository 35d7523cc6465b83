"""Writes the golden losses of two tiny OPTs, for tests that run without torch.

    python -m server.export.golden tests/golden --date 2025-01-31

One pre-norm OPT (125M style) and one post-norm OPT with projections (350M style).
``tiny_opt_losses.npz`` holds, per case, the graphs, the weights, one padded batch and torch's
losses; ``tiny_opt_losses.json`` says how it was made and how closely it must be met.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from server.export.dependencies import load
from server.export.families.opt import OptArchitecture
from server.export.families.opt_graph import build_graphs
from server.export.self_check import CheckBatch, torch_reference

logger = logging.getLogger(__name__)

NAME = "tiny_opt_losses"
FORMAT = 3
TOLERANCE = 1e-5
TOLERANCE_REASON = (
    "absolute, on losses up to 5.3 and scores up to 1.7: float32 sums in another order, on another "
    "processor or onnxruntime version; 5e-7 was seen on x86-64 with onnxruntime 1.32"
)
SEED = 20240

CASES: dict[str, dict[str, Any]] = {
    "pre_norm": {},
    "post_norm_projected": {"do_layer_norm_before": False, "word_embed_proj_dim": 12},
}
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "ffn_dim": 32, "max_position_embeddings": 16,
}  # fmt: skip
WEIGHT_STD = 0.25
"""Large enough for sharp attention, so that a wrong mask or head split shows."""


def make_case(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Graphs, weights, batch and torch's outputs of one case, under prefixed names."""
    torch, transformers = load("torch"), load("transformers")
    config = transformers.OPTConfig(**DIMENSIONS, **changes)
    model = transformers.OPTForCausalLM(config).eval().requires_grad_(False)
    architecture = OptArchitecture.from_config(config)
    rng = np.random.default_rng(SEED)
    weights = {
        name: rng.normal(float("norm.weight" in name), WEIGHT_STD, shape).astype(np.float16)
        for name, shape in architecture.tensor_shapes().items()
    }
    lengths = np.array([9, 4, 7])
    input_ids = rng.integers(4, config.vocab_size, (3, 9))
    input_ids[np.arange(9) >= lengths[:, None]] = config.pad_token_id
    batch = CheckBatch(
        input_ids=input_ids,
        lengths=lengths,
        answer_position=np.arange(3) * 9 + lengths - 1,
        target=np.array([2, 0, 1]),
        label_token_ids=np.array([5, 21, 38]),
    )
    working = {name: array.astype(np.float32) for name, array in weights.items()}
    with torch.inference_mode():
        wanted = torch_reference(model, working)(batch)
    graphs = {
        name: graph.SerializeToString(deterministic=True)
        for name, graph in build_graphs(architecture).items()
    }
    return {
        **{f"graph:{name}": np.frombuffer(g, dtype=np.uint8) for name, g in graphs.items()},
        **{f"weight:{name}": array for name, array in weights.items()},
        **{f"input:{name}": array for name, array in batch.feeds().items()},
        **{f"output:{name}": array for name, array in wanted.items()},
    }


def write_golden(folder: Path, date: str) -> None:
    """Write the .npz and the .json into ``folder``."""
    arrays = {
        f"{case}/{name}": array
        for case, changes in CASES.items()
        for name, array in make_case(**changes).items()
    }
    np.savez_compressed(folder / f"{NAME}.npz", **arrays)  # type: ignore[arg-type]
    provenance = {
        "format": FORMAT,
        "generator": "server/export/golden.py",
        "regenerate": "python -m server.export.golden tests/golden --date YYYY-MM-DD",
        "date": date,
        "seed": SEED,
        "versions": {name: load(name).__version__ for name in ("torch", "transformers", "onnx")},
        "tolerance": TOLERANCE,
        "tolerance_reason": TOLERANCE_REASON,
        "cases": list(CASES),
    }
    (folder / f"{NAME}.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %d arrays written", folder / NAME, len(arrays))


def main(argv: list[str] | None = None) -> int:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(description="Write the golden losses of two tiny OPTs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--date", required=True, help="goes into the .json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    write_golden(args.folder, args.date)
    return 0


if __name__ == "__main__":
    sys.exit(main())
