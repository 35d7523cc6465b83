"""Where do the bundled film reviews come from? This script made them of the published files.

    python benchmarks/make_reviews.py FOLDER edge_runtime/assets/reviews   # rt-polarity.{pos,neg}

Shuffled once, with a fixed seed, and cut into what devices train on (8,500), what curves and
thresholds are taken from (1,000), and what figures are reported of (the other 1,162). A review that
stands in both files, or twice, goes out.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

import numpy as np

PARTS = {"train.tsv": 8500, "validate.tsv": 1000, "test.tsv": None}
SEED = 0


def read(folder: Path) -> list[tuple[str, str]]:
    """(label, text) of every review, those that are ambiguous left out."""
    rows = [
        (label, " ".join(line.split()))
        for label, name in (("negative", "rt-polarity.neg"), ("positive", "rt-polarity.pos"))
        for line in (folder / name).read_text("utf-8").split("\n")
        if line.strip()
    ]
    count = collections.Counter(text for _, text in rows)
    return [(label, text) for label, text in rows if count[text] == 1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    rows = read(args.folder)
    order = np.random.default_rng(SEED).permutation(len(rows)).tolist()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, size in PARTS.items():
        own, order = order[:size], order[size:] if size else []
        lines = [f"{rows[i][0]}\t{rows[i][1]}\n" for i in own]
        (args.out / name).write_text("".join(lines), "utf-8", newline="\n")
        positive = sum(line.startswith("positive") for line in lines)
        print(f"{name}: {len(lines)} reviews, {positive} of them positive", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
