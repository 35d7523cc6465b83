"""``pairzero export``: models on their way in."""

from __future__ import annotations

import argparse

from edge_runtime.task_spec import load_task
from edge_runtime.tasks import read_examples
from server.export import export_bundle

NUM_COMPARED_TEXTS = 200


def export(args: argparse.Namespace) -> int:
    """Turn a Hugging Face OPT into a bundle."""
    task, folder = load_task(args.task)
    texts = [
        example.text
        for name in (task.train, task.validation)
        if name and (folder / name).is_file()
        for example in read_examples(folder / name, task)[:NUM_COMPARED_TEXTS]
    ]
    out = export_bundle(args.model, args.out, task=task, head=args.head, via=args.via, texts=texts)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: bundle for task {task.name!r}, {size_mb:.1f} MB")
    return 0
