"""Where does an OPT of real dimensions come from without a network? This script writes one.

    python benchmarks/make_random_opt.py --size 125m --out DIR [--tokenizer DIR] [--seed 0]

The weights are random; dimensions, file layout and (with ``--tokenizer``, a folder with vocab.json
and merges.txt) tokenizer are the real ones. Without it a small tokenizer knows the words of the
bundled tasks, so that ``pairzero export DIR OUT --task snips`` takes the folder. Needs the
``[export]`` extra.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_runtime.task_spec import available_tasks, load_task
from server.errors import ServerError
from server.export.random_models import DIMENSIONS, write_random_opt


def words_of_bundled_tasks() -> list[str]:
    """What a model has to be able to say in order to be exported for one of them."""
    tasks = [load_task(name)[0] for name in available_tasks()]
    return [word for task in tasks for word in task.label_words.values()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=list(DIMENSIONS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder with vocab.json and merges.txt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        write_random_opt(
            args.out,
            size=args.size,
            tokenizer_folder=args.tokenizer,
            words=words_of_bundled_tasks(),
            seed=args.seed,
        )
    except ServerError as error:
        print(error, file=sys.stderr)
        return 2
    megabytes = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(f"{args.out}: OPT {args.size} with random weights, {megabytes:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
